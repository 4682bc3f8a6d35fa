//! Attention on a GPU.

use super::fused::Shape;
use super::kernels::{Family, HOPPERS};
use super::long::Division;
use super::product::{Matrix, Product};
use super::profile::Work;
use super::text::{self, FewKeys};
use super::{fresh, place};
use crate::cpu::attention::Columns;
use crate::{DType, Error, Result, Tensor};

/// Widths of a head for which the kernel on tensor cores is compiled; others take the next.
pub(super) const HEADS: [usize; 8] = [16, 32, 48, 64, 80, 96, 128, 160];

/// Queries of a block of the general kernel.
const QUERIES: usize = 16;
/// Up to this width of a head there are a kernel with twice as many queries in a block, for one branch, and one for few keys.
pub(super) const NARROW: usize = 64;
/// The widest head that it takes.
const WIDEST: usize = 512;

/// Keys of a tile of the kernel on tensor cores.
const TILE: usize = 64;
/// The most keys that the kernels for few keys take, of the first branch and of the second.
pub(super) const FEW: [usize; 2] = [80, 16];
/// From so many queries on blocks of twice as many still fill the card.
const MANY: usize = 512;
/// The widest head that cuDNN is asked about; from Hopper on it is faster where blocks of many queries are.
const LIBRARY: usize = 128;
/// From this width of a head and so many queries and keys on, two products with a softmax between them are faster.
const WIDE: usize = 64;
/// Bytes of scores that are held at once.
const SCORES: usize = 256 << 20;

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
    let keys = kv.k.dim(1) + second.map_or(0, |(kv, _)| kv.k.dim(1));
    crate::meter::count(2 * b * n, keys, width);
    let (gpu, queries) = place(q.tensor)?;
    // Of whole tensors, and of where these columns of them begin.
    let places = [queries, place(&kv.k)?.1, place(&kv.v)?.1];
    let queries = queries + (q.first * dtype.bytes()) as u64;
    let [k, v] = kv.places()?;
    let [k2, v2] = second.map_or(Ok([0, 0]), |(kv, _)| kv.places())?;
    // Tensor cores take 16-bit numbers, and tiles travel in pieces of 16 bytes.
    let pieces = [queries, k, v, k2, v2].iter().all(|at| at % 16 == 0)
        && [d, row, kv.k.last_dim(), second.map_or(0, |(kv, _)| kv.k.last_dim())].iter().all(|n| n % 8 == 0);
    let head =
        HEADS.into_iter().find(|&head| head >= d && dtype != DType::F32 && gpu.arch >= 80 && pieces && scale > 0.0);
    if head.is_none()
        && d >= WIDE
        && n.min(kv.k.dim(1)) >= WIDE
        && !causal
        && second.is_none()
        && let Some(out) = by_products(q, kv, heads, scale)?
    {
        return Ok(out);
    }
    if head.is_none() && d > WIDEST {
        return Err(Error::argument("attention", format!("a head is {d} wide; on a GPU {WIDEST} is the widest")));
    }
    let strides = [row, kv.k.last_dim(), second.map_or(0, |(kv, _)| kv.k.last_dim())];
    let counts = [n, kv.k.dim(1), second.map_or(0, |(kv, _)| kv.k.dim(1)), heads, d];
    let weight = second.map_or(0.0, |(_, weight)| weight);
    let few = kv.k.dim(1) <= FEW[0] && second.is_none_or(|(kv, _)| kv.k.dim(1) <= FEW[1]) && !causal;
    if few && head.is_some() && text::takes(gpu, d, weight) {
        let (out, to) = fresh(gpu, dtype, &[b, n, width])?;
        let few = FewKeys { at: [queries, k, v, k2, v2, to], b, counts, strides, scale, weight, dtype };
        // SAFETY: the sizes are the tensors' own, which the caller compared with each other.
        unsafe { gpu.attend_text(&few)? };
        return Ok(out);
    }
    let (name, block, shared) = match head {
        Some(head) if few && head <= NARROW => ("attend_few", 64, (64 + 2 * (FEW[0] + FEW[1])) * (head + 8) * 2),
        Some(head) if head <= NARROW && second.is_none() && n >= MANY => {
            ("attend_many", 128, 4 * TILE * (head + 8) * 2)
        }
        Some(head) if second.is_none_or(|(kv, _)| kv.k.dim(1) <= TILE) => {
            ("attend_short", 64, 4 * TILE * (head + 8) * 2)
        }
        Some(head) => ("attend", 64, 4 * TILE * (head + 8) * 2),
        None => ("attend", QUERIES, QUERIES * d * 4),
    };
    let (out, to) = fresh(gpu, dtype, &[b, n, width])?;
    let long = n.min(kv.k.dim(1)) >= MANY && second.is_none() && !causal;
    if long && head.is_some() && d <= LIBRARY && gpu.arch >= HOPPERS {
        let strides = [row, kv.k.last_dim(), width];
        let shape = Shape { b, heads, n, m: kv.k.dim(1), d, strides, dtype };
        let own = Division::of(gpu, shape).filter(|_| places.iter().all(|at| at % 16 == 0));
        // SAFETY: the sizes are the tensors' own; addresses are multiples of 16 where there is a kernel for the head.
        if own.is_none_or(|own| !own.suits) && unsafe { gpu.attend(shape, [queries, k, v, to], scale)? } {
            return Ok(out);
        }
        if let Some(own) = own {
            let first = [q.first, kv.first[0], kv.first[1]];
            // SAFETY: as above.
            unsafe { gpu.attend_long(shape, own, first, [places[0], places[1], places[2], to], scale)? };
            return Ok(out);
        }
    }
    let family = match head {
        Some(_) if name == "attend_few" => Family::AttentionFew,
        Some(_) => Family::AttentionTiles,
        None => Family::Attention,
    };
    let kernel = gpu.kernel_for(family, head.unwrap_or(0), name, Some(dtype), shared)?;
    gpu.note("attention", || work(b, counts, dtype));
    let (strides, counts, causal) = (strides.map(|s| s as i32), counts.map(|s| s as i32), i32::from(causal));
    // SAFETY: the sizes are the tensors' own, which the caller compared with each other.
    unsafe {
        gpu.launch(
            "attention",
            kernel,
            [n.div_ceil(block) as u32, heads as u32, b as u32],
            128,
            shared as u32,
            &[&queries, &k, &v, &k2, &v2, &to, &counts, &strides, &scale, &causal, &weight],
        )?;
    }
    Ok(out)
}

