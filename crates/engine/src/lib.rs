//! Request to plan to image.

mod error;
pub mod prompt;

pub use error::{Error, Result};
