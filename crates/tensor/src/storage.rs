//! Memory behind tensors, and that of the CPU back end: blocks go back to a pool and are handed out again, so that a
//! denoising step in the steady state maps no new pages. Where none has the size that is wanted, large ones are divided or
//! their pages are gathered: the levels of a decoder, of which each works on four times as much as the one before, share
//! theirs, and the system need not clear new ones, half a second of one core for a picture of 512x512.

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

impl Pool {
    fn keep(&mut self, block: Block) {
        self.free_bytes += block.bytes;
        self.free.entry(block.bytes).or_default().push(block);
    }

    fn pop(&mut self, bytes: usize) -> Option<Block> {
        let list = self.free.get_mut(&bytes)?;
        let block = list.pop();
        if list.is_empty() {
            self.free.remove(&bytes);
        }
        self.free_bytes -= block.as_ref().map_or(0, |block| block.bytes);
        block
    }

    /// A block of that size or a little more, or a part of a larger one.
    fn fitting(&mut self, size: usize) -> Option<Block> {
        if let Some((&found, _)) = self.free.range(size..=size + size / 8).next() {
            return self.pop(found);
        }
        let larger = |&bytes: &usize| pages::movable(size) && pages::movable(bytes);
        let found = self.free.range(size..).map(|(&bytes, _)| bytes).find(larger)?;
        let (ptr, bytes) = self.pop(found)?.into_parts();
        // SAFETY: the part behind lies in the block, which is larger.
        self.keep(Block { ptr: unsafe { ptr.add(size) }, bytes: bytes - size });
        Some(Block { ptr, bytes: size })
    }

    /// Blocks that have at least so many bytes together, or all that can be [gathered](pages::gather) to that size.
    fn donors(&mut self, size: usize) -> Vec<Block> {
        let (mut donors, mut sum) = (Vec::new(), 0);
        while pages::movable(size) && sum < size {
            let largest = self.free.keys().rev().copied().find(|&bytes| pages::movable(bytes));
            let Some(block) = largest.and_then(|bytes| self.pop(bytes)) else { break };
            sum += block.bytes;
            donors.push(block);
        }
        donors
    }
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
        if let Some(block) = pool.fitting(size) {
            pool.used_bytes += block.bytes;
            pool.peak_bytes = pool.peak_bytes.max(pool.used_bytes);
            return Ok(block);
        }
        pool.used_bytes += size;
        pool.peak_bytes = pool.peak_bytes.max(pool.used_bytes);
        let donors = pool.donors(size);
        drop(pool);
        let mut donors = donors.into_iter().map(Block::into_parts).collect();
        // SAFETY: donors are blocks of movable sizes or parts of them, which nobody uses.
        let ptr = unsafe { pages::gather(size, ALIGN, &mut donors) };
        let mut pool = self::pool();
        for (ptr, bytes) in donors {
            pool.keep(Block { ptr, bytes });
        }
        if ptr.is_none() {
            pool.used_bytes -= size;
        }
        ptr.map(|ptr| Block { ptr, bytes: size }).ok_or_else(oom)
    }

    /// A block of `count` numbers of 32 bits, which `fill` writes; before, they are whatever an earlier owner left.
    pub(crate) fn filled(count: usize, fill: impl FnOnce(&mut [u32])) -> Result<Block> {
        let block = Block::new(count * 4)?;
        // SAFETY: the block holds that many u32, initialised and aligned for them, and is not shared yet.
        fill(unsafe { std::slice::from_raw_parts_mut(block.as_ptr().cast::<u32>(), count) });
        Ok(block)
    }

    fn into_parts(self) -> (NonNull<u8>, usize) {
        let parts = (self.ptr, self.bytes);
        std::mem::forget(self);
        parts
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
        pool.keep(again);
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

/// As [`trim`], where more than `bytes` are kept and what one size leaves is of no use to another: between stages whose sizes
/// differ, and inside a network whose levels do.
pub fn trim_above(bytes: usize) {
    if !pages::movable(pages::HUGE) && pool().free_bytes > bytes {
        trim();
    }
}

/// Gives the CPU's blocks kept for reuse back to the system, when networks have made room. A GPU keeps its own:
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

#[cfg(test)]
mod tests {
    use super::Block;
    use crate::pages::HUGE;
    use std::slice::from_raw_parts_mut;

    /// Blocks that are divided and gathered again and again never share memory, and nothing of them is lost.
    #[test]
    fn large_blocks_are_disjoint_and_reused() {
        let mut held: Vec<(Block, u8)> = Vec::new();
        let mut state = 7_u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let line = |block: &Block, at: usize| {
            // SAFETY: callers stay in the block.
            unsafe { from_raw_parts_mut(block.as_ptr().add(at), 64) }
        };
        for round in 0..300_u32 {
            if held.len() > next(6) {
                let (block, value) = held.swap_remove(next(held.len()));
                let mut lines = (0..block.bytes).step_by(HUGE / 4).map(|at| line(&block, at));
                assert!(lines.all(|line| line.iter().all(|byte| *byte == value)), "round {round}");
            } else {
                // Some sizes that can be moved and some that cannot.
                let block = Block::new((1 + next(12)) * (HUGE / 2 + 4096 * next(2))).unwrap();
                let value = round as u8;
                (0..block.bytes).step_by(HUGE / 4).for_each(|at| line(&block, at).fill(value));
                held.push((block, value));
            }
        }
    }

    /// In a pool of its own, since other tests use the common one meanwhile.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_larger_block_is_divided() {
        let mut pool = super::Pool::default();
        pool.keep(Block::new(8 * HUGE).unwrap());
        let whole = pool.free_bytes;
        let part = pool.fitting(3 * HUGE).unwrap();
        assert_eq!((part.bytes, pool.free_bytes), (3 * HUGE, whole - 3 * HUGE));
        assert!(pool.fitting(whole).is_none());
        assert_eq!(pool.donors(whole).len(), 1);
    }
}
