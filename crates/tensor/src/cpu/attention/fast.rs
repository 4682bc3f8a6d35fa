//! The softmax of scores that will be bf16, in the arithmetic units of AVX-512. In place of a query's highest score stands
//! the whole number above it, to base 2.

use super::softmax::Running;
use crate::cpu::amx::STEP;
use crate::cpu::micro::NR;
use std::arch::x86_64::*;
use std::ops::Range;

const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer

/// The highest of some scores, to base 2, as whole numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn highest(scores: &[u32], factor: f32, running: &Running) -> [f32; NR] {
    // SAFETY: rows of NR numbers.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut most = [lowest; 8];
        let rows = scores.len() / NR;
        let at = scores.as_ptr().cast::<f32>();
        let row = |row: usize, half: usize| _mm512_loadu_ps(at.add(row * NR + half * 16));
        for four in 0..rows / 4 {
            for (i, most) in most.iter_mut().enumerate() {
                *most = _mm512_max_ps(row(4 * four + i / 2, i % 2), *most);
            }
        }
        for r in rows / 4 * 4..rows {
            most[0] = _mm512_max_ps(row(r, 0), most[0]);
            most[1] = _mm512_max_ps(row(r, 1), most[1]);
        }
        let mut highest = [0f32; NR];
        for half in 0..2 {
            let a = _mm512_max_ps(most[half], most[half + 2]);
            let b = _mm512_max_ps(most[half + 4], most[half + 6]);
            let scaled = _mm512_mul_ps(_mm512_max_ps(a, b), _mm512_set1_ps(factor));
            let whole = _mm512_roundscale_ps::<0x0a>(scaled);
            let old = _mm512_loadu_ps(running.maximum[half * 16..].as_ptr());
            _mm512_storeu_ps(highest[half * 16..].as_mut_ptr(), _mm512_max_ps(whole, old));
        }
        highest
    }
}

/// Half of the queries' weights of two keys, whose scores are rows at `$from`, to units at `$to`, relative to `$most` and
/// down to 2^-125, since a number below 2^-126 costs as much as a hundred others; within 8e-5, which bf16 rounds away.
///
/// A macro, so that it becomes part of whatever loop it stands in.
macro_rules! pair {
    ($half:literal, $from:expr, $to:expr, $factor:ident, $most:ident, $sums:ident) => {{
        let weight = |at: *const f32| {
            let x = _mm512_fmsub_ps(_mm512_loadu_ps(at), $factor, $most[$half]);
            // Of two operands the second is the one that passes where one is no number.
            let x = _mm512_max_ps(_mm512_set1_ps(-125.0), x);
            // What is left of the whole number below; a polynomial of the least relative error on [0, 1].
            let r = _mm512_reduce_ps::<0x09>(x);
            let p = _mm512_fmadd_ps(_mm512_set1_ps(7.802_452e-2), r, _mm512_set1_ps(2.260_671_7e-1));
            let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.958_335e-1));
            let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999_252e-1));
            _mm512_scalef_ps(p, x)
        };
        let (a, b) = (weight($from.add($half * 16)), weight($from.add(NR + $half * 16)));
        $sums[$half] = _mm512_add_ps(_mm512_add_ps($sums[$half], a), b);
        let round = _mm512_set1_epi32(0x8000);
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let [a, b] = [a, b].map(|x| _mm512_add_epi32(_mm512_castps_si512(x), round));
        // a >> 16 | b & high
        let both = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(a), b, high);
        _mm512_storeu_si512($to.add($half * 16).cast(), both);
    }};
}
pub(super) use pair;

