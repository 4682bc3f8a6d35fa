//! The inner products: a tile of some rows by [`NR`] columns, accumulated in f32 registers.
//!
//! One unit of depth is 32 bits: one f32, or a pair of bf16. Packed rows hold, unit by unit, one value for
//! each row; packed columns, unit by unit, `NR` values. All instruction sets share this layout.
//!
//! Bound: floating-point units. With [`MR`] rows AVX-512 keeps 24 accumulators, so 24 multiply-adds hide the
//! latency of two column loads and twelve broadcasts; with 8 rows, 16 do.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::isa::simd;
#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, isa};
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Rows of a tile of the block product.
pub(crate) const MR: usize = 12;
/// Columns of a tile.
pub(crate) const NR: usize = 32;

/// `c[r * ldc + j] (+)= sum over units of a * b[unit * NR + j]`, where a is `a[unit * lda + r]` of packed rows or
/// `a[r * lda + unit]` of rows as they lie.
pub(crate) type Kernel =
    unsafe fn(units: usize, a: *const u32, lda: usize, b: *const u32, c: *mut f32, ldc: usize, accumulate: bool);

/// The kernel for f32 units and a tile of `ROWS` rows (8 or 12), packed or as they lie.
pub(crate) fn kernel_f32<const ROWS: usize, const PACKED: bool>() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return x86::f32_avx512::<ROWS, PACKED>,
        Isa::Avx2 => return x86::f32_avx2::<ROWS, PACKED>,
        Isa::Portable => {}
    }
    portable_f32::<ROWS, PACKED>
}

/// Whether AVX-512's products of bf16 pairs are quicker than products of f32 after a shift and a mask. On processors with
/// tiles they are not: they do half of what f32's do, where Zen's do twice as much.
#[cfg(target_arch = "x86_64")]
fn pairs_are_quick() -> bool {
    static QUICK: OnceLock<bool> = OnceLock::new();
    *QUICK.get_or_init(|| !amx::on_chip())
}

/// Whether a product of a pair of bf16 takes less time than two of f32.
pub(crate) fn pairs_gain() -> bool {
    #[cfg(target_arch = "x86_64")]
    return match isa() {
        Isa::Amx => true,
        Isa::Avx512Bf16 => pairs_are_quick(),
        Isa::Avx512 | Isa::Avx2 | Isa::Portable => false,
    };
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The kernel for pairs of bf16 and a tile of `ROWS` rows (8 or 12), packed or as they lie.
pub(crate) fn kernel_bf16<const ROWS: usize, const PACKED: bool>() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512Bf16 | Isa::Amx if pairs_are_quick() => return x86::bf16_avx512bf16::<ROWS, PACKED>,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return x86::bf16_avx512::<ROWS, PACKED>,
        Isa::Avx2 => return x86::bf16_avx2::<ROWS, PACKED>,
        Isa::Portable => {}
    }
    portable_bf16::<ROWS, PACKED>
}

/// A kernel for packed rows whose pairs of bf16 [`widen`] made pairs of f32.
pub(crate) struct Wide {
    pub(crate) kernel: Kernel,
    /// Whether columns are widened as well, a panel at a time: then the kernel is that of f32, for twice the units.
    pub(crate) columns: bool,
}

/// The kernel for a tile of `ROWS` rows (8 or 12) whose pairs were widened, where that is the quickest: rows spare splitting
/// each pair once for every panel of columns, and AVX2 has no registers left to split those of columns in. The sums are the
/// same either way.
pub(crate) fn kernel_wide<const ROWS: usize>() -> Option<Wide> {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 | Isa::Avx512Bf16 if !pairs_gain() => {
            return Some(Wide { kernel: x86::bf16_avx512_wide::<ROWS>, columns: false });
        }
        Isa::Avx2 => return Some(Wide { kernel: x86::f32_avx2::<ROWS, true>, columns: true }),
        _ => {}
    }
    None
}

