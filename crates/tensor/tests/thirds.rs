//! Products of f32 in three parts.
use tensor::ops::{Activation, Linear, Products};
use tensor::{DType, Device, Tensor};

fn values(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|i| ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect()
}

#[test]
fn linear_layers_are_as_near_as_f32() {
    for (rows, depth, columns) in [(64, 64, 32), (100, 333, 70), (130, 640, 96), (96, 1000, 32)] {
        let (x, w) = (values(rows * depth, 1), values(columns * depth, 77));
        let here = |shape: &[usize], x: &[f32]| Tensor::from_f32(&Device::Cpu, DType::F32, shape, x).unwrap();
        let layer = Linear::with(&here(&[columns, depth], &w), None, Products::Whole).unwrap();
        let got = layer.forward(&here(&[rows, depth], &x)).unwrap().to_vec_f32().unwrap();
        let (mut apart, mut all) = (0.0, 0.0);
        for r in 0..rows {
            for c in 0..columns {
                let want: f64 =
                    (0..depth).map(|k| f64::from(x[r * depth + k]) * f64::from(w[c * depth + k])).sum();
                apart += (want - f64::from(got[r * columns + c])).powi(2);
                all += want * want;
            }
        }
        let error = (apart / all).sqrt();
        println!("{rows} {depth} {columns}: {error:.2e} with {}", tensor::instructions().unwrap());
        assert!(error < 3e-7, "{error:e}");
    }
    let _ = Activation::None;
}
