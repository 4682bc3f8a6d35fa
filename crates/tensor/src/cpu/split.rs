//! Numbers of f32 as sums of two of bf16, whose products run in tiles: with `a = a1 + a2` and `b = b1 + b2`, where `a1` is
//! `a` rounded and `a2` what that left, rounded, `a b` is `a1 b1 + a1 b2 + a2 b1` but for 2^-17 of it (compare Henry, Tang and
//! Heinecke 2019). Sums stay f32. In three parts, which are all of a number, six of the nine products leave
//! less than f32's own rounding does (`tests/whole.rs`).
//!
//! All but the last parts stop at the largest number of bf16, so that infinities lie in the last, which meet first ones only: times
//! numbers below 2^8 they give what they give in f32. Two things are not as there: what is below 2^-117 has no second part, below 2^-109 no third,
//! since tiles take numbers below 2^-126 for zero, and what overflows by 2^8 or more may be NaN instead of infinite.
//!
//! Bound: memory.

use super::amx::{ROWS, STEP};
use super::gemm::Product;
use super::lines::Lines;
use super::micro::NR;
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
    /// Units from one part to the next.
    pub(crate) low: usize,
}

impl Places {
    /// Of row `row` of a group that lies step after step, [`ROWS`] first parts before as many of the next.
    fn of_row<const PARTS: usize>(group: *mut u32, row: usize) -> Places {
        Places { first: group.wrapping_add(row * STEP), step: PARTS * ROWS * STEP, low: ROWS * STEP }
    }
}

/// The largest number of bf16.
const MOST: f32 = f32::from_bits(0x7f7f_0000);

/// The parts of a pair, greatest first. All but the last are finite.
#[inline(always)]
pub(crate) fn parts_of<const PARTS: usize>(mut pair: [f32; 2]) -> [[bf16; 2]; PARTS] {
    std::array::from_fn(|part| {
        let last = part + 1 == PARTS;
        let rounded = pair.map(|x| <bf16 as Element>::from_f32(if last { x } else { x.clamp(-MOST, MOST) }));
        pair = [0, 1].map(|i| pair[i] - Element::to_f32(rounded[i]));
        rounded
    })
}

/// Splits whole steps of [`NUMBERS`] numbers.
///
/// # Safety
/// The numbers lie there, and nobody else uses the places.
#[inline]
pub(crate) unsafe fn split<const PARTS: usize>(line: *const f32, steps: usize, to: Places) {
    #[cfg(target_arch = "x86_64")]
    if super::isa::isa() >= super::isa::Isa::Avx512Bf16 {
        // SAFETY: the processor has the instructions; as promised.
        return unsafe { split_avx512::<PARTS>(line, steps, to) };
    }
    // SAFETY: as promised.
    unsafe { split_anywhere::<PARTS>(line, steps, to) }
}

/// As [`split`].
unsafe fn split_anywhere<const PARTS: usize>(line: *const f32, steps: usize, to: Places) {
    for unit in 0..steps * STEP {
        let at = to.first.wrapping_add(unit / STEP * to.step + unit % STEP);
        // SAFETY: as the caller promised.
        unsafe {
            let parts = parts_of::<PARTS>([*line.add(2 * unit), *line.add(2 * unit + 1)]);
            for (part, pair) in parts.into_iter().enumerate() {
                *at.add(part * to.low) = bf16::unit(pair);
            }
        }
    }
}

/// As [`split`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn split_avx512<const PARTS: usize>(line: *const f32, steps: usize, to: Places) {
    use std::arch::x86_64::*;
    // The lesser magnitude with the first's sign.
    const LESSER: i32 = 0b0010;
    for step in 0..steps {
        let at = to.first.wrapping_add(step * to.step);
        // SAFETY: as the caller promised.
        unsafe {
            let mut pair = [0, 16].map(|i| _mm512_loadu_ps(line.add(step * NUMBERS + i)));
            for part in 0..PARTS {
                let last = part + 1 == PARTS;
                let [a, b] = pair.map(|x| if last { x } else { _mm512_range_ps::<LESSER>(x, _mm512_set1_ps(MOST)) });
                let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
                _mm512_storeu_si512(at.add(part * to.low).cast(), rounded);
                let halves = [_mm512_castsi512_si256(rounded), _mm512_extracti64x4_epi64::<1>(rounded)];
                let wide = halves.map(|x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))));
                pair = [0, 1].map(|i| _mm512_sub_ps(pair[i], wide[i]));
            }
        }
    }
}

/// Splits a group of at most [`ROWS`] rows, step after step; rows that are missing become zeros.
pub(crate) fn split_rows<T: Element, const PARTS: usize>(
    left: &impl Rows<T>,
    rows: Range<usize>,
    elements: Range<usize>,
    line: &mut Lines,
    out: &mut [u32],
) {
    assert!(T::DTYPE == f32::DTYPE && rows.len() <= ROWS);
    let steps = elements.len().div_ceil(NUMBERS);
    assert!(out.len() >= steps * PARTS * ROWS * STEP);
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
        unsafe { split::<PARTS>(at, steps, Places::of_row::<PARTS>(out.as_mut_ptr(), r)) };
    }
}

