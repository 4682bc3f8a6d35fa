//! What of the driver's results means that a GPU is lost to this process: everything asked of it later fails the same way.

use super::gpu::Gpu;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult as R};
use std::sync::OnceLock;

/// How a GPU was lost, if it was: what was being done, and what the driver said.
#[derive(Default)]
pub(super) struct Lost(OnceLock<(String, String)>);

/// Whether nothing works after this result but a new process: a kernel broke off, memory is damaged, the card is gone.
fn is_final(result: R) -> bool {
    matches!(
        result,
        R::CUDA_ERROR_DEINITIALIZED
            | R::CUDA_ERROR_DEVICE_UNAVAILABLE
            | R::CUDA_ERROR_NO_DEVICE
            | R::CUDA_ERROR_ECC_UNCORRECTABLE
            | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | R::CUDA_ERROR_CONTAINED
            | R::CUDA_ERROR_ILLEGAL_ADDRESS
            | R::CUDA_ERROR_LAUNCH_TIMEOUT
            | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | R::CUDA_ERROR_ASSERT
            | R::CUDA_ERROR_HARDWARE_STACK_ERROR
            | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | R::CUDA_ERROR_MISALIGNED_ADDRESS
            | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | R::CUDA_ERROR_INVALID_PC
            | R::CUDA_ERROR_LAUNCH_FAILED
            | R::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | R::CUDA_ERROR_EXTERNAL_DEVICE
            | R::CUDA_ERROR_UNKNOWN
    )
}

impl Gpu {
    /// Turns a driver's result into an error of this device.
    pub(super) fn check(&self, doing: &str, result: R) -> Result<()> {
        match super::gpu::complaint(result) {
            None => Ok(()),
            // Kernels, graphs and modules take memory too.
            Some(_) if result == R::CUDA_ERROR_OUT_OF_MEMORY => Err(self.no_memory(0, None, self.used_now())),
            Some(said) if is_final(result) => {
                self.lost.0.get_or_init(|| (doing.into(), said));
                self.check_lost()
            }
            Some(said) => Err(self.failed(doing, said)),
        }
    }

    /// Refuses a GPU that was lost.
    pub(super) fn check_lost(&self) -> Result<()> {
        match self.lost.0.get().cloned() {
            Some((doing, reason)) => Err(Error::Lost { device: self.device().to_string(), doing, reason }),
            None => Ok(()),
        }
    }

    /// That so many bytes, 0 where nobody said how many, could not be had beside what is `used`.
    pub(super) fn no_memory(&self, bytes: usize, limit: Option<usize>, used: usize) -> Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places are of the right type; where it fails they stay zero.
        unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        let megabytes = |bytes: usize| bytes / 1_000_000;
        let advice = format!(
            "; of its {} MB, {} are in use here and {} are free. A smaller picture, fewer pictures at once, f16 instead \
             of f32 or the CPU need less",
            megabytes(limit.map_or(total, |limit| limit.min(total))),
            megabytes(used),
            megabytes(free)
        );
        Error::OutOfMemory { bytes, device: self.device().to_string(), advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_tried_again_is_not_final() {
        for result in [
            R::CUDA_SUCCESS,
            R::CUDA_ERROR_OUT_OF_MEMORY,
            R::CUDA_ERROR_INVALID_VALUE,
            R::CUDA_ERROR_NOT_READY,
            R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            R::CUDA_ERROR_CAPTURED_EVENT,
            R::CUDA_ERROR_NO_BINARY_FOR_GPU,
        ] {
            assert!(!is_final(result), "{result:?}");
        }
        assert!(is_final(R::CUDA_ERROR_LAUNCH_FAILED) && is_final(R::CUDA_ERROR_ECC_UNCORRECTABLE));
    }
}
