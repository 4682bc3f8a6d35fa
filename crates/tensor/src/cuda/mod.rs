//! The CUDA back end: the operators' names again, over one stream and one memory pool for each GPU.
//!
//! Everything is asked of a GPU in one order and done in that order, so memory that an operator was the last to need can
//! be handed to the next one at once, and no operator waits for the device. Only reading numbers back waits.
//!
//! Nothing of CUDA is needed to build this, and nothing but the driver and NVRTC to run it: products and convolutions
//! run on cuBLASLt and cuDNN where they are found, and on this crate's own kernels otherwise.

pub(crate) mod attention;
mod choice;
pub(crate) mod conv;
mod counters;
pub(crate) mod elementwise;
mod failure;
mod fork;
mod fused;
mod gpu;
mod kernels;
mod libraries;
pub(crate) mod linear;
mod long;
mod memory;
pub(crate) mod narrow;
pub(crate) mod norm;
pub(crate) mod parked;
mod peak;
mod product;
mod profile;
mod recording;
pub(crate) mod shape;
pub(crate) mod staging;
mod text;
pub(crate) mod tiles;
pub(crate) mod transfer;
pub(crate) mod winograd;

pub(crate) use fork::both;
pub(crate) use gpu::{Gpu, count, gpu};
pub use kernels::set_kernel_cache;
pub(crate) use memory::Buffer;
pub(crate) use peak::measure_peak;
pub use profile::Spent;
pub(crate) use profile::{begin as begin_profile, end as end_profile};
pub(crate) use recording::{Recording, record};

use crate::{DType, Result, Tensor};

/// The GPU of an operand and where its numbers begin. Operators check devices before they call the back end.
fn place(x: &Tensor) -> Result<(&'static Gpu, u64)> {
    x.on_gpu().ok_or_else(|| crate::Error::argument("cuda", "an operand lies on the CPU; all must be on one GPU"))
}

/// A new tensor on the GPU whose numbers a kernel will write, and where they begin.
fn fresh(gpu: &'static Gpu, dtype: DType, shape: &[usize]) -> Result<(Tensor, u64)> {
    let out = transfer::empty(gpu, dtype, shape)?;
    let (_, at) = place(&out)?;
    Ok((out, at))
}
