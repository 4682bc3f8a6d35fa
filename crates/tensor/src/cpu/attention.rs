//! Attention on the CPU in blocks of keys with a running softmax (Dao et al. 2022; Milakov and Gimelshein
//! 2018), so that the score matrix never exists. A second key/value branch with a weight, as decoupled
//! cross-attention has it, is one more pass over the same packed queries.
//!
//! Bound: floating-point units for many keys (4 n m d operations), with one exponential for each score.

use super::SharedMut;
use super::gemm::{Product, Rows, interleave, pack_panel, pack_rows, units};
use super::isa::simd;
use super::math::exp;
use super::micro::{MR, NR};
use crate::ops::KeyValue;
use crate::storage::Block;
use crate::tensor::Element;
use crate::{Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Queries of a task.
const QUERY_BLOCK: usize = 8 * MR;
/// Keys between two corrections of the running softmax.
const KEY_BLOCK: usize = 256;

/// Keys and values of one branch, packed for each picture and head.
struct Branch {
    keys: usize,
    block: Block,
    /// Size in u32 of one head's keys, and of one head's values.
    key_size: usize,
    value_size: usize,
}

impl Branch {
    fn pack<T: Product>(kv: &KeyValue, heads: usize) -> Result<Branch> {
        let [b, m, width] = kv.k.dims3()?;
        let d = width / heads;
        let key_size = m.div_ceil(NR) * units::<T>(d) * NR;
        let value_size = d.div_ceil(NR) * units::<T>(m) * NR;
        let count = b * heads * (key_size + value_size);
        let block = Block::new(count * 4)?;
        // SAFETY: the block holds `count` u32 and is not shared yet.
        let data = unsafe { std::slice::from_raw_parts_mut(block.as_ptr().cast::<u32>(), count) };
        let (k, v) = (kv.k.data::<T>(), kv.v.data::<T>());
        data.par_chunks_mut((key_size + value_size).max(1)).enumerate().for_each(|(i, out)| {
            let base = (i / heads) * m * width + (i % heads) * d;
            let (keys, values) = out.split_at_mut(key_size);
            for (panel, out) in keys.chunks_mut(units::<T>(d) * NR).enumerate() {
                pack_panel(out, panel * NR, m, d, |key, depth| k[base + key * width + depth]);
            }
            for (panel, out) in values.chunks_mut(units::<T>(m) * NR).enumerate() {
                pack_values::<T>(out, panel * NR, d, m, |key| &v[base + key * width..][..d]);
            }
        });
        Ok(Branch { keys: m, block, key_size, value_size })
    }

    /// Packed keys and values of one picture's head.
    fn head(&self, index: usize) -> (&[u32], &[u32]) {
        let size = self.key_size + self.value_size;
        // SAFETY: `pack` wrote all heads.
        let all = unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast::<u32>().add(index * size), size) };
        all.split_at(self.key_size)
    }
}

/// As [`pack_panel`] for values, whose depth is the keys: walks them in the order in which they lie.
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

/// Queries of one picture's head as rows.
struct HeadRows<'a, T> {
    data: &'a [T],
    base: usize,
    width: usize,
}

impl<T: Element> Rows<T> for HeadRows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        let start = self.base + row * self.width + from;
        out.copy_from_slice(&self.data[start..start + out.len()]);
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        let start = self.base + row * self.width + from;
        self.data.get(start..start + len)
    }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Vec<u32>,
    queries: Vec<u32>,
    scores: Vec<f32>,
    weights: Vec<u32>,
    sum: Vec<f32>,
    result: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

simd! {
    /// Scores of one query, of which `valid` count, to unnormalised weights; updates the running maximum
    /// and sum and returns the factor that corrects what was accumulated before.
    fn softmax_row(scores: &mut [f32], valid: usize, scale: f32, maximum: &mut f32, total: &mut f32) -> f32 {
        let (live, dead) = scores.split_at_mut(valid);
        dead.fill(0.0);
        if live.is_empty() {
            return 1.0;
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in live.chunks(16) {
            lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l = if x * scale > *l { x * scale } else { *l });
        }
        let highest = lanes.iter().fold(*maximum, |a, b| a.max(*b));
        let correction = exp(*maximum - highest);
        *maximum = highest;
        let mut sums = [0f32; 16];
        for chunk in live.chunks_mut(16) {
            chunk.iter_mut().zip(sums.iter_mut()).for_each(|(x, s)| {
                *x = exp(*x * scale - highest);
                *s += *x;
            });
        }
        *total = *total * correction + sums.iter().sum::<f32>();
        correction
    }
}

simd! {
    fn scale_row(row: &mut [f32], factor: f32) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

simd! {
    fn convert_row<T: Element>(row: &[f32], out: &mut [T]) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o = T::from_f32(*x));
    }
}

simd! {
    fn add_row(row: &[f32], factor: f32, out: &mut [f32]) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += factor * x);
    }
}

