//! Group and layer normalisation on a GPU. Bound: memory.

use super::elementwise::{blocks, code, optional};
use super::kernels::Family;
use super::profile::Work;
use super::{fresh, place};
use crate::ops::Activation;
use crate::{DType, Result, Tensor};

/// Group normalisation of `[b, pixels.., c]`, in one part or joined along its channels, with an activation; weight and
/// bias in f32.
pub(crate) fn group_norm(
    parts: &[&Tensor],
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
    let (b, c, dtype) = (x.dim(0), x.last_dim(), x.dtype());
    let pixels = x.len() / (b * c);
    let ((gpu, from), (_, weight), (_, bias)) = (place(x)?, place(weight)?, place(bias)?);
    // Some blocks for each multiprocessor, and chunks that do not depend on the card: the same bytes on every one.
    let chunk = (pixels / 256).clamp(16, 256);
    let chunks = pixels.div_ceil(chunk);
    let (partial, sums) = fresh(gpu, DType::F32, &[b, chunks, 2, c])?;
    let (gains, gain) = fresh(gpu, DType::F32, &[b, 2, c])?;
    let (out, to) = fresh(gpu, dtype, x.shape())?;
    gpu.note("group_norm", || Work::over(format!("group norm {:?} {dtype}", x.shape()), 3 * x.len(), dtype));
    let wide = c.is_multiple_of(16 / dtype.bytes()) && from % 16 == 0;
    let name = if wide { "group_sums_wide" } else { "group_sums_narrow" };
    let kernels = (
        gpu.kernel(Family::Norm, name, dtype)?,
        gpu.kernel(Family::Norm, "group_gains", dtype)?,
        gpu.kernel(Family::Norm, "group_apply", dtype)?,
    );
    let (pixels, channels, size) = (pixels as i64, c as i32, (c / groups) as i32);
    let (chunk, count, which) = (chunk as i32, chunks as i32, code(activation));
    let [apply, ..] = blocks(gpu, x.len() / b / if wide { 16 / dtype.bytes() } else { 1 });
    // SAFETY: the sizes are the tensors' own; each block writes its part of `partial` and of `gains`.
    unsafe {
        gpu.launch(
            "group_norm",
            kernels.0,
            [chunks as u32, b as u32, 1],
            256,
            0,
            &[&from, &sums, &pixels, &channels, &size, &chunk],
        )?;
        gpu.launch(
            "group_norm",
            kernels.1,
            [groups as u32, b as u32, 1],
            128,
            0,
            &[&from, &sums, &weight, &bias, &gain, &pixels, &channels, &size, &count, &eps],
        )?;
        gpu.launch(
            "group_norm",
            kernels.2,
            [apply.max(1), b as u32, 1],
            256,
            0,
            &[&from, &gain, &to, &pixels, &channels, &which],
        )?;
    }
    drop((partial, gains));
    Ok(out)
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
    // SAFETY: the sizes are the tensors' own; a block has eight rows.
    unsafe {
        gpu.launch(
            "layer_norm",
            kernel,
            [rows.div_ceil(8) as u32, 1, 1],
            256,
            0,
            &[&from, &weight, &bias, &to, &count, &c, &eps],
        )?;
    }
    Ok(out)
}
