//! Moving elements on a GPU. Bound: memory.

use super::elementwise::blocks;
use super::gpu::Gpu;
use super::kernels::Family;
use super::profile::Work;
use super::{fresh, place, transfer};
use crate::{DType, Result, Tensor};

const THREADS: u32 = 256;

/// The largest unit in which all of these byte counts and addresses can be moved: its place in a list of kernels.
fn unit(bytes: &[u64]) -> (u64, usize) {
    let all = bytes.iter().fold(0, |a, b| a | b);
    [(16, 0), (4, 1), (2, 2)].into_iter().find(|(unit, _)| all % unit == 0).unwrap_or((2, 2))
}

/// Rows within a tensor: `inner` rows lie `from` bytes apart, then the next ones begin `outer` bytes after the first.
struct Rows {
    count: usize,
    bytes: usize,
    inner: usize,
    outer: usize,
    from: usize,
    to: usize,
}

/// # Safety
/// All rows lie within the two tensors at these addresses.
unsafe fn move_rows(gpu: &Gpu, doing: &'static str, x: u64, out: u64, rows: &Rows) -> Result<()> {
    let Rows { count, bytes, inner, outer, from, to } = *rows;
    let (unit, which) = unit(&[x, out, bytes as u64, outer as u64, from as u64, to as u64]);
    let kernel = gpu.kernel(Family::Shape, ["move_rows_16", "move_rows_4", "move_rows_2"][which], None)?;
    let units = |bytes: usize| (bytes as u64 / unit) as i64;
    let (width, inner, rows) = (units(bytes) as i32, inner.max(1) as i64, count as i64);
    let grid = blocks(gpu, count * width as usize);
    // SAFETY: the caller vouches for the ranges; all of them are multiples of the unit.
    unsafe {
        gpu.launch(
            doing,
            kernel,
            grid,
            THREADS,
            0,
            &[&x, &out, &rows, &width, &inner, &units(outer), &units(from), &units(to)],
        )
    }
}

/// Joins tensors along an axis; `outer` is the product of the dimensions before it.
pub(crate) fn concat(parts: &[&Tensor], shape: &[usize], outer: usize) -> Result<Tensor> {
    let (gpu, _) = place(parts[0])?;
    let dtype = parts[0].dtype();
    let (out, mut to) = fresh(gpu, dtype, shape)?;
    let row = out.len() / outer.max(1) * dtype.bytes();
    gpu.note("concat", || Work::over(format!("concat {shape:?}"), 2 * out.len(), dtype));
    for part in parts {
        let (_, from) = place(part)?;
        let bytes = part.len() / outer.max(1) * dtype.bytes();
        let rows = Rows { count: outer, bytes, inner: outer, outer: 0, from: bytes, to: row };
        // SAFETY: the parts' rows add up to the output's, as the caller's shape says.
        unsafe { move_rows(gpu, "concat", from, to, &rows)? };
        to += bytes as u64;
    }
    Ok(out)
}

/// Columns `start .. start + width` of the last dimension.
pub(crate) fn slice_last(x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let (total, size) = (x.last_dim(), x.dtype().bytes());
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let (out, to) = fresh(gpu, x.dtype(), &shape)?;
    let count = x.len() / total.max(1);
    let rows = Rows { count, bytes: width * size, inner: count, outer: 0, from: total * size, to: width * size };
    // SAFETY: the columns exist, as the caller checked.
    unsafe { move_rows(gpu, "slice", from + (start * size) as u64, to, &rows)? };
    Ok(out)
}

/// A window of each picture.
pub(crate) fn crop(x: &Tensor, [y0, x0, h, w]: [usize; 4]) -> Result<Tensor> {
    let [b, ih, iw, c] = x.dims4()?;
    let (gpu, from) = place(x)?;
    let size = x.dtype().bytes();
    let (out, to) = fresh(gpu, x.dtype(), &[b, h, w, c])?;
    let (line, bytes) = (iw * c * size, w * c * size);
    let rows = Rows { count: b * h, bytes, inner: h, outer: ih * line, from: line, to: bytes };
    // SAFETY: the window lies in the picture, as the caller checked.
    unsafe { move_rows(gpu, "crop", from + (y0 * line + x0 * c * size) as u64, to, &rows)? };
    Ok(out)
}

