//! Transpositions between rows as they lie and what tiles multiply, sixteen vectors of sixteen numbers at a time. All of it
//! needs AVX-512 with bf16, which processors with tiles have.

use crate::cpu::amx::{ROWS, STEP};
use crate::cpu::micro::NR;
use crate::tensor::{DType, Element};
use std::arch::x86_64::*;

/// Elements of bf16 of a step.
const ELEMENTS: usize = 2 * STEP;

/// Transposes a square.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Of four rows each column's four numbers, in lanes of four columns.
    let mut fours = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| pairs[4 * i + j]);
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut columns = fours;
    for i in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|j| fours[4 * j + i]);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[4 + i] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        columns[8 + i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    columns
}

/// Elements of a row of bf16 from `from` on, zeros beyond its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn step_of<T: Element>(row: &[T], from: usize) -> __m512i {
    debug_assert!(T::DTYPE == DType::BF16);
    let there = row.len().saturating_sub(from).min(ELEMENTS);
    if there == ELEMENTS {
        // SAFETY: as many elements.
        return unsafe { _mm512_loadu_si512(row.as_ptr().add(from).cast()) };
    }
    // SAFETY: what is not there is not read.
    unsafe { _mm512_maskz_loadu_epi16(first(there) as u32, row.as_ptr().wrapping_add(from).cast()) }
}

/// A mask of so many ones.
#[inline]
fn first(count: usize) -> u64 {
    (1u64 << count) - 1
}

/// Rows of queries (none: zeros) to the columns of a right-hand side: of each pair of elements, one unit of every query.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn to_columns<'a, T: Element>(row: impl Fn(usize) -> &'a [T], out: &mut [u32]) {
    for (step, out) in out.chunks_exact_mut(STEP * NR).enumerate() {
        for half in 0..NR / 16 {
            let rows = std::array::from_fn(|i| step_of(row(half * 16 + i), step * ELEMENTS));
            for (unit, line) in transpose(rows).into_iter().enumerate() {
                let out = &mut out[unit * NR + half * 16..][..16];
                // SAFETY: as many numbers.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
            }
        }
    }
}

/// Rows of keys (none: zeros) to groups of a left-hand side, step after step.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn to_groups<'a, T: Element>(row: impl Fn(usize) -> &'a [T], size: usize, out: &mut [u32]) {
    for (group, out) in out.chunks_exact_mut(size * ROWS).enumerate() {
        for r in 0..ROWS {
            let row = row(group * ROWS + r);
            for step in 0..size / STEP {
                let out = &mut out[(step * ROWS + r) * STEP..][..STEP];
                // SAFETY: as many numbers.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), step_of(row, step * ELEMENTS)) };
            }
        }
    }
}

/// Rows of values (none: zeros) to groups of a left-hand side whose rows are elements and whose units are pairs of keys.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn to_turned_groups<'a, T: Element>(row: impl Fn(usize) -> &'a [T], size: usize, out: &mut [u32]) {
    for step in 0..size / STEP {
        for (group, out) in out.chunks_exact_mut(size * ROWS).enumerate() {
            let out = &mut out[step * STEP * ROWS..][..STEP * ROWS];
            let pair = |unit: usize| [0, 1].map(|odd| step_of(row(step * ELEMENTS + 2 * unit + odd), group * ROWS));
            let pairs: [[__m512i; 2]; STEP] = std::array::from_fn(pair);
            let low = transpose(pairs.map(|[a, b]| _mm512_unpacklo_epi16(a, b)));
            let high = transpose(pairs.map(|[a, b]| _mm512_unpackhi_epi16(a, b)));
            // Lanes of eight elements give four units each.
            for (part, lines) in [low, high].into_iter().enumerate() {
                for (i, line) in lines.into_iter().enumerate() {
                    let element = i / 4 * 8 + part * 4 + i % 4;
                    let out = &mut out[element * STEP..][..STEP];
                    // SAFETY: as many numbers.
                    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
                }
            }
        }
    }
}

/// `result (+)= factor * sum` of each query, `[elements, queries]`.
#[target_feature(enable = "avx512f")]
pub(super) fn join_columns(result: &mut [f32], sums: &[f32], factors: &[f32; NR], add: bool) {
    // SAFETY: rows of NR numbers.
    unsafe {
        let factors = [0, 16].map(|i| _mm512_loadu_ps(factors[i..].as_ptr()));
        for (result, sum) in result.as_chunks_mut::<NR>().0.iter_mut().zip(sums.as_chunks::<NR>().0) {
            for (half, factor) in factors.into_iter().enumerate() {
                let (sum, at) = (_mm512_loadu_ps(sum[half * 16..].as_ptr()), result[half * 16..].as_mut_ptr());
                let joined = match add {
                    true => _mm512_fmadd_ps(sum, factor, _mm512_loadu_ps(at)),
                    false => _mm512_mul_ps(sum, factor),
                };
                _mm512_storeu_ps(at, joined);
            }
        }
    }
}

/// Corrects sums `[elements, queries]` for new maxima.
#[target_feature(enable = "avx512f")]
pub(super) fn scale_columns(sums: &mut [f32], factors: &[f32; NR]) {
    if factors.iter().any(|factor| *factor != 1.0) {
        // SAFETY: rows of NR numbers.
        unsafe {
            let factors = [0, 16].map(|i| _mm512_loadu_ps(factors[i..].as_ptr()));
            for row in sums.as_chunks_mut::<NR>().0 {
                for (half, factor) in factors.into_iter().enumerate() {
                    let at = row[half * 16..].as_mut_ptr();
                    _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), factor));
                }
            }
        }
    }
}

/// Columns of `[elements, queries]` to rows of `T`: as many as `out` gives places for, which it does for each row's elements from
/// a multiple of [`ELEMENTS`] on, or of half as many of 32 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn to_rows<'a, T: Element>(columns: &[f32], mut out: impl FnMut(usize, usize) -> Option<&'a mut [T]>) {
    let pairs = T::DTYPE == DType::BF16;
    let wide = if pairs { ELEMENTS } else { STEP };
    // Of two vectors one after the other one of pairs.
    let mut order = [0u16; 32];
    order.iter_mut().enumerate().for_each(|(i, at)| *at = (i / 2 + i % 2 * 16) as u16);
    // SAFETY: as many numbers.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for (part, columns) in columns.chunks_exact(wide * NR).enumerate() {
        for half in 0..NR / 16 {
            let line = |i: usize| {
                let line = &columns[i * NR + half * 16..][..16];
                // SAFETY: as many numbers.
                unsafe { _mm512_loadu_ps(line.as_ptr()) }
            };
            let lines = std::array::from_fn(|i| match pairs {
                true => {
                    // SAFETY: vectors of the same size.
                    let both = unsafe {
                        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(line(2 * i + 1), line(2 * i)))
                    };
                    _mm512_permutexvar_epi16(order, both)
                }
                false => _mm512_castps_si512(line(i)),
            });
            for (i, line) in transpose(lines).into_iter().enumerate() {
                let Some(out) = out(half * 16 + i, part * wide) else { break };
                let (there, at) = (out.len().min(wide), out.as_mut_ptr());
                // SAFETY: what is not there is not written.
                unsafe {
                    match pairs {
                        // Stores under a mask are slow where not all processors have quick ones.
                        _ if there == wide => _mm512_storeu_si512(at.cast(), line),
                        true => _mm512_mask_storeu_epi16(at.cast(), first(there) as u32, line),
                        false => _mm512_mask_storeu_epi32(at.cast(), first(there) as u16, line),
                    }
                }
            }
        }
    }
}