simd! {
    /// Of each unit of `rows` packed pairs of bf16, or columns, first all lower halves as f32, then all upper ones.
    pub(crate) fn widen(packed: &[u32], rows: usize, out: &mut [u32]) {
        for (pairs, out) in packed.chunks_exact(rows).zip(out.chunks_exact_mut(2 * rows)) {
            let (low, high) = out.split_at_mut(rows);
            low.iter_mut().zip(pairs).for_each(|(o, x)| *o = x << 16);
            high.iter_mut().zip(pairs).for_each(|(o, x)| *o = x & 0xffff_0000);
        }
    }
}

/// Rows and columns of the portable sub-tile: 8 accumulators of 4 numbers fit the 16 registers of plain x86-64, and
/// the 32 of Arm.
const PORTABLE_ROWS: usize = 4;
const PORTABLE_COLUMNS: usize = 8;

macro_rules! portable_kernel {
    ($name:ident, |$a:ident, $b:ident| $term:expr) => {
        unsafe fn $name<const ROWS: usize, const PACKED: bool>(
            units: usize,
            a: *const u32,
            lda: usize,
            b: *const u32,
            c: *mut f32,
            ldc: usize,
            accumulate: bool,
        ) {
            for row in (0..ROWS).step_by(PORTABLE_ROWS) {
                for column in (0..NR).step_by(PORTABLE_COLUMNS) {
                    let mut acc = [[0f32; PORTABLE_COLUMNS]; PORTABLE_ROWS];
                    for unit in 0..units {
                        // SAFETY: packed rows and columns hold `units` units.
                        let b = unsafe { &*b.add(unit * NR + column).cast::<[u32; PORTABLE_COLUMNS]>() };
                        for (r, acc) in acc.iter_mut().enumerate() {
                            let at = if PACKED { unit * lda + row + r } else { (row + r) * lda + unit };
                            // SAFETY: as above.
                            let $a = unsafe { *a.add(at) };
                            acc.iter_mut().zip(b).for_each(|(o, &$b)| *o += $term);
                        }
                    }
                    for (r, acc) in acc.iter().enumerate() {
                        // SAFETY: the caller's tile has ROWS rows of NR columns.
                        let out = unsafe { &mut *c.add((row + r) * ldc + column).cast::<[f32; PORTABLE_COLUMNS]>() };
                        out.iter_mut().zip(acc).for_each(|(o, x)| *o = if accumulate { *o + x } else { *x });
                    }
                }
            }
        }
    };
}

portable_kernel!(portable_f32, |a, b| f32::from_bits(a) * f32::from_bits(b));

