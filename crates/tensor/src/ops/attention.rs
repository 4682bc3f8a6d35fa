//! Attention with an optional second branch.

use super::linear::same_dtype;
use crate::tensor::by_dtype;
use crate::{Error, Result, Tensor, cpu};

/// Keys and values of one branch, `[b, m, heads * d]` each.
#[derive(Clone, Copy)]
pub struct KeyValue<'a> {
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

/// `softmax(q k^T scale) v`, plus `weight * softmax(q k2^T scale) v2` where a second branch is given: the
/// decoupled cross-attention of IP-Adapter (Ye et al. 2023). `q` and the result are `[b, n, heads * d]`.
/// With `causal`, query i sees keys 0..=i of the first branch. The score matrix is never stored.
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn attention(
    q: &Tensor,
    kv: KeyValue,
    heads: usize,
    scale: f32,
    causal: bool,
    second: Option<(KeyValue, f32)>,
) -> Result<Tensor> {
    let [b, n, width] = q.dims3()?;
    if heads == 0 || !width.is_multiple_of(heads) || n == 0 || width == 0 {
        return Err(Error::argument(
            "attention",
            format!("{heads} heads do not divide a width of {width} over {n} queries"),
        ));
    }
    for branch in [Some(&kv), second.as_ref().map(|s| &s.0)].into_iter().flatten() {
        let [kb, m, kw] = branch.k.dims3()?;
        if kb != b || kw != width || m == 0 {
            return Err(Error::shape("attention", "the keys", branch.k.shape(), format!("[{b}, m, {width}]")));
        }
        if branch.v.shape() != branch.k.shape() {
            return Err(Error::shape("attention", "the values", branch.v.shape(), "the keys' shape"));
        }
        same_dtype("attention", "the keys", branch.k, q.dtype())?;
        same_dtype("attention", "the values", branch.v, q.dtype())?;
    }
    if causal && kv.k.dim(1) != n {
        return Err(Error::shape(
            "attention",
            "the keys",
            kv.k.shape(),
            format!("{n} keys, as many as queries, under a causal mask"),
        ));
    }
    by_dtype!("attention", "the queries", q.dtype(), T => cpu::attention::forward::<T>(q, &kv, heads, scale, causal, second.as_ref()))
}
