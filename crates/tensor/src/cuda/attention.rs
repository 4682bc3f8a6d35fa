//! Attention on a GPU.

use super::kernels::Family;
use super::{fresh, place};
use crate::cpu::attention::Columns;
use crate::{Error, Result, Tensor};

/// Widths of a head for which there is a kernel on tensor cores; others are rounded up to the next.
#[cfg(test)]
pub(super) const HEADS: [usize; 0] = [];

/// Queries of a block of the general kernel.
const QUERIES: usize = 16;
/// The widest head that it takes.
const WIDEST: usize = 512;

/// Keys and values of one branch: columns of tensors whose rows are equally long.
pub(crate) struct Keys {
    k: Tensor,
    v: Tensor,
    first: [usize; 2],
}

impl Keys {
    /// Holds on to the tensors; nothing is copied.
    pub(crate) fn new(k: Columns, v: Columns) -> Keys {
        Keys { k: k.tensor.clone(), v: v.tensor.clone(), first: [k.first, v.first] }
    }

    /// Where keys and values begin.
    fn places(&self) -> Result<[u64; 2]> {
        let at = |x: &Tensor, first: usize| place(x).map(|(_, at)| at + (first * x.dtype().bytes()) as u64);
        Ok([at(&self.k, self.first[0])?, at(&self.v, self.first[1])?])
    }
}

/// `softmax(q k^T scale) v`, plus `weight` times the same over a second branch; queries `[b, n, heads * d]` are columns
/// of a tensor.
pub(crate) fn forward(
    q: Columns,
    kv: &Keys,
    heads: usize,
    scale: f32,
    causal: bool,
    second: Option<(&Keys, f32)>,
) -> Result<Tensor> {
    let [b, n, row] = q.tensor.dims3()?;
    let (width, dtype) = (q.width, q.tensor.dtype());
    let d = width / heads;
    if d > WIDEST {
        return Err(Error::argument("attention", format!("a head is {d} wide; on a GPU {WIDEST} is the widest")));
    }
    let keys = kv.k.dim(1) + second.map_or(0, |(kv, _)| kv.k.dim(1));
    crate::meter::count(2 * b * n, keys, width);
    let (gpu, queries) = place(q.tensor)?;
    let queries = queries + (q.first * dtype.bytes()) as u64;
    let [k, v] = kv.places()?;
    let [k2, v2] = second.map_or(Ok([0, 0]), |(kv, _)| kv.places())?;
    let (out, to) = fresh(gpu, dtype, &[b, n, width])?;
    let kernel = gpu.kernel(Family::Attention, "attend", dtype)?;
    let strides = [row, kv.k.last_dim(), second.map_or(0, |(kv, _)| kv.k.last_dim())].map(|s| s as i32);
    let counts = [n, kv.k.dim(1), second.map_or(0, |(kv, _)| kv.k.dim(1)), heads, d].map(|s| s as i32);
    let (causal, weight) = (i32::from(causal), second.map_or(0.0, |(_, weight)| weight));
    // SAFETY: the sizes are the tensors' own, which the caller compared with each other.
    unsafe {
        gpu.launch(
            "attention",
            kernel,
            [n.div_ceil(QUERIES) as u32, heads as u32, b as u32],
            128,
            (QUERIES * d * 4) as u32,
            &[&queries, &k, &v, &k2, &v2, &to, &counts, &strides, &scale, &causal, &weight],
        )?;
    }
    Ok(out)
}
