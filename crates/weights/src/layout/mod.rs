//! Key maps: the names of the original code base (latent diffusion, "LDM", and its SDXL successor) to those of diffusers
//! and transformers.
//!
//! The facts are those of diffusers' `loaders/single_file_utils.py`. Numbers of levels, layers and transformer blocks are
//! counted in the keys and never assumed. A tensor that no rule knows keeps its name, so that it is reported as unused.

mod checkpoint;
mod text;
mod unet;
mod vae;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::kind::{Kind, describe, identify};
use crate::table::{Entry, Weights};

pub use checkpoint::{Components, Prediction, sd15_checkpoint, sdxl_checkpoint};

/// Tensors under their new names.
type Renamed = BTreeMap<String, Entry>;

/// The UNet with diffusers' names from a UNet file of either layout, with or without `model.diffusion_model.` in front.
///
/// # Errors
/// [`Error::WrongKind`] when it is something else.
pub fn unet(weights: &Weights) -> Result<Weights> {
    let inner = stripped(weights, unet::PREFIX);
    match identify(&inner) {
        Kind::Unet => Ok(inner),
        Kind::UnetOriginal => Ok(inner.with_entries(unet::rename(&inner))),
        _ => Err(wrong(weights, "a UNet")),
    }
}

/// The ControlNet with diffusers' names from a file of either layout, with or without `control_model.` in front.
///
/// # Errors
/// [`Error::WrongKind`] when it is something else.
pub fn controlnet(weights: &Weights) -> Result<Weights> {
    let inner = stripped(weights, unet::CONTROL_PREFIX);
    match identify(&inner) {
        Kind::ControlNet => Ok(inner),
        Kind::ControlNetOriginal => Ok(inner.with_entries(unet::rename(&inner))),
        _ => Err(wrong(weights, "a ControlNet")),
    }
}

/// The VAE with diffusers' current names: from the original layout, with or without `first_stage_model.` in front, from
/// diffusers' first one (`query`, `key`, `value`, `proj_attn`), or as it is.
///
/// # Errors
/// [`Error::WrongKind`] when it is something else.
pub fn vae(weights: &Weights) -> Result<Weights> {
    let inner = stripped(weights, vae::PREFIX);
    match identify(&inner) {
        Kind::Vae | Kind::VaeOriginal => Ok(inner.with_entries(vae::rename(&inner))),
        _ => Err(wrong(weights, "a VAE")),
    }
}

fn stripped(weights: &Weights, prefix: &str) -> Weights {
    let inner = weights.select(prefix);
    if inner.entries().is_empty() { weights.clone() } else { inner }
}

fn wrong(weights: &Weights, expected: &str) -> Error {
    Error::WrongKind { file: weights.file().to_owned(), found: describe(weights), expected: expected.to_owned() }
}

/// The first rule whose old prefix fits, applied.
fn replace_prefix(name: &str, rules: &[(&str, &str)]) -> Option<String> {
    rules.iter().find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)))
}

/// `12.rest` as (12, `rest`).
fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}
