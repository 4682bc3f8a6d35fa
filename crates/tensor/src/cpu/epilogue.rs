//! What happens to a finished tile on its way to memory: bias, a number for each picture and channel,
//! activation, residual, conversion.

use super::gemm::Tile;
use super::isa::simd;
#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, isa};
use super::math::activate_all;
#[cfg(target_arch = "x86_64")]
use super::micro::NR;
use super::rows::Place;
use super::{SharedMut, math};
use crate::DType;
use crate::ops::Activation;
use crate::tensor::Element;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The epilogue of a product with `width` columns of output.
pub(crate) struct Epilogue<'a, T> {
    pub(crate) bias: Option<&'a [f32]>,
    /// `[pictures, width]` and the rows of a picture.
    pub(crate) channel_add: Option<(&'a [T], usize)>,
    pub(crate) activation: Activation,
    pub(crate) residual: Option<&'a [T]>,
    pub(crate) out: SharedMut<T>,
    pub(crate) width: usize,
    /// Where gated results lie; others are plain.
    pub(crate) place: Place,
    /// Whether the output is so large that it will not be in a cache when it is read, and is written past them.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86-64 can"))]
    pub(crate) past_caches: bool,
}

/// Bytes from which on an output is [past the caches](Epilogue::past_caches): a second-level cache several times.
const LARGE: usize = 16 << 20;

/// Orders what a thread wrote past the caches before what it does next, such as saying that it is done.
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Whether that holds for an output.
pub(crate) fn past_caches<T>(out: &[T]) -> bool {
    size_of_val(out) >= LARGE
}