/// Nearest-neighbour resizing as torch does it.
pub(crate) fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let [b, ih, iw, c] = x.dims4()?;
    let (gpu, from) = place(x)?;
    let (out, to) = fresh(gpu, x.dtype(), &[b, h, w, c])?;
    let pixel = (c * x.dtype().bytes()) as u64;
    let (unit, which) = unit(&[from, to, pixel]);
    let kernel = gpu.kernel(Family::Shape, ["resize_16", "resize_4", "resize_2"][which], None)?;
    gpu.note("upsample", || Work::over(format!("upsample {:?}", out.shape()), x.len() + out.len(), x.dtype()));
    let sizes = [b, ih, iw, h, w, (pixel / unit) as usize].map(|s| s as i32);
    let grid = blocks(gpu, b * h * w * sizes[5] as usize);
    // SAFETY: the sizes are the tensors' own.
    unsafe {
        let [b, ih, iw, h, w, units] = &sizes;
        gpu.launch("upsample", kernel, grid, THREADS, 0, &[&from, &to, b, ih, iw, h, w, units])?;
    }
    Ok(out)
}

/// Rows of a table.
pub(crate) fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (gpu, from) = place(table)?;
    let c = table.last_dim();
    let (out, to) = fresh(gpu, table.dtype(), &[ids.len(), c])?;
    let bytes = (c * table.dtype().bytes()) as u64;
    let (unit, which) = unit(&[from, to, bytes]);
    let kernel = gpu.kernel(Family::Shape, ["gather_16", "gather_4", "gather_2"][which], None)?;
    // Ids are bits of the same size as f32; only this kernel reads them.
    let bits: Vec<f32> = ids.iter().map(|id| f32::from_bits(*id)).collect();
    let list = transfer::from_f32(gpu, DType::F32, &[ids.len()], &bits)?;
    let (_, list) = place(&list)?;
    let (rows, units) = (ids.len() as i64, (bytes / unit) as i32);
    let grid = blocks(gpu, ids.len() * units as usize);
    // SAFETY: the ids are rows of the table, as the caller checked.
    unsafe { gpu.launch("embedding", kernel, grid, THREADS, 0, &[&from, &list, &to, &rows, &units])? };
    Ok(out)
}

/// The whole tensor `times` times along the first dimension.
pub(crate) fn repeat(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let (out, to) = fresh(gpu, x.dtype(), shape)?;
    let bytes = x.len() * x.dtype().bytes();
    for i in 0..out.len().checked_div(x.len()).unwrap_or(0) {
        // SAFETY: the output holds the input a whole number of times.
        unsafe { transfer::copy(gpu, to + (i * bytes) as u64, from, bytes)? };
    }
    Ok(out)
}

/// A convolution's weight `[n, c, kh, kw]` as windows lie in NHWC, `[n, kh, kw, c]`.
pub(super) fn filter(weight: &Tensor) -> Result<Tensor> {
    let [n, c, kh, kw] = weight.dims4()?;
    let (gpu, from) = place(weight)?;
    let (out, to) = fresh(gpu, weight.dtype(), &[n, kh, kw, c])?;
    let kernel = gpu.kernel(Family::Shape, if weight.dtype().bytes() == 4 { "filter_4" } else { "filter_2" }, None)?;
    let (total, c, taps) = (out.len() as i64, c as i32, (kh * kw) as i32);
    // SAFETY: both tensors hold n c kh kw numbers.
    unsafe {
        gpu.launch("packing a filter", kernel, blocks(gpu, out.len()), THREADS, 0, &[&from, &to, &total, &c, &taps])?
    };
    Ok(out)
}
