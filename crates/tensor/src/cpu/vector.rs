//! Vectors of f32 in registers, for code that the compiler does not vectorise by itself: many streams at once.

use crate::DType;
use crate::tensor::Element;
use half::bf16;

/// Some f32 in a register. All methods need the instruction set of the type, which callers enable.
pub(crate) trait Vector: Copy {
    /// Numbers in it.
    const LANES: usize;
    /// # Safety
    /// `LANES` numbers lie at `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// # Safety
    /// As [`Vector::load`].
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// # Safety
    /// There is room for `LANES` numbers at `p`.
    unsafe fn store(self, p: *mut f32);
    /// # Safety
    /// The instruction set is there, as for all below.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// As [`Vector::splat`].
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// As [`Vector::splat`].
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * factor + term`.
    /// # Safety
    /// As [`Vector::splat`].
    unsafe fn mul_add(self, factor: f32, term: Self) -> Self;

    /// # Safety
    /// As [`Vector::load`]; `T` is f32 or bf16.
    #[inline(always)]
    unsafe fn load_from<T: Element>(p: *const T) -> Self {
        unsafe { if T::DTYPE == DType::F32 { Self::load(p.cast()) } else { Self::load_bf16(p.cast()) } }
    }
}

/// Four numbers, in whatever the compiler's baseline has.
#[derive(Clone, Copy)]
pub(crate) struct Four([f32; 4]);

impl Vector for Four {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Four(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        Four(unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(Element::to_f32))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) };
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Four([x; 4])
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Four(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Four(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: f32, term: Self) -> Self {
        Four(std::array::from_fn(|i| self.0[i] * factor + term.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Vector, bf16};
    use std::arch::x86_64::*;

    impl Vector for __m512 {
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())), 16)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self) };
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { _mm512_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: f32, term: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, _mm512_set1_ps(factor), term) }
        }
    }

    impl Vector for __m256 {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16)) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm256_storeu_ps(p, self) };
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm256_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { _mm256_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: f32, term: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, _mm256_set1_ps(factor), term) }
        }
    }
}
