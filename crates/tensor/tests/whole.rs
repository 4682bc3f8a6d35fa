//! Products of f32 as they are: where there are tiles, in three parts that lose nothing a f32 has room for.

use tensor::ops::Linear;
use tensor::{DType, Device, Tensor};

/// Deterministic numbers in [-1, 1).
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|i| ((i + 1_000_000 * seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect()
}

fn tensor(shape: &[usize], x: &[f32]) -> Tensor {
    Tensor::from_f32(&Device::Cpu, DType::F32, shape, x).unwrap()
}

fn linear([rows, depth, columns]: [usize; 3], x: &[f32], w: &[f32]) -> Vec<f32> {
    let layer = Linear::new(&tensor(&[columns, depth], w), None).unwrap();
    layer.forward(&tensor(&[rows, depth], x)).unwrap().to_vec_f32().unwrap()
}

/// Each result in double precision.
fn exact([_, depth, columns]: [usize; 3], x: &[f32], w: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32], column: &[f32]| row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks_exact(depth)
        .flat_map(|row| w.chunks_exact(depth).take(columns).map(move |column| dot(row, column)))
        .collect()
}

/// The norm of the difference over the norm of what it should be.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let apart: f64 = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (apart / want.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn layers_lose_what_f32_loses() {
    // One row, odd depths and columns, several tasks, more depth than a slice.
    for size in [[1, 64, 32], [64, 64, 32], [100, 333, 70], [300, 640, 96], [40, 1500, 33]] {
        let [rows, depth, columns] = size;
        let (x, w) = (numbers(1, rows * depth), numbers(2, columns * depth));
        let error = distance(&linear(size, &x, &w), &exact(size, &x, &w));
        assert!(error <= 3e-7, "{size:?}: {error:e}");
    }
}

#[test]
fn magnitudes_change_nothing() {
    let size @ [rows, depth, columns] = [40, 96, 48];
    let (x, w) = (numbers(3, rows * depth), numbers(4, columns * depth));
    let scaled = |of: &[f32], by: i32| of.iter().map(|x| x * 2f32.powi(by)).collect::<Vec<_>>();
    for (of_x, of_w) in [(59, -30), (-60, 50), (58, 58), (70, -70), (120, -100), (-90, 61)] {
        let (x, w) = (scaled(&x, of_x), scaled(&w, of_w));
        let error = distance(&linear(size, &x, &w), &exact(size, &x, &w));
        assert!(error <= 3e-7, "2^{of_x}, 2^{of_w}: {error:e}");
    }
}

/// Infinities, NaN and what overflows, and nothing of them in other rows.
#[test]
fn what_is_no_number() {
    let kind = |x: f64| match x {
        x if x.is_nan() => "NaN",
        x if x > f64::from(f32::MAX) => "infinite",
        x if x < -f64::from(f32::MAX) => "negative",
        _ => "finite",
    };
    let size @ [rows, depth, columns] = [70, 40, 36];
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, -f32::MAX, 1e19] {
        let (mut x, mut w) = (numbers(5, rows * depth), numbers(6, columns * depth));
        // Twice in a row: infinities may cancel.
        for at in [3 * depth + 5, 3 * depth + 6, 50 * depth] {
            x[at] = value;
        }
        w[5] = 0.0;
        let check = |x: &[f32], w: &[f32]| {
            let (got, want) = (linear(size, x, w), exact(size, x, w));
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let near = want.abs() > 0.99 * f64::from(f32::MAX) && want.abs() < 1.01 * f64::from(f32::MAX);
                assert!(near || kind(f64::from(*got)) == kind(want), "{value}, result {i}: {got} for {want}");
            }
        };
        check(&x, &w);
        w[3 * depth + 2] = value;
        check(&numbers(5, rows * depth), &w);
    }
}
