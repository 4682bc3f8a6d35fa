//! Attention with an optional second branch.

use super::linear::same_kind;
use super::rows::{PackedRows, Rows};
use super::{Linear, Products};
use crate::cpu::attention::{Branches, Columns, PackedKeys, forward, forward_packed};
use crate::tensor::by_dtype;
use crate::{DType, Device, Error, Result, Tensor, cuda};

/// Keys and values of one branch, `[b, m, heads * d]` each.
#[derive(Clone, Copy)]
pub struct KeyValue<'a> {
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

/// Keys and values in the layout of the device's product: packed once where they are used often, as those of text and
/// identity are, which do not change between the steps.
pub struct PackedKeyValue {
    packed: Packed,
    /// Pictures, keys, width.
    shape: [usize; 3],
    heads: usize,
    dtype: DType,
    device: Device,
}

/// Keys and values as the device's product takes them.
enum Packed {
    Cpu(PackedKeys),
    Cuda(cuda::attention::Keys),
}

impl std::fmt::Debug for PackedKeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedKeyValue({}{:?}, {} heads)", self.dtype, self.shape, self.heads)
    }
}

impl PackedKeyValue {
    /// Packs keys and values `[b, m, heads * d]` each.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn new(kv: KeyValue, heads: usize) -> Result<PackedKeyValue> {
        PackedKeyValue::with(kv, heads, Products::Whole)
    }

    /// As [`PackedKeyValue::new`], for attention whose products of f32 are done so.
    ///
    /// # Errors
    /// As [`PackedKeyValue::new`].
    pub fn with(kv: KeyValue, heads: usize, products: Products) -> Result<PackedKeyValue> {
        let [b, m, width] = kv.k.dims3()?;
        if m == 0 {
            return Err(Error::shape("attention", "the keys", kv.k.shape(), "[b, m, width] with at least one key"));
        }
        if kv.v.shape() != kv.k.shape() {
            return Err(Error::shape("attention", "the values", kv.v.shape(), "the keys' shape"));
        }
        same_kind("attention", "the values", kv.v, kv.k.dtype(), *kv.k.device())?;
        PackedKeyValue::pack(Columns::all(kv.k), Columns::all(kv.v), [b, m, width], heads, products)
    }

    fn pack(k: Columns, v: Columns, shape: [usize; 3], heads: usize, products: Products) -> Result<PackedKeyValue> {
        let width = shape[2];
        if heads == 0 || !width.is_multiple_of(heads) || width == 0 {
            return Err(Error::argument("attention", format!("{heads} heads do not divide a width of {width}")));
        }
        let (dtype, device) = (k.tensor.dtype(), *k.tensor.device());
        let packed = match device {
            Device::Cpu => Packed::Cpu(
                by_dtype!("attention", "the keys", dtype, T => PackedKeys::new::<T>(k, v, heads, products))?,
            ),
            Device::Cuda(_) => Packed::Cuda(cuda::attention::Keys::new(k, v)),
        };
        Ok(PackedKeyValue { packed, shape, heads, dtype, device })
    }

    /// Pictures, keys and width.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }
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
    let kv = PackedKeyValue::new(kv, heads)?;
    let second = match second {
        Some((second, weight)) => Some((PackedKeyValue::new(second, heads)?, weight)),
        None => None,
    };
    run(Columns::all(q), &kv, scale, causal, second.as_ref().map(|(second, weight)| (second, *weight)))
}

/// As [`attention`] with keys and values that were packed before, without a mask.
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn attention_packed(
    q: &Tensor,
    kv: &PackedKeyValue,
    scale: f32,
    second: Option<(&PackedKeyValue, f32)>,
) -> Result<Tensor> {
    run(Columns::all(q), kv, scale, false, second)
}

/// As [`attention_packed`], as `next` reads it.
///
/// # Errors
/// As [`attention_packed`].
pub fn attention_packed_for(
    next: &Linear,
    q: &Tensor,
    kv: &PackedKeyValue,
    scale: f32,
    second: Option<(&PackedKeyValue, f32)>,
) -> Result<Rows> {
    run_for(next, Columns::all(q), kv, scale, second)
}

/// Self-attention whose queries, keys and values are the thirds of one product: `[b, n, 3 c] -> [b, n, c]`.
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn attention_joined(qkv: &Tensor, heads: usize, scale: f32, causal: bool) -> Result<Tensor> {
    attention_joined_with(qkv, heads, scale, causal, Products::Whole)
}

