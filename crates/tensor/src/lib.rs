//! Numbers on a device: a small set of fused operators for diffusion networks.
//!
//! A [`Tensor`] is contiguous, immutable and cheap to clone. Pictures are NHWC (`[b, h, w, c]`), token
//! sequences `[b, n, c]`. The operators in [`ops`] check shapes and then call the back end of the
//! tensor's [`Device`]. This is not a general tensor library: an operator is here because a network
//! needs it. Weights of matrix products are packed once ([`ops::Linear`], [`ops::Conv2d`]).
//!
//! Results do not depend on the number of threads.

mod cpu;
mod cuda;
mod device;
mod error;
mod meter;
pub mod ops;
mod pages;
mod parking;
pub mod random;
mod recording;
mod storage;
mod tensor;

pub use cpu::isa::instructions;
pub use cuda::parked::ring;
pub use cuda::{Spent, set_kernel_cache};
pub use device::{Device, at_once, set_threads, threads};
pub use error::{Error, Result};
pub use meter::{begin_profile, end_profile, flop_count, measure_peak, measure_peak_of};
pub use parking::{Parking, Turn};
pub use recording::Recording;
pub use storage::{MemoryUse, memory_use, memory_use_of, trim, trim_above};
pub use tensor::{DType, Tensor};
