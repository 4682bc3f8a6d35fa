//! Element by element on a GPU. Bound: memory.

use super::gpu::Gpu;
use super::kernels::Family;
use super::profile::Work;
use super::{fresh, place};
use crate::ops::Activation;
use crate::{DType, Result, Tensor};

/// Threads of a block.
const THREADS: u32 = 256;

/// Enough blocks for `work` items, each thread taking several where there are many.
pub(super) fn blocks(gpu: &Gpu, work: usize) -> [u32; 3] {
    let wanted = work.div_ceil(THREADS as usize);
    [wanted.min(gpu.multiprocessors as usize * 8) as u32, 1, 1]
}

/// The number by which kernels know an activation.
pub(super) fn code(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
        Activation::QuickGelu => 4,
        Activation::Relu => 5,
    }
}

/// Numbers that a thread takes at once.
fn packed(x: &Tensor) -> usize {
    x.len().div_ceil(16 / x.dtype().bytes())
}

/// `activation(x)`.
pub(crate) fn activation(x: &Tensor, which: Activation) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let (out, to) = fresh(gpu, x.dtype(), x.shape())?;
    let kernel = gpu.kernel(Family::Elementwise, "activation", x.dtype())?;
    let (n, which) = (x.len() as i64, code(which));
    // SAFETY: both tensors hold n numbers.
    unsafe { gpu.launch("activation", kernel, blocks(gpu, packed(x)), THREADS, 0, &[&from, &to, &n, &which])? };
    Ok(out)
}

/// `a + s * b`.
pub(crate) fn add_scaled(a: &Tensor, b: &Tensor, s: f32) -> Result<Tensor> {
    let ((gpu, x), (_, y)) = (place(a)?, place(b)?);
    let (out, to) = fresh(gpu, a.dtype(), a.shape())?;
    let kernel = gpu.kernel(Family::Elementwise, "add_scaled", a.dtype())?;
    let n = a.len() as i64;
    // SAFETY: all three tensors hold n numbers.
    unsafe { gpu.launch("add", kernel, blocks(gpu, packed(a)), THREADS, 0, &[&x, &y, &to, &n, &s])? };
    Ok(out)
}

/// `s * a`.
pub(crate) fn scale(a: &Tensor, s: f32) -> Result<Tensor> {
    let (gpu, x) = place(a)?;
    let (out, to) = fresh(gpu, a.dtype(), a.shape())?;
    let kernel = gpu.kernel(Family::Elementwise, "scale", a.dtype())?;
    let n = a.len() as i64;
    // SAFETY: both tensors hold n numbers.
    unsafe { gpu.launch("scale", kernel, blocks(gpu, packed(a)), THREADS, 0, &[&x, &to, &n, &s])? };
    Ok(out)
}

/// Terms that one launch takes.
const TERMS: usize = 8;

/// The sum of `s * x` over the terms, left to right, in f32.
pub(crate) fn combine(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let (now, later) = terms.split_at(terms.len().min(TERMS));
    let (gpu, _) = place(now[0].1)?;
    let (out, to) = fresh(gpu, DType::F32, now[0].1.shape())?;
    let (mut places, mut shares) = ([0u64; TERMS], [0f32; TERMS]);
    for (i, (s, x)) in now.iter().enumerate() {
        (shares[i], places[i]) = (*s, place(x)?.1);
    }
    let kernel = gpu.kernel(Family::Elementwise, "combine", None)?;
    let (count, n) = (now.len() as i32, out.len() as i64);
    // SAFETY: all tensors hold n numbers in f32.
    unsafe {
        gpu.launch("combine", kernel, blocks(gpu, out.len()), THREADS, 0, &[&places, &shares, &count, &to, &n])?;
    }
    if later.is_empty() {
        return Ok(out);
    }
    let rest: Vec<(f32, &Tensor)> = std::iter::once((1.0, &out)).chain(later.iter().copied()).collect();
    combine(&rest)
}

/// The same numbers in another type.
pub(crate) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let (out, to) = fresh(gpu, dtype, x.shape())?;
    let name = match dtype {
        DType::F32 => "to_f32",
        DType::F16 => "to_f16",
        DType::BF16 => "to_bf16",
    };
    let kernel = gpu.kernel(Family::Elementwise, name, x.dtype())?;
    let n = x.len() as i64;
    // SAFETY: both tensors hold n numbers.
    unsafe { gpu.launch("cast", kernel, blocks(gpu, x.len()), THREADS, 0, &[&from, &to, &n])? };
    Ok(out)
}

/// First half of the last dimension times GELU of the second half.
pub(crate) fn geglu(both: &Tensor) -> Result<Tensor> {
    let (gpu, from) = place(both)?;
    let width = both.last_dim() / 2;
    let mut shape = both.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    let (out, to) = fresh(gpu, both.dtype(), &shape)?;
    let kernel = gpu.kernel(Family::Elementwise, "geglu", both.dtype())?;
    gpu.note("geglu", || Work::over(format!("geglu {:?}", both.shape()), 3 * out.len(), out.dtype()));
    let rows = out.len() / width.max(1);
    let parts = packed(&out).div_ceil(rows.max(1)).div_ceil(128).max(1);
    let grid = [(rows * parts) as u32, 1, 1];
    let (rows, width, parts) = (rows as i64, width as i32, parts as i32);
    // SAFETY: the input holds two numbers for each of the output's.
    unsafe { gpu.launch("geglu", kernel, grid, 128, 0, &[&from, &to, &rows, &width, &parts])? };
    Ok(out)
}

/// What follows a product that could not do it itself.
#[derive(Default)]
pub(super) struct Finish<'a> {
    pub(super) bias: Option<&'a Tensor>,
    /// One row for each `rows` rows of the product.
    pub(super) add: Option<(&'a Tensor, usize)>,
    pub(super) activation: Activation,
    pub(super) residual: Option<&'a Tensor>,
}

/// The address of an operand that may be absent; kernels take 0 for none.
pub(super) fn optional(x: Option<&Tensor>) -> Result<u64> {
    x.map_or(Ok(0), |x| place(x).map(|(_, at)| at))
}

/// `activation(y + bias + add) + residual` in the place of `y`, which nobody else sees yet.
pub(super) fn finish(y: &Tensor, finish: &Finish) -> Result<()> {
    let Finish { bias, add, activation, residual } = finish;
    if bias.is_none() && add.is_none() && residual.is_none() && *activation == Activation::None {
        return Ok(());
    }
    let (gpu, at) = place(y)?;
    let (bias, residual) = (optional(*bias)?, optional(*residual)?);
    let rows = add.map_or(1, |(_, rows)| rows) as i64;
    let add = optional(add.map(|(x, _)| x))?;
    let kernel = gpu.kernel(Family::Elementwise, "finish", y.dtype())?;
    let operands = 2 + usize::from(residual != 0);
    gpu.note("epilogue", || Work::over(format!("epilogue {:?}", y.shape()), operands * y.len(), y.dtype()));
    let (n, width, which) = (y.len() as i64, y.last_dim() as i32, code(*activation));
    // SAFETY: bias holds `width` numbers in f32, residual as many as y, add a row for each `rows` rows, as callers checked.
    unsafe {
        gpu.launch(
            "epilogue",
            kernel,
            blocks(gpu, packed(y)),
            THREADS,
            0,
            &[&at, &bias, &add, &residual, &n, &width, &rows, &which],
        )
    }
}
