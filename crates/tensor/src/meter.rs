//! How much work was done and how fast this machine could do it, for benchmarks.

use crate::cpu::amx;
use crate::cpu::gemm::{Product, parts};
use crate::cpu::lines::Lines;
use crate::cpu::micro::{MR, NR, Wide};
use crate::cuda::{self, Spent};
use crate::ops::Products;
use crate::tensor::by_dtype;
use crate::{DType, Device, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

static FLOP: AtomicU64 = AtomicU64::new(0);

/// What the CPU's operators took, by what they are, while they are watched.
static WATCHED: Mutex<Option<HashMap<String, Spent>>> = Mutex::new(None);
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Counts the time of an operator on the CPU while it lives.
pub(crate) struct Watch {
    work: String,
    begin: Instant,
    flop: u64,
}

/// Begins to count an operator's time, where that was asked for. Operators do not call each other, so none is counted
/// twice.
pub(crate) fn watch(work: impl FnOnce() -> String) -> Option<Watch> {
    WATCHING.load(Ordering::Relaxed).then(|| Watch { work: work(), begin: Instant::now(), flop: flop_count() })
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (ms, flop) = (self.begin.elapsed().as_secs_f64() * 1e3, flop_count().wrapping_sub(self.flop));
        if let Some(all) = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let work = std::mem::take(&mut self.work);
            let none = Spent { work: work.clone(), launches: 0, ms: 0.0, flop: 0, bytes: 0 };
            let spent = all.entry(work).or_insert(none);
            spent.launches += 1;
            spent.ms += ms;
            spent.flop += flop;
        }
    }
}

fn watched() -> Vec<Spent> {
    WATCHING.store(false, Ordering::Relaxed);
    let all = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut all: Vec<Spent> = all.unwrap_or_default().into_values().collect();
    all.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    all
}

/// Notes the operations of a product of these sizes.
pub(crate) fn count(rows: usize, depth: usize, columns: usize) {
    FLOP.fetch_add(2 * (rows * depth * columns) as u64, Ordering::Relaxed);
}

/// Notes operations that were counted once and are done again.
pub(crate) fn count_all(flop: u64) {
    FLOP.fetch_add(flop, Ordering::Relaxed);
}

/// Floating-point operations of all linear layers, convolutions and attentions so far, a multiply-add being two.
pub fn flop_count() -> u64 {
    FLOP.load(Ordering::Relaxed)
}

/// Measures what the processor's arithmetic units give with all threads and no memory in the way, in FLOP/s: the inner
/// product on operands that stay in the first-level cache, the best of a few runs of a tenth of a second.
///
/// # Errors
/// An element type that the device cannot compute with.
pub fn measure_peak(dtype: DType) -> Result<f64> {
    measure_peak_of(&Device::Cpu, dtype, Products::Whole)
}

/// As [`measure_peak`], of any device and of products done in parts, too; of a GPU what a large matrix product reaches.
///
/// # Errors
/// As [`measure_peak`], or a device that cannot be used.
pub fn measure_peak_of(device: &Device, dtype: DType, products: Products) -> Result<f64> {
    match *device {
        Device::Cpu => by_dtype!("peak", "the operands", dtype, T => Ok(peak_of::<T>(parts(dtype, products)))),
        Device::Cuda(n) => cuda::measure_peak(n, dtype),
    }
}

fn peak_of<T: Product>(parts: usize) -> f64 {
    /// Bytes of both sides fill most of a first-level cache.
    const UNITS: usize = 160;
    const REPEATS: usize = 100;
    let wide = T::wide_kernel::<MR>();
    let kernel = wide.as_ref().map_or(T::kernel::<MR, true>(), |wide| wide.kernel);
    let tiled = T::tiled() || parts > 1;
    let rows = if tiled { amx::ROWS } else { MR };
    // Parts are so many times the bytes.
    let units = UNITS / parts / amx::STEP * amx::STEP;
    let run = || {
        let (mut a, mut b, mut c) = (Lines::default(), Lines::default(), Lines::default());
        let (a, b, c) = (a.get(2 * UNITS * rows), b.get(UNITS * NR), c.floats(rows * NR));
        // SAFETY: tiles are configured where there are tiles.
        let tiles = tiled.then(|| unsafe { amx::Tiles::configure() });
        for _ in 0..REPEATS {
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            // SAFETY: the operands hold UNITS units, whole steps of tiles, the result is one block.
            unsafe {
                match &tiles {
                    Some(tiles) if parts == 2 => {
                        let steps = &amx::PACKED_SPLIT[..units / amx::STEP];
                        tiles.product_split(steps, amx::Left::packed(a), b, c, false, b);
                    }
                    Some(tiles) if parts == 3 => {
                        let steps = &amx::PACKED_THIRDS[..units / amx::STEP];
                        tiles.product_thirds(steps, amx::Left::packed(a), b, c, false, b);
                    }
                    Some(tiles) => {
                        let steps = &amx::PACKED[..UNITS / amx::STEP];
                        tiles.product(steps, amx::Left::packed(a), b, c, false, b, amx::Fetch::Near);
                    }
                    None => kernel(UNITS, a, MR, b, c, NR, true),
                }
            };
        }
        std::hint::black_box(c);
    };
    let per_unit = match wide {
        _ if parts > 1 => 2,
        // Of a pair each number is a unit then.
        Some(Wide { columns: true, .. }) => 1,
        _ => T::PER_UNIT,
    };
    let flop = (2 * rows * NR * units * per_unit * REPEATS) as f64;
    let measure = || {
        let (begin, mut rounds) = (Instant::now(), 0);
        while begin.elapsed().as_secs_f64() < 0.1 {
            let tasks = 8 * rayon::current_num_threads();
            (0..tasks).into_par_iter().with_max_len(1).for_each(|_| run());
            rounds += tasks;
        }
        flop * rounds as f64 / begin.elapsed().as_secs_f64()
    };
    (0..5).map(|_| measure()).fold(0.0, f64::max)
}

/// Begins to watch what each launch on a GPU takes, on the CPU each operator. Launches that are replayed from a
/// [`crate::Recording`] are not seen.
///
/// # Errors
/// A device that cannot be used.
pub fn begin_profile(device: &Device) -> Result<()> {
    match *device {
        Device::Cpu => {
            *WATCHED.lock().unwrap_or_else(PoisonError::into_inner) = Some(HashMap::new());
            WATCHING.store(true, Ordering::Relaxed);
            Ok(())
        }
        Device::Cuda(n) => cuda::begin_profile(n),
    }
}

/// Ends what [`begin_profile`] began: what was launched since then and took how long, the longest first.
///
/// # Errors
/// What the device says about work that failed.
pub fn end_profile(device: &Device) -> Result<Vec<Spent>> {
    match *device {
        Device::Cpu => Ok(watched()),
        Device::Cuda(n) => cuda::end_profile(n),
    }
}