/// One pass of a block of queries over all keys of a branch; adds `weight` times the result to `scratch.result`.
fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &Branch,
    head: usize,
    first: usize,
    rows: usize,
    d: usize,
    scale: f32,
    causal: bool,
    weight: f32,
) {
    let kernel = T::kernel();
    let (depth, panels) = (units::<T>(d), d.div_ceil(NR));
    let stride = panels * NR;
    let groups = rows.div_ceil(MR);
    let value_units = units::<T>(branch.keys);
    let (keys, values) = branch.head(head);
    let (mut maximum, mut total) = ([f32::NEG_INFINITY; QUERY_BLOCK], [0f32; QUERY_BLOCK]);
    scratch.sum.clear();
    scratch.sum.resize(groups * MR * stride, 0.0);
    for key in (0..branch.keys).step_by(KEY_BLOCK) {
        if causal && key >= first + rows {
            break;
        }
        let count = KEY_BLOCK.min(branch.keys - key);
        let width = units::<T>(count);
        for group in 0..groups {
            let queries = &scratch.queries[group * MR * depth..][..MR * depth];
            for panel in 0..count.div_ceil(NR) {
                let b = &keys[(key / NR + panel) * depth * NR..][..depth * NR];
                // SAFETY: both sides hold `depth` units; the scores have MR rows of KEY_BLOCK numbers.
                unsafe {
                    kernel(
                        depth,
                        queries.as_ptr(),
                        b.as_ptr(),
                        scratch.scores[panel * NR..].as_mut_ptr(),
                        KEY_BLOCK,
                        false,
                    )
                };
            }
            for r in 0..MR {
                let row = group * MR + r;
                let line = &mut scratch.scores[r * KEY_BLOCK..][..KEY_BLOCK];
                let staged = &mut scratch.staged[r * width..][..width];
                if row >= rows {
                    staged.fill(0);
                    continue;
                }
                let valid = if causal { (first + row + 1).saturating_sub(key).min(count) } else { count };
                let correction = softmax_row(line, valid, scale, &mut maximum[row], &mut total[row]);
                if correction != 1.0 {
                    scale_row(&mut scratch.sum[row * stride..][..stride], correction);
                }
                // SAFETY: `width` u32 are `width * PER_UNIT` elements of T, aligned for it.
                let staged =
                    unsafe { std::slice::from_raw_parts_mut(staged.as_mut_ptr().cast::<T>(), width * T::PER_UNIT) };
                convert_row(&line[..width * T::PER_UNIT], staged);
            }
            let lines = std::array::from_fn(|r| scratch.staged[r * width..].as_ptr());
            // SAFETY: the staged lines have `width` units each.
            unsafe { interleave(lines, width, &mut scratch.weights[..MR * width]) };
            for panel in 0..panels {
                let b = &values[(panel * value_units + key / T::PER_UNIT) * NR..][..width * NR];
                let c = scratch.sum[group * MR * stride + panel * NR..].as_mut_ptr();
                // SAFETY: both sides hold `width` units; the sums have MR rows of `stride` numbers here.
                unsafe { kernel(width, scratch.weights.as_ptr(), b.as_ptr(), c, stride, true) };
            }
        }
    }
    for row in 0..rows {
        let sum = &scratch.sum[row * stride..][..stride];
        add_row(sum, weight / total[row], &mut scratch.result[row * stride..][..stride]);
    }
}

/// `softmax(q k^T scale) v`, plus `weight` times the same over a second branch. `q` is `[b, n, heads * d]`.
pub(crate) fn forward<T: Product>(
    q: &Tensor,
    kv: &KeyValue,
    heads: usize,
    scale: f32,
    causal: bool,
    second: Option<&(KeyValue, f32)>,
) -> Result<Tensor> {
    let [b, n, width] = q.dims3()?;
    let d = width / heads;
    let first_branch = Branch::pack::<T>(kv, heads)?;
    let second_branch = match second {
        Some((kv, weight)) => Some((Branch::pack::<T>(kv, heads)?, *weight)),
        None => None,
    };
    let data = q.data::<T>();
    let keys = kv.k.dim(1) + second.map_or(0, |(kv, _)| kv.k.dim(1));
    crate::meter::count(2 * b * n, keys, width);
    let blocks = n.div_ceil(QUERY_BLOCK);
    let (depth, stride) = (units::<T>(d), d.next_multiple_of(NR));
    Tensor::build::<T>(q.device(), q.shape(), |out| {
        let out = SharedMut::new(out);
        (0..b * heads * blocks).into_par_iter().with_max_len(1).for_each(|task| {
            let (head, first) = (task / blocks, task % blocks * QUERY_BLOCK);
            let rows = QUERY_BLOCK.min(n - first);
            let groups = rows.div_ceil(MR);
            let base = (head / heads) * n * width + (head % heads) * d;
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.staged.resize(MR * depth.max(KEY_BLOCK), 0);
                scratch.weights.resize(MR * KEY_BLOCK, 0);
                scratch.scores.resize(MR * KEY_BLOCK, 0.0);
                scratch.queries.resize(groups * MR * depth, 0);
                scratch.result.clear();
                scratch.result.resize(groups * MR * stride, 0.0);
                let lines = HeadRows { data, base, width };
                for (group, packed) in scratch.queries.chunks_exact_mut(MR * depth).take(groups).enumerate() {
                    let row = first + group * MR;
                    pack_rows::<T>(&lines, row, (row + MR).min(first + rows), d, 0, depth, &mut scratch.staged, packed);
                }
                pass::<T>(scratch, &first_branch, head, first, rows, d, scale, causal, 1.0);
                if let Some((branch, weight)) = &second_branch {
                    pass::<T>(scratch, branch, head, first, rows, d, scale, false, *weight);
                }
                for row in 0..rows {
                    // SAFETY: tasks own disjoint rows and heads of the output.
                    let out = unsafe { out.range(base + (first + row) * width, d) };
                    convert_row(&scratch.result[row * stride..][..d], out);
                }
            });
        });
    })
}