/// As [`attention_joined`], with products of f32 done so.
///
/// # Errors
/// As [`attention_joined`].
pub fn attention_joined_with(
    qkv: &Tensor,
    heads: usize,
    scale: f32,
    causal: bool,
    products: Products,
) -> Result<Tensor> {
    let (q, kv) = thirds(qkv, heads, products)?;
    run(q, &kv, scale, causal, None)
}

/// As [`attention_joined_with`] without a mask, as `next` reads it.
///
/// # Errors
/// As [`attention_joined`].
pub fn attention_joined_for(next: &Linear, qkv: &Tensor, heads: usize, scale: f32, products: Products) -> Result<Rows> {
    let (q, kv) = thirds(qkv, heads, products)?;
    run_for(next, q, &kv, scale, None)
}

/// Queries, and keys and values of `[b, n, 3 c]`.
fn thirds(qkv: &Tensor, heads: usize, products: Products) -> Result<(Columns<'_>, PackedKeyValue)> {
    let [b, n, all] = qkv.dims3()?;
    if n == 0 || !all.is_multiple_of(3) {
        return Err(Error::shape("attention", "the joined product", qkv.shape(), "[b, n, 3 c]"));
    }
    let width = all / 3;
    let third = |i: usize| Columns { tensor: qkv, first: i * width, width };
    let kv = PackedKeyValue::pack(third(1), third(2), [b, n, width], heads, products)?;
    Ok((third(0), kv))
}

/// As [`run`], in the order in which `next` reads it where that is another one.
fn run_for(
    next: &Linear,
    q: Columns,
    kv: &PackedKeyValue,
    scale: f32,
    second: Option<(&PackedKeyValue, f32)>,
) -> Result<Rows> {
    let packed = |branches: &Branches| next.reads_packed() && branches.can_pack(q.width);
    if let Some(branches) = branches(kv, scale, false, second).filter(packed) {
        check(q, kv, false, second)?;
        let shape = [q.tensor.dim(0), q.tensor.dim(1), q.width];
        return Ok(Rows::Packed(PackedRows::of(forward_packed(q, &branches)?, &shape)));
    }
    run(q, kv, scale, false, second).map(Rows::Plain)
}

/// What the CPU computes with.
fn branches<'a>(
    kv: &'a PackedKeyValue,
    scale: f32,
    causal: bool,
    second: Option<(&'a PackedKeyValue, f32)>,
) -> Option<Branches<'a>> {
    let of = |kv: &'a PackedKeyValue| match &kv.packed {
        Packed::Cpu(keys) => Some(keys),
        Packed::Cuda(_) => None,
    };
    let second = match second {
        Some((second, weight)) => Some((of(second)?, weight)),
        None => None,
    };
    Some(Branches { keys: of(kv)?, second, heads: kv.heads, scale, causal })
}

/// Whether queries and branches fit.
fn check(q: Columns, kv: &PackedKeyValue, causal: bool, second: Option<(&PackedKeyValue, f32)>) -> Result<()> {
    let [b, n, _] = q.tensor.dims3()?;
    if n == 0 {
        return Err(Error::argument("attention", "there are no queries; at least one is needed"));
    }
    for branch in [Some(kv), second.map(|(kv, _)| kv)].into_iter().flatten() {
        let [kb, m, width] = branch.shape;
        if kb != b || width != q.width || branch.heads != kv.heads {
            let expected = format!("[{b}, {m}, {}] in {} heads, as the queries are", q.width, kv.heads);
            return Err(Error::shape("attention", "the keys", &branch.shape, expected));
        }
        same_kind("attention", "the queries", q.tensor, branch.dtype, branch.device)?;
    }
    if causal && kv.shape[1] != n {
        let expected = format!("{n} keys, as many as queries, under a causal mask");
        return Err(Error::shape("attention", "the keys", &kv.shape, expected));
    }
    Ok(())
}

fn run(
    q: Columns,
    kv: &PackedKeyValue,
    scale: f32,
    causal: bool,
    second: Option<(&PackedKeyValue, f32)>,
) -> Result<Tensor> {
    check(q, kv, causal, second)?;
    if let Some(branches) = branches(kv, scale, causal, second) {
        return by_dtype!("attention", "the queries", kv.dtype, T => forward::<T>(q, &branches));
    }
    match (&kv.packed, second.map(|(second, weight)| (&second.packed, weight))) {
        (Packed::Cuda(keys), None) => cuda::attention::forward(q, keys, kv.heads, scale, causal, None),
        (Packed::Cuda(keys), Some((Packed::Cuda(more), weight))) => {
            cuda::attention::forward(q, keys, kv.heads, scale, causal, Some((more, weight)))
        }
        _ => Err(Error::argument("attention", "the two branches lie on two devices; move one")),
    }
}
