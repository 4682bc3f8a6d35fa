//! Linear layers in 8 bits against the same numbers, rounded here to e4m3 with a scale for each row and multiplied in f32.

mod device;

use device::device;
use tensor::ops::{self, Activation, Linear, Rows};
use tensor::{DType, Device, Tensor};

/// Deterministic numbers in [-1, 1).
struct Noise(u64);

impl Noise {
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let next = |_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let data: Vec<f32> = (0..shape.iter().product()).map(next).collect();
        Tensor::from_f32(&Device::Cpu, DType::F32, shape, &data).unwrap()
    }
}

/// Four bits of exponent, three of mantissa, up to 448; to nearest even.
fn e4m3(x: f32) -> f32 {
    let exponent = (x.abs().max(f32::MIN_POSITIVE).to_bits() >> 23) as i32 - 127;
    let step = 2f32.powi(exponent.max(-6) - 3);
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

/// Rows as 8 bits with a scale for each hold them.
fn narrowed(x: &Tensor) -> Tensor {
    let (numbers, c) = (x.to_vec_f32().unwrap(), x.shape()[x.shape().len() - 1]);
    let row = |row: &[f32]| {
        let top = row.iter().fold(0f32, |top, x| top.max(x.abs()));
        let scale = if top > 0.0 { top / 448.0 } else { 1.0 };
        row.iter().map(|x| e4m3(x * (1.0 / scale)) * scale).collect::<Vec<f32>>()
    };
    Tensor::from_f32(&Device::Cpu, DType::F32, x.shape(), &numbers.chunks(c).flat_map(row).collect::<Vec<f32>>())
        .unwrap()
}

/// Relative distance of all numbers.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_vec_f32().unwrap(), want.to_vec_f32().unwrap());
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// Layers in 8 bits do what their rounding says, with all that leads to them and from them; and how far that is from f32.
#[test]
fn eight_bits_are_what_rounding_says() {
    let mut noise = Noise(12);
    for (rows, c) in [(64, 64), (77, 128), (300, 640), (512, 1280)] {
        let dtype = if device() == Device::Cpu { DType::BF16 } else { DType::F16 };
        let rounded = |x: Tensor| x.cast(dtype).unwrap().cast(DType::F32).unwrap();
        let x = rounded(noise.tensor(&[2, rows, c]));
        let (w, b) = (noise.tensor(&[c]), noise.tensor(&[c]));
        // Of a size that neither overflows in 16 bits nor vanishes beside what is added.
        let small = |x: Tensor| rounded(ops::scale(&x, 4.0 / (c as f32).sqrt()).unwrap());
        let weights = [small(noise.tensor(&[8 * c, c])), small(noise.tensor(&[c, 4 * c]))];
        let here = |x: &Tensor| x.to_device(&device()).unwrap();
        let mut layers = weights.clone().map(|w| Linear::new(&here(&w).cast(dtype).unwrap(), None).unwrap());
        let does = layers.iter_mut().all(|layer| layer.narrow().unwrap());
        let normal = ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap();
        let block = |narrow: &dyn Fn(&Tensor) -> Tensor, normal: &Tensor| {
            let [up, down] = weights.clone().map(|w| Linear::new(&narrow(&w), None).unwrap());
            let h = up.forward_geglu(&narrow(normal)).unwrap();
            down.forward_with(&narrow(&h), Activation::None, Some(&x)).unwrap()
        };
        let exact = block(&Tensor::clone, &normal);
        // Straight from the norm, and by way of a tensor, whose numbers are rounded to 16 bits before.
        let narrow: &dyn Fn(&Tensor) -> Tensor = if does { &narrowed } else { &Tensor::clone };
        let wants = [block(narrow, &normal), block(narrow, &rounded(normal.clone()))];
        let ([up, down], [x, w, b]) = (&layers, [&x, &w, &b].map(here));
        let x = x.cast(dtype).unwrap();
        let h = ops::layer_norm_for(up, &x, &w, &b, 1e-5).unwrap();
        assert_eq!(matches!(h, Rows::Narrow(_)), does);
        let one = down.forward_rows(&up.forward_geglu_for(down, &h).unwrap(), Some(&x)).unwrap();
        let plain = up.forward_geglu(&ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap()).unwrap();
        let other = down.forward_with(&plain, Activation::None, Some(&x)).unwrap();
        for (got, want) in [one, other].iter().zip(&wants) {
            assert_eq!(got.shape(), x.shape());
            let (error, from_f32, rounding) = (distance(got, want), distance(got, &exact), distance(want, &exact));
            println!(
                "8 bits {does}, {rows} rows of {c}: {error:.1e}; from f32 {from_f32:.1e}, rounding {rounding:.1e}"
            );
            assert!(error < 1.2e-2, "{error}");
            assert!(!does || (from_f32 / rounding - 1.0).abs() < 0.05, "{from_f32} is not rounding's own {rounding}");
        }
    }
}
