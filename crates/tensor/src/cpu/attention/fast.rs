//! The softmax of scores that will be bf16, in the arithmetic units of AVX-512. In place of a query's highest score stands
//! the whole number above it, to base 2: then one multiply-add gives a score's exponent and another what is left of it.

use super::softmax::Running;
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

/// Scores of some keys to weights in pairs, in place: keys `rows`, of which the first is even.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn weigh(
    scores: &mut [u32],
    rows: Range<usize>,
    factor: f32,
    highest: &[f32; NR],
    total: &mut [f32; NR],
) {
    // SAFETY: rows of NR numbers.
    unsafe {
        let at = scores.as_mut_ptr();
        let factor_v = _mm512_set1_ps(factor);
        for half in 0..2 {
            let most = _mm512_loadu_ps(highest[half * 16..].as_ptr());
            let base = _mm512_sub_ps(_mm512_set1_ps(MAGIC), most);
            // Below that a weight is 2^-125.
            let lowest = _mm512_div_ps(_mm512_sub_ps(most, _mm512_set1_ps(125.0)), factor_v);
            let mut sums = [_mm512_loadu_ps(total[half * 16..].as_ptr()), _mm512_setzero_ps()];
            let weight = |row: usize| {
                let score = _mm512_loadu_ps(at.add(row * NR + half * 16).cast());
                // Of two operands the second is the one that passes where one is no number.
                let score = _mm512_max_ps(lowest, score);
                let shifted = _mm512_fmadd_ps(score, factor_v, base);
                let r = _mm512_fmsub_ps(score, factor_v, _mm512_sub_ps(shifted, base));
                let p = _mm512_fmadd_ps(_mm512_set1_ps(5.517_166e-2), r, _mm512_set1_ps(2.426_111_4e-1));
                let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.932_61e-1));
                let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999_281e-1));
                let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
                _mm512_add_epi32(_mm512_castps_si512(p), power)
            };
            let round = _mm512_set1_epi32(0x8000);
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let mut row = rows.start;
            while row < rows.end {
                let a = weight(row);
                let b = if row + 1 < rows.end { weight(row + 1) } else { _mm512_setzero_si512() };
                sums[0] = _mm512_add_ps(sums[0], _mm512_castsi512_ps(a));
                sums[1] = _mm512_add_ps(sums[1], _mm512_castsi512_ps(b));
                let (a, b) = (_mm512_add_epi32(a, round), _mm512_add_epi32(b, round));
                // a >> 16 | b & high
                let both = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(a), b, high);
                _mm512_storeu_si512(at.add(row / 2 * NR + half * 16).cast(), both);
                row += 2;
            }
            _mm512_storeu_ps(total[half * 16..].as_mut_ptr(), _mm512_add_ps(sums[0], sums[1]));
        }
    }
}