/// What attention does over `b` pictures of so many queries, keys, those of a second branch, heads and numbers of a head.
pub(super) fn work(b: usize, [n, m, m2, heads, d]: [usize; 5], dtype: DType) -> Work {
    let (keys, width, branches) = (m + m2, heads * d, if m2 > 0 { "two branches" } else { "one branch" });
    let name = format!("attention {b}x{n} over {keys}, {heads} heads of {d}, {branches}");
    Work { flop: 4 * (b * n * keys * width) as u64, ..Work::over(name, 2 * b * (n + keys) * width, dtype) }
}

/// Attention as two products with a softmax between them, over as many queries at once as their scores may take memory;
/// none where cuBLASLt does not take them. For wide heads, such as the single one of an autoencoder.
fn by_products(q: Columns, kv: &Keys, heads: usize, scale: f32) -> Result<Option<Tensor>> {
    let [b, n, row] = q.tensor.dims3()?;
    let (m, dtype, size) = (kv.k.dim(1), q.tensor.dtype(), q.tensor.dtype().bytes());
    let (width, d, stride) = (q.width, q.width / heads, kv.k.last_dim());
    let (gpu, queries) = place(q.tensor)?;
    let [k, v] = kv.places()?;
    let (out, to) = fresh(gpu, dtype, &[b, n, width])?;
    let block = (SCORES / (4 * m)).clamp(1, n);
    let (scores, at) = fresh(gpu, DType::F32, &[block, m])?;
    // In f32 the weights take the scores' place.
    let (weights, weight) = if dtype == DType::F32 { (scores.clone(), at) } else { fresh(gpu, dtype, &[block, m])? };
    let softmax = gpu.kernel(Family::Norm, "softmax", dtype)?;
    let offset = |numbers: usize| (numbers * size) as u64;
    for (picture, head) in (0..b * heads).map(|i| (i / heads, i % heads)) {
        for first in (0..n).step_by(block) {
            let rows = block.min(n - first);
            let matrix = |at, stride| Matrix { at, stride };
            let mut product = Product {
                planes: 1,
                rows,
                depth: d,
                columns: m,
                dtype,
                x: matrix(queries + offset((picture * n + first) * row + q.first + head * d), row),
                w: matrix(k + offset(picture * m * stride + head * d), stride),
                transposed: true,
                out: matrix(at, m),
                out_dtype: DType::F32,
                alpha: scale,
                bias: None,
                residual: None,
                scales: None,
            };
            let (count, keys) = (rows as i32, m as i32);
            // SAFETY: the sizes are the tensors' own, which the caller compared; a block of the softmax has one row.
            unsafe {
                if !gpu.product(&product)? {
                    return Ok(None);
                }
                gpu.launch("attention", softmax, [rows as u32, 1, 1], 256, 0, &[&at, &weight, &count, &keys])?;
                product = Product {
                    depth: m,
                    columns: d,
                    x: matrix(weight, m),
                    w: matrix(v + offset(picture * m * stride + head * d), stride),
                    transposed: false,
                    out: matrix(to + offset((picture * n + first) * width + head * d), width),
                    out_dtype: dtype,
                    alpha: 1.0,
                    ..product
                };
                if !gpu.product(&product)? {
                    return Ok(None);
                }
            }
        }
    }
    drop((scores, weights));
    Ok(Some(out))
}
