//! Attention on the CPU in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein
//! 2018), so that the score matrix never exists. A second key/value branch with a weight, as decoupled
//! cross-attention has it, is one more pass over the same packed queries.
//!
//! Scores are computed transposed: keys as the rows of a tile, [`NR`] queries as its columns. So every step of the
//! softmax works on whole vectors of queries, and its weights lie in memory as the packed rows that the product with
//! the values reads: nothing is transposed or packed between the two products. AMX wants them on the other side: there
//! values are packed transposed, and so are the sums (`woven`, `tiled` for numbers in two parts).
//!
//! Bound: floating-point units for many keys (4 n m d operations), with one exponential for each score; in AMX tiles the
//! ports that both share.

#[cfg(target_arch = "x86_64")]
mod fast;
mod keys;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiled;
#[cfg(target_arch = "x86_64")]
mod turn;
#[cfg(target_arch = "x86_64")]
mod woven;

pub(crate) use keys::{Columns, PackedKeys};

use super::SharedMut;
use super::amx;
use super::columns::split_panel;
use super::gemm::{Product, pack_rows, units};
use super::isa::simd;
use super::lines::Lines;
use super::micro::NR;
use super::rows::{PackedRows, Place, Rows};
use super::split::NUMBERS;
use crate::meter::watch;
use crate::tensor::Element;
use crate::{Result, Tensor};
use half::bf16;
use keys::HeadRows;
use rayon::prelude::*;
use softmax::{Running, hide_later, join_rows, scale_rows, upright, weigh};
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a tile.
const GROUP: usize = 8;
/// Panels of [`NR`] queries that share a block of keys and values while it is in the second-level cache.
const PANELS: usize = 4;
/// Keys between two corrections of the running softmax: their weights for one panel (`KEY_BLOCK * NR * 4` bytes) and
/// the panel itself share the first-level cache.
const KEY_BLOCK: usize = 128;

/// How the operands of both products lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// For AMX tiles.
    tiled: bool,
    /// In how many parts each element; see [`split`](super::split).
    parts: usize,
    /// Elements of a unit.
    per_unit: usize,
}

impl Layout {
    /// As elements of this type lie, or in parts.
    fn of<T: Product>(in_parts: bool) -> Layout {
        match in_parts {
            true => Layout { tiled: true, parts: 2, per_unit: 2 },
            false => Layout { tiled: T::tiled(), parts: 1, per_unit: T::PER_UNIT },
        }
    }

    /// Rows of a tile.
    fn group(self) -> usize {
        if self.tiled { amx::ROWS } else { GROUP }
    }

    /// Units of depth as packed: whole steps of AMX tiles.
    fn padded(self, elements: usize) -> usize {
        let units = elements.div_ceil(self.per_unit);
        if self.tiled { units.next_multiple_of(amx::STEP) } else { units }
    }

