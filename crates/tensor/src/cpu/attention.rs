//! Attention on the CPU in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein
//! 2018), so that the score matrix never exists. A second key/value branch with a weight, as decoupled
//! cross-attention has it, is one more pass over the same packed queries.
//!
//! Scores are computed transposed: keys as the rows of a tile, [`NR`] queries as its columns. So every step of the
//! softmax works on whole vectors of queries, and its weights lie in memory as the packed rows that the product with
//! the values reads: nothing is transposed or packed between the two products. AMX wants them on the other side: there
//! values are packed transposed, and so are the sums.
//!
//! Bound: floating-point units for many keys (4 n m d operations), with one exponential for each score.

use super::SharedMut;
use super::amx::{self, Tiles};
use super::gemm::{Product, Rows, interleave, pack_rows, units};
use super::isa::{amx_by_name, simd};
use super::micro::NR;
use crate::storage::Block;
use crate::tensor::Element;
use crate::{Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Keys of a tile of scores, and queries of a tile of results.
const ROWS: usize = 8;
/// Panels of [`NR`] queries that share a block of keys and values while it is in the second-level cache.
const PANELS: usize = 4;
/// Keys between two corrections of the running softmax: their weights for one panel (`KEY_BLOCK * NR * 4` bytes) and
/// the panel itself share the first-level cache.
const KEY_BLOCK: usize = 128;

/// As [`KEY_BLOCK`] with AMX, whose products are too fast for short ones.
const TILED_KEY_BLOCK: usize = 256;

/// Whether this runs in AMX tiles. The tiles' product is proved on such processors, this use of it is not yet, so it must be
/// asked for.
fn tiled<T: Product>() -> bool {
    T::tiled() && amx_by_name()
}

/// Units of depth as packed: whole steps of tiles.
fn padded<T: Product>(elements: usize) -> usize {
    if tiled::<T>() { units::<T>(elements).next_multiple_of(amx::STEP) } else { units::<T>(elements) }
}

/// Some columns of a tensor `[b, n, stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) width: usize,
}

impl<'a> Columns<'a> {
    /// All columns of a tensor `[b, n, width]`.
    pub(crate) fn all(tensor: &'a Tensor) -> Columns<'a> {
        Columns { tensor, first: 0, width: tensor.last_dim() }
    }

    /// The rows of head `head` of picture `picture`.
    fn head<T: Element>(&self, picture: usize, head: usize, d: usize) -> HeadRows<'a, T> {
        let stride = self.tensor.last_dim();
        HeadRows {
            data: self.tensor.data(),
            base: picture * self.tensor.dim(1) * stride + self.first + head * d,
            stride,
        }
    }
}

/// Rows of one picture's head.
struct HeadRows<'a, T> {
    data: &'a [T],
    base: usize,
    stride: usize,
}

impl<T: Element> HeadRows<'_, T> {
    fn row(&self, row: usize, from: usize, len: usize) -> &[T] {
        &self.data[self.base + row * self.stride + from..][..len]
    }
}

impl<T: Element> Rows<T> for HeadRows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        out.copy_from_slice(self.row(row, from, out.len()));
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        Some(self.row(row, from, len))
    }
}

/// Keys and values of one branch, packed for each picture and head.
pub(crate) struct PackedKeys {
    keys: usize,
    block: Block,
    /// Size in u32 of one head's keys, and of one head's values.
    key_size: usize,
    value_size: usize,
}

