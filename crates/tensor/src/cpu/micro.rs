//! The inner products: a tile of [`MR`] rows by [`NR`] columns, accumulated in f32 registers.
//!
//! One unit of depth is 32 bits: one f32, or a pair of bf16. Packed rows hold, unit by unit, `MR` values;
//! packed columns, unit by unit, `NR` values. All instruction sets share this layout.
//!
//! Bound: floating-point units. AVX-512 keeps 24 accumulators, so 24 multiply-adds hide the latency of
//! two column loads and twelve broadcasts.

use super::isa::{Isa, isa};

/// Rows of a tile.
pub(crate) const MR: usize = 12;
/// Columns of a tile.
pub(crate) const NR: usize = 32;

/// `c[r * ldc + j] (+)= sum over units of a[unit][r] * b[unit][j]`.
pub(crate) type Kernel =
    unsafe fn(units: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, accumulate: bool);

/// The kernel for f32 units.
pub(crate) fn kernel_f32() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 | Isa::Avx512Bf16 => return x86::f32_avx512,
        Isa::Avx2 => return x86::f32_avx2,
        Isa::Portable => {}
    }
    portable_f32
}

/// The kernel for pairs of bf16.
pub(crate) fn kernel_bf16() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512Bf16 => return x86::bf16_avx512bf16,
        Isa::Avx512 => return x86::bf16_avx512,
        Isa::Avx2 => return x86::bf16_avx2,
        Isa::Portable => {}
    }
    portable_bf16
}

#[inline(always)]
unsafe fn store_portable(acc: &[[f32; NR]; MR], c: *mut f32, ldc: usize, accumulate: bool) {
    for (r, row) in acc.iter().enumerate() {
        // SAFETY: the caller's tile has MR rows of NR columns.
        let out = unsafe { std::slice::from_raw_parts_mut(c.add(r * ldc), NR) };
        for (o, x) in out.iter_mut().zip(row) {
            *o = if accumulate { *o + x } else { *x };
        }
    }
}

unsafe fn portable_f32(units: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, accumulate: bool) {
    let mut acc = [[0f32; NR]; MR];
    // SAFETY: packed rows and columns hold `units` units.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<f32>(), units * MR),
            std::slice::from_raw_parts(b.cast::<f32>(), units * NR),
        )
    };
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        for (row, &x) in acc.iter_mut().zip(a) {
            row.iter_mut().zip(b).for_each(|(o, y)| *o += x * y);
        }
    }
    unsafe { store_portable(&acc, c, ldc, accumulate) };
}

