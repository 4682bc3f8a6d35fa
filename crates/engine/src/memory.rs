//! How much memory a request takes at the least, so that what cannot fit is refused at once in a sentence, rather than
//! killed by the system after minutes of work.
//!
//! Only what is certain is counted: weights as the device holds them, the skip connections of the UNet with IdentityNet's beside them, the widest
//! activations of UNet and VAE.

use crate::generate::{TILE, UNTILED_PIXELS};
use crate::plan::{Compute, Plan};
use crate::request::Request;
use crate::stack::Stack;
use crate::{Error, Result};
use nets::{ControlNetConfig, EncoderConfig, UNetConfig, VaeConfig};
use tensor::ops::{Conv2d, ConvOptions};
use tensor::{DType, Device};

/// Refuses what clearly needs more than the memory that is there.
pub(crate) fn check(request: &Request, plan: &Plan, stack: &Stack) -> Result<()> {
    let on_device = on_device(plan.compute.device)?;
    let Some(there) = on_device.or(request.memory) else { return Ok(()) };
    let need = need(plan, stack);
    if need <= there {
        return Ok(());
    }
    let advice = match plan.compute.dtype {
        DType::F32 if on_device.is_none() => "a smaller --size, fewer pictures or --precision bf16 need less",
        _ if on_device.is_none() => "a smaller --size or fewer pictures need less",
        DType::F32 => "a smaller --size, fewer pictures, --precision f16 or --device cpu need less of it",
        _ => "a smaller --size, fewer pictures or --device cpu need less of it",
    };
    Error::refused(format!(
        "--size {}x{} in {} needs at least {} of memory with these models, and {} are free; {advice}",
        plan.width,
        plan.height,
        plan.precision,
        human(need),
        human(there)
    ))
}

/// A GPU's own memory, which counts where it computes: what is free, and what this process holds there, since networks
/// that are kept are counted as needed, too.
fn on_device(device: Device) -> Result<Option<u64>> {
    let Some((free, _)) = device.memory()? else { return Ok(None) };
    let ours = tensor::memory_use_of(&device)?;
    Ok(Some((free + ours.used + ours.free) as u64))
}

/// Refuses a benchmark that clearly needs more than the memory that is there.
pub(crate) fn check_bench(what: &str, need: u64, there: Option<u64>, compute: Compute) -> Result<()> {
    let Compute { device, dtype, .. } = compute;
    let on_device = on_device(device)?;
    let Some(there) = on_device.or(there).filter(|there| need > *there) else { return Ok(()) };
    let advice = match dtype {
        DType::F32 => "a smaller --size, a smaller --config or --precision bf16 need less",
        _ => "a smaller --size or a smaller --config need less",
    };
    let (need, there) = (human(need), human(there));
    Error::refused(format!("{what} in {dtype} needs at least {need} of memory, and {there} are free; {advice}"))
}

fn need(plan: &Plan, stack: &Stack) -> u64 {
    let (unet, vae, beside) = stack.sizes();
    let pixels = u64::from(plan.width) * u64::from(plan.height);
    let latent = pixels / u64::from(stack.vae_factor()).pow(2);
    let halves = if plan.guided { 2 } else { 1 };
    let net = stack.identitynet_config().filter(|_| plan.identity.is_some());
    let more = transformed(unet, net.as_ref(), plan.compute);
    let weights = (stack.parameters(plan.identity.is_some()) + more) as u64 * bytes(plan.compute.dtype);
    let decode = decode(vae, pixels, plan.compute.vae_dtype());
    // Of several pictures all but the last are decoded beside the denoising networks.
    let beside_decode = if plan.seeds.len() > 1 { decode } else { 0 };
    let step = step(&unet.encoder, beside, halves * latent, plan.compute.dtype);
    // On a GPU a recorded step keeps its memory meanwhile.
    let activations = match plan.compute.device {
        Device::Cpu => step.max(beside_decode),
        Device::Cuda(_) => step + beside_decode,
    };
    let denoise = weights + activations;
    let text = stack.text_parameters() as u64 * bytes(DType::F32);
    denoise.max(text).max(decode)
}

/// Numbers that the denoising networks hold beyond those of their files, because convolutions are transformed.
pub(crate) fn transformed(unet: &UNetConfig, net: Option<&ControlNetConfig>, compute: Compute) -> usize {
    let held =
        |inputs, outputs| Conv2d::held(compute.dtype, compute.device, [outputs, inputs, 3], ConvOptions::same3());
    let beside = net.map_or(0, |net| net.held(&held) - net.parameters());
    unet.held(&held) - unet.parameters() + beside
}

/// Activations of a denoising step for a batch of `pixels` latent pixels in all.
pub(crate) fn step(encoder: &EncoderConfig, beside: bool, pixels: u64, dtype: DType) -> u64 {
    let first = encoder.levels.first().map_or(0, |level| level.width as u64);
    // What `conv_in`, each residual block and each halving give is kept for the way up.
    let kept: u64 = encoder
        .levels
        .iter()
        .enumerate()
        .map(|(i, level)| {
            let (width, layers, halved) = (level.width as u64, level.layers as u64, i + 1 < encoder.levels.len());
            ((width * layers * pixels) >> (2 * i)) + if halved { (width * pixels) >> (2 * i + 2) } else { 0 }
        })
        .sum();
    // The last level of the way up joins its input, at least as wide, with a kept one, and normalises both.
    let joined = 2 * (2 * first) * pixels;
    let kept = kept + first * pixels;
    (kept * if beside { 2 } else { 1 } + joined) * bytes(dtype)
}

/// Activations of the decoder, and the picture as it leaves it.
pub(crate) fn decode(vae: &VaeConfig, pixels: u64, dtype: DType) -> u64 {
    let tile = (TILE.0 * vae.zoom()) as u64;
    let at_once = if pixels > UNTILED_PIXELS { pixels.min(tile * tile) } else { pixels };
    // The last level takes the width of the one before it, and gives its own.
    let widths = vae.block_out_channels.iter().take(2).map(|c| *c as u64).sum::<u64>();
    at_once * widths * bytes(dtype) + pixels * 2 * 3 * bytes(DType::F32)
}

pub(crate) fn bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::BF16 | DType::F16 => 2,
    }
}

/// Bytes as people say them.
fn human(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.0} MB", (bytes as f64 / 1e6).ceil()),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transformed_convolutions_are_counted() {
        let (unet, net) = (UNetConfig::sdxl(), ControlNetConfig::sdxl());
        let more = |dtype| {
            let compute = Compute { device: Device::Cpu, dtype, narrow: false };
            transformed(&unet, Some(&net), compute) as u64 * bytes(dtype)
        };
        // As measured by loading them.
        assert!((2_000_000_000..2_300_000_000).contains(&more(DType::F32)), "{}", more(DType::F32));
        assert_eq!(more(DType::BF16), 0);
    }
}
