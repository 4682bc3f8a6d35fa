//! Times the operators of a 1024x1024 SDXL step with guidance on a GPU:
//! `cargo run --release -p tensor --example gpu [cuda:N] [f32|f16|bf16]`.

use std::time::Instant;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, KeyValue, Linear};
use tensor::{DType, Device, Result, Tensor};

#[derive(Clone, Copy)]
struct Bench {
    device: Device,
    dtype: DType,
}

/// An operator on operands of its own.
type Run = Box<dyn Fn() -> Result<Tensor>>;

impl Bench {
    fn noise(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        let data: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
        Tensor::from_f32(&self.device, dtype, shape, &data)
    }

    fn of(&self, shape: &[usize]) -> Result<Tensor> {
        self.noise(self.dtype, shape)
    }

    /// The best of five rounds of ten, per call, what it makes of so many operations and bytes, and how far it is from
    /// the same in f32.
    fn time(&self, name: &str, flop: usize, numbers: usize, make: impl Fn(Bench) -> Result<Run>) -> Result<()> {
        let run = make(*self)?;
        let out = run()?.to_vec_f32()?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let begin = Instant::now();
            for _ in 0..10 {
                run()?;
            }
            self.device.synchronize()?;
            best = best.min(begin.elapsed().as_secs_f64() / 10.0);
        }
        let exact = make(Bench { dtype: DType::F32, ..*self })?()?.to_vec_f32()?;
        let square = |x: f32| f64::from(x) * f64::from(x);
        let distance: f64 = out.iter().zip(&exact).map(|(a, b)| square(a - b)).sum();
        let error = (distance / exact.iter().map(|b| square(*b)).sum::<f64>()).sqrt();
        assert!(error.is_finite(), "{name} in {} gives {error} from f32", self.dtype);
        println!(
            "{:4} {name:44} {:9.3} ms {:8.1} TFLOP/s {:7.0} GB/s, {error:.1e} from f32",
            self.dtype.to_string(),
            best * 1e3,
            flop as f64 / best / 1e12,
            (numbers * self.dtype.bytes()) as f64 / best / 1e9
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let index = arguments.iter().find_map(|a| a.strip_prefix("cuda:")).and_then(|n| n.parse().ok()).unwrap_or(0);
    let dtype = match arguments.iter().map(String::as_str).find(|a| ["f32", "bf16"].contains(a)) {
        Some("f32") => DType::F32,
        Some(_) => DType::BF16,
        None => DType::F16,
    };
    let begin = Instant::now();
    let bench = Bench { device: Device::Cuda(index), dtype };
    bench.device.open()?;
    println!("{} opened in {:.0} ms", bench.device.name()?.unwrap_or_default(), begin.elapsed().as_secs_f64() * 1e3);
    let begin = Instant::now();
    let small = bench.of(&[1, 8, 8, 64])?;
    let (w, b) = (bench.noise(DType::F32, &[64])?, bench.noise(DType::F32, &[64])?);
    ops::group_norm(&small, 32, &w, &b, 1e-5, Activation::Silu)?;
    let flat = small.reshape(&[1, 64, 64])?;
    ops::attention(&flat, KeyValue { k: &flat, v: &flat }, 1, 0.125, false, None)?;
    ops::add(&small, &small)?;
    bench.device.synchronize()?;
    println!("first kernels in {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);

    for (m, k, n) in [
        (8192, 640, 640),
        (8192, 640, 1920),
        (8192, 2560, 640),
        (2048, 1280, 1280),
        (2048, 1280, 3840),
        (2048, 5120, 1280),
    ] {
        bench.time(
            &format!("linear {m}x{k} -> {n} + residual"),
            2 * m * k * n,
            m * k + n * k + 2 * m * n,
            move |of| {
                let (x, w, b, r) = (of.of(&[m, k])?, of.of(&[n, k])?, of.of(&[n])?, of.of(&[m, n])?);
                let layer = Linear::new(&w, Some(&b))?;
                Ok(Box::new(move || layer.forward_with(&x, Activation::None, Some(&r))))
            },
        )?;
    }
    for (m, k, n) in [(8192, 640, 5120), (2048, 1280, 10240)] {
        let numbers = m * k + n * k + m * n / 2;
        bench.time(&format!("geglu {m}x{k} -> {}", n / 2), 2 * m * k * n, numbers, move |of| {
            // Small enough for the product of two results to stay in f16.
            let (x, w, b) = (ops::scale(&of.of(&[m, k])?, 0.1)?, of.of(&[n, k])?, of.of(&[n])?);
            let layer = Linear::new(&w, Some(&b))?;
            Ok(Box::new(move || layer.forward_geglu(&x)))
        })?;
    }
    for (side, c, n) in [
        (128, 320, 320),
        (128, 960, 320),
        (64, 640, 640),
        (64, 1920, 640),
        (32, 1280, 1280),
        (32, 2560, 1280),
        (128, 4, 320),
        (128, 320, 4),
    ] {
        let numbers = 2 * side * side * (c + 2 * n) + 9 * c * n;
        let name = format!("conv3x3 2x{side}x{side}x{c} -> {n} + residual");
        bench.time(&name, 36 * side * side * c * n, numbers, move |of| {
            let (x, w, b) = (of.of(&[2, side, side, c])?, of.of(&[n, c, 3, 3])?, of.of(&[n])?);
            let r = of.of(&[2, side, side, n])?;
            let conv = Conv2d::new(&w, Some(&b), ConvOptions::same3())?;
            Ok(Box::new(move || conv.forward_with(&x, &Fused { residual: Some(&r), ..Fused::default() })))
        })?;
    }
    for (n, heads) in [(4096, 10), (1024, 20)] {
        let (flop, numbers) = (8 * n * n * heads * 64, 8 * n * heads * 64);
        bench.time(&format!("self-attention 2x{n}, {heads} heads of 64"), flop, numbers, move |of| {
            let qkv = of.of(&[2, n, 3 * heads * 64])?;
            Ok(Box::new(move || ops::attention_joined(&qkv, heads, 0.125, false)))
        })?;
        let (flop, numbers) = (8 * n * 93 * heads * 64, 4 * n * heads * 64);
        bench.time(&format!("cross-attention 2x{n} over 77 + 16"), flop, numbers, move |of| {
            let q = of.of(&[2, n, heads * 64])?;
            let (text, identity) = (of.of(&[2, 77, heads * 64])?, of.of(&[2, 16, heads * 64])?);
            Ok(Box::new(move || {
                let (text, identity) = (KeyValue { k: &text, v: &text }, KeyValue { k: &identity, v: &identity });
                ops::attention(&q, text, heads, 0.125, false, Some((identity, 0.8)))
            }))
        })?;
    }
    for (side, c) in [(128, 320), (128, 960), (64, 640), (32, 1280)] {
        let size = 2 * side * side * c;
        bench.time(&format!("group norm + SiLU 2x{side}x{side}x{c}"), 0, 3 * size, move |of| {
            let (x, w, b) = (of.of(&[2, side, side, c])?, of.noise(DType::F32, &[c])?, of.noise(DType::F32, &[c])?);
            Ok(Box::new(move || ops::group_norm(&x, 32, &w, &b, 1e-5, Activation::Silu)))
        })?;
        if c > 320 {
            bench.time(&format!("layer norm 2x{side}x{side}x{c}"), 0, 2 * size, move |of| {
                let (x, w, b) = (of.of(&[2, side, side, c])?, of.noise(DType::F32, &[c])?, of.noise(DType::F32, &[c])?);
                Ok(Box::new(move || ops::layer_norm(&x, &w, Some(&b), 1e-5)))
            })?;
        }
        bench.time(&format!("add 2x{side}x{side}x{c}"), 0, 3 * size, move |of| {
            let x = of.of(&[2, side, side, c])?;
            Ok(Box::new(move || ops::add(&x, &x)))
        })?;
    }
    let size = 2 * 64 * 64 * 640;
    bench.time("upsample 2x64x64x640", 0, 5 * size, |of| {
        let x = of.of(&[2, 64, 64, 640])?;
        Ok(Box::new(move || ops::upsample_nearest(&x, 128, 128)))
    })?;
    bench.time("concat 2x64x64x640", 0, 4 * size, |of| {
        let x = of.of(&[2, 64, 64, 640])?;
        Ok(Box::new(move || ops::concat_last(&[&x, &x])))
    })?;
    let memory = tensor::memory_use_of(&bench.device)?;
    println!("memory: {} MB at most in use", memory.peak / 1_000_000);
    Ok(())
}
