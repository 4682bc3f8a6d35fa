//! One pass of attention in bf16 whose tile instructions stand between those of the softmax. Scores of the keys that come
//! next and sums over the values of those that came before are made beside the weights of these, from memory that stays in
//! the first-level cache: keys and values, each read once for a panel of queries, are loaded past it.
//!
//! There is no pass over all scores for their maximum. What a weight is relative to is the highest score of a query's first
//! keys; it need not be the highest of all, since weights of bf16 are as exact at 2^40 as at 1. Where those of a block add up
//! to more than [`MOST`] it is done again, relative to its own highest scores.
//!
//! Bound: the vector ports, which tile loads and products take turns at. A product's results are stored between instructions
//! of the next one, which hides that.

use super::fast::{self, pair};
use super::softmax::{Running, hide_later, weigh};
use super::turn::scale_columns;
use super::{Layout, PANELS, PackedKeys, Scratch, Sizes};
use crate::cpu::amx::{ROWS, STEP, Tiles};
use crate::cpu::gemm::Product;
use crate::cpu::micro::NR;
use std::arch::x86_64::*;

/// Keys of a slot: their scores are made at once.
const SLOT: usize = 64;
/// Keys of a block, in whole slots: their values are added up at once.
const BLOCK: usize = 128;
/// The largest sum of a block's weights.
const MOST: f32 = (1u64 << 40) as f32;

/// Bytes from one row of a panel to the next, and of packed rows.
const LINE: usize = NR * 4;
const ROW: usize = STEP * 4;

/// One product of the packed rows of a group with a panel.
#[derive(Clone, Copy)]
struct Job {
    steps: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    accumulate: bool,
}

/// Instructions that do nothing, so many that tile instructions lie eight apart (see `amx`).
macro_rules! gap {
    () => {
        #[cfg(not(feature = "imitated-tiles"))]
        std::arch::asm!("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop", options(nostack))
    };
}

/// The tile registers, and the product whose results are still in them.
struct Weaver {
    tiles: Tiles,
    /// Null: none.
    pending: *mut f32,
}

/// Where the four tiles of a product's results lie.
fn quarters(c: *mut f32) -> [*mut f32; 4] {
    [0, 16, 16 * NR, 16 * NR + 16].map(|at| c.wrapping_add(at))
}

impl Weaver {
    /// Does a product, and some of `work` between its instructions. Its results are not in memory before [`Weaver::settle`]
    /// or the next product.
    ///
    /// # Safety
    /// The processor has the instructions, and the memory of both is there.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn product(&mut self, job: Job, work: &mut Work) {
        let Job { steps, mut a, mut b, c, accumulate } = job;
        let (new, old) = (quarters(c), quarters(self.pending));
        let (tiles, pending) = (&self.tiles, !self.pending.is_null());
        let (mut from, mut to, mut pairs) = (work.from, work.to, work.pairs);
        // SAFETY: as promised.
        unsafe {
            let factor = _mm512_set1_ps(work.factor);
            let most = [0, 16].map(|i| _mm512_loadu_ps(work.most[i..].as_ptr()));
            let mut sums = [0, 16].map(|i| _mm512_loadu_ps(work.total[i..].as_ptr()));
            macro_rules! beside {
                ($half:literal) => {
                    if pairs > 0 {
                        pair!($half, from, to, factor, most, sums);
                        if $half == 1 {
                            (from, to, pairs) = (from.add(2 * NR), to.add(NR), pairs - 1);
                        }
                    } else {
                        gap!();
                    }
                };
            }
            macro_rules! begin {
                ($step:ident, $t:literal) => {
                    if $step == 0 {
                        if pending {
                            tiles.store::<$t>(old[$t], LINE);
                            gap!();
                        }
                        match accumulate {
                            true => tiles.load::<$t>(new[$t].cast(), LINE),
                            false => tiles.zero::<$t>(),
                        }
                        gap!();
                    }
                };
            }
            for step in 0..steps {
                tiles.load_past::<4>(a, ROW);
                beside!(0);
                tiles.load::<6>(b, LINE);
                beside!(1);
                begin!(step, 0);
                tiles.multiply::<0, 4, 6>();
                beside!(0);
                tiles.load_past::<5>(a.wrapping_add(ROWS / 2 * STEP), ROW);
                beside!(1);
                begin!(step, 2);
                tiles.multiply::<2, 5, 6>();
                beside!(0);
                tiles.load::<7>(b.wrapping_add(16), LINE);
                beside!(1);
                begin!(step, 1);
                tiles.multiply::<1, 4, 7>();
                beside!(0);
                begin!(step, 3);
                tiles.multiply::<3, 5, 7>();
                beside!(1);
                (a, b) = (a.wrapping_add(ROWS * STEP), b.wrapping_add(NR * STEP));
            }
            (0..2).for_each(|half| _mm512_storeu_ps(work.total[half * 16..].as_mut_ptr(), sums[half]));
        }
        (work.from, work.to, work.pairs) = (from, to, pairs);
        self.pending = c;
    }

    /// Stores the results of the last product.
    ///
    /// # Safety
    /// Their memory is there.
    unsafe fn settle(&mut self) {
        if self.pending.is_null() {
            return;
        }
        let to = quarters(std::mem::replace(&mut self.pending, std::ptr::null_mut()));
        // SAFETY: as promised.
        unsafe {
            self.tiles.store::<0>(to[0], LINE);
            gap!();
            self.tiles.store::<1>(to[1], LINE);
            gap!();
            self.tiles.store::<2>(to[2], LINE);
            gap!();
            self.tiles.store::<3>(to[3], LINE);
            gap!();
        }
    }
}

