//! The networks of InstantID on Stable Diffusion: text encoders, UNet, IdentityNet, resampler, autoencoder.
//!
//! A network is a struct whose fields carry the names of the checkpoint, plus `forward`. Sizes come from a
//! configuration, which is read from a `config.json` ([`UNetConfig::from_json`]) or from the tensors themselves
//! ([`UNetConfig::infer`]). What does not change between the steps of a sampler is computed once and kept in a context
//! ([`UNetContext`], [`ControlNetContext`]). Pictures and latents are `[b, h, w, c]`, token sequences `[b, n, c]`.
//!
//! The crate knows no files, prompts or randomness.

mod clip;
mod controlnet;
mod embed;
mod encoder;
mod error;
mod fields;
mod load;
mod resampler;
mod resnet;
mod size;
mod transformer;
mod unet;
mod vae;

pub use clip::{ClipOutput, ClipText, ClipTextConfig};
pub use controlnet::{ControlNet, ControlNetConfig, ControlNetContext};
pub use embed::Added;
pub use encoder::{AdditionEmbed, EncoderConfig, Level, MidBlockConfig};
pub use error::{Error, Result};
pub use load::Numbers;
pub use resampler::{Resampler, ResamplerConfig};
pub use unet::{Residuals, UNet, UNetConfig, UNetContext};
pub use vae::{Moments, Vae, VaeConfig};
