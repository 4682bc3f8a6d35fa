//! Times the operators of a 1024x1024 SDXL step with guidance on a GPU:
//! `cargo run --release -p tensor --example gpu [cuda:N] [f32|f16|bf16]`.

use std::time::Instant;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, KeyValue, Linear};
use tensor::{DType, Device, Result, Tensor};

struct Bench {
    device: Device,
    dtype: DType,
}

impl Bench {
    fn noise(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        let data: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(number).collect();
        Tensor::from_f32(&self.device, dtype, shape, &data)
    }

    fn of(&self, shape: &[usize]) -> Result<Tensor> {
        self.noise(self.dtype, shape)
    }

    /// The best of five rounds of ten, per call, and what it makes of so many operations and bytes.
    fn time(&self, name: &str, flop: usize, numbers: usize, mut run: impl FnMut() -> Result<Tensor>) -> Result<()> {
        run()?;
        self.device.synchronize()?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let begin = Instant::now();
            for _ in 0..10 {
                run()?;
            }
            self.device.synchronize()?;
            best = best.min(begin.elapsed().as_secs_f64() / 10.0);
        }
        println!(
            "{:4} {name:44} {:9.3} ms {:8.1} TFLOP/s {:7.0} GB/s",
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

    for (m, k, n) in [(8192, 640, 640), (8192, 640, 1920), (2048, 1280, 1280), (2048, 1280, 3840), (2048, 5120, 1280)] {
        let (x, w, b, r) = (bench.of(&[m, k])?, bench.of(&[n, k])?, bench.of(&[n])?, bench.of(&[m, n])?);
        let layer = Linear::new(&w, Some(&b))?;
        let numbers = m * k + n * k + 2 * m * n;
        bench.time(&format!("linear {m}x{k} -> {n} + residual"), 2 * m * k * n, numbers, || {
            layer.forward_with(&x, Activation::None, Some(&r))
        })?;
    }
    for (m, k, n) in [(8192, 640, 5120), (2048, 1280, 10240)] {
        let (x, w, b) = (bench.of(&[m, k])?, bench.of(&[n, k])?, bench.of(&[n])?);
        let layer = Linear::new(&w, Some(&b))?;
        bench.time(&format!("geglu {m}x{k} -> {}", n / 2), 2 * m * k * n, m * k + n * k + m * n / 2, || {
            layer.forward_geglu(&x)
        })?;
    }
    for (side, c, n) in
        [(128, 320, 320), (64, 640, 640), (32, 1280, 1280), (32, 2560, 1280), (128, 4, 320), (128, 320, 4)]
    {
        let (x, w, b) = (bench.of(&[2, side, side, c])?, bench.of(&[n, c, 3, 3])?, bench.of(&[n])?);
        let r = bench.of(&[2, side, side, n])?;
        let conv = Conv2d::new(&w, Some(&b), ConvOptions::same3())?;
        let numbers = 2 * side * side * (c + 2 * n) + 9 * c * n;
        bench.time(
            &format!("conv3x3 2x{side}x{side}x{c} -> {n} + residual"),
            36 * side * side * c * n,
            numbers,
            || conv.forward_with(&x, &Fused { residual: Some(&r), ..Fused::default() }),
        )?;
    }
    for (n, heads) in [(4096, 10), (1024, 20)] {
        let qkv = bench.of(&[2, n, 3 * heads * 64])?;
        bench.time(
            &format!("self-attention 2x{n}, {heads} heads of 64"),
            8 * n * n * heads * 64,
            8 * n * heads * 64,
            || ops::attention_joined(&qkv, heads, 0.125, false),
        )?;
        let q = bench.of(&[2, n, heads * 64])?;
        let (text, identity) = (bench.of(&[2, 77, heads * 64])?, bench.of(&[2, 16, heads * 64])?);
        let (text, identity) = (KeyValue { k: &text, v: &text }, KeyValue { k: &identity, v: &identity });
        bench.time(
            &format!("cross-attention 2x{n} over 77 + 16"),
            8 * n * 93 * heads * 64,
            4 * n * heads * 64,
            || ops::attention(&q, text, heads, 0.125, false, Some((identity, 0.8))),
        )?;
    }
    for (side, c) in [(128, 320), (128, 960), (64, 640), (32, 1280)] {
        let x = bench.of(&[2, side, side, c])?;
        let (w, b) = (bench.noise(DType::F32, &[c])?, bench.noise(DType::F32, &[c])?);
        bench.time(&format!("group norm + SiLU 2x{side}x{side}x{c}"), 0, 3 * x.len(), || {
            ops::group_norm(&x, 32, &w, &b, 1e-5, Activation::Silu)
        })?;
        if c > 320 {
            bench.time(&format!("layer norm 2x{side}x{side}x{c}"), 0, 2 * x.len(), || {
                ops::layer_norm(&x, &w, Some(&b), 1e-5)
            })?;
        }
        bench.time(&format!("add 2x{side}x{side}x{c}"), 0, 3 * x.len(), || ops::add(&x, &x))?;
    }
    let x = bench.of(&[2, 64, 64, 640])?;
    bench.time("upsample 2x64x64x640", 0, 5 * x.len(), || ops::upsample_nearest(&x, 128, 128))?;
    bench.time("concat 2x64x64x640", 0, 4 * x.len(), || ops::concat_last(&[&x, &x]))?;
    let memory = tensor::memory_use_of(&bench.device)?;
    println!("memory: {} MB at most in use", memory.peak / 1_000_000);
    Ok(())
}
