//! Attention on the CPU in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein
//! 2018), so that the score matrix never exists. A second key/value branch with a weight, as decoupled
//! cross-attention has it, is one more pass over the same packed queries.
//!
//! Scores are computed transposed: keys as the rows of a tile, [`NR`] queries as its columns. So every step of the
//! softmax works on whole vectors of queries, and its weights lie in memory as the packed rows that the product with
//! the values reads: nothing is transposed or packed between the two products. AMX wants them on the other side: there
//! values are packed transposed, and so are the sums ([`Multiplier`]).
//!
//! Bound: floating-point units for many keys (4 n m d operations), with one exponential for each score; in AMX tiles the
//! softmax.

mod keys;
mod softmax;

pub(crate) use keys::{Columns, PackedKeys};

use super::SharedMut;
use super::amx::{self, Left, Tiles};
use super::gemm::{Product, pack_rows, units};
use super::isa::simd;
use super::lines::Lines;
use super::micro::{Kernel, NR};
use crate::meter::watch;
use crate::tensor::Element;
use crate::{Result, Tensor};
use rayon::prelude::*;
use softmax::{Running, hide_later, join_rows, scale_columns, scale_rows, upright, weigh};
use std::cell::RefCell;

/// Rows of a tile.
const GROUP: usize = 8;
/// Panels of [`NR`] queries that share a block of keys and values while it is in the second-level cache.
const PANELS: usize = 4;
/// Keys between two corrections of the running softmax: their weights for one panel (`KEY_BLOCK * NR * 4` bytes) and
/// the panel itself share the first-level cache.
const KEY_BLOCK: usize = 128;
/// As [`KEY_BLOCK`] with AMX, whose products are too fast for short ones.
const TILED_KEY_BLOCK: usize = 256;

/// Rows of a tile of this type.
fn group<T: Product>() -> usize {
    if T::tiled() { amx::ROWS } else { GROUP }
}

/// Units of depth as packed: whole steps of AMX tiles.
fn padded<T: Product>(elements: usize) -> usize {
    if T::tiled() { units::<T>(elements).next_multiple_of(amx::STEP) } else { units::<T>(elements) }
}

/// What makes the two products of a block of keys with a panel of [`NR`] queries, and of which shape the sums are: with
/// AMX `[d, queries]`, else `[queries, d]`, which the arithmetic units' rows of 8 by 32 columns do a tenth faster.
enum Multiplier {
    Tiles(Tiles),
    Kernel(Kernel),
}

impl Multiplier {
    fn new<T: Product>() -> Multiplier {
        match T::tiled() {
            // SAFETY: there are tiles.
            true => Multiplier::Tiles(unsafe { Tiles::configure() }),
            false => Multiplier::Kernel(T::kernel::<GROUP, true>()),
        }
    }

    /// `keys [n, d] x queries [d, NR] -> scores [n, NR]`, in units; the operands hold whole groups of `depth` units.
    fn scores(&self, keys: &[u32], n: usize, queries: &[u32], scores: &mut [u32]) {
        let depth = queries.len() / NR;
        let group = if matches!(self, Multiplier::Tiles(_)) { amx::ROWS } else { GROUP };
        let groups = keys.chunks_exact(group * depth).zip(scores.chunks_exact_mut(group * NR));
        for (a, c) in groups.take(n.div_ceil(group)) {
            let (a, b, c) = (a.as_ptr(), queries.as_ptr(), c.as_mut_ptr().cast::<f32>());
            // SAFETY: both sides hold `depth` units, with tiles whole steps; the scores have a group of rows here.
            unsafe {
                match self {
                    Multiplier::Tiles(tiles) => {
                        tiles.product(&amx::PACKED[..depth / amx::STEP], Left::packed(a), b, c, false, b)
                    }
                    Multiplier::Kernel(kernel) => kernel(depth, a, GROUP, b, c, NR, false),
                }
            }
        }
    }