unsafe fn portable_bf16(units: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, accumulate: bool) {
    let mut acc = [[0f32; NR]; MR];
    // SAFETY: packed rows and columns hold `units` units.
    let (a, b) = unsafe { (std::slice::from_raw_parts(a, units * MR), std::slice::from_raw_parts(b, units * NR)) };
    let low = |x: u32| f32::from_bits(x << 16);
    let high = |x: u32| f32::from_bits(x & 0xffff_0000);
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        for (row, &x) in acc.iter_mut().zip(a) {
            row.iter_mut().zip(b).for_each(|(o, &y)| *o += low(x) * low(y) + high(x) * high(y));
        }
    }
    unsafe { store_portable(&acc, c, ldc, accumulate) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{MR, NR};
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store512(acc: &[[__m512; 2]; MR], c: *mut f32, ldc: usize, accumulate: bool) {
        for (r, row) in acc.iter().enumerate() {
            for (h, &value) in row.iter().enumerate() {
                // SAFETY: the caller's tile has MR rows of NR columns.
                unsafe {
                    let out = c.add(r * ldc + 16 * h);
                    let value = if accumulate { _mm512_add_ps(_mm512_loadu_ps(out), value) } else { value };
                    _mm512_storeu_ps(out, value);
                }
            }
        }
    }

    macro_rules! avx512_kernel {
        ($name:ident, $features:literal, |$acc:ident, $a:ident, $b0:ident, $b1:ident| $step:block) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                units: usize,
                a: *const u32,
                b: *const u32,
                c: *mut f32,
                ldc: usize,
                accumulate: bool,
            ) {
                let mut acc = [[_mm512_setzero_ps(); 2]; MR];
                for unit in 0..units {
                    // SAFETY: packed rows and columns hold `units` units.
                    unsafe {
                        let b = b.add(unit * NR).cast::<i32>();
                        let ($b0, $b1) = (_mm512_loadu_epi32(b), _mm512_loadu_epi32(b.add(16)));
                        let a = a.add(unit * MR).cast::<i32>();
                        for r in 0..MR {
                            let $a = _mm512_set1_epi32(*a.add(r));
                            let $acc = &mut acc[r];
                            $step
                        }
                    }
                }
                // SAFETY: as the caller promised.
                unsafe { store512(&acc, c, ldc, accumulate) };
            }
        };
    }

    avx512_kernel!(f32_avx512, "avx512f,avx512bw,avx512dq,avx512vl", |acc, a, b0, b1| {
        let a = _mm512_castsi512_ps(a);
        acc[0] = _mm512_fmadd_ps(a, _mm512_castsi512_ps(b0), acc[0]);
        acc[1] = _mm512_fmadd_ps(a, _mm512_castsi512_ps(b1), acc[1]);
    });

    avx512_kernel!(bf16_avx512bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", |acc, a, b0, b1| {
        let a: __m512bh = std::mem::transmute(a);
        acc[0] = _mm512_dpbf16_ps(acc[0], a, std::mem::transmute::<__m512i, __m512bh>(b0));
        acc[1] = _mm512_dpbf16_ps(acc[1], a, std::mem::transmute::<__m512i, __m512bh>(b1));
    });

    // A pair of bf16 is two f32 after a shift and a mask.
    avx512_kernel!(bf16_avx512, "avx512f,avx512bw,avx512dq,avx512vl", |acc, a, b0, b1| {
        let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        let high = |x| _mm512_castsi512_ps(_mm512_and_si512(x, mask));
        acc[0] = _mm512_fmadd_ps(high(a), high(b0), _mm512_fmadd_ps(low(a), low(b0), acc[0]));
        acc[1] = _mm512_fmadd_ps(high(a), high(b1), _mm512_fmadd_ps(low(a), low(b1), acc[1]));
    });

    /// Rows and columns of the AVX2 sub-tile: 12 accumulators of 8 numbers, in 16 registers.
    const SUB_ROWS: usize = 6;
    const SUB_COLUMNS: usize = 16;

    macro_rules! avx2_kernel {
        ($name:ident, |$acc:ident, $a:ident, $b0:ident, $b1:ident| $step:block) => {
            #[target_feature(enable = "avx2,fma")]
            pub(super) unsafe fn $name(
                units: usize,
                a: *const u32,
                b: *const u32,
                c: *mut f32,
                ldc: usize,
                accumulate: bool,
            ) {
                for (row, column) in [(0, 0), (SUB_ROWS, 0), (0, SUB_COLUMNS), (SUB_ROWS, SUB_COLUMNS)] {
                    let mut acc = [[_mm256_setzero_ps(); 2]; SUB_ROWS];
                    for unit in 0..units {
                        // SAFETY: packed rows and columns hold `units` units.
                        unsafe {
                            let b = b.add(unit * NR + column).cast::<__m256i>();
                            let ($b0, $b1) = (_mm256_loadu_si256(b), _mm256_loadu_si256(b.add(1)));
                            let a = a.add(unit * MR + row).cast::<i32>();
                            for r in 0..SUB_ROWS {
                                let $a = _mm256_set1_epi32(*a.add(r));
                                let $acc = &mut acc[r];
                                $step
                            }
                        }
                    }
                    for (r, pair) in acc.iter().enumerate() {
                        for (h, &value) in pair.iter().enumerate() {
                            // SAFETY: the caller's tile has MR rows of NR columns.
                            unsafe {
                                let out = c.add((row + r) * ldc + column + 8 * h);
                                let value = if accumulate { _mm256_add_ps(_mm256_loadu_ps(out), value) } else { value };
                                _mm256_storeu_ps(out, value);
                            }
                        }
                    }
                }
            }
        };
    }

    avx2_kernel!(f32_avx2, |acc, a, b0, b1| {
        let a = _mm256_castsi256_ps(a);
        acc[0] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(b0), acc[0]);
        acc[1] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(b1), acc[1]);
    });

    avx2_kernel!(bf16_avx2, |acc, a, b0, b1| {
        let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
        let high = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
        acc[0] = _mm256_fmadd_ps(high(a), high(b0), _mm256_fmadd_ps(low(a), low(b0), acc[0]));
        acc[1] = _mm256_fmadd_ps(high(a), high(b1), _mm256_fmadd_ps(low(a), low(b1), acc[1]));
    });
}