    /// The same in numbers of 32 bits.
    fn size(self, elements: usize) -> usize {
        self.padded(elements) * self.parts
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
    /// For sums that are turned upright.
    spare: Lines,
    /// For a block of scores that is made once more.
    #[cfg(target_arch = "x86_64")]
    again: Lines,
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
    /// Elements of a query.
    d: usize,
    /// Elements of a value, in whole panels.
    stride: usize,
    /// Of a score, to base 2.
    factor: f32,
    causal: bool,
}

/// One pass of some queries from `first`, packed in `panels` panels, over all keys of a branch; `scratch.result`
/// becomes (or with `add` grows by) `weight` times the result, `stride` numbers for each query, or with `columns`
/// [`NR`] queries for each element of each panel.
fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    place: (usize, usize),
    sizes: &Sizes,
    (weight, add, columns): (f32, bool, bool),
) {
    let running = match branch.layout {
        #[cfg(target_arch = "x86_64")]
        Layout { tiled: true, parts: 1, .. } => woven::pass::<T>(scratch, branch, head, place, sizes),
        #[cfg(target_arch = "x86_64")]
        Layout { tiled: true, .. } => tiled::pass::<T>(scratch, branch, head, place, sizes),
        _ => pass_rows::<T>(scratch, branch, head, place, sizes),
    };
    let size = NR * sizes.stride;
    let Scratch { sums, result, spare, .. } = scratch;
    let panels =
        sums.floats(place.1 * size).chunks_exact_mut(size).zip(result.floats(place.1 * size).chunks_exact_mut(size));
    for ((sums, result), running) in panels.zip(&running) {
        let factors = running.total.map(|total| weight / total);
        if columns {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: processors with tiles have the instructions.
            unsafe {
                turn::join_columns(result, sums, &factors, add)
            };
            continue;
        }
        if branch.layout.tiled {
            upright(sums, spare.floats(size));
        }
        join_rows(result, sums, sizes.stride, &factors, add);
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
    let &Sizes { d, stride, factor, causal } = sizes;
    let (depth, kernel) = (units::<T>(d), T::kernel::<GROUP, true>());
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

/// Packs queries of `d` elements in panels.
fn pack_queries<T: Product>(scratch: &mut Scratch, q: &HeadRows<T>, rows: Range<usize>, d: usize, layout: Layout) {
    let (size, units) = (layout.size(d), units::<T>(d));
    scratch.staged.resize(scratch.staged.len().max(NR * size), 0);
    let queries = scratch.queries.get(rows.len().div_ceil(NR) * NR * size);
    for (panel, packed) in queries.chunks_exact_mut(NR * size).enumerate() {
        let row = rows.start + panel * NR;
        #[cfg(target_arch = "x86_64")]
        if layout.tiled && layout.parts == 1 {
            let line = |i| q.one_of(rows.end, row + i, d);
            // SAFETY: processors with tiles have the instructions.
            unsafe { turn::to_columns(line, packed) };
            continue;
        }
        if layout.parts > 1 {
            let line = |row, out: &mut [T]| q.copy(row, 0, out);
            split_panel(packed, row..rows.end, d, line, &mut scratch.staged);
            continue;
        }
        pack_rows::<T, NR>(q, row, rows.end.min(row + NR), d, 0, units, &mut scratch.staged, packed);
    }
}

/// Keys, another branch of them with its weight, and the factor of the scores.
#[derive(Clone, Copy)]
pub(crate) struct Branches<'a> {
    pub(crate) keys: &'a PackedKeys,
    pub(crate) second: Option<(&'a PackedKeys, f32)>,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
}

impl Branches<'_> {
    /// Whether results are made in columns of queries, as products in tiles do.
    fn in_columns(&self) -> bool {
        self.keys.layout.tiled && self.second.is_none_or(|(more, _)| more.layout.tiled)
    }

    /// Whether results of so many numbers can be [packed](forward_packed).
    pub(crate) fn can_pack(&self, width: usize) -> bool {
        let whole = |keys: &PackedKeys| keys.layout.parts == 1;
        self.in_columns()
            && whole(self.keys)
            && self.second.is_none_or(|(more, _)| whole(more))
            && (width / self.heads).is_multiple_of(NUMBERS)
    }
}

/// `softmax(q k^T scale) v`, plus `weight` times the same over a second branch: `q [b, n, heads * d]` -> the same.
pub(crate) fn forward<T: Product>(q: Columns, branches: &Branches) -> Result<Tensor> {
    let (b, n, width) = (q.tensor.dim(0), q.tensor.dim(1), q.width);
    Tensor::build::<T>(q.tensor.device(), &[b, n, width], |out| {
        attend::<T>(q, branches, SharedMut::new(out), Place::plain(width));
    })
}

/// As [`forward`] in bf16, packed for the product that reads it, if it [can](Branches::can_pack) be.
pub(crate) fn forward_packed(q: Columns, branches: &Branches) -> Result<PackedRows> {
    let (b, n, width) = (q.tensor.dim(0), q.tensor.dim(1), q.width);
    assert!(branches.can_pack(width));
    PackedRows::build(b * n, width, |out, place| attend::<bf16>(q, branches, out, place))
}

/// Attention, whose results lie where `to` says.
fn attend<T: Product>(q: Columns, branches: &Branches, out: SharedMut<T>, to: Place) {
    let &Branches { keys, second, heads, scale, causal } = branches;
    let _watch = watch(|| format!("attention {:?}, {} keys", q.tensor.shape(), keys.keys));
    let (b, n, width) = (q.tensor.dim(0), q.tensor.dim(1), q.width);
    let d = width / heads;
    crate::meter::count(2 * b * n, keys.keys + second.map_or(0, |(keys, _)| keys.keys), width);
    let (stride, factor) = (d.next_multiple_of(NR), scale * std::f32::consts::LOG2_E);
    let sizes = Sizes { d, stride, factor, causal };
    let blocks = n.div_ceil(PANELS * NR);
    let columns = branches.in_columns();
    (0..b * heads * blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (head, first) = (task / blocks, task % blocks * PANELS * NR);
        let count = (n - first).min(PANELS * NR);
        let panels = count.div_ceil(NR);
        let rows = q.head::<T>(head / heads, head % heads, d);
        SCRATCH.with_borrow_mut(|scratch| {
            let place = (first, panels);
            pack_queries(scratch, &rows, first..first + count, d, keys.layout);
            pass::<T>(scratch, keys, head, place, &sizes, (1.0, false, columns));
            if let Some((more, weight)) = second {
                if more.layout != keys.layout {
                    pack_queries(scratch, &rows, first..first + count, d, more.layout);
                }
                pass::<T>(scratch, more, head, place, &Sizes { causal: false, ..sizes }, (weight, true, columns));
            }
            let result = scratch.result.floats(panels * NR * stride);
            // Of plain rows all that follows, of packed ones a line.
            let line = |row: usize, from: usize| {
                let at = to.at((head / heads) * n + first + row, (head % heads) * d + from);
                // SAFETY: tasks own disjoint rows and heads of the output.
                (row < count && from < d).then(|| unsafe { out.range(at, (d - from).min(to.together())) })
            };
            #[cfg(target_arch = "x86_64")]
            if columns {
                for (panel, result) in result.chunks_exact(NR * stride).enumerate() {
                    // SAFETY: processors with tiles have the instructions.
                    unsafe { turn::to_rows(result, |row, from| line(panel * NR + row, from)) };
                }
                return;
            }
            result.chunks_exact(stride).enumerate().for_each(|(row, result)| {
                if let Some(out) = line(row, 0) {
                    convert_row(&result[..d], out);
                }
            });
        });
    });
}
