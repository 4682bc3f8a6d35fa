//! Where a GPU's time goes: events of the driver's around each launch, for measuring.

use super::gpu::{Gpu, gpu, lock};
use crate::{DType, Result};
use cudarc::driver::sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one kind of work took between [`begin`] and [`end`].
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// Operator and sizes.
    pub work: String,
    /// How many launches it was.
    pub launches: usize,
    /// Milliseconds of all of them.
    pub ms: f64,
    /// Operations of all of them; 0 where none are counted.
    pub flop: u64,
    /// Bytes that they must read and write at least; 0 where that is not known.
    pub bytes: u64,
}

/// What is known of a launch.
#[derive(Clone, Default)]
pub(super) struct Work {
    pub(super) name: String,
    pub(super) flop: u64,
    pub(super) bytes: u64,
}

impl Work {
    /// Work of no counted operations that reads and writes so many numbers.
    pub(super) fn over(name: String, numbers: usize, dtype: DType) -> Work {
        Work { name, flop: 0, bytes: (numbers * dtype.bytes()) as u64 }
    }
}

/// A launch: what it is, and the events before and after it.
type Launch = (Work, [sys::CUevent; 2]);

/// The launches of one GPU that were watched so far.
#[derive(Default)]
pub(super) struct Profile {
    on: AtomicBool,
    launches: Mutex<Vec<Launch>>,
}

// SAFETY: events are handles that any thread may use.
unsafe impl Send for Profile {}
unsafe impl Sync for Profile {}

thread_local! {
    /// What the operator at work said of its launches, by its name.
    static SAID: RefCell<(&'static str, Work)> = RefCell::default();
}

/// Watches every launch from now on.
pub(crate) fn begin(index: usize) -> Result<()> {
    gpu(index)?.profile.on.store(true, Ordering::Relaxed);
    Ok(())
}

/// Ends watching, waits for the GPU and tells what took how long, the longest first.
pub(crate) fn end(index: usize) -> Result<Vec<Spent>> {
    let gpu = gpu(index)?;
    gpu.profile.on.store(false, Ordering::Relaxed);
    gpu.synchronize()?;
    let mut all: HashMap<String, Spent> = HashMap::new();
    for (work, [before, after]) in std::mem::take(&mut *lock(&gpu.profile.launches)) {
        let mut ms = 0f32;
        // SAFETY: both events were recorded and all work is done; each is destroyed once.
        let read = unsafe {
            let read = gpu.check("measuring", sys::cuEventElapsedTime_v2(&mut ms, before, after));
            sys::cuEventDestroy_v2(before);
            sys::cuEventDestroy_v2(after);
            read
        };
        read?;
        let Work { name, flop, bytes } = work;
        let none = Spent { work: name.clone(), launches: 0, ms: 0.0, flop: 0, bytes: 0 };
        let spent = all.entry(name).or_insert(none);
        (spent.launches, spent.ms) = (spent.launches + 1, spent.ms + f64::from(ms));
        (spent.flop, spent.bytes) = (spent.flop + flop, spent.bytes + bytes);
    }
    let mut all: Vec<Spent> = all.into_values().collect();
    all.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(all)
}

impl Gpu {
    /// Whether launches are watched.
    pub(super) fn watched(&self) -> bool {
        self.profile.on.load(Ordering::Relaxed)
    }

    /// Says what the next launches called `doing` are; operations and bytes are those of the first one.
    pub(super) fn note(&self, doing: &'static str, work: impl FnOnce() -> Work) {
        if self.watched() {
            SAID.set((doing, work()));
        }
    }

    /// Does a launch, between two events where it is watched.
    pub(super) fn watch<R>(&self, work: impl FnOnce() -> Work, launch: impl FnOnce() -> R) -> R {
        if !self.watched() {
            return launch();
        }
        let event = || {
            let mut event = std::ptr::null_mut();
            // SAFETY: a context is current; the result goes to a place of its type. Without an event nothing is measured.
            unsafe {
                sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32);
                sys::cuEventRecord(event, self.stream());
            }
            event
        };
        let before = event();
        let done = launch();
        lock(&self.profile.launches).push((work(), [before, event()]));
        done
    }

    /// What was said of a launch, else its name and grid.
    pub(super) fn said(&self, doing: &'static str, grid: [u32; 3]) -> Work {
        SAID.with_borrow_mut(|(name, work)| {
            if *name != doing {
                return Work { name: format!("{doing}, grid {}x{}x{}", grid[0], grid[1], grid[2]), ..Work::default() };
            }
            // Further launches of the same operator add their time alone.
            Work {
                name: work.name.clone(),
                flop: std::mem::take(&mut work.flop),
                bytes: std::mem::take(&mut work.bytes),
            }
        })
    }
}
