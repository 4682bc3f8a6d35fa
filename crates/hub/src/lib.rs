//! Finding model files on this machine, and bringing them from the Hugging Face hub.
//!
//! Modules stand in the order in which data flows: what the user's surroundings say ([`HubConfig`]), which models
//! are known ([`catalog`]), where files lie ([`locate`]), what is lacking ([`plan`]), and bringing it ([`pull`]).
//! Nothing here prints and nothing here reads the environment; both are the caller's.
//!
//! Downloads go into the hub's own cache, laid out as `huggingface_hub` lays it out, so that every other program of
//! that family finds them, and this one finds theirs. The client is small and our own, on `ureq`: of the crates for
//! the hub, `hf-hub` 1.0 brings 284 crates with it, starts again from zero after an interruption, and checks no
//! checksum.

mod cache;
pub mod catalog;
mod config;
mod digest;
mod download;
mod error;
mod http;
mod layouts;
mod locate;
mod plan;
mod progress;
mod pull;

pub use config::{HubConfig, Patience};
pub use error::{Error, Result};
pub use locate::{Found, Listing, Place, Role, list, locate, path_of};
pub use plan::{Part, Plan, Wanted, plan};
pub use progress::{Event, Progress, human};
pub use pull::{Pulled, pull};
