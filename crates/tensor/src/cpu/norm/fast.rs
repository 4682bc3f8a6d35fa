//! Normalisation of bf16 with AVX-512: a channel's sums stay in registers, and SiLU takes the reciprocal of 14 bits and an
//! exponential within 8e-5, which bf16 rounds away.

use crate::cpu::rows::Place;
use crate::ops::Activation;
use std::arch::x86_64::*;

/// Those of 16 numbers from `at` on that are below `count`.
#[inline(always)]
fn below(count: usize, at: usize) -> __mmask16 {
    if count - at < 16 { (1 << (count - at)) - 1 } else { 0xffff }
}

/// 16 numbers, zeros where the mask has none.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load(x: *const u16, mask: __mmask16) -> __m512 {
    // SAFETY: callers give the address of as many numbers as the mask has.
    let x = unsafe { _mm256_maskz_loadu_epi16(mask, x.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

/// As `channel_sums`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn channel_sums(x: &[u16], shift: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    const WIDE: usize = 4;
    let c = shift.len();
    for first in (0..c).step_by(16 * WIDE) {
        let count = WIDE.min((c - first).div_ceil(16));
        // SAFETY: all of these have `c` numbers for each pixel, and masks end there.
        unsafe {
            let (mut s, mut q) = ([_mm512_setzero_ps(); WIDE], [_mm512_setzero_ps(); WIDE]);
            let (mut k, mut mask) = (s, [0; WIDE]);
            for i in 0..count {
                mask[i] = below(c, first + 16 * i);
                k[i] = _mm512_maskz_loadu_ps(mask[i], shift.as_ptr().add(first + 16 * i));
            }
            for pixel in x.chunks_exact(c) {
                for i in 0..WIDE {
                    if i < count {
                        let d = _mm512_sub_ps(load(pixel.as_ptr().add(first + 16 * i), mask[i]), k[i]);
                        s[i] = _mm512_add_ps(s[i], d);
                        q[i] = _mm512_fmadd_ps(d, d, q[i]);
                    }
                }
            }
            for i in 0..count {
                _mm512_mask_storeu_ps(sums.as_mut_ptr().add(first + 16 * i), mask[i], s[i]);
                _mm512_mask_storeu_ps(squares.as_mut_ptr().add(first + 16 * i), mask[i], q[i]);
            }
        }
    }
}

/// `y` or its SiLU.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn activated(y: __m512, silu: bool) -> __m512 {
    if !silu {
        return y;
    }
    // 2^(-y log2 e), at most 2^126. The second operand passes where one is no number.
    let z = _mm512_mul_ps(y, _mm512_set1_ps(-std::f32::consts::LOG2_E));
    let z = _mm512_min_ps(_mm512_set1_ps(126.0), z);
    let r = _mm512_reduce_ps::<0x08>(z);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(5.517_166e-2), r, _mm512_set1_ps(2.426_111_4e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.932_61e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999_281e-1));
    let e = _mm512_scalef_ps(p, _mm512_sub_ps(z, r));
    _mm512_mul_ps(y, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0), e)))
}

/// As `apply`, without activation or with SiLU; `past_caches` as in the epilogue.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn apply(
    x: &[u16],
    gain: &[f32],
    offset: &[f32],
    silu: bool,
    out: *mut u16,
    stride: usize,
    past_caches: bool,
) {
    let c = gain.len();
    let past_caches = past_caches && (c | stride).is_multiple_of(32) && out.addr().is_multiple_of(64);
    for (i, pixel) in x.chunks_exact(c).enumerate() {
        // SAFETY: callers give `c` numbers for each pixel, and masks end there.
        let part = |at: usize, mask: __mmask16| unsafe {
            let g = _mm512_maskz_loadu_ps(mask, gain.as_ptr().add(at));
            let t = _mm512_maskz_loadu_ps(mask, offset.as_ptr().add(at));
            activated(_mm512_fmadd_ps(load(pixel.as_ptr().add(at), mask), g, t), silu)
        };
        if past_caches {
            for at in (0..c).step_by(32) {
                // SAFETY: both are the same bits.
                let both: __m512i =
                    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(part(at + 16, 0xffff), part(at, 0xffff))) };
                // SAFETY: as above; whole lines of the cache.
                unsafe { _mm512_stream_si512(out.add(i * stride + at).cast(), both) };
            }
            continue;
        }
        for at in (0..c).step_by(16) {
            let mask = below(c, at);
            // SAFETY: both are the same bits.
            let y: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(part(at, mask))) };
            // SAFETY: as above.
            unsafe { _mm256_mask_storeu_epi16(out.add(i * stride + at).cast(), mask, y) };
        }
    }
}

