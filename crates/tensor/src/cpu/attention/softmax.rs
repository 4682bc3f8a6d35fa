//! The running softmax of a block of scores, whose rows are keys and whose columns are [`NR`] queries.

use crate::cpu::gemm::{Product, interleave};
use crate::cpu::isa::simd;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::{Isa, isa};
use crate::cpu::micro::NR;
#[cfg(target_arch = "x86_64")]
use crate::cpu::split::{NUMBERS, parts_of};
#[cfg(target_arch = "x86_64")]
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// The running softmax of a panel of queries.
pub(super) struct Running {
    /// The highest score so far, scaled to base 2.
    pub(super) maximum: [f32; NR],
    /// The sum of the weights so far.
    pub(super) total: [f32; NR],
    /// What corrects the sums so far for a new maximum.
    pub(super) correction: [f32; NR],
}

impl Running {
    pub(super) fn new() -> Running {
        Running { maximum: [f32::NEG_INFINITY; NR], total: [0.0; NR], correction: [1.0; NR] }
    }

    /// Takes up the highest scores and the sums of weights of one more block.
    #[inline(always)]
    fn advance(&mut self, highest: &[f32; NR], total: &[f32; NR]) {
        for j in 0..NR {
            let correction = exp2::<true>(self.maximum[j] - highest[j]);
            self.total[j] = self.total[j] * correction + total[j];
            self.correction[j] = correction;
        }
        self.maximum = *highest;
    }
}

/// 2^x for x up to 0, at least 2^-125 however small x is: within 2e-7 and 1 at 0 with `EXACT`, else within 8e-5, which bf16
/// rounds away. A polynomial of the least relative error on [-1/2, 1/2], and the exponent added as bits.
#[inline(always)]
#[allow(clippy::approx_constant)] // a fitted coefficient near ln 2
fn exp2<const EXACT: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    // Written so that NaN passes.
    let x = if x < -125.0 { -125.0 } else { x };
    let shifted = x + MAGIC;
    let r = x - (shifted - MAGIC);
    let p = if EXACT {
        let p = 1.326_472_7e-3 * r + 9.671_513e-3;
        let p = p * r + 5.550_733_7e-2;
        let p = p * r + 2.402_224_2e-1;
        let p = p * r + 6.931_47e-1;
        p * r + 1.0
    } else {
        let p = 5.517_166e-2 * r + 2.426_111_4e-1;
        let p = p * r + 6.932_61e-1;
        p * r + 9.999_281e-1
    };
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// A block of scores that are becoming weights, part by part, on processors that have a fast way.
#[cfg(target_arch = "x86_64")]
pub(super) struct Weighing {
    highest: [f32; NR],
    total: [f32; NR],
}

/// From which size on scores have no fast way: sums with 1.5 * 2^23 are no whole numbers any more.
#[cfg(target_arch = "x86_64")]
const TOO_LARGE: f32 = 2_097_152.0;

#[cfg(target_arch = "x86_64")]
impl Weighing {
    /// Looks at all scores of the block; none where there is no fast way.
    pub(super) fn begin<T: Product>(
        scores: &[u32],
        factor: f32,
        running: &Running,
        in_parts: bool,
    ) -> Option<Weighing> {
        if (T::PER_UNIT == 2 || in_parts) && isa() >= Isa::Avx512 && factor > 0.0 {
            // SAFETY: the processor has the instructions.
            let highest = unsafe { super::fast::highest(scores, factor, running) };
            // A negative infinity is that of no keys.
            let small = highest.iter().all(|x| x.abs() < TOO_LARGE || *x == f32::NEG_INFINITY);
            return small.then_some(Weighing { highest, total: [0.0; NR] });
        }
        None
    }

    /// All scores to weights in pairs, in place.
    fn all(&mut self, scores: &mut [u32], factor: f32) {
        let (to, count) = (scores.as_mut_ptr(), scores.len() / NR);
        // SAFETY: `begin` saw that the processor has the instructions; the scores are `count` rows.
        unsafe { super::fast::weigh(to.cast(), to, count, factor, &self.highest, &mut self.total) };
    }

    /// Scores of a step of keys, from which on `scores` has [`NUMBERS`] rows, to weights in two parts, in place; of keys
    /// that are missing zeros.
    pub(super) fn part_in_parts(&mut self, scores: &mut [u32], rows: Range<usize>, factor: f32) {
        assert!(rows.is_empty() || rows.len() <= NUMBERS && (rows.start + NUMBERS) * NR <= scores.len());
        // SAFETY: `begin` saw that the processor has the instructions; the rows are there.
        unsafe { super::fast::weigh_in_parts(scores, rows, factor, &self.highest, &mut self.total) };
    }

    /// Notes the new maxima and totals.
    pub(super) fn end(self, running: &mut Running) {
        running.advance(&self.highest, &self.total);
    }
}

/// Scores of some keys (rows of [`NR`] queries) to unnormalised weights in units of `T`, in place.
pub(super) fn weigh<T: Product>(scores: &mut [u32], factor: f32, running: &mut Running) {
    #[cfg(target_arch = "x86_64")]
    if let Some(mut weighing) = Weighing::begin::<T>(scores, factor, running, false) {
        weighing.all(scores, factor);
        return weighing.end(running);
    }
    weigh_anywhere::<T>(scores, factor, running);
}

