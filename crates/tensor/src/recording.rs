//! Work that is the same each time, such as a denoising step, recorded once and replayed: a GPU then waits for no launch.

use crate::{Device, Error, Result, Tensor, cuda, meter};

/// A piece of work on a GPU, recorded. It reads the tensors it was recorded with, at their places, and writes the same
/// results again; see [`Tensor::overwrite`].
pub struct Recording {
    recorded: cuda::Recording,
    /// Operations of a replay, which the meter counts.
    flop: u64,
    /// Results live as long as the record that writes to them.
    _results: Vec<Tensor>,
}

impl Recording {
    /// Records what `body` asks of a GPU, without doing it, and its results, which hold nothing before the first
    /// [`Recording::replay`]. The same work should have run once before, so that kernels are compiled and algorithms
    /// chosen; other threads wait meanwhile with what they want of the GPU. None on the CPU.
    ///
    /// # Errors
    /// Whatever `body` says; work that cannot be recorded, such as reading numbers back.
    pub fn new<E: From<Error>>(
        device: &Device,
        body: impl FnOnce() -> std::result::Result<Vec<Tensor>, E>,
    ) -> std::result::Result<Option<(Recording, Vec<Tensor>)>, E> {
        let Device::Cuda(n) = *device else { return Ok(None) };
        let before = meter::flop_count();
        let mut said = None;
        let recorded = cuda::record(cuda::gpu(n)?, || {
            body().map_err(|error| {
                said = Some(error);
                Error::argument("record", "the work could not be recorded")
            })
        });
        let flop = meter::flop_count().wrapping_sub(before);
        meter::count_all(flop.wrapping_neg()); // written down, not done
        match (recorded, said) {
            (_, Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
            (Ok((recorded, results)), None) => {
                Ok(Some((Recording { recorded, flop, _results: results.clone() }, results)))
            }
        }
    }

    /// Does the work again, on what its inputs hold now.
    ///
    /// # Errors
    /// What the device says.
    pub fn replay(&self) -> Result<()> {
        meter::count_all(self.flop);
        self.recorded.replay()
    }
}