portable_kernel!(portable_bf16, |a, b| {
    f32::from_bits(a << 16) * f32::from_bits(b << 16)
        + f32::from_bits(a & 0xffff_0000) * f32::from_bits(b & 0xffff_0000)
});

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::NR;
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store512<const ROWS: usize>(acc: &[[__m512; 2]; ROWS], c: *mut f32, ldc: usize, accumulate: bool) {
        for (r, row) in acc.iter().enumerate() {
            for (h, &value) in row.iter().enumerate() {
                // SAFETY: the caller's tile has ROWS rows of NR columns.
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
            pub(super) unsafe fn $name<const ROWS: usize, const PACKED: bool>(
                units: usize,
                a: *const u32,
                lda: usize,
                b: *const u32,
                c: *mut f32,
                ldc: usize,
                accumulate: bool,
            ) {
                let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
                for unit in 0..units {
                    // SAFETY: packed rows and columns hold `units` units.
                    unsafe {
                        let b = b.add(unit * NR).cast::<i32>();
                        let ($b0, $b1) = (_mm512_loadu_epi32(b), _mm512_loadu_epi32(b.add(16)));
                        let a = a.cast::<i32>();
                        for r in 0..ROWS {
                            let at = if PACKED { unit * lda + r } else { r * lda + unit };
                            let $a = _mm512_set1_epi32(*a.add(at));
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

    /// As [`bf16_avx512`] of packed rows that [`widen`](super::widen) widened.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn bf16_avx512_wide<const ROWS: usize>(
        units: usize,
        a: *const u32,
        lda: usize,
        b: *const u32,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    ) {
        let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        let high = |x| _mm512_castsi512_ps(_mm512_and_si512(x, mask));
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        for unit in 0..units {
            // SAFETY: packed rows and columns hold `units` units.
            unsafe {
                let b = b.add(unit * NR).cast::<i32>();
                let (b0, b1) = (_mm512_loadu_epi32(b), _mm512_loadu_epi32(b.add(16)));
                let (l0, l1, h0, h1) = (low(b0), low(b1), high(b0), high(b1));
                let a = a.add(2 * unit * lda).cast::<f32>();
                for r in 0..ROWS {
                    let (l, h) = (_mm512_set1_ps(*a.add(r)), _mm512_set1_ps(*a.add(lda + r)));
                    acc[r][0] = _mm512_fmadd_ps(h, h0, _mm512_fmadd_ps(l, l0, acc[r][0]));
                    acc[r][1] = _mm512_fmadd_ps(h, h1, _mm512_fmadd_ps(l, l1, acc[r][1]));
                }
            }
        }
        // SAFETY: as the caller promised.
        unsafe { store512(&acc, c, ldc, accumulate) };
    }

    /// Most rows, and columns, of the AVX2 sub-tile: 12 accumulators of 8 numbers, in 16 registers.
    const SUB_ROWS: usize = 6;
    const SUB_COLUMNS: usize = 16;

    /// Rows of the AVX2 sub-tile of a tile of `rows`; pairs need registers for their halves, which leaves 4 rows.
    const fn sub_rows(rows: usize, pairs: bool) -> usize {
        if rows.is_multiple_of(SUB_ROWS) && !pairs { SUB_ROWS } else { 4 }
    }

    macro_rules! avx2_kernel {
        ($name:ident, $pairs:literal, |$acc:ident, $a:ident, $b0:ident, $b1:ident| $step:block) => {
            #[target_feature(enable = "avx2,fma")]
            pub(super) unsafe fn $name<const ROWS: usize, const PACKED: bool>(
                units: usize,
                a: *const u32,
                lda: usize,
                b: *const u32,
                c: *mut f32,
                ldc: usize,
                accumulate: bool,
            ) {
                let sub = const { sub_rows(ROWS, $pairs) };
                for column in [0, SUB_COLUMNS] {
                    for row in (0..ROWS).step_by(sub) {
                        let mut acc = [[_mm256_setzero_ps(); 2]; SUB_ROWS];
                        for unit in 0..units {
                            // SAFETY: packed rows and columns hold `units` units.
                            unsafe {
                                let b = b.add(unit * NR + column).cast::<__m256i>();
                                let ($b0, $b1) = (_mm256_loadu_si256(b), _mm256_loadu_si256(b.add(1)));
                                let a = a.cast::<i32>();
                                for r in row..row + sub {
                                    let at = if PACKED { unit * lda + r } else { r * lda + unit };
                                    let $a = _mm256_set1_epi32(*a.add(at));
                                    let r = r - row;
                                    let $acc = &mut acc[r];
                                    $step
                                }
                            }
                        }
                        for (r, pair) in acc.iter().take(sub).enumerate() {
                            for (h, &value) in pair.iter().enumerate() {
                                // SAFETY: the caller's tile has ROWS rows of NR columns.
                                unsafe {
                                    let out = c.add((row + r) * ldc + column + 8 * h);
                                    let value =
                                        if accumulate { _mm256_add_ps(_mm256_loadu_ps(out), value) } else { value };
                                    _mm256_storeu_ps(out, value);
                                }
                            }
                        }
                    }
                }
            }
        };
    }

    avx2_kernel!(f32_avx2, false, |acc, a, b0, b1| {
        let a = _mm256_castsi256_ps(a);
        acc[0] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(b0), acc[0]);
        acc[1] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(b1), acc[1]);
    });

    avx2_kernel!(bf16_avx2, true, |acc, a, b0, b1| {
        let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
        let high = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
        acc[0] = _mm256_fmadd_ps(high(a), high(b0), _mm256_fmadd_ps(low(a), low(b0), acc[0]));
        acc[1] = _mm256_fmadd_ps(high(a), high(b1), _mm256_fmadd_ps(low(a), low(b1), acc[1]));
    });
}