impl<T: Element> Epilogue<'_, T> {
    /// Finishes a tile of a plain product.
    pub(crate) fn finish(&self, tile: Tile) {
        #[cfg(target_arch = "x86_64")]
        if tile.columns.is_multiple_of(NR) && self.activation == Activation::None && isa() >= Isa::Avx512Bf16 {
            // SAFETY: the processor has the instructions; tiles cover disjoint parts of the output.
            return (0..tile.columns).step_by(NR).for_each(|column| unsafe { self.finish_panel(&tile, column) });
        }
        let columns = tile.column..tile.column + tile.columns;
        for r in 0..tile.rows {
            let row = tile.row + r;
            let at = row * self.width + tile.column;
            // SAFETY: tiles cover disjoint parts of the output.
            let out = unsafe { self.out.range(at, tile.columns) };
            finish_row(
                &mut tile.values[r * tile.stride..][..tile.columns],
                self.bias.map(|b| &b[columns.clone()]),
                self.channel_add.map(|(add, rows)| &add[row / rows * self.width + tile.column..][..tile.columns]),
                self.activation,
                self.residual.map(|x| &x[at..][..tile.columns]),
                out,
            );
        }
    }

    /// As [`Epilogue::finish`] for one panel without activation, from `column` of the tile on.
    ///
    /// # Safety
    /// T is f32 or bf16, and nobody else uses the tile's part of the output.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn finish_panel(&self, tile: &Tile, column: usize) {
        let first = tile.column + column;
        let bias = match self.bias {
            // SAFETY: the bias has a number for each column.
            Some(bias) => unsafe {
                let bias = bias[first..][..NR].as_ptr();
                [_mm512_loadu_ps(bias), _mm512_loadu_ps(bias.add(16))]
            },
            None => [_mm512_setzero_ps(); 2],
        };
        let mut from = 0;
        while from < tile.rows {
            // So many rows of one picture, which have the same numbers added.
            let row = tile.row + from;
            let (count, add) = match self.channel_add {
                Some((add, rows)) => {
                    let add = add[row / rows * self.width + first..][..NR].as_ptr();
                    // SAFETY: NR numbers.
                    ((tile.rows - from).min(rows - row % rows), Some(unsafe { wide(add) }))
                }
                None => (tile.rows - from, None),
            };
            let at = row * self.width + first;
            let lines = Lines {
                count,
                values: tile.values[from * tile.stride + column..][..(count - 1) * tile.stride + NR].as_ptr(),
                stride: tile.stride,
                // SAFETY: the tile lies in the output.
                out: unsafe { self.out.range(at, NR) }.as_mut_ptr(),
                residual: self.residual.map(|x| x[at..][..(count - 1) * self.width + NR].as_ptr()),
                width: self.width,
            };
            let past_caches = self.past_caches && self.width.is_multiple_of(NR) && lines.out.addr().is_multiple_of(64);
            // SAFETY: all of that lies in memory.
            unsafe {
                match (past_caches, lines.residual.is_some()) {
                    (false, false) => lines.finish::<false, false>(bias, add),
                    (false, true) => lines.finish::<false, true>(bias, add),
                    (true, false) => lines.finish::<true, false>(bias, add),
                    (true, true) => lines.finish::<true, true>(bias, add),
                }
            }
            from += count;
        }
    }

    /// As [`Epilogue::finish_geglu`] for one panel of bf16, from `column` of the tile on.
    ///
    /// # Safety
    /// T is bf16, and nobody else uses the tile's part of the output.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn finish_geglu_panel(&self, tile: &Tile, column: usize) {
        // As `math::gelu_16_bits`.
        let gelu = |x: __m512| {
            let t = _mm512_max_ps(_mm512_set1_ps(-4.0), _mm512_min_ps(_mm512_set1_ps(4.0), x));
            let s = _mm512_mul_ps(t, t);
            let next = |p, c| _mm512_fmadd_ps(p, s, _mm512_set1_ps(c));
            let p = next(_mm512_set1_ps(2.278_145_4e-8), -1.598_602_9e-6);
            let p = next(next(p, 4.795_552_6e-5), -8.140_155e-4);
            let p = next(next(next(p, 8.772_388e-3), -6.457_311e-2), 3.978_833_5e-1);
            _mm512_mul_ps(x, _mm512_fmadd_ps(t, p, _mm512_set1_ps(0.5)))
        };
        let part = |all: Option<&[f32]>, at: usize| match all {
            // SAFETY: the bias has a number for each column.
            Some(all) => unsafe { _mm512_loadu_ps(all[at..][..16].as_ptr()) },
            None => _mm512_setzero_ps(),
        };
        let first = tile.column + column;
        let bias: [_; 2] = std::array::from_fn(|i| part(self.bias, first + 16 * i));
        let gate_bias: [_; 2] = std::array::from_fn(|i| part(self.bias, self.width + first + 16 * i));
        for r in 0..tile.rows {
            let values = tile.values[r * tile.stride + column..][..tile.twin + NR].as_ptr();
            // SAFETY: both hold NR numbers for this row, as the output does.
            unsafe {
                let one = |i: usize| {
                    let value = _mm512_add_ps(_mm512_loadu_ps(values.add(16 * i)), bias[i]);
                    let gate = _mm512_add_ps(_mm512_loadu_ps(values.add(tile.twin + 16 * i)), gate_bias[i]);
                    _mm512_mul_ps(value, gelu(gate))
                };
                let out = self.out.range(self.place.at(tile.row + r, first), NR).as_mut_ptr();
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(one(1), one(0)));
                _mm512_storeu_si512(out.cast(), both);
            }
        }
    }

    /// Finishes a tile of a product by halves: first half times GELU of the second.
    pub(crate) fn finish_geglu(&self, tile: Tile) {
        #[cfg(target_arch = "x86_64")]
        if T::DTYPE == DType::BF16 && tile.columns.is_multiple_of(NR) && isa() >= Isa::Avx512Bf16 {
            // SAFETY: the processor has the instructions; tiles cover disjoint parts of the output.
            return (0..tile.columns).step_by(NR).for_each(|column| unsafe { self.finish_geglu_panel(&tile, column) });
        }
        let bias =
            self.bias.map(|b| (&b[tile.column..][..tile.columns], &b[self.width + tile.column..][..tile.columns]));
        geglu_rows(tile, bias, self.out, self.place);
    }
}

/// Rows of one panel, where they lie.
#[cfg(target_arch = "x86_64")]
struct Lines<T> {
    count: usize,
    values: *const f32,
    /// From one row of values to the next.
    stride: usize,
    out: *mut T,
    residual: Option<*const T>,
    /// From one row of output and residual to the next.
    width: usize,
}

