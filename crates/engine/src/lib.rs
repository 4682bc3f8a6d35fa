//! From a request to a picture.
//!
//! Modules stand in the order in which data flows: what the user said ([`Request`]), the model files opened and the
//! networks built from them ([`Session`]),
//! the face, what was decided ([`Plan`]), the prompt's tokens ([`prompt`]), noise levels and samplers
//! ([`schedule`], [`samplers`]), and the whole way ([`generate`]). Nothing here prints, reads the environment or knows
//! HTTP; progress and cancelling are one callback.

mod error;
mod event;
mod files;
mod request;

mod about;
mod session;
mod stack;
mod subject;

mod device;
mod digest;
mod memory;
mod plan;

pub mod prompt;
mod text;
mod vram;

pub mod samplers;
pub mod schedule;

mod networks;
mod repeat;

pub mod bench;
mod generate;

pub mod metadata;
mod record;
mod recover;
mod save;

pub use device::{check_instructions, keep_kernels_in};
pub use error::{Error, Result};
pub use event::{Event, Observer, Stage};
pub use files::write_atomically;
pub use generate::{Output, Picture, generate};
pub use plan::{IdentityPlan, ModelRecord, Plan};
pub use request::{DeviceChoice, Embedding, ModelPaths, Pose, Precision, Request, Rng};
pub use save::Target;
pub use session::Session;
pub use tensor::Device;
