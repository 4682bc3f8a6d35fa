//! 3x3 convolutions of stride 1 with fewer products (Winograd 1980; Lavin and Gray 2015): each tile of 4x4 results
//! takes 6x6 products for each pair of channels instead of 144, each tile of 2x2 takes 16 instead of 36.
//!
//! A chunk of tiles at a time goes through three phases, each on all threads: tiles of the input are transformed, one
//! block product for each of the transform's elements follows, its results are transformed back and handed to the
//! epilogue. Chunks are so small that what passes between the phases stays in the last-level cache, unless weights are larger.
//!
//! For 4x4 the points are 0, +-5/8, +-3/2 and infinity: of the symmetric sets tried on normal noise with 256 channels
//! they lose the least, 5.3e-7 of the result's norm in f32, as little as 2x2 tiles (4.9e-7); the usual 0, +-1, +-2 lose
//! 1.1e-6 (compare Barabasz et al. 2020, on the choice of points).
//!
//! Bound: floating-point units, of which the transforms take a share that shrinks as channels grow.

use super::SharedMut;
use super::columns::PackedColumns;
use super::conv::Windows;
use super::epilogue::Epilogue;
use super::gemm::{DEPTH, Product, Tile};
use super::isa::simd;
#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, isa};
use super::micro::{MR, NR, kernel_f32, pairs_gain};
use super::vector::{Four, Vector};
use crate::storage::Block;
use crate::tensor::Element;
use crate::{DType, Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Results of a tile along each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Two,
    Four,
}

impl Size {
    fn outputs(self) -> usize {
        match self {
            Size::Two => 2,
            Size::Four => 4,
        }
    }

    /// Inputs of a tile along each side.
    pub(crate) fn inputs(self) -> usize {
        self.outputs() + 2
    }
}

/// Channels that the transforms want in whole vectors of every instruction set.
const WHOLE: usize = 16;
/// Fewer channels leave too few products for the transforms.
const LEAST: usize = 64;
/// Weights for which transformed tiles of 4x4 cost memory: four times what checkpoints hold. Above that 2x2.
const MOST_WEIGHTS: usize = 1920 * 640;
/// Most tiles of a chunk, where their bytes do not tell otherwise: so many share each slab of weights on its way from memory,
/// which is longer than what they themselves take.
const CHUNK: usize = 16 * MR;
/// Bytes of a chunk that narrow layers fill with more tiles.
const CHUNK_BYTES: usize = 6 << 20;
/// Columns that one task transforms back at a time.
const COLUMNS: usize = 256;

/// The size of tile for a 3x3 convolution of stride 1 between so many channels, where tiles pay. Where products of pairs take as
/// long as those of f32, weights of bf16 are transformed to f32, too: eight times the memory for a quarter of the products,
/// but not for less than half of them, as those who ask for bf16 have little memory.
pub(crate) fn size(dtype: DType, inputs: usize, outputs: usize) -> Option<Size> {
    let whole = |c: usize| c >= LEAST && c.is_multiple_of(WHOLE);
    if !whole(inputs) || !whole(outputs) {
        return None;
    }
    let few = inputs * outputs <= MOST_WEIGHTS;
    match dtype {
        DType::F32 => Some(if few { Size::Four } else { Size::Two }),
        DType::BF16 if few && !pairs_gain() => Some(Size::Four),
        _ => None,
    }
}

/// Transformed weights: one matrix of packed columns for each element of the transform.
pub(crate) struct Weights {
    size: Size,
    matrices: Vec<PackedColumns>,
}

/// Rows of the weights' transform, `[inputs][3]`.
fn weight_transform(size: Size) -> Vec<[f64; 3]> {
    let with = |p: f64, scale: f64| [1.0 / scale, p / scale, p * p / scale];
    match size {
        Size::Two => vec![[1.0, 0.0, 0.0], with(1.0, 2.0), with(-1.0, 2.0), [0.0, 0.0, 1.0]],
        Size::Four => {
            let (a, b) = (f64::from(A), f64::from(B));
            let (at_a, at_b) = (2.0 * a * a * (a * a - b * b), 2.0 * b * b * (b * b - a * a));
            vec![
                [1.0 / (a * a * b * b), 0.0, 0.0],
                with(a, at_a),
                with(-a, at_a),
                with(b, at_b),
                with(-b, at_b),
                [0.0, 0.0, 1.0],
            ]
        }
    }
}