impl PackedKeys {
    /// Packs `k` and `v`, `[b, m, heads * d]` each.
    pub(crate) fn new<T: Product>(k: Columns, v: Columns, heads: usize) -> Result<PackedKeys> {
        let (b, m, d) = (k.tensor.dim(0), k.tensor.dim(1), k.width / heads);
        let (depth, width) = (padded::<T>(d), padded::<T>(m));
        let rows = if tiled::<T>() { amx::ROWS } else { ROWS };
        let (key_size, value_size) = (m.next_multiple_of(rows) * depth, d.next_multiple_of(NR) * width);
        let count = b * heads * (key_size + value_size);
        let block = Block::new(count * 4)?;
        // SAFETY: the block holds `count` u32 and is not shared yet.
        let data = unsafe { std::slice::from_raw_parts_mut(block.as_ptr().cast::<u32>(), count) };
        data.par_chunks_mut((key_size + value_size).max(1)).enumerate().for_each(|(i, out)| {
            let (k, v) = (k.head::<T>(i / heads, i % heads, d), v.head::<T>(i / heads, i % heads, d));
            let (keys, values) = out.split_at_mut(key_size);
            if tiled::<T>() {
                keys.fill(0);
                values.fill(0);
                for (key, line) in elements_of::<T>(keys).chunks_exact_mut(depth * T::PER_UNIT).take(m).enumerate() {
                    line[..d].copy_from_slice(k.row(key, 0, d));
                }
                // Some keys at a time, so that their rows stay in the first-level cache while columns are read.
                let (values, line) = (elements_of::<T>(values), width * T::PER_UNIT);
                for key in (0..m).step_by(NR) {
                    let count = NR.min(m - key);
                    for e in 0..d {
                        let out = &mut values[e * line + key..][..count];
                        out.iter_mut().enumerate().for_each(|(i, o)| *o = v.row(key + i, e, 1)[0]);
                    }
                }
                return;
            }
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.staged.resize(scratch.staged.len().max(ROWS * depth), 0);
                for (group, out) in keys.chunks_exact_mut(ROWS * depth).enumerate() {
                    let first = group * ROWS;
                    pack_rows::<T, ROWS>(&k, first, m.min(first + ROWS), d, 0, depth, &mut scratch.staged, out);
                }
            });
            for (panel, out) in values.chunks_exact_mut(width * NR).enumerate() {
                pack_values::<T>(out, panel * NR, d, m, |key| v.row(key, 0, d));
            }
        });
        Ok(PackedKeys { keys: m, block, key_size, value_size })
    }

    /// Packed keys and values of one picture's head.
    fn head(&self, index: usize) -> (&[u32], &[u32]) {
        let size = self.key_size + self.value_size;
        // SAFETY: `new` wrote all heads.
        let all = unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast::<u32>().add(index * size), size) };
        all.split_at(self.key_size)
    }
}

/// The elements in whole units.
fn elements_of<T: Product>(units: &mut [u32]) -> &mut [T] {
    // SAFETY: a u32 is `PER_UNIT` elements of T, aligned for it, and every pattern is a number.
    unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast::<T>(), units.len() * T::PER_UNIT) }
}

/// Packs one panel of values, whose depth is the keys: `NR` columns from `first`, zero beyond the matrix.
fn pack_values<'a, T: Product>(
    out: &mut [u32],
    first: usize,
    columns: usize,
    keys: usize,
    row: impl Fn(usize) -> &'a [T],
) {
    let zero = T::from_f32(0.0);
    let count = NR.min(columns - first);
    for (unit, out) in out.chunks_exact_mut(NR).enumerate() {
        let key = unit * T::PER_UNIT;
        let a = &row(key)[first..first + count];
        let b = (T::PER_UNIT == 2 && key + 1 < keys).then(|| &row(key + 1)[first..first + count]);
        out[count..].fill(0);
        match b {
            Some(b) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = T::unit([*a, *b])),
            None => out.iter_mut().zip(a).for_each(|(o, a)| *o = T::unit([*a, zero])),
        }
    }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Vec<u32>,
    queries: Vec<u32>,
    scores: Vec<u32>,
    sums: Vec<f32>,
    result: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// The running softmax of a panel of queries.
struct Running {
    /// The highest score so far, scaled to base 2.
    maximum: [f32; NR],
    /// The sum of the weights so far.
    total: [f32; NR],
    /// What corrects the sums so far for a new maximum.
    correction: [f32; NR],
}

impl Running {
    fn new() -> Running {
        Running { maximum: [f32::NEG_INFINITY; NR], total: [0.0; NR], correction: [1.0; NR] }
    }
}

/// 2^x for x up to 0, at least 2^-125 however small x is: within 2e-7 and 1 at 0 with `EXACT`, else within 8e-5, which bf16
/// rounds away. A polynomial of the least relative error on [-1/2, 1/2], and the exponent added as bits.
#[inline(always)]
#[allow(clippy::approx_constant)] // a fitted coefficient near ln 2
fn exp2<const EXACT: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    // Written so that NaN passes.
    let x = if x < -125.0 { -125.0 } else { x };
    let shifted = x + MAGIC;
    let r = x - (shifted - MAGIC);
    let p = if EXACT {
        let p = 1.326_472_7e-3 * r + 9.671_513e-3;
        let p = p * r + 5.550_733_7e-2;
        let p = p * r + 2.402_224_2e-1;
        let p = p * r + 6.931_47e-1;
        p * r + 1.0
    } else {
        let p = 5.517_166e-2 * r + 2.426_111_4e-1;
        let p = p * r + 6.932_61e-1;
        p * r + 9.999_281e-1
    };
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