/// Scores of some keys to weights in pairs, from `from` on to `to`, which may be the same place; `count` may be odd.
///
/// # Safety
/// The processor has the instructions, and the memory is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn weigh(
    mut from: *const f32,
    mut to: *mut u32,
    count: usize,
    factor: f32,
    most: &[f32; NR],
    total: &mut [f32; NR],
) {
    // SAFETY: as promised.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        let most = [0, 16].map(|i| _mm512_loadu_ps(most[i..].as_ptr()));
        let mut sums = [0, 16].map(|i| _mm512_loadu_ps(total[i..].as_ptr()));
        for _ in 0..count / 2 {
            pair!(0, from, to, factor, most, sums);
            pair!(1, from, to, factor, most, sums);
            (from, to) = (from.add(2 * NR), to.add(NR));
        }
        if count % 2 == 1 {
            let mut last = [f32::NEG_INFINITY; 2 * NR];
            last[..NR].copy_from_slice(std::slice::from_raw_parts(from, NR));
            let last = last.as_ptr();
            pair!(0, last, to, factor, most, sums);
            pair!(1, last, to, factor, most, sums);
        }
        (0..2).for_each(|half| _mm512_storeu_ps(total[half * 16..].as_mut_ptr(), sums[half]));
    }
}

/// Of the exact `softmax::exp2`: a fitted coefficient near ln 2.
#[allow(clippy::approx_constant)]
const FIRST: f32 = 6.931_47e-1;

/// A step of scores, keys `rows`, to weights in two parts, in place: pairs of their first parts, then of their second. What
/// is missing of a step becomes zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn weigh_in_parts(
    scores: &mut [u32],
    rows: Range<usize>,
    factor: f32,
    highest: &[f32; NR],
    total: &mut [f32; NR],
) {
    if rows.is_empty() {
        return;
    }
    // SAFETY: rows of NR numbers, a whole step of them.
    unsafe {
        let at = scores.as_mut_ptr().add(rows.start * NR);
        let factor_v = _mm512_set1_ps(factor);
        let round = _mm512_set1_epi32(0x8000);
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        // a >> 16 | b & high
        let join = |a, b| _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(a), b, high);
        for half in 0..2 {
            let most = _mm512_loadu_ps(highest[half * 16..].as_ptr());
            let base = _mm512_sub_ps(_mm512_set1_ps(MAGIC), most);
            // Below that a weight is 2^-125.
            let lowest = _mm512_div_ps(_mm512_sub_ps(most, _mm512_set1_ps(125.0)), factor_v);
            let mut sums = [_mm512_loadu_ps(total[half * 16..].as_ptr()), _mm512_setzero_ps()];
            let weight = |row: usize| {
                if row >= rows.len() {
                    return _mm512_setzero_ps();
                }
                let score = _mm512_loadu_ps(at.add(row * NR + half * 16).cast());
                // Of two operands the second is the one that passes where one is no number.
                let score = _mm512_max_ps(lowest, score);
                let shifted = _mm512_fmadd_ps(score, factor_v, base);
                let r = _mm512_fmsub_ps(score, factor_v, _mm512_sub_ps(shifted, base));
                // As the exact `softmax::exp2`.
                let next = |p, c| _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
                let p = next(_mm512_set1_ps(1.326_472_7e-3), 9.671_513e-3);
                let p = next(next(next(next(p, 5.550_733_7e-2), 2.402_224_2e-1), FIRST), 1.0);
                let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power))
            };
            let mut seconds = [_mm512_setzero_si512(); STEP];
            for (i, second) in seconds.iter_mut().enumerate() {
                let pair = [weight(2 * i), weight(2 * i + 1)];
                sums = [0, 1].map(|i| _mm512_add_ps(sums[i], pair[i]));
                let up = pair.map(|x| _mm512_add_epi32(_mm512_castps_si512(x), round));
                let rest = [0, 1].map(|i| {
                    let first = _mm512_castsi512_ps(_mm512_and_si512(up[i], high));
                    _mm512_add_epi32(_mm512_castps_si512(_mm512_sub_ps(pair[i], first)), round)
                });
                *second = join(rest[0], rest[1]);
                // The rows from here on are still to be read, this one is not.
                _mm512_storeu_si512(at.add(i * NR + half * 16).cast(), join(up[0], up[1]));
            }
            for (i, second) in seconds.into_iter().enumerate() {
                _mm512_storeu_si512(at.add((STEP + i) * NR + half * 16).cast(), second);
            }
            _mm512_storeu_ps(total[half * 16..].as_mut_ptr(), _mm512_add_ps(sums[0], sums[1]));
        }
    }
}