simd! {
    /// Transforms the taps of [`NR`] weights: of a transform of `n` rows `n * n` lines of `out`.
    fn transform_weights(taps: &[[f64; NR]; 9], transform: &[[f64; 3]], out: &mut [[f32; NR]; 36]) {
        let along = |g: &[f64; 3], [a, b, c]: [&[f64; NR]; 3]| -> [f64; NR] {
            std::array::from_fn(|j| g[0] * a[j] + g[1] * b[j] + g[2] * c[j])
        };
        for (out, g) in out.chunks_exact_mut(transform.len()).zip(transform) {
            let [a, b, c] = [0, 1, 2].map(|x| along(g, [&taps[x], &taps[3 + x], &taps[6 + x]]));
            for (out, g) in out.iter_mut().zip(transform) {
                *out = along(g, [&a, &b, &c]).map(|value| value as f32);
            }
        }
    }
}

impl Weights {
    /// Transforms a weight `[n, c, 3, 3]` in f64 and packs it in f32.
    pub(crate) fn new<T: Product>(weight: &Tensor, size: Size) -> Result<Weights> {
        let [n, c, _, _] = weight.dims4()?;
        let data = weight.data::<T>();
        let side = size.inputs();
        let transform = weight_transform(size);
        let matrices = (0..side * side).map(|_| PackedColumns::unset(n, c)).collect::<Result<Vec<_>>>()?;
        (0..n.div_ceil(NR)).into_par_iter().for_each(|panel| {
            let columns = NR.min(n - panel * NR);
            // Columns that fill up the last panel stay zero.
            let (mut taps, mut out) = ([[0f64; NR]; 9], [[0f32; NR]; 36]);
            for channel in 0..c {
                for j in 0..columns {
                    let from = &data[((panel * NR + j) * c + channel) * 9..][..9];
                    taps.iter_mut().zip(from).for_each(|(tap, x)| tap[j] = f64::from(x.to_f32()));
                }
                transform_weights(&taps, &transform, &mut out);
                for (matrix, numbers) in matrices.iter().zip(&out) {
                    // SAFETY: this task alone writes this panel.
                    unsafe { matrix.set(panel, channel, numbers) };
                }
            }
        });
        Ok(Weights { size, matrices })
    }

    /// Columns of the product: output channels.
    pub(crate) fn columns(&self) -> usize {
        self.matrices[0].columns
    }

    fn depth(&self) -> usize {
        self.matrices[0].depth
    }
}

/// Two of the points at which tiles of 4x4 are interpolated; their negatives, 0 and infinity are the others.
const A: f32 = 0.625;
const B: f32 = 1.5;

/// The transforms of one tile along one side.
trait Form<const IN: usize, const OUT: usize> {
    /// # Safety
    /// The instruction set of `V` is there.
    unsafe fn forth<V: Vector>(d: [V; IN]) -> [V; IN];
    /// # Safety
    /// As [`Form::forth`].
    unsafe fn back<V: Vector>(m: [V; IN]) -> [V; OUT];
}

struct F2;
struct F4;

impl Form<4, 2> for F2 {
    #[inline(always)]
    unsafe fn forth<V: Vector>(d: [V; 4]) -> [V; 4] {
        unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[3].sub(d[1])] }
    }
    #[inline(always)]
    unsafe fn back<V: Vector>(m: [V; 4]) -> [V; 2] {
        unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).add(m[3])] }
    }
}