/// As [`weigh`] of `count` keys in f32 to weights in two parts, step by step, in whatever way.
#[cfg(target_arch = "x86_64")]
pub(super) fn weigh_in_parts(scores: &mut [u32], count: usize, factor: f32, running: &mut Running) {
    weigh_anywhere::<f32>(&mut scores[..count * NR], factor, running);
    let whole = count.next_multiple_of(NUMBERS);
    scores[count * NR..whole * NR].fill(0);
    for step in scores[..whole * NR].chunks_exact_mut(NUMBERS * NR) {
        let mut weights = [0; NUMBERS * NR];
        weights.copy_from_slice(step);
        let (firsts, seconds) = step.split_at_mut(NUMBERS / 2 * NR);
        for (i, (first, second)) in firsts.iter_mut().zip(seconds).enumerate() {
            let pair = [0, 1].map(|odd| f32::from_bits(weights[(i / NR * 2 + odd) * NR + i % NR]));
            let [high, low] = parts_of::<2>(pair);
            (*first, *second) = (bf16::unit(high), bf16::unit(low));
        }
    }
}

simd! {
    /// As [`weigh`], on any processor.
    fn weigh_anywhere<T: Product>(scores: &mut [u32], factor: f32, running: &mut Running) {
        let mut highest = running.maximum;
        for row in scores.chunks_exact(NR) {
            for (h, s) in highest.iter_mut().zip(row) {
                let s = f32::from_bits(*s) * factor;
                *h = if s > *h { s } else { *h };
            }
        }
        let mut total = [0f32; NR];
        let weight = |score: u32, highest: f32| {
            let x = f32::from_bits(score) * factor - highest;
            if T::PER_UNIT == 1 { exp2::<true>(x) } else { exp2::<false>(x) }
        };
        if T::PER_UNIT == 1 {
            for row in scores.chunks_exact_mut(NR) {
                for j in 0..NR {
                    let w = weight(row[j], highest[j]);
                    total[j] += w;
                    row[j] = w.to_bits();
                }
            }
        } else {
            // Two rows become one, written where the earlier ones were read.
            let keys = scores.len() / NR;
            for pair in 0..keys / 2 {
                let (mut a, mut b) = ([0u32; NR], [0u32; NR]);
                a.copy_from_slice(&scores[2 * pair * NR..][..NR]);
                b.copy_from_slice(&scores[(2 * pair + 1) * NR..][..NR]);
                for j in 0..NR {
                    let weights = [weight(a[j], highest[j]), weight(b[j], highest[j])];
                    total[j] += weights[0] + weights[1];
                    a[j] = T::unit_of_weights(weights);
                }
                scores[pair * NR..][..NR].copy_from_slice(&a);
            }
            if keys % 2 == 1 {
                let mut a = [0u32; NR];
                a.copy_from_slice(&scores[(keys - 1) * NR..][..NR]);
                for j in 0..NR {
                    let weight = weight(a[j], highest[j]);
                    total[j] += weight;
                    a[j] = T::unit_of_weights([weight, 0.0]);
                }
                scores[keys / 2 * NR..][..NR].copy_from_slice(&a);
            }
        }
        running.advance(&highest, &total);
    }
}

simd! {
    /// Corrects sums `[queries, stride]` for new maxima.
    pub(super) fn scale_rows(rows: &mut [f32], stride: usize, factors: &[f32]) {
        for (row, &factor) in rows.chunks_exact_mut(stride).zip(factors) {
            if factor != 1.0 {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

simd! {
    /// `result (+)= factor * sum` row by row.
    pub(super) fn join_rows(result: &mut [f32], sums: &[f32], stride: usize, factors: &[f32], add: bool) {
        for ((result, sum), factor) in result.chunks_exact_mut(stride).zip(sums.chunks_exact(stride)).zip(factors) {
            for (r, s) in result.iter_mut().zip(sum) {
                *r = if add { *r + factor * s } else { factor * s };
            }
        }
    }
}

/// Takes keys that come after the query out of a block of scores.
pub(super) fn hide_later(scores: &mut [u32], key: usize, query: usize) {
    for (i, row) in scores.chunks_exact_mut(NR).enumerate() {
        let hidden = (key + i).saturating_sub(query).min(NR);
        row[..hidden].fill(f32::NEG_INFINITY.to_bits());
    }
}

/// Transposes the columns of a panel to rows.
pub(super) fn upright(panel: &mut [f32], memory: &mut [f32]) {
    let stride = panel.len() / NR;
    // SAFETY: f32 and u32 have the same size and alignment, and every pattern is a number.
    let (from, to) = unsafe {
        (
            std::slice::from_raw_parts(panel.as_ptr().cast::<u32>(), panel.len()),
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u32>(), memory.len()),
        )
    };
    for (block, to) in to.chunks_exact_mut(NR * NR).enumerate() {
        let lines = std::array::from_fn(|r| from[(block * NR + r) * NR..][..NR].as_ptr());
        // SAFETY: each line has NR numbers.
        unsafe { interleave::<NR>(lines, NR, to) };
    }
    for (q, row) in panel.chunks_exact_mut(stride).enumerate() {
        for (block, part) in row.chunks_exact_mut(NR).enumerate() {
            part.copy_from_slice(&memory[(block * NR + q) * NR..][..NR]);
        }
    }
}
