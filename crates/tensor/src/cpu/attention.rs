//! Attention on the CPU in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein
//! 2018), so that the score matrix never exists. A second key/value branch with a weight, as decoupled
//! cross-attention has it, is one more pass over the same packed queries.
//!
//! Scores are computed transposed: keys as the rows of a tile, [`NR`] queries as its columns. So every step of the
//! softmax works on whole vectors of queries, and its weights lie in memory as the packed rows that the product with
//! the values reads: nothing is transposed or packed between the two products. AMX wants them on the other side: there
//! values are packed transposed, and so are the sums (`tiled`).
//!
//! Bound: floating-point units for many keys (4 n m d operations), with one exponential for each score; in AMX tiles the
//! softmax.

#[cfg(target_arch = "x86_64")]
mod fast;
mod keys;
mod softmax;
mod tiled;

pub(crate) use keys::{Columns, PackedKeys};

use super::SharedMut;
use super::amx;
use super::gemm::{Product, pack_rows, units};
use super::isa::simd;
use super::lines::Lines;
use super::micro::NR;
use crate::meter::watch;
use crate::tensor::Element;
use crate::{Result, Tensor};
use rayon::prelude::*;
use softmax::{Running, hide_later, join_rows, scale_rows, upright, weigh};
use std::cell::RefCell;

/// Rows of a tile.
const GROUP: usize = 8;
/// Panels of [`NR`] queries that share a block of keys and values while it is in the second-level cache.
const PANELS: usize = 4;
/// Keys between two corrections of the running softmax: their weights for one panel (`KEY_BLOCK * NR * 4` bytes) and
/// the panel itself share the first-level cache.
const KEY_BLOCK: usize = 128;

/// Rows of a tile of this type.
fn group<T: Product>() -> usize {
    if T::tiled() { amx::ROWS } else { GROUP }
}

/// Units of depth as packed: whole steps of AMX tiles.
fn padded<T: Product>(elements: usize) -> usize {
    if T::tiled() { units::<T>(elements).next_multiple_of(amx::STEP) } else { units::<T>(elements) }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Vec<u32>,
    queries: Lines,
    scores: Lines,
    sums: Lines,
    result: Lines,
    /// For sums that are turned upright.
    spare: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

simd! {
    fn convert_row<T: Element>(row: &[f32], out: &mut [T]) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o = T::from_f32(*x));
    }
}

/// What does not change between the blocks of queries.
#[derive(Clone, Copy)]
struct Sizes {
    /// Units of a query.
    depth: usize,
    /// Elements of a value, in whole panels.
    stride: usize,
    /// Of a score, to base 2.
    factor: f32,
    causal: bool,
}

/// One pass of some queries from `first`, packed in `panels` panels, over all keys of a branch; `scratch.result`
/// becomes (or with `add` grows by) `weight` times the result, `stride` numbers for each query.
fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    place: (usize, usize),
    sizes: &Sizes,
    (weight, add): (f32, bool),
) {
    let running = match T::tiled() {
        true => tiled::pass::<T>(scratch, branch, head, place, sizes),
        false => pass_rows::<T>(scratch, branch, head, place, sizes),
    };
    let size = NR * sizes.stride;
    let Scratch { sums, result, spare, .. } = scratch;
    let panels =
        sums.floats(place.1 * size).chunks_exact_mut(size).zip(result.floats(place.1 * size).chunks_exact_mut(size));
    for ((sums, result), running) in panels.zip(&running) {
        if T::tiled() {
            upright(sums, spare.floats(size));
        }
        join_rows(result, sums, sizes.stride, &running.total, weight, add);
    }
}

/// The sums of a pass in `scratch.sums`, `[queries, d]` for each panel, not divided by the weights' totals yet.
fn pass_rows<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    (first, panels): (usize, usize),
    sizes: &Sizes,
) -> [Running; PANELS] {
    let &Sizes { depth, stride, factor, causal } = sizes;
    let kernel = T::kernel::<GROUP, true>();
    let (keys, values) = branch.head(head);
    let value_depth = units::<T>(branch.keys);
    let panel_size = NR * stride;
    let all_queries = scratch.queries.get(panels * NR * depth);
    let scores = scratch.scores.get(KEY_BLOCK * NR);
    let all_sums = scratch.sums.floats(panels * panel_size);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    for key in (0..branch.keys).step_by(KEY_BLOCK) {
        if causal && key >= first + panels * NR {
            break;
        }
        let count = KEY_BLOCK.min(branch.keys - key);
        for (panel, running) in running.iter_mut().enumerate().take(panels) {
            let query = first + panel * NR;
            if causal && key >= query + NR {
                continue;
            }
            let queries = &all_queries[panel * NR * depth..][..NR * depth];
            let groups = keys[key * depth..].chunks_exact(GROUP * depth).zip(scores.chunks_exact_mut(GROUP * NR));
            for (a, c) in groups.take(count.div_ceil(GROUP)) {
                let c = c.as_mut_ptr().cast::<f32>();
                // SAFETY: keys and queries hold `depth` units; the scores have GROUP rows here.
                unsafe { kernel(depth, a.as_ptr(), GROUP, queries.as_ptr(), c, NR, false) };
            }
            if causal && key + count > query {
                hide_later(&mut scores[..count * NR], key, query);
            }
            weigh::<T>(&mut scores[..count * NR], factor, running);
            let weights = &scores[..units::<T>(count) * NR];
            let sums = &mut all_sums[panel * panel_size..][..panel_size];
            if key > 0 {
                scale_rows(sums, stride, &running.correction);
            }
            for (panel, values) in values.chunks_exact(value_depth * NR).enumerate() {
                let b = values[units::<T>(key) * NR..][..weights.len()].as_ptr();
                for row in (0..NR).step_by(GROUP) {
                    let c = sums[row * stride + panel * NR..].as_mut_ptr();
                    // SAFETY: weights and values hold as many rows of NR units; the sums have GROUP rows of `stride`
                    // numbers here.
                    unsafe { kernel(weights.len() / NR, weights[row..].as_ptr(), NR, b, c, stride, key > 0) };
                }
            }
        }
    }
    running
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
    let _watch = watch(|| format!("attention {:?}, {} keys", q.tensor.shape(), keys.keys));
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
                let queries = scratch.queries.get(panels * NR * depth);
                for (panel, packed) in queries.chunks_exact_mut(NR * depth).enumerate() {
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
                let result = scratch.result.floats(count.next_multiple_of(NR) * stride);
                for row in 0..count {
                    let at = ((head / heads) * n + first + row) * width + (head % heads) * d;
                    // SAFETY: tasks own disjoint rows and heads of the output.
                    let out = unsafe { out.range(at, d) };
                    convert_row(&result[row * stride..][..d], out);
                }
            });
        });
    })
}
