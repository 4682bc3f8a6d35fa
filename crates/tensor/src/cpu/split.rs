//! Numbers of f32 as sums of two of bf16, whose products run in tiles: with `a = a1 + a2` and `b = b1 + b2`, where `a1` is
//! `a` rounded and `a2` what that left, rounded, `a b` is `a1 b1 + a1 b2 + a2 b1` but for 2^-17 of it (compare Henry, Tang and
//! Heinecke 2019). Sums stay f32.
//!
//! First parts stop at the largest number of bf16, so that infinities lie in the second parts, which meet first ones only: times
//! numbers below 2^8 they give what they give in f32. Two things are not as there: what is below 2^-117 has no second part,
//! since tiles take numbers below 2^-126 for zero, and what overflows by 2^8 or more may be NaN instead of infinite.
//!
//! Bound: memory.

use super::amx::{ROWS, STEP};
use super::gemm::Product;
use super::lines::Lines;
use super::rows::Rows;
use crate::tensor::Element;
use half::bf16;
use std::ops::Range;

/// Numbers of a step.
pub(crate) const NUMBERS: usize = 2 * STEP;

/// Where the parts of a line go.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    /// The first parts of the first step.
    pub(crate) first: *mut u32,
    /// Units from one step to the next.
    pub(crate) step: usize,
    /// Units from first to second parts.
    pub(crate) low: usize,
}

impl Places {
    /// Of row `row` of a group that lies step after step, [`ROWS`] first parts before as many second ones.
    fn of_row(group: *mut u32, row: usize) -> Places {
        Places { first: group.wrapping_add(row * STEP), step: 2 * ROWS * STEP, low: ROWS * STEP }
    }
}

/// The largest number of bf16.
const MOST: f32 = f32::from_bits(0x7f7f_0000);

/// First and second parts of a pair.
#[inline(always)]
pub(crate) fn parts_of(pair: [f32; 2]) -> [[bf16; 2]; 2] {
    let first = pair.map(|x| <bf16 as Element>::from_f32(x.clamp(-MOST, MOST)));
    let rest = [0, 1].map(|i| pair[i] - Element::to_f32(first[i]));
    [first, rest.map(<bf16 as Element>::from_f32)]
}

/// Splits whole steps of [`NUMBERS`] numbers.
///
/// # Safety
/// The numbers lie there, and nobody else uses the places.
#[inline]
pub(crate) unsafe fn split(line: *const f32, steps: usize, to: Places) {
    #[cfg(target_arch = "x86_64")]
    if super::isa::isa() >= super::isa::Isa::Avx512Bf16 {
        // SAFETY: the processor has the instructions; as promised.
        return unsafe { split_avx512(line, steps, to) };
    }
    // SAFETY: as promised.
    unsafe { split_anywhere(line, steps, to) }
}

/// As [`split`].
unsafe fn split_anywhere(line: *const f32, steps: usize, to: Places) {
    for unit in 0..steps * STEP {
        let at = to.first.wrapping_add(unit / STEP * to.step + unit % STEP);
        // SAFETY: as the caller promised.
        unsafe {
            let [first, second] = parts_of([*line.add(2 * unit), *line.add(2 * unit + 1)]);
            (*at, *at.add(to.low)) = (bf16::unit(first), bf16::unit(second));
        }
    }
}

/// As [`split`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn split_avx512(line: *const f32, steps: usize, to: Places) {
    use std::arch::x86_64::*;
    // The lesser magnitude with the first's sign.
    const LESSER: i32 = 0b0010;
    for step in 0..steps {
        let at = to.first.wrapping_add(step * to.step);
        // SAFETY: as the caller promised.
        unsafe {
            let pair = [0, 16].map(|i| _mm512_loadu_ps(line.add(step * NUMBERS + i)));
            let [a, b] = pair.map(|x| _mm512_range_ps::<LESSER>(x, _mm512_set1_ps(MOST)));
            let first: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            let halves = [_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64::<1>(first)];
            let wide = halves.map(|x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))));
            let [a, b] = [0, 1].map(|i| _mm512_sub_ps(pair[i], wide[i]));
            let second: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            _mm512_storeu_si512(at.cast(), first);
            _mm512_storeu_si512(at.add(to.low).cast(), second);
        }
    }
}

/// Splits a group of at most [`ROWS`] rows, step after step; rows that are missing become zeros.
pub(crate) fn split_rows<T: Element>(
    left: &impl Rows<T>,
    rows: Range<usize>,
    elements: Range<usize>,
    line: &mut Lines,
    out: &mut [u32],
) {
    assert!(T::DTYPE == f32::DTYPE && rows.len() <= ROWS);
    let steps = elements.len().div_ceil(NUMBERS);
    assert!(out.len() >= steps * 2 * ROWS * STEP);
    let line = line.floats(steps * NUMBERS);
    let whole = elements.len() == line.len();
    for r in 0..ROWS {
        let row = rows.start + r;
        let there = whole && row < rows.end;
        let at = match there.then(|| left.in_place(row, elements.start, elements.len())).flatten() {
            Some(line) => line.as_ptr().cast::<f32>(),
            None => {
                let (there, rest) = line.split_at_mut(if row < rows.end { elements.len() } else { 0 });
                rest.fill(0.0);
                if !there.is_empty() {
                    // SAFETY: T is f32.
                    let there = unsafe { std::slice::from_raw_parts_mut(there.as_mut_ptr().cast::<T>(), there.len()) };
                    left.copy(row, elements.start, there);
                }
                line.as_ptr()
            }
        };
        // SAFETY: the line has whole steps, and so has `out` for each row.
        unsafe { split(at, steps, Places::of_row(out.as_mut_ptr(), r)) };
    }
}
