//! Moving elements.

use super::linear::same_kind;
use crate::tensor::{by_dtype, elements};
use crate::{Device, Error, Result, Tensor, cpu, cuda};

fn concat(op: &'static str, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        return Err(Error::argument(op, "there are no parts; at least one is needed"));
    };
    let mut shape = first.shape().to_vec();
    if axis >= shape.len() {
        return Err(Error::shape(op, "a part", &shape, format!("more than {axis} dimensions")));
    }
    shape[axis] = 0;
    for part in parts {
        let same = part.shape().len() == shape.len() && (0..shape.len()).all(|i| i == axis || part.dim(i) == shape[i]);
        if !same {
            return Err(Error::shape(
                op,
                "a part",
                part.shape(),
                format!("{:?} but for dimension {axis}", first.shape()),
            ));
        }
        same_kind(op, "a part", part, first.dtype(), *first.device())?;
        shape[axis] += part.dim(axis);
    }
    elements(op, &shape)?;
    let outer = shape[..axis].iter().product();
    match first.device() {
        Device::Cpu => by_dtype!(op, "the parts", first.dtype(), T => cpu::shape::concat::<T>(parts, &shape, outer)),
        Device::Cuda(_) => cuda::shape::concat(parts, &shape, outer),
    }
}

/// Joins along the last dimension (channels).
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn concat_last(parts: &[&Tensor]) -> Result<Tensor> {
    let axis = parts.first().map_or(0, |p| p.shape().len().saturating_sub(1));
    concat("concat", parts, axis)
}

/// Joins along the first dimension (pictures).
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn concat_rows(parts: &[&Tensor]) -> Result<Tensor> {
    concat("concat", parts, 0)
}

/// Joins along the second dimension (tokens of a sequence).
///
/// # Errors
/// Shapes or element types that do not fit.
pub fn concat_axis1(parts: &[&Tensor]) -> Result<Tensor> {
    concat("concat", parts, 1)
}

/// `width` channels from `start`.
///
/// # Errors
/// The range leaves the last dimension.
pub fn slice_last(x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    if start.checked_add(width).is_none_or(|end| end > x.last_dim()) {
        return Err(Error::argument("slice", format!("channels {start}+{width} of {} do not exist", x.last_dim())));
    }
    match x.device() {
        Device::Cpu => by_dtype!("slice", "the input", x.dtype(), T => cpu::shape::slice_last::<T>(x, start, width)),
        Device::Cuda(_) => cuda::shape::slice_last(x, start, width),
    }
}

/// Splits the last dimension into equal parts.
///
/// # Errors
/// The dimension does not divide.
pub fn split_last(x: &Tensor, parts: usize) -> Result<Vec<Tensor>> {
    if parts == 0 || !x.last_dim().is_multiple_of(parts) {
        return Err(Error::argument("split", format!("{} channels do not divide into {parts} parts", x.last_dim())));
    }
    let width = x.last_dim() / parts;
    (0..parts).map(|i| slice_last(x, i * width, width)).collect()
}

/// A window of `h` by `w` at (`y`, `x0`) of each picture `[b, h, w, c]`.
///
/// # Errors
/// The window leaves the picture.
pub fn crop(x: &Tensor, y: usize, x0: usize, h: usize, w: usize) -> Result<Tensor> {
    let [_, ih, iw, _] = x.dims4()?;
    if y.checked_add(h).is_none_or(|e| e > ih) || x0.checked_add(w).is_none_or(|e| e > iw) || h == 0 {
        return Err(Error::argument(
            "crop",
            format!("a window of {h}x{w} at ({y}, {x0}) leaves a picture of {ih}x{iw}"),
        ));
    }
    match x.device() {
        Device::Cpu => by_dtype!("crop", "the input", x.dtype(), T => cpu::shape::crop::<T>(x, [y, x0, h, w])),
        Device::Cuda(_) => cuda::shape::crop(x, [y, x0, h, w]),
    }
}

/// Nearest-neighbour resizing of `[b, h, w, c]`, with torch's choice of source pixels.
///
/// # Errors
/// Empty pictures.
pub fn upsample_nearest(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let [b, _, _, c] = x.dims4()?;
    if x.is_empty() || h == 0 || w == 0 {
        return Err(Error::shape("upsample", "the input", x.shape(), "a picture that is not empty"));
    }
    elements("upsample", &[b, h, w, c])?;
    match x.device() {
        Device::Cpu => by_dtype!("upsample", "the input", x.dtype(), T => cpu::shape::upsample_nearest::<T>(x, h, w)),
        Device::Cuda(_) => cuda::shape::upsample_nearest(x, h, w),
    }
}

/// Rows `ids` of a table `[v, c]`: `[n, c]`.
///
/// # Errors
/// An id beyond the table.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let &[v, _] = table.shape() else {
        return Err(Error::shape("embedding", "the table", table.shape(), "[v, c]"));
    };
    if let Some(id) = ids.iter().find(|&&id| id as usize >= v) {
        return Err(Error::argument("embedding", format!("id {id} is beyond a table of {v} rows")));
    }
    match table.device() {
        Device::Cpu => by_dtype!("embedding", "the table", table.dtype(), T => cpu::shape::embedding::<T>(table, ids)),
        Device::Cuda(_) => cuda::shape::embedding(table, ids),
    }
}

/// The tensor `times` times along its first dimension: `[b, ..] -> [times * b, ..]`.
///
/// # Errors
/// The result does not fit in memory.
pub fn repeat_rows(x: &Tensor, times: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let Some(first) = shape.first_mut() else {
        return Err(Error::shape("repeat", "the input", x.shape(), "at least one dimension"));
    };
    *first = first.saturating_mul(times);
    elements("repeat", &shape)?;
    match x.device() {
        Device::Cpu => by_dtype!("repeat", "the input", x.dtype(), T => cpu::shape::repeat::<T>(x, &shape)),
        Device::Cuda(_) => cuda::shape::repeat(x, &shape),
    }
}