#[cfg(target_arch = "x86_64")]
impl<T: Element> Lines<T> {
    /// Nothing but what each row needs: the tile unit waits meanwhile.
    ///
    /// # Safety
    /// Rows of [`NR`] numbers lie there; those written past the caches begin with a line of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn finish<const PAST_CACHES: bool, const RESIDUAL: bool>(self, bias: [__m512; 2], add: Option<[__m512; 2]>) {
        let Lines { count, mut values, stride, mut out, residual, width } = self;
        let mut residual = residual.unwrap_or(out);
        for _ in 0..count {
            // SAFETY: as promised.
            unsafe {
                let mut low = _mm512_add_ps(_mm512_loadu_ps(values), bias[0]);
                let mut high = _mm512_add_ps(_mm512_loadu_ps(values.wrapping_add(16)), bias[1]);
                if let Some(add) = add {
                    (low, high) = (_mm512_add_ps(low, add[0]), _mm512_add_ps(high, add[1]));
                }
                if RESIDUAL {
                    let residual = wide(residual);
                    (low, high) = (_mm512_add_ps(low, residual[0]), _mm512_add_ps(high, residual[1]));
                }
                if T::DTYPE == DType::F32 {
                    write::<PAST_CACHES>(out.cast(), _mm512_castps_si512(low));
                    write::<PAST_CACHES>(out.wrapping_add(16).cast(), _mm512_castps_si512(high));
                } else {
                    write::<PAST_CACHES>(
                        out.cast(),
                        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)),
                    );
                }
            }
            values = values.wrapping_add(stride);
            out = out.wrapping_add(width);
            residual = residual.wrapping_add(width);
        }
    }
}

/// Writes a line of a cache, which begins there if it goes past them.
///
/// # Safety
/// It lies there.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write<const PAST_CACHES: bool>(out: *mut __m512i, line: __m512i) {
    // SAFETY: as promised.
    unsafe {
        match PAST_CACHES {
            true => _mm512_stream_si512(out, line),
            false => _mm512_storeu_si512(out, line),
        }
    }
}

/// [`NR`] numbers of f32, or of bf16 as f32.
///
/// # Safety
/// They lie there.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn wide<T: Element>(x: *const T) -> [__m512; 2] {
    if T::DTYPE == DType::F32 {
        // SAFETY: as promised.
        return [0, 16].map(|at| unsafe { _mm512_loadu_ps(x.add(at).cast()) });
    }
    // SAFETY: as promised.
    let half = |at: usize| unsafe { _mm256_loadu_si256(x.add(at).cast()) };
    [half(0), half(16)].map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))))
}

simd! {
    fn finish_row<T: Element>(values: &mut [f32], bias: Option<&[f32]>, add: Option<&[T]>, activation: Activation, residual: Option<&[T]>, out: &mut [T]) {
        if let Some(bias) = bias {
            values.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        if let Some(add) = add {
            values.iter_mut().zip(add).for_each(|(x, a)| *x += a.to_f32());
        }
        activate_all(values, activation);
        match residual {
            Some(residual) => out.iter_mut().zip(values.iter()).zip(residual).for_each(|((o, x), r)| *o = T::from_f32(x + r.to_f32())),
            None => out.iter_mut().zip(values.iter()).for_each(|(o, x)| *o = T::from_f32(*x)),
        }
    }
}

simd! {
    fn geglu_rows<T: Element>(tile: Tile, bias: Option<(&[f32], &[f32])>, out: SharedMut<T>, place: Place) {
        for r in 0..tile.rows {
            // SAFETY: tiles cover disjoint parts of the output; where rows are packed, they are no wider than a line.
            let out = unsafe { out.range(place.at(tile.row + r, tile.column), tile.columns) };
            let (value, gate) = tile.values[r * tile.stride..][..tile.twin + tile.columns].split_at_mut(tile.twin);
            let value = &mut value[..tile.columns];
            if let Some((first, second)) = bias {
                value.iter_mut().zip(first).for_each(|(x, b)| *x += b);
                gate.iter_mut().zip(second).for_each(|(x, b)| *x += b);
            }
            if T::DTYPE == DType::BF16 {
                out.iter_mut().zip(value.iter().zip(gate.iter())).for_each(|(o, (x, g))| *o = T::from_f32(x * math::gelu_16_bits(*g)));
            } else {
                out.iter_mut().zip(value.iter().zip(gate.iter())).for_each(|(o, (x, g))| *o = T::from_f32(x * math::activate(*g, Activation::Gelu)));
            }
        }
    }
}