    /// `sums (+)= values weights` over the units of `weights` (`NR` queries each), from unit `first` of `values` on, which
    /// have `depth` of them.
    fn add_values(
        &self,
        (values, depth, first): (&[u32], usize, usize),
        weights: &[u32],
        (sums, stride): (&mut [f32], usize),
        accumulate: bool,
    ) {
        let units = weights.len() / NR;
        match self {
            Multiplier::Tiles(tiles) => {
                let groups = values.chunks_exact(amx::ROWS * depth).zip(sums.chunks_exact_mut(amx::ROWS * NR));
                for (a, c) in groups {
                    let a = a[first * amx::ROWS..][..units * amx::ROWS].as_ptr();
                    let (b, c) = (weights.as_ptr(), c.as_mut_ptr());
                    // SAFETY: both sides hold `units` units, whole steps; the sums have ROWS rows of NR numbers here.
                    unsafe { tiles.product(&amx::PACKED[..units / amx::STEP], Left::packed(a), b, c, accumulate, b) };
                }
            }
            Multiplier::Kernel(kernel) => {
                for (panel, values) in values.chunks_exact(depth * NR).enumerate() {
                    let b = values[first * NR..][..units * NR].as_ptr();
                    for row in (0..NR).step_by(GROUP) {
                        let c = sums[row * stride + panel * NR..].as_mut_ptr();
                        // SAFETY: weights and values hold `units` rows of NR units; the sums have GROUP rows of `stride`
                        // numbers here.
                        unsafe { kernel(units, weights[row..].as_ptr(), NR, b, c, stride, accumulate) };
                    }
                }
            }
        }
    }

    /// Corrects the sums so far for new maxima.
    fn correct(&self, sums: &mut [f32], stride: usize, running: &Running) {
        match self {
            Multiplier::Tiles(_) => scale_columns(sums, &running.correction),
            Multiplier::Kernel(_) => scale_rows(sums, stride, &running.correction),
        }
    }

    /// `result (+)= weight / total * sums`, `[queries, d]` in the end.
    fn join(&self, result: &mut [f32], sums: &mut [f32], stride: usize, running: &Running, weight: f32, add: bool) {
        if let Multiplier::Tiles(_) = self {
            SPARE.with_borrow_mut(|spare| {
                spare.resize(sums.len(), 0.0);
                upright(sums, spare);
            });
        }
        join_rows(result, sums, stride, &running.total, weight, add);
    }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Vec<u32>,
    queries: Lines,
    scores: Lines,
    sums: Lines,
    result: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    /// For sums that are turned upright.
    static SPARE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
    (first, panels): (usize, usize),
    sizes: &Sizes,
    (weight, add): (f32, bool),
) {
    let &Sizes { depth, stride, factor, causal } = sizes;
    let multiplier = Multiplier::new::<T>();
    let most_keys = if T::tiled() { TILED_KEY_BLOCK } else { KEY_BLOCK };
    let (keys, values) = branch.head(head);
    let value_depth = padded::<T>(branch.keys);
    let panel_size = NR * stride;
    let all_queries = scratch.queries.get(panels * NR * depth);
    let scores = scratch.scores.get(most_keys.next_multiple_of(group::<T>()) * NR);
    let (all_sums, result) = (scratch.sums.floats(panels * panel_size), scratch.result.floats(panels * panel_size));
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    for key in (0..branch.keys).step_by(most_keys) {
        if causal && key >= first + panels * NR {
            break;
        }
        let count = most_keys.min(branch.keys - key);
        for (panel, running) in running.iter_mut().enumerate().take(panels) {
            let query = first + panel * NR;
            if causal && key >= query + NR {
                continue;
            }
            let queries = &all_queries[panel * NR * depth..][..NR * depth];
            multiplier.scores(&keys[key * depth..], count, queries, scores);
            if causal && key + count > query {
                hide_later(&mut scores[..count * NR], key, query);
            }
            weigh::<T>(&mut scores[..count * NR], factor, running);
            let weights = &mut scores[..padded::<T>(count) * NR];
            weights[units::<T>(count) * NR..].fill(0);
            let sums = &mut all_sums[panel * panel_size..][..panel_size];
            if key > 0 {
                multiplier.correct(sums, stride, running);
            }
            let values = (values, value_depth, key / T::PER_UNIT);
            multiplier.add_values(values, weights, (sums, stride), key > 0);
        }
    }
    for (panel, running) in running.iter().enumerate().take(panels) {
        let at = panel * panel_size..(panel + 1) * panel_size;
        let (result, sums) = (&mut result[at.clone()], &mut all_sums[at]);
        multiplier.join(result, sums, stride, running, weight, add);
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
