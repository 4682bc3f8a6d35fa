//! A whole model in one file, taken apart.

use crate::error::{Error, Result};
use crate::kind::{Kind, identify};
use crate::table::Weights;

use super::{Renamed, text, unet, vae, wrong};

/// The parts of a single-file checkpoint, with the names that diffusers and transformers use.
pub struct Components {
    /// The UNet.
    pub unet: Weights,
    /// The autoencoder. Its encoder counts as used: generating needs only the decoder.
    pub vae: Weights,
    /// CLIP's text model.
    pub text_encoder: Weights,
    /// OpenCLIP's text model with projection; empty for Stable Diffusion 1.5.
    pub text_encoder_2: Weights,
    /// What the file says its UNet predicts.
    pub prediction: Prediction,
    /// Whether the file is marked as trained with zero terminal signal-to-noise ratio (`ztsnr`).
    pub zero_terminal_snr: bool,
}

/// What a UNet was trained to predict, as far as markers in the file tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// Nothing is said: the noise, by custom.
    Unsaid,
    /// The noise, said so in the metadata.
    Epsilon,
    /// The velocity (`v_pred`, or `modelspec.prediction_type` of `v`).
    Velocity,
    /// Karras' preconditioning (`edm_mean`, `edm_vpred.*`).
    Edm,
}

const TEXT: &str = "cond_stage_model.transformer.";
const TEXT_1: &str = "conditioner.embedders.0.transformer.";
const TEXT_2: &str = "conditioner.embedders.1.model.";

/// Tensors of such files that no part needs: schedules, averages kept for training, markers.
const IGNORED: [&str; 20] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "scale_factor",
    "global_step",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
    "edm_mean",
    "edm_std",
];
const IGNORED_BELOW: [&str; 4] = ["model_ema.", "edm_vpred.", "denoiser.", "first_stage_model.loss."];

/// Takes an SDXL checkpoint in the original layout apart.
///
/// # Errors
/// [`Error::WrongKind`] when the keys are those of another model, [`Error::Unsupported`] when a part is missing.
pub fn sdxl_checkpoint(weights: &Weights) -> Result<Components> {
    if identify(weights) != Kind::SdxlCheckpoint {
        return Err(wrong(weights, "an SDXL checkpoint"));
    }
    let clip = weights.select(TEXT_1);
    let open_clip = weights.select(TEXT_2);
    let first = part(weights, "first text encoder", text::rename_clip(&clip))?;
    let second = part(weights, "second text encoder", text::rename_open_clip(&open_clip))?;
    components(weights, first, second)
}

/// Takes a Stable Diffusion 1.x checkpoint in the original layout apart.
///
/// # Errors
/// As for [`sdxl_checkpoint`].
pub fn sd15_checkpoint(weights: &Weights) -> Result<Components> {
    if identify(weights) != Kind::Sd15Checkpoint {
        return Err(wrong(weights, "an SD 1.5 checkpoint"));
    }
    let first = part(weights, "text encoder", text::rename_clip(&weights.select(TEXT)))?;
    components(weights, first, weights.with_entries(Renamed::new()))
}

fn components(weights: &Weights, text_encoder: Weights, text_encoder_2: Weights) -> Result<Components> {
    for (name, entry) in weights.entries() {
        if IGNORED.contains(&name.as_str()) || IGNORED_BELOW.iter().any(|start| name.starts_with(start)) {
            entry.mark();
        }
    }
    let unet = part(weights, "UNet", unet::rename(&weights.select(unet::PREFIX)))?;
    let vae = part(weights, "VAE", vae::rename(&weights.select(vae::PREFIX)))?;
    for (name, entry) in vae.entries() {
        if name.starts_with("encoder.") || name.starts_with("quant_conv.") {
            entry.mark();
        }
    }
    Ok(Components {
        unet,
        vae,
        text_encoder,
        text_encoder_2,
        prediction: prediction(weights),
        zero_terminal_snr: weights.entries().contains_key("ztsnr"),
    })
}

fn part(weights: &Weights, name: &str, renamed: Renamed) -> Result<Weights> {
    if renamed.is_empty() {
        let reason = format!("the checkpoint has no {name}; use one that is complete");
        return Err(Error::unsupported(weights.file().as_ref(), reason));
    }
    Ok(weights.with_entries(renamed))
}

fn prediction(weights: &Weights) -> Prediction {
    let has = |name: &str| weights.entries().contains_key(name);
    if has("edm_mean") || weights.entries().keys().any(|name| name.starts_with("edm_vpred.")) {
        return Prediction::Edm;
    }
    if has("v_pred") {
        return Prediction::Velocity;
    }
    match weights.metadata().get("modelspec.prediction_type").map(String::as_str) {
        Some("v" | "v_prediction" | "velocity") => Prediction::Velocity,
        Some("epsilon") => Prediction::Epsilon,
        _ => Prediction::Unsaid,
    }
}