simd! {
    /// Scores of some keys (rows of `NR` queries) to unnormalised weights in units of `T`, in place.
    fn weigh<T: Product>(scores: &mut [u32], factor: f32, running: &mut Running) {
        let mut highest = running.maximum;
        for row in scores.chunks_exact(NR) {
            for (h, s) in highest.iter_mut().zip(row) {
                let s = f32::from_bits(*s) * factor;
                *h = if s > *h { s } else { *h };
            }
        }
        let mut total = [0f32; NR];
        let weight = |score: u32, highest: f32| {
            let x = f32::from_bits(score) * factor - highest;
            if T::PER_UNIT == 1 { exp2::<true>(x) } else { exp2::<false>(x) }
        };
        if T::PER_UNIT == 1 {
            for row in scores.chunks_exact_mut(NR) {
                for j in 0..NR {
                    let w = weight(row[j], highest[j]);
                    total[j] += w;
                    row[j] = w.to_bits();
                }
            }
        } else {
            // Two rows become one, written where the earlier ones were read.
            let keys = scores.len() / NR;
            for pair in 0..keys / 2 {
                let (mut a, mut b) = ([0u32; NR], [0u32; NR]);
                a.copy_from_slice(&scores[2 * pair * NR..][..NR]);
                b.copy_from_slice(&scores[(2 * pair + 1) * NR..][..NR]);
                for j in 0..NR {
                    let weights = [weight(a[j], highest[j]), weight(b[j], highest[j])];
                    total[j] += weights[0] + weights[1];
                    a[j] = T::unit_of_weights(weights);
                }
                scores[pair * NR..][..NR].copy_from_slice(&a);
            }
            if keys % 2 == 1 {
                let mut a = [0u32; NR];
                a.copy_from_slice(&scores[(keys - 1) * NR..][..NR]);
                for j in 0..NR {
                    let weight = weight(a[j], highest[j]);
                    total[j] += weight;
                    a[j] = T::unit_of_weights([weight, 0.0]);
                }
                scores[keys / 2 * NR..][..NR].copy_from_slice(&a);
            }
        }
        for j in 0..NR {
            let correction = exp2::<true>(running.maximum[j] - highest[j]);
            running.total[j] = running.total[j] * correction + total[j];
            running.correction[j] = correction;
        }
        running.maximum = highest;
    }
}

