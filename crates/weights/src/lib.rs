//! Untrusted bytes in, named tensors out.
//!
//! A [`Weights`] is a table of named tensors that came from a safetensors file, a PyTorch zip pickle, a diffusers folder
//! or a part of a single-file checkpoint. Networks walk it through a [`Scope`] and take [`View`]s, which are read and
//! converted only when asked. Every tensor taken is marked, so that what nobody asked for can be named.
//!
//! Files are read with positioned reads and not mapped into memory: a file that is cut while it is being read then gives
//! an error, where touching a mapped page would end the process, and no page stays counted as the program's own.

mod adapter;
mod convert;
mod dtype;
mod error;
mod file;
mod folder;
mod json;
mod kind;
mod layout;
mod random;
mod safetensors;
mod source;
mod stored;
mod table;
mod torch;
mod view;

pub use adapter::{IpAdapter, ip_adapter};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use folder::{Folder, config};
pub use kind::{Family, Kind, describe, family, identify};
pub use layout::{Components, Prediction, controlnet, sd15_checkpoint, sdxl_checkpoint, unet, vae};
pub use table::{Scope, Weights};
pub use view::View;