/// Scores that become weights.
struct Work {
    from: *const f32,
    to: *mut u32,
    /// Pairs of keys.
    pairs: usize,
    factor: f32,
    /// What weights are relative to, to base 2, as whole numbers.
    most: [f32; NR],
    total: [f32; NR],
}

impl Work {
    fn none() -> Work {
        Work {
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            pairs: 0,
            factor: 0.0,
            most: [0.0; NR],
            total: [0.0; NR],
        }
    }
}

/// Some keys of which scores are made at once, for one panel.
#[derive(Clone, Copy)]
struct Keys {
    panel: usize,
    key: usize,
    count: usize,
}

/// As `super::pass_rows`, but `scratch.sums` become `[d, queries]` for each panel; `T` is bf16.
pub(super) fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    (first, panels): (usize, usize),
    sizes: &Sizes,
) -> [Running; PANELS] {
    let &Sizes { d, stride, factor, causal } = sizes;
    let layout: Layout = branch.layout;
    let (keys, values) = branch.head(head);
    let (size, value_size, rows) = (layout.size(d), layout.size(branch.keys), stride / ROWS);
    let Scratch { queries, scores, sums, again, .. } = scratch;
    let queries = &*queries.get(panels * NR * size);
    let sums = sums.floats(panels * NR * stride);
    let (scores, weights) = scores.get((2 * SLOT + BLOCK) * NR).split_at_mut(2 * SLOT * NR);
    let (mut now, mut next) = scores.split_at_mut(SLOT * NR);
    let (mut weights, mut older) = weights.split_at_mut(BLOCK / 2 * NR);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    // SAFETY: keys are packed for tiles where there are tiles.
    let mut weaver = Weaver { tiles: unsafe { Tiles::configure() }, pending: std::ptr::null_mut() };

    // The keys that some query of a panel sees.
    let end = |panel: usize| if causal { branch.keys.min(first + (panel + 1) * NR) } else { branch.keys };
    let slot = |panel: usize, key: usize| Keys { panel, key, count: SLOT.min(end(panel) - key) };
    let mut slots = (0..panels).flat_map(|panel| (0..end(panel)).step_by(SLOT).map(move |key| (panel, key)));
    // Scores of a group of keys.
    let score = |of: Keys, group: usize, out: &mut [u32]| {
        let a = keys[(of.key + group * ROWS) * size..][..ROWS * size].as_ptr();
        let b = queries[of.panel * NR * size..][..NR * size].as_ptr();
        let c = out[group * ROWS * NR..][..ROWS * NR].as_mut_ptr().cast::<f32>();
        Job { steps: size / STEP, a, b, c, accumulate: false }
    };
    // Sums over a block's values, of a group of their elements.
    let sum = |of: Keys, row: usize, weights: &[u32], sums: &mut [f32]| {
        let units = layout.size(of.count);
        let a = values[row * ROWS * value_size + layout.size(of.key) * ROWS..][..units * ROWS].as_ptr();
        let b = weights[..units * NR].as_ptr();
        let c = sums[of.panel * NR * stride + row * ROWS * NR..][..ROWS * NR].as_mut_ptr();
        Job { steps: units / STEP, a, b, c, accumulate: of.key > 0 }
    };
    // Takes out keys that a query does not see, and those that are missing of a group.
    let hides = |of: Keys| causal && of.key + of.count > first + of.panel * NR;
    let hide = |of: Keys, scores: &mut [u32]| {
        let there = of.count * NR;
        if hides(of) {
            hide_later(&mut scores[..there], of.key, first + of.panel * NR);
        }
        scores[there..of.count.next_multiple_of(ROWS) * NR].fill(f32::NEG_INFINITY.to_bits());
    };

    let mut current = slots.next().map(|(panel, key)| slot(panel, key));
    if let Some(of) = current {
        for group in 0..of.count.div_ceil(ROWS) {
            // SAFETY: the processor has the instructions, and jobs are of slices.
            unsafe { weaver.product(score(of, group, now), &mut Work::none()) };
        }
    }
    // The block whose weights are made, and the one before, whose are in `older`: its sums of how many groups are made.
    let mut block = Keys { panel: 0, key: 0, count: 0 };
    let (mut before, mut done): (Option<Keys>, usize) = (None, rows);
    let mut total = [0f32; NR];
    while let Some(of) = current {
        let following = slots.next().map(|(panel, key)| slot(panel, key));
        let running = &mut running[of.panel];
        // Results of the last product are of the last keys here, which the work below reaches when the next product has
        // stored them, if there is one.
        if of.key == 0 || of.count < SLOT || hides(of) || following.is_none() {
            // SAFETY: the memory of the last job is there.
            unsafe { weaver.settle() };
        }
        hide(of, now);
        if of.key == 0 {
            // SAFETY: the processor has the instructions.
            running.maximum = unsafe { fast::highest(&now[..of.count * NR], factor, running) };
        }
        if of.key.is_multiple_of(BLOCK) {
            (block, total) = (Keys { count: 0, ..of }, [0.0; NR]);
        }
        let whole = of.count.next_multiple_of(ROWS);
        let to = weights[block.count / 2 * NR..][..whole / 2 * NR].as_mut_ptr();
        block.count += of.count;
        let last = of.key + of.count == end(of.panel) || block.count == BLOCK;
        let mut work = Work { from: now.as_ptr().cast(), to, pairs: whole / 2, factor, most: running.maximum, total };
        if let Some(following) = following {
            for group in 0..following.count.div_ceil(ROWS) {
                // SAFETY: the processor has the instructions, and jobs and work are of slices.
                unsafe { weaver.product(score(following, group, next), &mut work) };
            }
        }
        if let Some(before) = before {
            // A slot's share of them.
            let until = if last { rows } else { block.count / SLOT * rows / (BLOCK / SLOT) };
            for row in done..until {
                // SAFETY: the processor has the instructions, and jobs and work are of slices.
                unsafe { weaver.product(sum(before, row, older, sums), &mut work) };
            }
            done = until;
        }
        // SAFETY: the processor has the instructions, and the work is of slices.
        unsafe { fast::weigh(work.from, work.to, 2 * work.pairs, factor, &work.most, &mut work.total) };
        total = work.total;
        if last {
            // No number is not at most that.
            if total.iter().all(|total| *total <= MOST) {
                running.total.iter_mut().zip(total).for_each(|(all, total)| *all += total);
            } else {
                let scores = again.get(block.count.next_multiple_of(ROWS) * NR);
                for group in 0..block.count.div_ceil(ROWS) {
                    // SAFETY: the processor has the instructions, and jobs are of slices.
                    unsafe { weaver.product(score(block, group, scores), &mut Work::none()) };
                }
                // SAFETY: the memory of the last job is there.
                unsafe { weaver.settle() };
                hide(block, scores);
                weigh::<T>(scores, factor, running);
                // SAFETY: the processor has the instructions.
                unsafe { scale_columns(&mut sums[of.panel * NR * stride..][..NR * stride], &running.correction) };
                let units = layout.size(block.count) * NR;
                weights[..units].copy_from_slice(&scores[..units]);
            }
            (before, done) = (Some(block), 0);
            std::mem::swap(&mut weights, &mut older);
        }
        std::mem::swap(&mut now, &mut next);
        current = following;
    }
    for row in done..rows {
        if let Some(before) = before {
            // SAFETY: the processor has the instructions, and jobs are of slices.
            unsafe { weaver.product(sum(before, row, older, sums), &mut Work::none()) };
        }
    }
    // SAFETY: the memory of the last job is there.
    unsafe { weaver.settle() };
    running
}