impl Form<6, 4> for F4 {
    #[inline(always)]
    unsafe fn forth<V: Vector>(d: [V; 6]) -> [V; 6] {
        const AA: f32 = A * A;
        const BB: f32 = B * B;
        unsafe {
            let even = d[2].mul_add(-BB, d[4]);
            let odd = d[1].mul_add(-BB, d[3]);
            let even2 = d[2].mul_add(-AA, d[4]);
            let odd2 = d[1].mul_add(-AA, d[3]);
            [
                d[0].mul_add(AA * BB, d[2].mul_add(-(AA + BB), d[4])),
                odd.mul_add(A, even),
                odd.mul_add(-A, even),
                odd2.mul_add(B, even2),
                odd2.mul_add(-B, even2),
                d[1].mul_add(AA * BB, d[3].mul_add(-(AA + BB), d[5])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn back<V: Vector>(m: [V; 6]) -> [V; 4] {
        unsafe {
            let zero = V::splat(0.0);
            let (sum_a, difference_a) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (sum_b, difference_b) = (m[3].add(m[4]), m[3].sub(m[4]));
            [
                m[0].add(sum_a).add(sum_b),
                difference_b.mul_add(B, difference_a.mul_add(A, zero)),
                sum_b.mul_add(B * B, sum_a.mul_add(A * A, zero)),
                difference_b.mul_add(B * B * B, difference_a.mul_add(A * A * A, m[5])),
            ]
        }
    }
}

/// Transforms a tile of `IN` x `IN` pixels of `channels` numbers; element i goes to `out + i * plane`.
///
/// # Safety
/// The pixels hold `channels` numbers, which are whole vectors, and so does each of the places of the result.
#[inline(always)]
unsafe fn forth<F: Form<IN, OUT>, V: Vector, T: Element, const IN: usize, const OUT: usize>(
    pixels: &[*const T],
    channels: usize,
    out: *mut f32,
    plane: usize,
) {
    for c in (0..channels).step_by(V::LANES) {
        unsafe {
            let mut rows = [[V::splat(0.0); IN]; IN];
            for (y, row) in rows.iter_mut().enumerate() {
                *row = F::forth(std::array::from_fn(|x| V::load_from(pixels[y * IN + x].add(c))));
            }
            for x in 0..IN {
                let column = F::forth(std::array::from_fn(|y| rows[y][x]));
                for (y, value) in column.into_iter().enumerate() {
                    value.store(out.add((y * IN + x) * plane + c));
                }
            }
        }
    }
}

/// Transforms `columns` numbers of a tile back; element i comes from `m + i * plane`, result i goes to
/// `out + i * columns`.
///
/// # Safety
/// As [`forth`].
#[inline(always)]
unsafe fn back<F: Form<IN, OUT>, V: Vector, const IN: usize, const OUT: usize>(
    m: *const f32,
    plane: usize,
    columns: usize,
    out: *mut f32,
) {
    for c in (0..columns).step_by(V::LANES) {
        unsafe {
            let mut rows = [[V::splat(0.0); OUT]; IN];
            for (y, row) in rows.iter_mut().enumerate() {
                *row = F::back(std::array::from_fn(|x| V::load(m.add((y * IN + x) * plane + c))));
            }
            for x in 0..OUT {
                let column = F::back(std::array::from_fn(|y| rows[y][x]));
                for (y, value) in column.into_iter().enumerate() {
                    value.store(out.add((y * OUT + x) * columns + c));
                }
            }
        }
    }
}

/// The transforms of all sizes, compiled for one instruction set.
macro_rules! transforms {
    ($name:ident, $V:ty $(, $features:literal)?) => {
        mod $name {
            use super::*;

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn forth<T: Element>(size: Size, pixels: &[*const T], channels: usize, out: *mut f32, plane: usize) {
                unsafe {
                    match size {
                        Size::Two => super::forth::<F2, $V, T, 4, 2>(pixels, channels, out, plane),
                        Size::Four => super::forth::<F4, $V, T, 6, 4>(pixels, channels, out, plane),
                    }
                }
            }

            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn back(size: Size, m: *const f32, plane: usize, columns: usize, out: *mut f32) {
                unsafe {
                    match size {
                        Size::Two => super::back::<F2, $V, 4, 2>(m, plane, columns, out),
                        Size::Four => super::back::<F4, $V, 6, 4>(m, plane, columns, out),
                    }
                }
            }
        }
    };
}

transforms!(portable, Four);
#[cfg(target_arch = "x86_64")]
transforms!(avx2, std::arch::x86_64::__m256, "avx2,fma");
#[cfg(target_arch = "x86_64")]
transforms!(avx512, std::arch::x86_64::__m512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");

type Forth<T> = unsafe fn(Size, &[*const T], usize, *mut f32, usize);
type Back = unsafe fn(Size, *const f32, usize, usize, *mut f32);

/// The transforms for this processor.
fn transforms<T: Element>() -> (Forth<T>, Back) {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return (avx512::forth::<T>, avx512::back),
        Isa::Avx2 => return (avx2::forth::<T>, avx2::back),
        Isa::Portable => {}
    }
    (portable::forth::<T>, portable::back)
}

thread_local! {
    static RESULTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Convolves `pictures` pictures of windows; finished pixels go to the epilogue.
pub(crate) fn forward<T: Product>(
    windows: &Windows<T>,
    pictures: usize,
    weights: &Weights,
    epilogue: &Epilogue<T>,
) -> Result<()> {
    let size = weights.size;
    let (outputs, inputs) = (size.outputs(), size.inputs());
    let [oh, ow] = windows.out;
    let (across, down) = (ow.div_ceil(outputs), oh.div_ceil(outputs));
    let tiles = pictures * across * down;
    let (c, n) = (weights.depth(), weights.columns());
    crate::meter::count(tiles * inputs * inputs, c, n);
    let planes = inputs * inputs;
    // A line's distance is no multiple of a page: neighbouring rows must not share a set of the first-level cache.
    let (line, width) = (c + 16, n.next_multiple_of(NR));
    let fitting = CHUNK_BYTES / (planes * (line + width) * 4) / MR * MR;
    let most = fitting.clamp(CHUNK, 4 * CHUNK);
    let rows = tiles.div_ceil(tiles.div_ceil(most)).next_multiple_of(MR);
    let transformed = Block::new(planes * rows * line * 4)?;
    let products = Block::new(planes * rows * width * 4)?;
    // SAFETY: the blocks hold that many elements and are not shared otherwise.
    let (transformed, products) = unsafe {
        (
            std::slice::from_raw_parts_mut(transformed.as_ptr().cast::<f32>(), planes * rows * line),
            std::slice::from_raw_parts_mut(products.as_ptr().cast::<f32>(), planes * rows * width),
        )
    };
    let (forth, back) = transforms::<T>();
    let zeros = vec![T::from_f32(0.0); c];
    for first in (0..tiles).step_by(rows) {
        let count = rows.min(tiles - first);
        let target = SharedMut::new(transformed);
        (0..count).into_par_iter().with_min_len(4).for_each(|i| {
            let tile = first + i;
            let (picture, y, x) = (tile / (across * down), tile / across % down, tile % across);
            let mut pixels = [zeros.as_ptr(); 36];
            for (at, pixel) in pixels.iter_mut().take(planes).enumerate() {
                if let Some(found) = windows.pixel(picture, y * outputs + at / inputs, x * outputs + at % inputs) {
                    *pixel = found.as_ptr();
                }
            }
            // SAFETY: each tile writes its own line of each plane; pixels and lines hold `c` numbers.
            unsafe { forth(size, &pixels[..planes], c, target.at(i * line), rows * line) };
        });
        multiply(weights, transformed, products, count, rows, line, width);
        let products = &*products;
        (0..count).into_par_iter().with_min_len(2).for_each(|i| {
            let tile = first + i;
            let (picture, y, x) = (tile / (across * down), tile / across % down, tile % across);
            RESULTS.with_borrow_mut(|results| {
                for column in (0..n).step_by(COLUMNS) {
                    let columns = COLUMNS.min(n - column);
                    results.resize(outputs * outputs * columns, 0.0);
                    // SAFETY: the products hold this tile's row in each plane, results have room for all of them.
                    unsafe {
                        let m = products[i * width + column..].as_ptr();
                        back(size, m, rows * width, columns, results.as_mut_ptr());
                    }
                    for r in 0..outputs.min(oh - y * outputs) {
                        epilogue.finish(Tile {
                            row: (picture * oh + y * outputs + r) * ow + x * outputs,
                            rows: outputs.min(ow - x * outputs),
                            column,
                            columns,
                            stride: columns,
                            twin: columns,
                            values: &mut results[r * outputs * columns..],
                        });
                    }
                }
            });
        });
    }
    Ok(())
}

/// One block product for each plane: `count` lines of `transformed` times the plane's weights.
fn multiply(
    weights: &Weights,
    transformed: &[f32],
    products: &mut [f32],
    count: usize,
    rows: usize,
    line: usize,
    width: usize,
) {
    let kernel = kernel_f32::<MR, false>();
    let planes = weights.matrices.len();
    let panels = width / NR;
    // Enough tasks for all threads; how columns are divided does not change the result.
    let ranges = (4 * rayon::current_num_threads()).div_ceil(planes).clamp(1, panels);
    let range = panels.div_ceil(ranges);
    let out = SharedMut::new(products);
    (0..planes * ranges).into_par_iter().with_max_len(1).for_each(|task| {
        let (plane, first) = (task / ranges, task % ranges * range);
        let matrix = &weights.matrices[plane];
        for panel in first..(first + range).min(panels) {
            for unit in (0..matrix.units()).step_by(DEPTH) {
                let depth = DEPTH.min(matrix.units() - unit);
                let b = matrix.panel(panel, unit);
                for row in (0..count).step_by(MR) {
                    let a = transformed[(plane * rows + row) * line + unit..].as_ptr();
                    // SAFETY: lines hold all units, up to MR rows beyond `count`; tasks write disjoint panels.
                    unsafe {
                        let c = out.at((plane * rows + row) * width + panel * NR);
                        kernel(depth, a.cast(), line, b, c, width, unit > 0);
                    }
                }
            }
        }
    });
}