simd! {
    fn scale_rows(rows: &mut [f32], stride: usize, factors: &[f32]) {
        for (row, &factor) in rows.chunks_exact_mut(stride).zip(factors) {
            if factor != 1.0 {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

simd! {
    /// `result (+)= weight / total * sum` row by row.
    fn join_rows(result: &mut [f32], sums: &[f32], stride: usize, totals: &[f32], weight: f32, add: bool) {
        for ((result, sum), total) in result.chunks_exact_mut(stride).zip(sums.chunks_exact(stride)).zip(totals) {
            let factor = weight / total;
            for (r, s) in result.iter_mut().zip(sum) {
                *r = if add { *r + factor * s } else { factor * s };
            }
        }
    }
}

simd! {
    /// As [`scale_rows`] where queries are columns.
    fn scale_columns(sums: &mut [f32], factors: &[f32]) {
        for row in sums.chunks_exact_mut(NR) {
            row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
}

simd! {
    /// As [`join_rows`] where queries are columns.
    fn join_columns(result: &mut [f32], sums: &[f32], totals: &[f32], weight: f32, add: bool) {
        let mut factors = [0f32; NR];
        factors.iter_mut().zip(totals).for_each(|(f, total)| *f = weight / total);
        for (result, sum) in result.chunks_exact_mut(NR).zip(sums.chunks_exact(NR)) {
            for j in 0..NR {
                result[j] = if add { result[j] + factors[j] * sum[j] } else { factors[j] * sum[j] };
            }
        }
    }
}

simd! {
    fn convert_row<T: Element>(row: &[f32], out: &mut [T]) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o = T::from_f32(*x));
    }
}

/// What does not change between the blocks of queries.
struct Sizes {
    /// Units of a query.
    depth: usize,
    /// Numbers between two rows of sums.
    stride: usize,
    /// Of a score, to base 2.
    factor: f32,
    causal: bool,
}

/// One pass of some queries from `first`, packed in `panels` panels, over all keys of a branch; `scratch.result`
/// becomes (or with `add` grows by) `weight` times the result.
fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    (first, panels): (usize, usize),
    sizes: &Sizes,
    (weight, add): (f32, bool),
) {
    let &Sizes { depth, stride, factor, causal } = sizes;
    if tiled::<T>() {
        return tiled_pass::<T>(scratch, branch, head, (first, panels), sizes, (weight, add));
    }
    let kernel = T::kernel::<ROWS, true>();
    let (keys, values) = branch.head(head);
    let value_units = units::<T>(branch.keys);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    for key in (0..branch.keys).step_by(KEY_BLOCK) {
        if causal && key >= first + panels * NR {
            break;
        }
        let count = KEY_BLOCK.min(branch.keys - key);
        let width = units::<T>(count);
        for panel in 0..panels {
            if causal && key >= first + (panel + 1) * NR {
                continue;
            }
            let queries = &scratch.queries[panel * NR * depth..][..NR * depth];
            for group in 0..count.div_ceil(ROWS) {
                let a = &keys[(key + group * ROWS) * depth..][..ROWS * depth];
                let c = scratch.scores[group * ROWS * NR..][..ROWS * NR].as_mut_ptr().cast::<f32>();
                // SAFETY: both sides hold `depth` units; the scores have ROWS rows of NR numbers here.
                unsafe { kernel(depth, a.as_ptr(), ROWS, queries.as_ptr(), c, NR, false) };
            }
            if causal && key + count > first + panel * NR {
                hide_later(&mut scratch.scores[..count * NR], key, first + panel * NR);
            }
            let running = &mut running[panel];
            weigh::<T>(&mut scratch.scores[..count * NR], factor, running);
            let sums = &mut scratch.sums[panel * NR * stride..][..NR * stride];
            if key > 0 {
                scale_rows(sums, stride, &running.correction);
            }
            for column in (0..stride).step_by(NR) {
                let b = &values[(column * value_units) + key / T::PER_UNIT * NR..][..width * NR];
                for row in (0..NR).step_by(ROWS) {
                    let c = sums[row * stride + column..].as_mut_ptr();
                    // SAFETY: the weights hold `width` rows of NR units, the values as many; the sums have ROWS rows
                    // of `stride` numbers here.
                    unsafe { kernel(width, scratch.scores[row..].as_ptr(), NR, b.as_ptr(), c, stride, key > 0) };
                }
            }
        }
    }
    for (panel, running) in running.iter().enumerate().take(panels) {
        let at = panel * NR * stride..(panel + 1) * NR * stride;
        let result = &mut scratch.result[at.clone()];
        join_rows(result, &scratch.sums[at], stride, &running.total, weight, add);
    }
}

/// As [`pass`] in AMX tiles.
fn tiled_pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    (first, panels): (usize, usize),
    sizes: &Sizes,
    (weight, add): (f32, bool),
) {
    let &Sizes { depth, stride, factor, causal } = sizes;
    // SAFETY: `tiled` said that there are tiles.
    let tiles = unsafe { Tiles::configure() };
    let (keys, values) = branch.head(head);
    let value_width = padded::<T>(branch.keys);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    for key in (0..branch.keys).step_by(TILED_KEY_BLOCK) {
        if causal && key >= first + panels * NR {
            break;
        }
        let count = TILED_KEY_BLOCK.min(branch.keys - key);
        let width = units::<T>(count).next_multiple_of(amx::STEP);
        for panel in 0..panels {
            if causal && key >= first + (panel + 1) * NR {
                continue;
            }
            let queries = scratch.queries[panel * NR * depth..].as_ptr();
            for row in (0..count).step_by(amx::ROWS) {
                let a = keys[(key + row) * depth..][..amx::ROWS * depth].as_ptr();
                let c = scratch.scores[row * NR..][..amx::ROWS * NR].as_mut_ptr().cast::<f32>();
                // SAFETY: both sides hold `depth` units, whole steps; the scores have ROWS rows of NR numbers here.
                unsafe { tiles.product(depth / amx::STEP, a, depth, queries, c, NR, false) };
            }
            if causal && key + count > first + panel * NR {
                hide_later(&mut scratch.scores[..count * NR], key, first + panel * NR);
            }
            let running = &mut running[panel];
            weigh::<T>(&mut scratch.scores[..count * NR], factor, running);
            scratch.scores[units::<T>(count) * NR..width * NR].fill(0);
            let sums = &mut scratch.sums[panel * NR * stride..][..NR * stride];
            if key > 0 && running.correction.iter().any(|c| *c != 1.0) {
                scale_columns(sums, &running.correction);
            }
            for row in (0..stride).step_by(amx::ROWS) {
                let a = values[row * value_width + key / T::PER_UNIT..].as_ptr();
                let c = sums[row * NR..][..amx::ROWS * NR].as_mut_ptr();
                // SAFETY: values and weights hold `width` units, whole steps; the sums have ROWS rows of NR numbers.
                unsafe { tiles.product(width / amx::STEP, a, value_width, scratch.scores.as_ptr(), c, NR, key > 0) };
            }
        }
    }
    for (panel, running) in running.iter().enumerate().take(panels) {
        let at = panel * NR * stride..(panel + 1) * NR * stride;
        join_columns(&mut scratch.result[at.clone()], &scratch.sums[at], &running.total, weight, add);
    }
}

/// Takes keys that come after the query out of a block of scores.
fn hide_later(scores: &mut [u32], key: usize, query: usize) {
    for (i, row) in scores.chunks_exact_mut(NR).enumerate() {
        let hidden = (key + i).saturating_sub(query).min(NR);
        row[..hidden].fill(f32::NEG_INFINITY.to_bits());
    }
}

/// Transposes the columns of a panel to rows.
fn upright(panel: &mut [f32], memory: &mut [f32]) {
    let stride = panel.len() / NR;
    // SAFETY: f32 and u32 have the same size and alignment, and every pattern is a number.
    let (from, to) = unsafe {
        (
            std::slice::from_raw_parts(panel.as_ptr().cast::<u32>(), panel.len()),
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u32>(), memory.len()),
        )
    };
    for (block, to) in to.chunks_exact_mut(NR * NR).enumerate() {
        let lines = std::array::from_fn(|r| from[(block * NR + r) * NR..][..NR].as_ptr());
        // SAFETY: each line has NR numbers.
        unsafe { interleave::<NR>(lines, NR, to) };
    }
    for (q, row) in panel.chunks_exact_mut(stride).enumerate() {
        for (block, part) in row.chunks_exact_mut(NR).enumerate() {
            part.copy_from_slice(&memory[(block * NR + q) * NR..][..NR]);
        }
    }
}

/// `softmax(q k^T scale) v`, plus `weight` times the same over a second branch: `q [b, n, heads * d]` -> the same.
pub(crate) fn forward<T: Product>(
    q: Columns,
    keys: &PackedKeys,
    heads: usize,
    scale: f32,
    causal: bool,
    second: Option<(&PackedKeys, f32)>,
) -> Result<Tensor> {
    let (b, n, width) = (q.tensor.dim(0), q.tensor.dim(1), q.width);
    let d = width / heads;
    crate::meter::count(2 * b * n, keys.keys + second.map_or(0, |(keys, _)| keys.keys), width);
    let sizes = Sizes {
        depth: padded::<T>(d),
        stride: d.next_multiple_of(NR),
        factor: scale * std::f32::consts::LOG2_E,
        causal,
    };
    let &Sizes { depth, stride, .. } = &sizes;
    let blocks = n.div_ceil(PANELS * NR);
    Tensor::build::<T>(q.tensor.device(), &[b, n, width], |out| {
        let out = SharedMut::new(out);
        (0..b * heads * blocks).into_par_iter().with_max_len(1).for_each(|task| {
            let (head, first) = (task / blocks, task % blocks * PANELS * NR);
            let count = (n - first).min(PANELS * NR);
            let panels = count.div_ceil(NR);
            let rows = q.head::<T>(head / heads, head % heads, d);
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.staged.resize(scratch.staged.len().max(NR * depth), 0);
                scratch.scores.resize(KEY_BLOCK.max(TILED_KEY_BLOCK) * NR, 0);
                scratch.queries.resize(panels * NR * depth, 0);
                scratch.sums.resize(panels * NR * stride, 0.0);
                scratch.result.resize(panels * NR * stride, 0.0);
                for (panel, packed) in scratch.queries.chunks_exact_mut(NR * depth).enumerate() {
                    let row = first + panel * NR;
                    let (packed, rest) = packed.split_at_mut(units::<T>(d) * NR);
                    rest.fill(0);
                    pack_rows::<T, NR>(&rows, row, n.min(row + NR), d, 0, units::<T>(d), &mut scratch.staged, packed);
                }
                let place = (first, panels);
                pass::<T>(scratch, keys, head, place, &sizes, (1.0, false));
                if let Some((keys, weight)) = second {
                    pass::<T>(scratch, keys, head, place, &Sizes { causal: false, ..sizes }, (weight, true));
                }
                if tiled::<T>() {
                    scratch.sums.resize(scratch.sums.len().max(NR * stride), 0.0);
                    for panel in scratch.result.chunks_exact_mut(NR * stride).take(panels) {
                        upright(panel, &mut scratch.sums[..NR * stride]);
                    }
                }
                for row in 0..count {
                    let at = ((head / heads) * n + first + row) * width + (head % heads) * d;
                    // SAFETY: tasks own disjoint rows and heads of the output.
                    let out = unsafe { out.range(at, d) };
                    convert_row(&scratch.result[row * stride..][..d], out);
                }
            });
        });
    })
}
