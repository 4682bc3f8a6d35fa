//! How much memory a request takes, so that what cannot fit is refused at once in a sentence, rather than killed by the
//! system after minutes of work, and what a GPU cannot hold waits on the host.
//!
//! For the CPU only what is certain is counted: weights as the device holds them, the skip connections of the UNet with
//! IdentityNet's beside them, the widest activations of UNet and VAE.

use crate::generate::{TILE, UNTILED_PIXELS};
use crate::plan::{Compute, Plan};
use crate::request::Request;
use crate::stack::Stack;
use crate::vram::{self, Arrangement, Needs};
use crate::{Error, Result};
use nets::{ControlNetConfig, EncoderConfig, UNetConfig, VaeConfig};
use tensor::ops::{Conv2d, ConvOptions};
use tensor::{DType, Device};

/// Refuses what clearly needs more than the machine's memory; for a GPU's see [`arrange`].
pub(crate) fn check(request: &Request, plan: &Plan, stack: &Stack) -> Result<()> {
    let Some(there) = request.memory.filter(|_| plan.compute.device == Device::Cpu) else { return Ok(()) };
    let need = need(plan, stack);
    if need <= there {
        return Ok(());
    }
    let advice = match plan.compute.dtype {
        DType::F32 => "a smaller --size, fewer pictures or --precision bf16 need less",
        _ => "a smaller --size or fewer pictures need less",
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

/// Bytes for tensors on a GPU: what the user allows, else what is free and what this process holds there, since networks
/// that are kept are counted as needed, too. None on the CPU.
pub(crate) fn on_device(device: Device, vram: Option<u64>) -> Result<Option<u64>> {
    let Some((free, _)) = device.memory()? else { return Ok(None) };
    let ours = tensor::memory_use_of(&device)?;
    let there = vram::beside_others(free as u64, (ours.used + ours.free) as u64);
    // The rest of the overhead is taken by now.
    Ok(Some(vram.and_then(vram::within).map_or(there, |cap| cap.min(there))))
}

/// What of the networks stays on a GPU and what waits on the host, with the bytes that there are for tensors. None on
/// the CPU.
pub(crate) fn arrange(
    needs: &Needs,
    what: &str,
    compute: Compute,
    vram: Option<u64>,
    host: Option<u64>,
) -> Result<Option<(Arrangement, u64)>> {
    let Some(mut there) = on_device(compute.device, vram)? else { return Ok(None) };
    if let Some(device) = compute.second {
        there = on_device(device, None)?.map_or(there, |other| there.min(other));
    }
    let arrangement = match needs.arrange(there) {
        Ok(arrangement) => arrangement,
        Err(least) => {
            let said = match vram {
                Some(_) => {
                    format!("--vram leaves {} for them; --vram {}M would do", human(there), vram::cap_for(least) >> 20)
                }
                None => format!("{} are free there", human(there)),
            };
            let f16 = if compute.dtype == DType::F32 { "--precision f16, " } else { "" };
            return Error::refused(format!(
                "{what} in {} needs at least {} of memory on {}, and {said}; {f16}a smaller --size or --device cpu need less",
                compute.precision(),
                human(least),
                compute.device
            ));
        }
    };
    if arrangement.waiting > 0 && compute.second.is_some() {
        return Error::refused(format!(
            "{what} in {} does not fit whole into each of {}, where {} are free; name one of them in --device, for which networks can wait in the machine's memory, or ask for a smaller --size",
            compute.precision(),
            compute.named(),
            human(there)
        ));
    }
    if let Some(host) = host.filter(|host| arrangement.waiting > *host) {
        return Error::refused(format!(
            "{what} in {} does not fit into {}'s memory, and the {} that would have to wait in the machine's do not fit there, where {} are free; a smaller --size or a smaller model need less",
            compute.precision(),
            compute.device,
            human(arrangement.waiting),
            human(host)
        ));
    }
    Ok(Some((arrangement, there)))
}

/// What a generation takes of a GPU; `keep`: whether networks stay for later requests.
pub(crate) fn needs(plan: &Plan, stack: &Stack, keep: bool) -> Result<Needs> {
    let (unet, vae, _) = stack.sizes();
    let pixels = u64::from(plan.width) * u64::from(plan.height);
    let latent = pixels / u64::from(stack.vae_factor()).pow(2);
    let halves = if plan.guided { 2 } else { 1 };
    let (identity, keeps) = (plan.identity.is_some(), keep && stack.has_identity());
    let net = stack.identitynet_config().filter(|_| identity || keeps);
    let text = stack.text_sizes()?;
    let f32s = |numbers: usize| numbers as u64 * bytes(DType::F32);
    let denoising = Denoising { unet, net: net.as_ref(), branch: identity || keeps, compute: plan.compute };
    let kept = text.iter().map(|text| text.all).sum::<usize>() + stack.resampler_parameters();
    Ok(Needs {
        vae: stack.vae_parameters() as u64 * bytes(plan.compute.vae_dtype()),
        decode: decode_on_gpu(vae, pixels, plan.compute.vae_dtype()),
        decodes_beside: keep || plan.seeds.len() > 1,
        // A table comes in 16 bits and is widened there.
        text: text.iter().map(|text| f32s(text.table * 3 / 2 + 4 * text.layer)).max().unwrap_or(0),
        kept: if keep { f32s(kept) } else { 0 },
        tables: if keep { f32s(text.iter().map(|text| text.table).sum()) } else { 0 },
        ..denoising.needs(stack.parameters(net.is_some()), plan.batch as u64 * halves * latent)
    })
}

/// The denoising networks.
pub(crate) struct Denoising<'a> {
    pub(crate) unet: &'a UNetConfig,
    pub(crate) net: Option<&'a ControlNetConfig>,
    /// Whether the UNet has the identity branch.
    pub(crate) branch: bool,
    pub(crate) compute: Compute,
}

impl Denoising<'_> {
    /// What `parameters` of UNet and IdentityNet and steps of `pixels` latent pixels in all take of a GPU.
    pub(crate) fn needs(&self, parameters: usize, pixels: u64) -> Needs {
        let keys = self.unet.key_parameters() + self.net.map_or(0, ControlNetConfig::key_parameters);
        let branch = if self.branch { self.unet.adapter_parameters() } else { 0 };
        let dtype = self.compute.dtype;
        let always = parameters.saturating_sub(keys) as u64 * bytes(dtype);
        Needs {
            always,
            transformed: transformed(self.unet, self.net, self.compute) as u64 * bytes(dtype),
            once: (keys + branch) as u64 * bytes(dtype),
            step: STEP * step(&self.unet.encoder, self.net.is_some(), pixels, dtype)
                + (always / 20).min(SCRATCH)
                + SMALL,
            ..Needs::default()
        }
    }
}

