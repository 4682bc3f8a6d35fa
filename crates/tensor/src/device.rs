//! Where tensors live and operators run.

use crate::{Result, cuda};

/// A device, chosen at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor, all cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number. Opened at first use; where it cannot be, the first tensor says why.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Device {
    /// How many GPUs this machine has; 0 where there is no driver.
    pub fn gpus() -> usize {
        cuda::count()
    }

    /// Opens the device, so that what is missing is told before any work.
    ///
    /// # Errors
    /// What is missing on this machine, in a sentence that says what to do.
    pub fn open(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(n) => cuda::gpu(*n).map(|_| ()),
        }
    }

    /// The maker's name of the device; none for the CPU.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn name(&self) -> Result<Option<String>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda(n) => Ok(Some(cuda::gpu(*n)?.name.clone())),
        }
    }

    /// Waits until everything that was asked of the device is done: for measuring.
    ///
    /// # Errors
    /// What the device says about work that failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(n) => cuda::gpu(*n)?.synchronize(),
        }
    }

    /// Bytes free and in all in the device's own memory; none for the CPU.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda(n) => cuda::gpu(*n)?.memory().map(Some),
        }
    }

    /// From now on tensors take at most so many bytes of a GPU's memory; none: what there is. Without effect on the CPU.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn limit_memory(&self, bytes: Option<usize>) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(n) => cuda::gpu(*n).map(|gpu| gpu.limit_memory(bytes)),
        }
    }
}

impl Device {
    /// Whether products of 16 bits take a fraction of f32's time: on GPUs, and on processors with AMX. Elsewhere they
    /// are faster too, but not than f32 convolutions by Winograd's tiles.
    pub fn is_made_for_16_bits(&self) -> bool {
        match self {
            Device::Cpu => crate::cpu::isa::isa() == crate::cpu::isa::Isa::Amx,
            Device::Cuda(_) => true,
        }
    }

    /// Runs work of many operators where they are started best: for the CPU on one of its own threads. From any other
    /// thread each operator is handed over and waited for, which takes longer than a small operator itself.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Device::Cpu if rayon::current_thread_index().is_none() => rayon::scope(|_| work()),
            _ => work(),
        }
    }
}

impl Device {
    /// Does two pieces of work that do not need each other: where a [`crate::Recording`] is being made they will run at
    /// the same time, elsewhere one after the other. Neither may use what the other makes, nor keep it.
    pub fn both<A, B>(&self, one: impl FnOnce() -> A, other: impl FnOnce() -> B) -> (A, B) {
        if let Device::Cuda(n) = self
            && let Ok(gpu) = cuda::gpu(*n)
        {
            return cuda::both(gpu, one, other);
        }
        (one(), other())
    }
}

/// Does two pieces of work, of many operators each, that do not need each other, on the CPU's threads: each is a row of operators
/// of its own, so that no thread waits at an operator's end as long as there is another operator to take part in.
pub fn at_once<A: Send, B: Send>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B + Send) -> (A, B) {
    rayon::join(one, other)
}

/// How many threads the CPU back end works with.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Limits the CPU back end to `threads` threads (0: one for each core). Only the first call of a process
/// has an effect, and only before the first operator has run; returns whether it had.
pub fn set_threads(threads: usize) -> bool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().is_ok()
}