/// As [`apply`] to one pixel of whole lines, each of which begins `step` numbers after the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn apply_pixel(
    x: *const u16,
    (gain, offset): (&[f32], &[f32]),
    silu: bool,
    out: *mut u16,
    step: usize,
) {
    for (i, (gain, offset)) in gain.chunks_exact(LINE).zip(offset.chunks_exact(LINE)).enumerate() {
        // SAFETY: callers give as many lines on both sides; both types are the same bits.
        unsafe {
            let part = |at: usize| {
                let (g, t) = (_mm512_loadu_ps(gain.as_ptr().add(at)), _mm512_loadu_ps(offset.as_ptr().add(at)));
                activated(_mm512_fmadd_ps(load(x.add(i * LINE + at), 0xffff), g, t), silu)
            };
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(part(16), part(0)));
            _mm512_storeu_si512(out.add(i * step).cast(), both);
        }
    }
}

/// Numbers of a line of the cache.
const LINE: usize = 32;

/// Whether [`layer_norm_rows`] can do rows of so many.
pub(super) fn in_lines(c: usize) -> bool {
    c.is_multiple_of(LINE)
}

/// As `layer_norm_rows` of whole lines, of which the first is the `first`th, to where `place` says. For the sums numbers at even
/// and at odd places become f32 by one operation each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn layer_norm_rows(
    x: &[u16],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    (out, first, place): (*mut u16, usize, Place),
) {
    let c = weight.len();
    let line = |row: *const u16| {
        // SAFETY: callers give a line.
        let x = unsafe { _mm512_loadu_si512(row.cast()) };
        let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(odd)]
    };
    let all = |[a, b, c, d]: [__m512; 4]| _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    for (i, row) in x.chunks_exact(c).enumerate() {
        let at = |at: usize| row[at..][..LINE].as_ptr();
        let mut sums = [_mm512_setzero_ps(); 4];
        for two in (0..c).step_by(2 * LINE) {
            let [a, b] = line(at(two));
            (sums[0], sums[1]) = (_mm512_add_ps(sums[0], a), _mm512_add_ps(sums[1], b));
            if two + LINE < c {
                let [a, b] = line(at(two + LINE));
                (sums[2], sums[3]) = (_mm512_add_ps(sums[2], a), _mm512_add_ps(sums[3], b));
            }
        }
        let mean = _mm512_set1_ps(all(sums) / c as f32);
        let mut squares = [_mm512_setzero_ps(); 4];
        let square = |x: __m512, sum: __m512| {
            let d = _mm512_sub_ps(x, mean);
            _mm512_fmadd_ps(d, d, sum)
        };
        for two in (0..c).step_by(2 * LINE) {
            let [a, b] = line(at(two));
            (squares[0], squares[1]) = (square(a, squares[0]), square(b, squares[1]));
            if two + LINE < c {
                let [a, b] = line(at(two + LINE));
                (squares[2], squares[3]) = (square(a, squares[2]), square(b, squares[3]));
            }
        }
        let inverse = _mm512_set1_ps(1.0 / (all(squares) / c as f32 + eps).sqrt());
        for from in (0..c).step_by(LINE) {
            let one = |at: usize| {
                let part = |all: &[f32]| {
                    // SAFETY: as many numbers.
                    unsafe { _mm512_loadu_ps(all[at..][..16].as_ptr()) }
                };
                // SAFETY: as many numbers.
                let d = _mm512_sub_ps(unsafe { load(row[at..][..16].as_ptr(), 0xffff) }, mean);
                let offset = bias.map_or(_mm512_setzero_ps(), part);
                _mm512_fmadd_ps(d, _mm512_mul_ps(inverse, part(weight)), offset)
            };
            // SAFETY: both are the same bits; callers give a place for each line.
            unsafe {
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(one(from + 16), one(from)));
                _mm512_storeu_si512(out.add(place.at(first + i, from)).cast(), both);
            }
        }
    }
}

/// Whether [`apply`] knows an activation.
pub(super) fn knows(activation: Activation) -> bool {
    matches!(activation, Activation::None | Activation::Silu)
}
