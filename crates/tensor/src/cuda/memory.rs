//! A GPU's memory: blocks go back to a pool and are handed out again. All work runs in one order on one stream, so a
//! block is free for the next owner as soon as its last user was launched, and a step in the steady state allocates
//! nothing.

use super::gpu::{Gpu, lock, records};
use super::parked::Lent;
use crate::storage::{MemoryUse, class};
use crate::tensor::Sums;
use crate::{Error, Result};
use cudarc::driver::sys;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

/// Blocks are at least this large, so that small ones share a class.
const LEAST: usize = 512;

/// A block of a GPU's memory, returned to the pool when dropped. Its content is what an earlier owner left.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    address: u64,
    bytes: usize,
    /// Where it is not the pool's, but part of a ring.
    lent: Option<Lent>,
    /// What the kernel that wrote this left of it; see [`super::tiles`] and [`super::winograd`].
    sums: Mutex<Option<Sums>>,
}

/// Free blocks by size; every list is non-empty.
pub(super) type Blocks = BTreeMap<usize, Vec<u64>>;

/// Free blocks and what is counted.
#[derive(Default)]
pub(super) struct Pool {
    free: Blocks,
    /// While work is recorded: what it gave back, which nobody else may have as long as the record can be replayed.
    apart: Option<Blocks>,
    /// While two pieces of work are recorded side by side.
    fork: Option<Fork>,
    free_bytes: usize,
    used_bytes: usize,
    peak_bytes: usize,
    /// What the driver gave and has not got back, and the most that may be asked of it.
    mapped_bytes: usize,
    limit: Option<usize>,
}

/// Blocks of two pieces of work that run at the same time: what one gives back, the other may still be using.
#[derive(Default)]
struct Fork {
    /// Which of the two asks now.
    aside: bool,
    /// What each piece took and gave back itself.
    free: [Blocks; 2],
    /// What each piece took and has not given back.
    own: [HashSet<u64>; 2],
    /// What was there before and was given back, free when both are done.
    later: Vec<(u64, usize)>,
}

/// A block of at least `bytes` bytes and at most `most`.
fn take(blocks: &mut Blocks, bytes: usize, most: usize) -> Option<(u64, usize)> {
    let (&size, list) = blocks.range_mut(bytes..=most).next()?;
    let address = list.pop()?;
    if list.is_empty() {
        blocks.remove(&size);
    }
    Some((address, size))
}

impl Pool {
    /// A free block of at least `bytes` bytes and at most `most`.
    fn take(&mut self, bytes: usize, most: usize) -> Option<(u64, usize)> {
        if let Some(fork) = self.fork.as_mut().filter(|_| records())
            && let Some(found) = take(&mut fork.free[usize::from(fork.aside)], bytes, most)
        {
            return Some(found);
        }
        if let Some(found) = self.apart.as_mut().filter(|_| records()).and_then(|apart| take(apart, bytes, most)) {
            return Some(found);
        }
        let (address, size) = take(&mut self.free, bytes, most)?;
        self.free_bytes -= size;
        Some((address, size))
    }

    /// A block is in somebody's hands.
    fn taken(&mut self, address: u64) {
        if let Some(fork) = self.fork.as_mut().filter(|_| records()) {
            fork.own[usize::from(fork.aside)].insert(address);
        }
    }

    fn put(&mut self, address: u64, bytes: usize) {
        if let Some(fork) = self.fork.as_mut().filter(|_| records()) {
            let which = usize::from(fork.aside);
            match fork.own[which].remove(&address) {
                true => fork.free[which].entry(bytes).or_default().push(address),
                false => fork.later.push((address, bytes)),
            }
            return;
        }
        match self.apart.as_mut().filter(|_| records()) {
            Some(apart) => apart.entry(bytes).or_default().push(address),
            None => {
                self.free_bytes += bytes;
                self.free.entry(bytes).or_default().push(address);
            }
        }
    }

    /// From now on blocks that the recording thread gives back are kept apart.
    pub(super) fn set_apart(&mut self) {
        self.apart = Some(Blocks::new());
    }

    /// From now on two pieces of work are recorded that will run at the same time.
    pub(super) fn fork(&mut self) {
        self.fork = Some(Fork::default());
    }

    /// The other of the two pieces is recorded now.
    pub(super) fn turn_aside(&mut self, aside: bool) {
        if let Some(fork) = &mut self.fork {
            fork.aside = aside;
        }
    }

