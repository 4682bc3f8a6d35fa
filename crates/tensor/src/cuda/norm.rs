//! Group and layer normalisation on a GPU. Bound: memory.

use super::elementwise::{code, optional};
use super::gpu::Gpu;
use super::kernels::Family;
use super::profile::Work;
use super::winograd::Normed;
use super::{fresh, place, winograd};
use crate::ops::Activation;
use crate::{DType, Result, Tensor};

/// Group normalisation of `[b, pixels.., c]`, in one part or joined along its channels, to which the channels of `add` `[b, n]`
/// from a first one on are added before, with an activation; weight, bias and `add` in f32.
pub(crate) fn group_norm(
    parts: &[&Tensor],
    add: Option<(&Tensor, usize)>,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    let joined;
    let x = match parts {
        [x] => *x,
        _ => {
            joined = crate::ops::concat_last(parts)?;
            &joined
        }
    };
    if let Some(y) = winograd::normalise(x, &Normed { groups, weight, bias, add, eps, activation })? {
        return Ok(y);
    }
    let (b, c, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    let pixels = x.len() / (b * c);
    let ((gpu, from), (_, weight), (_, bias)) = (place(x)?, place(weight)?, place(bias)?);
    let apart = add.map_or(0, |(add, _)| add.last_dim()) as i32;
    let add = add.map_or(Ok(0), |(add, first)| place(add).map(|(_, at)| at + 4 * first as u64))?;
    if let Some((bytes, kept)) = whole(gpu, c / groups, pixels, dtype, from) {
        let (out, to) = fresh(gpu, dtype, x.shape())?;
        let name = ["group_whole_4", "group_whole_8", "group_whole_16"][bytes];
        let kernel = gpu.kernel_for(Family::Norm, 0, name, Some(dtype), kept)?;
        let (count, channels, size, which) = (pixels as i64, c as i32, (c / groups) as i32, code(activation));
        let threads = if kept > 64 << 10 { 1024 } else { 512 };
        // SAFETY: the sizes are the tensors' own; a block keeps its group in its shared memory.
        unsafe {
            gpu.launch(
                "group_norm",
                kernel,
                [groups as u32, b as u32, 1],
                threads,
                kept as u32,
                &[&from, &add, &apart, &weight, &bias, &to, &count, &channels, &size, &eps, &which],
            )?;
        }
        return Ok(out);
    }
    // Chunks that do not depend on the card: the same bytes on every one.
    let chunk = (pixels / if pixels <= 1 << 16 { 128 } else { 512 }).max(16);
    let (chunks, groups) = (pixels.div_ceil(chunk), groups);
    let (partial, sums) = fresh(gpu, DType::F32, &[b, groups, chunks, 2])?;
    let (out, to) = fresh(gpu, dtype, x.shape())?;
    gpu.note("group_norm", || Work::over(format!("group norm {:?} {dtype}", x.shape()), 3 * x.len(), dtype));
    let wide = c.is_multiple_of(16 / dtype.bytes()) && from % 16 == 0;
    let name = if wide { "group_sums_wide" } else { "group_sums_narrow" };
    let (kept, few) = (2 * c * 4, 2 * groups * 4);
    let kernels = (
        gpu.kernel_for(Family::Norm, 0, name, Some(dtype), kept + STATIC)?,
        gpu.kernel_for(Family::Norm, 0, "group_apply", Some(dtype), few)?,
    );
    // Some blocks for each multiprocessor.
    let part = (pixels * b).div_ceil(4 * gpu.multiprocessors as usize).max(4);
    let spread = pixels.div_ceil(part) as u32;
    let (pixels, channels, size) = (pixels as i64, c as i32, (c / groups) as i32);
    let (chunk, count, which, part) = (chunk as i32, chunks as i32, code(activation), part as i32);
    // SAFETY: the sizes are the tensors' own; each block writes its part of `partial` and of the result.
    unsafe {
        gpu.launch(
            "group_norm",
            kernels.0,
            [chunks as u32, b as u32, 1],
            256,
            kept as u32,
            &[&from, &add, &apart, &sums, &pixels, &channels, &size, &chunk],
        )?;
        gpu.launch(
            "group_norm",
            kernels.1,
            [spread, b as u32, 1],
            256,
            few as u32,
            &[&from, &add, &apart, &sums, &weight, &bias, &to, &pixels, &channels, &size, &count, &part, &eps, &which],
        )?;
    }
    drop(partial);
    Ok(out)
}

/// Bytes of shared memory that the kernel of sums has beside those of its channels, and a little.
const STATIC: usize = 17 << 10;
/// Bytes of a group beyond which one block takes longer than many do in three launches.
const KEPT: usize = 96 << 10;
/// The same where a group's rows are no multiples of 16 bytes: 61 instead of about 15 microseconds for 2x64x64x320.
const KEPT_NARROW: usize = 24 << 10;

/// Where a group of `size` channels fits into a block's shared memory: which of 4, 8 and 16 bytes are moved at once, and
/// how many it takes.
fn whole(gpu: &Gpu, size: usize, pixels: usize, dtype: DType, address: u64) -> Option<(usize, usize)> {
    let (row, kept) = (size * dtype.bytes(), pixels * size * dtype.bytes());
    let unit = [4, 8, 16].into_iter().rposition(|unit| row % unit == 0 && address.is_multiple_of(unit as u64))?;
    // The kernel's sums take a little, too.
    let most = if unit == 2 { KEPT } else { KEPT_NARROW };
    (kept <= most && kept + 1024 <= gpu.shared).then_some((unit, kept))
}

/// Layer normalisation over the last dimension; weight and bias in f32.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let ((gpu, from), (_, weight)) = (place(x)?, place(weight)?);
    let bias = optional(bias)?;
    let (out, to) = fresh(gpu, x.dtype(), x.shape())?;
    let kernel = gpu.kernel(Family::Norm, "layer_norm", x.dtype())?;
    let rows = x.len() / x.last_dim();
    gpu.note("layer_norm", || Work::over(format!("layer norm {rows}x{}", x.last_dim()), 2 * x.len(), x.dtype()));
    let (count, c) = (rows as i64, x.last_dim() as i32);
    // SAFETY: the sizes are the tensors' own; a block has four rows.
    unsafe {
        gpu.launch(
            "layer_norm",
            kernel,
            [rows.div_ceil(4) as u32, 1, 1],
            128,
            0,
            &[&from, &weight, &bias, &to, &count, &c, &eps],
        )?;
    }
    Ok(out)
}
