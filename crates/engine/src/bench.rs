//! The time of one denoising step of a published shape, on random weights: time does not depend on their values.

use crate::plan::Compute;
use crate::{Error, Result};
use nets::{Added, ControlNet, ControlNetConfig, UNet, UNetConfig};
use serde::Serialize;
use std::time::Instant;
use tensor::{DType, Device, Tensor, ops};
use weights::Weights;

/// Identity tokens of InstantID.
const IDENTITY_TOKENS: usize = 16;
/// Text tokens of one chunk.
const TEXT_TOKENS: usize = 77;

/// What a benchmark of a step found.
#[derive(Debug, Clone, Serialize)]
pub struct StepBench {
    /// The published shape.
    pub config: String,
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// Device.
    pub device: String,
    /// Numbers.
    pub precision: String,
    /// Building the networks, in milliseconds.
    pub load_ms: f64,
    /// The first step with everything that is done once for a picture, in milliseconds.
    pub first_step_ms: f64,
    /// The median of the later steps, in milliseconds.
    pub step_ms: f64,
    /// Operations of a step, in 10^12.
    pub step_tflop: f64,
    /// 10^12 operations a second.
    pub tflop_per_s: f64,
    /// What the arithmetic units gave in this run without memory in the way, in 10^12 operations a second.
    pub peak_tflop_per_s: f64,
    /// Share of that.
    pub share_of_peak: f64,
    /// Most memory held by tensors at once, in 10^6 bytes.
    pub tensor_peak_mb: f64,
}

/// Times a step of IdentityNet and UNet with guidance, so with a batch of two.
///
/// # Errors
/// A name or size that is not valid, no memory.
pub fn step(name: &str, size: (u32, u32), precision: crate::Precision, repeat: usize) -> Result<StepBench> {
    let (unet, net, pooled) = match name {
        "sdxl" => (UNetConfig::sdxl(), ControlNetConfig::sdxl(), 1280),
        "sd15" => (UNetConfig::sd15(), ControlNetConfig::sd15(), 0),
        "tiny" => (UNetConfig::tiny(), ControlNetConfig::tiny(), 32),
        _ => return Error::refused(format!("--config is {name:?}; valid are sdxl, sd15 and tiny")),
    };
    let (width, height) = size;
    if [width, height].iter().any(|s| *s < 64 || *s > 4096 || s % 64 != 0) {
        return Error::refused(format!(
            "--size is {width}x{height}; sides must be multiples of 64 between 64 and 4096"
        ));
    }
    let dtype = match precision {
        crate::Precision::F32 => DType::F32,
        crate::Precision::Auto | crate::Precision::Bf16 => DType::BF16,
        crate::Precision::F16 => {
            return Error::refused("--precision f16 needs a GPU; on the CPU use auto, f32 or bf16");
        }
    };
    let compute = Compute { device: Device::Cpu, dtype };
    let bench = Bench::build(compute, &unet, &net, pooled, (width as usize / 8, height as usize / 8))?;
    let peak = tensor::measure_peak(dtype)?;
    let before = tensor::flop_count();
    let begin = Instant::now();
    let contexts = bench.contexts()?;
    bench.step(&contexts)?;
    let first = begin.elapsed().as_secs_f64() * 1e3;
    let constant = tensor::flop_count() - before;
    let mut times = Vec::new();
    let mut flop = constant;
    for _ in 0..repeat.max(1) {
        let (before, begin) = (tensor::flop_count(), Instant::now());
        bench.step(&contexts)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        flop = tensor::flop_count() - before;
    }
    times.sort_by(f64::total_cmp);
    let step_ms = times[times.len() / 2];
    let rate = flop as f64 / step_ms * 1e3;
    Ok(StepBench {
        config: name.to_string(),
        size: [width, height],
        device: compute.device.to_string(),
        precision: dtype.to_string(),
        load_ms: bench.load_ms,
        first_step_ms: first,
        step_ms,
        step_tflop: flop as f64 / 1e12,
        tflop_per_s: rate / 1e12,
        peak_tflop_per_s: peak / 1e12,
        share_of_peak: rate / peak,
        tensor_peak_mb: tensor::memory_use().peak as f64 / 1e6,
    })
}

struct Bench {
    unet: UNet,
    net: ControlNet,
    text: Tensor,
    identity: Tensor,
    added: Option<Added>,
    hint: Tensor,
    latent: Tensor,
    load_ms: f64,
}

type Contexts = (nets::UNetContext, nets::ControlNetContext);

impl Bench {
    fn build(
        compute: Compute,
        unet: &UNetConfig,
        net: &ControlNetConfig,
        pooled: usize,
        (w, h): (usize, usize),
    ) -> Result<Bench> {
        let begin = Instant::now();
        let Compute { device, dtype } = compute;
        let random = Weights::random(1);
        let mut built = UNet::load(&random.root(), unet, &device, dtype)?;
        built.attach_identity(&random.root())?;
        let net = ControlNet::load(&random.root(), net, &device, dtype)?;
        let load_ms = begin.elapsed().as_secs_f64() * 1e3;
        let values = |shape: &[usize]| -> Result<Tensor> {
            let count = shape.iter().product::<usize>() as u64;
            // A fixed sequence without visible period, about as large as normal noise.
            let data: Vec<f32> = (0..count)
                .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
                .collect();
            Ok(Tensor::from_f32(&device, DType::F32, shape, &data)?)
        };
        let context = unet.encoder.cross_attention_dim;
        let sizes = [h as f32 * 8.0, w as f32 * 8.0, 0.0, 0.0, h as f32 * 8.0, w as f32 * 8.0];
        let added = match unet.encoder.addition {
            Some(_) => Some(Added { pooled: values(&[2, pooled])?, time_ids: vec![sizes; 2] }),
            None => None,
        };
        Ok(Bench {
            text: values(&[2, TEXT_TOKENS, context])?,
            identity: values(&[2, IDENTITY_TOKENS, context])?,
            hint: values(&[1, h * net.hint_zoom(), w * net.hint_zoom(), 3])?,
            latent: values(&[2, h, w, unet.encoder.in_channels])?,
            unet: built,
            net,
            added,
            load_ms,
        })
    }

    fn contexts(&self) -> Result<Contexts> {
        Ok((
            self.unet.context(&self.text, Some(&self.identity), self.added.as_ref())?,
            self.net.context(&self.identity, self.added.as_ref(), &self.hint)?,
        ))
    }

    fn step(&self, (unet, net): &Contexts) -> Result<Tensor> {
        let residuals = self.net.forward(&self.latent, 500.0, net, 0.8)?;
        let out = self.unet.forward(&self.latent, 500.0, unet, 0.8, Some(&residuals))?;
        let (negative, positive) = (out.rows(0, 1)?, out.rows(1, 1)?);
        Ok(ops::combine(&[(-4.0, &negative), (5.0, &positive)])?)
    }
}