/// Splits a panel of columns of f32 as they are packed without tiles, from `panel` on `count` numbers of each column, into three
/// parts: each step of [`STEP`] units of first parts lies before that of second and third ones.
pub(crate) fn thirds_of_panel(panel: *const f32, count: usize, out: &mut [u32]) {
    assert!(out.len() >= count.div_ceil(NUMBERS) * 3 * STEP * NR);
    #[cfg(target_arch = "x86_64")]
    if super::isa::isa() >= super::isa::Isa::Avx512Bf16 {
        // SAFETY: the processor has the instructions; there is room.
        return unsafe { thirds_avx512(panel, count, out.as_mut_ptr()) };
    }
    for unit in 0..count.div_ceil(NUMBERS) * STEP {
        // SAFETY: the caller's panel holds `count` numbers of each column, and there is room.
        unsafe { thirds_of_unit(panel, count, unit, 0..NR, out.as_mut_ptr()) };
    }
}

/// Where the first parts of a unit lie among thirds.
fn place_of(unit: usize) -> usize {
    (unit / STEP * 3 * STEP + unit % STEP) * NR
}

/// As [`thirds_of_panel`] of one unit of some columns.
///
/// # Safety
/// The panel holds `count` numbers of each column, and there is room for their parts.
unsafe fn thirds_of_unit(panel: *const f32, count: usize, unit: usize, columns: Range<usize>, out: *mut u32) {
    for column in columns {
        // SAFETY: as the caller promised.
        let number = |k: usize| if k < count { unsafe { *panel.add(k * NR + column) } } else { 0.0 };
        let pair = [number(2 * unit), number(2 * unit + 1)];
        for (part, pair) in parts_of::<3>(pair).into_iter().enumerate() {
            // SAFETY: as the caller promised.
            unsafe { *out.add(place_of(unit) + part * STEP * NR + column) = bf16::unit(pair) };
        }
    }
}

/// As [`thirds_of_panel`]. What is nowhere near overflow is rounded with whole numbers, halves away from zero: the rest of a
/// part is exact either way, and the third part is what there is left.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn thirds_avx512(panel: *const f32, count: usize, out: *mut u32) {
    use std::arch::x86_64::*;
    const ODD: __mmask32 = 0xaaaa_aaaa;
    let bits = |x: i32| _mm512_set1_epi32(x);
    // The upper halves of both, as they are.
    let joined = |pair: [__m512i; 2]| _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(pair[0]), ODD, pair[1]);
    for unit in 0..count.div_ceil(NUMBERS) * STEP {
        let to = out.wrapping_add(place_of(unit));
        for column in (0..NR).step_by(16) {
            // SAFETY: the caller's panel holds `count` numbers of each column, and there is room.
            unsafe {
                let mut pair = [2 * unit, 2 * unit + 1].map(|k| match k < count {
                    true => _mm512_loadu_si512(panel.add(k * NR + column).cast()),
                    false => _mm512_setzero_si512(),
                });
                let store = |part: usize, x: __m512i| _mm512_storeu_si512(to.add(part * STEP * NR + column).cast(), x);
                let exponents = _mm512_and_si512(_mm512_or_si512(pair[0], pair[1]), bits(0x7f80_0000));
                if _mm512_cmpge_epu32_mask(exponents, bits(0x7f00_0000)) != 0 {
                    thirds_of_unit(panel, count, unit, column..column + 16, out);
                    continue;
                }
                for part in 0..2 {
                    let rounded = pair.map(|x| _mm512_add_epi32(x, bits(0x8000)));
                    store(part, joined(rounded));
                    pair = [0, 1].map(|i| {
                        let part = _mm512_castsi512_ps(_mm512_and_si512(rounded[i], bits(0xffff_0000_u32 as i32)));
                        _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(pair[i]), part))
                    });
                }
                store(2, joined(pair));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all magnitudes that have all three parts, and those that are none, odd depths among them.
    #[test]
    fn thirds_are_all_of_a_number_in_their_places() {
        let mut bits = 1u32;
        let mut number = || {
            bits = bits.wrapping_mul(0x915f_77f5).wrapping_add(0x3c6e_f372);
            f32::from_bits(bits & 0x80ff_ffff | (20 + bits % 230) << 23)
        };
        for count in [1, 32, 63, 96] {
            let mut panel: Vec<f32> = (0..count * NR).map(|_| number()).collect();
            for (i, odd) in
                [f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::MAX, -0.0].into_iter().enumerate()
            {
                panel[i * 5 % count * NR + 7 * i % NR] = odd;
            }
            let mut out = vec![u32::MAX; count.div_ceil(NUMBERS) * 3 * STEP * NR];
            thirds_of_panel(panel.as_ptr(), count, &mut out);
            for k in 0..count.next_multiple_of(NUMBERS) {
                for column in 0..NR {
                    let parts = [0, 1, 2].map(|part| {
                        let unit = out[((k / NUMBERS * 3 + part) * STEP + k % NUMBERS / 2) * NR + column];
                        f32::from_bits(if k % 2 == 0 { unit << 16 } else { unit & 0xffff_0000 })
                    });
                    let whole = if k < count { panel[k * NR + column] } else { 0.0 };
                    let sum = parts[0] + (parts[1] + parts[2]);
                    assert!(sum == whole || whole.is_nan() && sum.is_nan(), "{whole:e} became {parts:?}");
                    assert!(
                        whole.is_nan() || parts[0].is_finite() && parts[1].is_finite(),
                        "{whole:e} became {parts:?}"
                    );
                    assert!(
                        !whole.is_normal() || parts[1].abs() <= 1.001 * whole.abs() / 256.0,
                        "{whole:e}: {parts:?}"
                    );
                }
            }
        }
    }
}
