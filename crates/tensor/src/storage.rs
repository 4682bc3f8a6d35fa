//! Memory behind tensors, and that of the CPU back end: blocks go back to a pool and are handed out again, so that a
//! denoising step in the steady state maps no new pages.

use crate::{Device, Error, Result, cuda, pages};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

/// What a tensor's numbers lie in.
pub(crate) enum Storage {
    /// On the CPU.
    Cpu(Block),
    /// On a GPU.
    Cuda(cuda::Buffer),
}

/// Alignment of every block: one cache line, one AVX-512 register, one AMX tile row.
const ALIGN: usize = 64;

/// A block of memory, always initialised (fresh blocks are zero), returned to the pool when dropped.
pub(crate) struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block owns its memory and has no interior mutability of its own.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

#[derive(Default)]
struct Pool {
    /// Free blocks by size; every list is non-empty.
    free: BTreeMap<usize, Vec<Block>>,
    free_bytes: usize,
    used_bytes: usize,
    peak_bytes: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), free_bytes: 0, used_bytes: 0, peak_bytes: 0 });

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Rounds a size up to its class: steps of an eighth of the leading power of two, so that blocks of
/// neighbouring sizes are interchangeable at a waste of at most an eighth.
pub(crate) fn class(bytes: usize) -> usize {
    if bytes <= 4096 {
        return bytes.next_multiple_of(ALIGN).max(ALIGN);
    }
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    bytes.next_multiple_of(step)
}

impl Block {
    /// A block of at least `bytes` bytes; its content is whatever an earlier owner left.
    pub(crate) fn new(bytes: usize) -> Result<Block> {
        let oom = || Error::OutOfMemory { bytes, device: "the CPU".into(), advice: String::new() };
        if bytes > isize::MAX as usize / 2 {
            return Err(oom());
        }
        let size = class(bytes);
        let mut pool = pool();
        let reuse = pool.free.range(size..=size + size / 8).next().map(|(&s, _)| s);
        if let Some(found) = reuse
            && let Some(list) = pool.free.get_mut(&found)
        {
            let block = list.pop();
            if list.is_empty() {
                pool.free.remove(&found);
            }
            if let Some(block) = block {
                pool.free_bytes -= found;
                pool.used_bytes += found;
                pool.peak_bytes = pool.peak_bytes.max(pool.used_bytes);
                return Ok(block);
            }
        }
        pool.used_bytes += size;
        pool.peak_bytes = pool.peak_bytes.max(pool.used_bytes);
        drop(pool);
        match pages::take(size, ALIGN) {
            Some(ptr) => Ok(Block { ptr, bytes: size }),
            None => {
                self::pool().used_bytes -= size;
                Err(oom())
            }
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    fn release(self) {
        // SAFETY: taken in `new` with this very size, and forgotten here.
        unsafe { pages::give_back(self.ptr, self.bytes, ALIGN) };
        std::mem::forget(self);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let again = Block { ptr: self.ptr, bytes: self.bytes };
        let mut pool = pool();
        pool.used_bytes -= self.bytes;
        pool.free_bytes += self.bytes;
        pool.free.entry(self.bytes).or_default().push(again);
    }
}

/// Bytes held by a back end.
#[derive(Debug, Clone, Copy)]
pub struct MemoryUse {
    /// In tensors and packed weights now.
    pub used: usize,
    /// Kept for reuse.
    pub free: usize,
    /// The most that was ever in use.
    pub peak: usize,
}

/// What the back end of a device holds now.
///
/// # Errors
/// A GPU that cannot be used.
pub fn memory_use_of(device: &Device) -> Result<MemoryUse> {
    match device {
        Device::Cpu => Ok(memory_use()),
        Device::Cuda(n) => Ok(cuda::gpu(*n)?.memory_use()),
    }
}

/// What the CPU back end holds now.
pub fn memory_use() -> MemoryUse {
    let pool = pool();
    MemoryUse { used: pool.used_bytes, free: pool.free_bytes, peak: pool.peak_bytes }
}

/// As [`trim`], where more than `bytes` are kept: inside a network whose levels differ so much in size that one cannot
/// use what another leaves.
pub fn trim_above(bytes: usize) {
    if pool().free_bytes > bytes {
        trim();
    }
}

/// Gives the CPU's blocks kept for reuse back to the system: between stages whose sizes differ. A GPU keeps its own:
/// nobody else waits for them, giving them back waits for the device, and they are given back when memory runs out.
pub fn trim() {
    let free = {
        let mut pool = pool();
        pool.free_bytes = 0;
        std::mem::take(&mut pool.free)
    };
    for block in free.into_values().flatten() {
        block.release();
    }
}