/// How much more a step takes on a GPU than what is certain.
const STEP: u64 = 3;
/// What its libraries work in.
const SCRATCH: u64 = 256 << 20;
/// Blocks that are much larger than what is in them.
const SMALL: u64 = 4 << 20;

/// As [`decode`], on a GPU, where pictures are enlarged before they are convolved.
pub(crate) fn decode_on_gpu(vae: &VaeConfig, pixels: u64, dtype: DType) -> u64 {
    2 * decode(vae, pixels, dtype)
}

/// Refuses a benchmark that clearly needs more than the memory that is there.
pub(crate) fn check_bench(what: &str, need: u64, there: Option<u64>, compute: Compute) -> Result<()> {
    let Compute { device, dtype, .. } = compute;
    let there = if device == Device::Cpu { there } else { on_device(device, None)? };
    let Some(there) = there.filter(|there| need > *there) else { return Ok(()) };
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
    let step = step(&unet.encoder, beside, plan.batch as u64 * halves * latent, plan.compute.dtype);
    let denoise = weights + step.max(beside_decode);
    let text = stack.text_parameters() as u64 * bytes(DType::F32);
    denoise.max(text).max(decode)
}

/// Numbers that the denoising networks hold beyond those of their files, because convolutions are transformed.
pub(crate) fn transformed(unet: &UNetConfig, net: Option<&ControlNetConfig>, compute: Compute) -> usize {
    let Compute { device, dtype, products, .. } = compute;
    let held = |inputs, outputs| Conv2d::held(dtype, products, device, [outputs, inputs, 3], ConvOptions::same3());
    let beside = net.map_or(0, |net| net.held(&held) - net.parameters());
    let doubled = |inputs, outputs| Conv2d::held_doubled(dtype, products, device, [outputs, inputs]);
    unet.held(&held, &doubled) - unet.parameters() + beside
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
pub(crate) fn human(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.0} MB", (bytes as f64 / 1e6).ceil()),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::ops::Products;

    #[test]
    fn transformed_convolutions_are_counted() {
        let (unet, net) = (UNetConfig::sdxl(), ControlNetConfig::sdxl());
        let more = |dtype| {
            let compute =
                Compute { device: Device::Cpu, second: None, dtype, products: Products::Whole, narrow: false };
            transformed(&unet, Some(&net), compute) as u64 * bytes(dtype)
        };
        // As measured by loading them.
        assert!((2_000_000_000..2_300_000_000).contains(&more(DType::F32)), "{}", more(DType::F32));
        let held = Conv2d::held(DType::BF16, Products::Whole, Device::Cpu, [640, 640, 3], ConvOptions::same3());
        if held > 9 * 640 * 640 {
            // Where products of bf16 take as long as those of f32.
            assert!((1_300_000_000..1_500_000_000).contains(&more(DType::BF16)), "{}", more(DType::BF16));
        } else {
            // Of two doubled pictures.
            assert_eq!(more(DType::BF16), 2 * 16 * (1280 * 1280 + 640 * 640));
        }
    }
}
