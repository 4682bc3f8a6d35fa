//! Times the operators at SDXL's shapes: `cargo run --release -p tensor --example kernels [f32|bf16|bf16x3] [PART OF A NAME...]`.

use std::time::Instant;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, KeyValue, Linear, PackedKeyValue, Products};
use tensor::{DType, Device, Tensor};

fn noise(dtype: DType, shape: &[usize]) -> Tensor {
    let mut state = 1u64;
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_f32(&Device::Cpu, dtype, shape, &data).expect("memory")
}

/// Prints the median of five runs of what `prepare` makes, where it was asked for, and what it makes of `flop` operations.
fn time<R: FnMut()>(name: &str, flop: f64, prepare: impl FnOnce() -> R) {
    let wishes: Vec<String> = std::env::args().skip(2).collect();
    if !wishes.is_empty() && !wishes.iter().any(|wish| name.contains(wish)) {
        return;
    }
    let mut run = prepare();
    run();
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            run();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:45} {:9.2} ms {:8.3} TFLOP/s", times[2] * 1e3, flop / times[2] / 1e12);
}

fn main() {
    let types = match std::env::args().nth(1).as_deref() {
        Some("f32") => vec![("f32", DType::F32, Products::Whole)],
        Some("bf16") => vec![("bf16", DType::BF16, Products::Whole)],
        Some("bf16x3") => vec![("bf16x3", DType::F32, Products::InParts)],
        _ => vec![("f32", DType::F32, Products::Whole), ("bf16", DType::BF16, Products::Whole)],
    };
    for (kind, dtype, products) in types {
        let peak = tensor::measure_peak_of(&Device::Cpu, dtype, products).expect("the type is one to compute with");
        println!("{kind} peak of the arithmetic units {:43.3} TFLOP/s", peak / 1e12);
        for (m, k, n) in [
            (512, 1280, 1280),
            (512, 5120, 1280),
            (2048, 640, 640),
            (2048, 1280, 1280),
            (8192, 640, 640),
            (2048, 5120, 1280),
            (154, 2048, 1280),
        ] {
            time(&format!("{kind} linear {m}x{k} -> {n}"), 2.0 * (m * k * n) as f64, || {
                let (x, w) = (noise(dtype, &[m, k]), noise(dtype, &[n, k]));
                let layer = Linear::with(&w, None, products).expect("shapes fit");
                move || drop(layer.forward(&x).expect("shapes fit"))
            });
        }
        for m in [512, 2048] {
            time(&format!("{kind} geglu {m}x1280 -> 5120"), 2.0 * m as f64 * 1280.0 * 10240.0, || {
                let (x, w) = (noise(dtype, &[m, 1280]), noise(dtype, &[10240, 1280]));
                let layer = Linear::with(&w, None, products).expect("shapes fit");
                move || drop(layer.forward_geglu(&x).expect("shapes fit"))
            });
        }
        for (b, size, c, n) in [
            (2, 64, 320, 320),
            (2, 32, 640, 640),
            (2, 16, 1280, 1280),
            (1, 128, 320, 320),
            (1, 64, 640, 640),
            (1, 32, 1280, 1280),
            (1, 512, 128, 128),
            (1, 512, 256, 128),
            (1, 256, 256, 256),
            (1, 128, 512, 512),
        ] {
            let name = format!("{kind} conv3x3 {b}x{size}x{size}x{c} -> {n}");
            time(&name, 18.0 * (b * size * size * c * n) as f64, || {
                let (x, w) = (noise(dtype, &[b, size, size, c]), noise(dtype, &[n, c, 3, 3]));
                let conv = Conv2d::with(&w, None, ConvOptions::same3(), products).expect("shapes fit");
                move || drop(conv.forward(&x).expect("shapes fit"))
            });
        }
        for (n, m, heads) in [(4096, 4096, 10), (1024, 1024, 20), (4096, 77, 10), (256, 256, 20), (1024, 93, 20)] {
            time(&format!("{kind} attention {n}x{m}, {heads} heads of 64"), 4.0 * (n * m * heads * 64) as f64, || {
                let (q, k, v) = (
                    noise(dtype, &[1, n, heads * 64]),
                    noise(dtype, &[1, m, heads * 64]),
                    noise(dtype, &[1, m, heads * 64]),
                );
                move || {
                    let keys = PackedKeyValue::with(KeyValue { k: &k, v: &v }, heads, products).expect("shapes fit");
                    drop(ops::attention_packed(&q, &keys, 0.125, None).expect("shapes fit"));
                }
            });
        }
        let norm_inputs = || (noise(dtype, &[1, 128, 128, 320]), noise(DType::F32, &[320]), noise(DType::F32, &[320]));
        time(&format!("{kind} group norm + SiLU 128x128x320"), 0.0, || {
            let (x, w, b) = norm_inputs();
            move || drop(ops::group_norm(&x, 32, &w, &b, 1e-5, Activation::Silu).expect("shapes fit"))
        });
        time(&format!("{kind} layer norm 16384x320"), 0.0, || {
            let (x, w, b) = norm_inputs();
            move || drop(ops::layer_norm(&x, &w, Some(&b), 1e-5).expect("shapes fit"))
        });
    }
}