    /// What follows runs after both pieces.
    pub(super) fn join(&mut self) {
        let Some(Fork { free, later, .. }) = self.fork.take() else { return };
        free.into_iter().for_each(|blocks| self.give_back(blocks));
        later.into_iter().for_each(|(address, bytes)| self.put(address, bytes));
    }

    /// What was kept apart, which the caller owns; from now on blocks go back to all.
    pub(super) fn take_apart(&mut self) -> Option<Blocks> {
        self.apart.take()
    }

    /// Blocks that were kept apart are free for all again.
    pub(super) fn give_back(&mut self, blocks: Blocks) {
        for (bytes, list) in blocks {
            list.into_iter().for_each(|address| self.put(address, bytes));
        }
    }

    fn count(&mut self, bytes: usize) {
        self.used_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
    }
}

impl Gpu {
    /// A block of at least `bytes` bytes.
    pub(super) fn allocate(&'static self, bytes: usize) -> Result<Buffer> {
        let wanted = class(bytes.max(LEAST));
        let mut pool = lock(&self.pool);
        let (address, bytes) = match pool.take(wanted, wanted + wanted / 8) {
            Some(found) => found,
            None => match self.map(&mut pool, wanted) {
                Ok(address) => (address, wanted),
                // Much too large is better than none.
                Err(error @ Error::OutOfMemory { .. }) => pool.take(wanted, usize::MAX).ok_or(error)?,
                Err(error) => return Err(error),
            },
        };
        pool.taken(address);
        pool.count(bytes);
        Ok(Buffer { gpu: self, address, bytes, lent: None, sums: Mutex::default() })
    }

    /// New memory from the driver; gives the pool's back first where there is too little.
    fn map(&self, pool: &mut Pool, bytes: usize) -> Result<u64> {
        self.bind()?;
        let mut address = 0;
        let mut ask = |mapped: usize, limit: Option<usize>| {
            if limit.is_some_and(|limit| mapped + bytes > limit) {
                return sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
            }
            // SAFETY: the result goes to a place of the right type.
            unsafe { sys::cuMemAlloc_v2(&mut address, bytes) }
        };
        let mut result = ask(pool.mapped_bytes, pool.limit);
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY && !pool.free.is_empty() && pool.apart.is_none() {
            // Nobody can begin to record meanwhile, as that takes the pool's lock first.
            // SAFETY: the stream lives as long as the process.
            self.check("the work", unsafe { sys::cuStreamSynchronize(self.stream()) })?;
            pool.mapped_bytes -= pool.free_bytes;
            pool.free_bytes = 0;
            for block in std::mem::take(&mut pool.free).into_values().flatten() {
                // SAFETY: the block came from the driver and has no owner; all work on it is done.
                self.check("freeing memory", unsafe { sys::cuMemFree_v2(block) })?;
            }
            result = ask(pool.mapped_bytes, pool.limit);
        }
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(self.no_memory(bytes, pool.limit, pool.used_bytes));
        }
        self.check("allocating memory", result)?;
        pool.mapped_bytes += bytes;
        Ok(address)
    }

    /// From now on the driver is asked for no more than so many bytes in all.
    pub(crate) fn limit_memory(&self, bytes: Option<usize>) {
        lock(&self.pool).limit = bytes;
    }

    /// Bytes in use, where nobody is changing them just now.
    pub(super) fn used_now(&self) -> usize {
        self.pool.try_lock().map_or(0, |pool| pool.used_bytes)
    }

    /// What the pool holds now.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        let pool = lock(&self.pool);
        MemoryUse { used: pool.used_bytes, free: pool.free_bytes, peak: pool.peak_bytes }
    }
}

impl Buffer {
    /// Memory that somebody else owns.
    pub(super) fn lent(address: u64, bytes: usize, lent: Lent) -> Buffer {
        Buffer { gpu: lent.gpu(), address, bytes, lent: Some(lent), sums: Mutex::default() }
    }

    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Sums of what lies here, if the kernel that wrote it left them.
    pub(crate) fn sums(&self) -> Option<Sums> {
        lock(&self.sums).clone()
    }

    /// Something else lies here now, and these are its sums.
    pub(crate) fn keep_sums(&self, sums: Option<Sums>) {
        *lock(&self.sums) = sums;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.lent.is_some() {
            return;
        }
        let mut pool = lock(&self.gpu.pool);
        pool.used_bytes -= self.bytes;
        pool.put(self.address, self.bytes);
    }
}
