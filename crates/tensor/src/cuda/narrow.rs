//! Linear layers in 8 bits (e4m3) with a scale for each row of the input and of the weight: twice the arithmetic of 16
//! bits on Hopper, at about three bits of mantissa.

use super::elementwise::optional;
use super::gpu::Gpu;
use super::kernels::{Family, HOPPERS};
use super::linear::Layer;
use super::parked::Parked;
use super::product::{Matrix, Product};
use super::profile::Work;
use super::tiles::Tiles;
use super::{fresh, place, transfer};
use crate::{DType, Result, Tensor};
use std::sync::Arc;

/// Rows of 8-bit numbers and their scales.
#[derive(Clone)]
pub(crate) struct Rows {
    /// The bytes, two in each number of the tensor.
    bytes: Tensor,
    scales: Tensor,
    /// The shape whose last dimension is a row.
    shape: Vec<usize>,
    /// What they were rounded from, and what products of them are in.
    dtype: DType,
    /// The bytes where they wait on the host.
    parked: Option<Arc<Parked>>,
}

impl Rows {
    fn empty(gpu: &'static Gpu, shape: &[usize], dtype: DType) -> Result<Rows> {
        let count: usize = shape.iter().product();
        let rows = count / shape.last().copied().unwrap_or(1).max(1);
        Ok(Rows {
            bytes: transfer::empty(gpu, DType::F16, &[count / 2])?,
            scales: transfer::empty(gpu, DType::F32, &[rows])?,
            shape: shape.to_vec(),
            dtype,
            parked: None,
        })
    }

    /// From now on the bytes wait on the host.
    pub(crate) fn park(&mut self) -> Result<()> {
        let (gpu, _) = place(&self.bytes)?;
        self.parked = Some(Arc::new(Parked::new(&self.bytes)?));
        self.bytes = transfer::empty(gpu, DType::F16, &[0])?;
        Ok(())
    }

    /// The rows as products need them.
    pub(crate) fn at_hand(&self) -> Result<Rows> {
        let Some(parked) = &self.parked else { return Ok(self.clone()) };
        Ok(Rows { bytes: parked.at_hand()?, parked: None, ..self.clone() })
    }

    fn rows(&self) -> usize {
        self.scales.len()
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    fn places(&self) -> Result<[u64; 2]> {
        Ok([place(&self.bytes)?.1, place(&self.scales)?.1])
    }
}

/// Whether a layer of this shape can be computed in 8 bits here; the scales for rows need a Hopper.
pub(crate) fn fits(weight: &Tensor) -> Result<bool> {
    let (gpu, _) = place(weight)?;
    let sizes = weight.shape().iter().all(|size| size % 16 == 0);
    Ok(gpu.arch == HOPPERS && weight.dtype() != DType::F32 && weight.shape().len() == 2 && sizes)
}

/// The rows of `x` in 8 bits.
pub(crate) fn rows(x: &Tensor) -> Result<Rows> {
    let (gpu, from) = place(x)?;
    let out = Rows::empty(gpu, x.shape(), x.dtype())?;
    let [to, scales] = out.places()?;
    let kernel = gpu.kernel(Family::Narrow, "narrow_rows", x.dtype())?;
    let (rows, c) = (out.rows() as i64, out.width() as i32);
    let grid = [out.rows().div_ceil(4) as u32, 1, 1];
    // SAFETY: the sizes are the tensors' own; a block has four rows.
    unsafe { gpu.launch("narrow", kernel, grid, 128, 0, &[&from, &to, &scales, &rows, &c])? };
    Ok(out)
}

/// The widest rows that [`layer_norm`] takes.
pub(crate) const WIDEST_NORM: usize = 8 * 32 * 8;
/// The widest rows that [`geglu`] gives.
pub(crate) const WIDEST_GEGLU: usize = 8 * 128 * 5;

/// Layer normalisation in 8 bits; weight and bias in f32.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Rows> {
    let ((gpu, from), (_, weight), (_, bias)) = (place(x)?, place(weight)?, place(bias)?);
    let out = Rows::empty(gpu, x.shape(), x.dtype())?;
    let [to, scales] = out.places()?;
    let kernel = gpu.kernel(Family::Narrow, "narrow_norm", x.dtype())?;
    let (rows, c) = (out.rows() as i64, out.width() as i32);
    let grid = [out.rows().div_ceil(4) as u32, 1, 1];
    gpu.note("narrow_norm", || Work {
        name: format!("layer norm {rows}x{c} to 8 bits"),
        flop: 0,
        bytes: (x.len() * (x.dtype().bytes() + 1)) as u64,
    });
    // SAFETY: as above.
    unsafe {
        gpu.launch("narrow_norm", kernel, grid, 128, 0, &[&from, &weight, &bias, &to, &scales, &rows, &c, &eps])?;
    }
    Ok(out)
}

/// First half of the last dimension times GELU of the second half, in 8 bits.
pub(crate) fn geglu(both: &Tensor) -> Result<Rows> {
    let (gpu, from) = place(both)?;
    let mut shape = both.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last /= 2;
    }
    let out = Rows::empty(gpu, &shape, both.dtype())?;
    let [to, scales] = out.places()?;
    let kernel = gpu.kernel(Family::Narrow, "narrow_geglu", both.dtype())?;
    let width = out.width() as i32;
    gpu.note("narrow_geglu", || Work {
        name: format!("geglu {:?} to 8 bits", both.shape()),
        flop: 0,
        bytes: (both.len() * both.dtype().bytes() + both.len() / 2) as u64,
    });
    // SAFETY: as above; a block has one row.
    unsafe {
        gpu.launch("narrow_geglu", kernel, [out.rows() as u32, 1, 1], 128, 0, &[&from, &to, &scales, &width])?;
    }
    Ok(out)
}

/// A product of rows and a weight in 8 bits, with a new tensor for it, as this crate's own kernel is told of it.
fn tiles(x: &Rows, weight: &Rows, layer: &Layer, gated: bool) -> Result<(Tensor, Tiles)> {
    let (gpu, _) = place(&x.bytes)?;
    let columns = weight.rows() / if gated { 2 } else { 1 };
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    let (tensor, out) = fresh(gpu, x.dtype, &shape)?;
    let ([x_at, x_scales], [weight, scales]) = (x.places()?, weight.places()?);
    let tiles = Tiles {
        rows: x.rows(),
        depth: x.width(),
        columns,
        dtype: x.dtype,
        x: x_at,
        weight,
        bias: optional(layer.bias.as_ref())?,
        residual: 0,
        out,
        gated,
        scales: Some([x_scales, scales]),
        norm: None,
    };
    Ok((tensor, tiles))
}

/// First half of `x W^T + bias` times GELU of the second, of rows and a weight in 8 bits; none where this crate's own kernel
/// does not take it.
pub(crate) fn forward_geglu(x: &Rows, weight: &Rows, layer: &Layer) -> Result<Option<Tensor>> {
    let (gpu, _) = place(&x.bytes)?;
    let (out, tiles) = tiles(x, weight, layer, true)?;
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    let done = unsafe { gpu.tiles(&tiles, 0)? };
    if done {
        crate::meter::count(x.rows(), x.width(), weight.rows());
    }
    Ok(done.then_some(out))
}

/// `x W^T + bias + residual` of rows and a weight in 8 bits; none where cuBLASLt does not take it.
pub(crate) fn forward(x: &Rows, weight: &Rows, layer: &Layer, residual: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (gpu, _) = place(&x.bytes)?;
    crate::meter::count(x.rows(), x.width(), weight.rows());
    let (out, plain) = tiles(x, weight, layer, false)?;
    let tiles = Tiles { residual: optional(residual)?, ..plain };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    if unsafe { gpu.tiles(&tiles, 0)? } {
        return Ok(Some(out));
    }
    let at = |t: Option<&Tensor>| t.map(|t| place(t).map(|(_, at)| at)).transpose();
    let Tiles { rows, depth, columns, dtype, .. } = tiles;
    let product = Product {
        planes: 1,
        rows,
        depth,
        columns,
        dtype,
        x: Matrix { at: tiles.x, stride: depth },
        w: Matrix { at: tiles.weight, stride: depth },
        transposed: true,
        out: Matrix { at: tiles.out, stride: columns },
        out_dtype: dtype,
        alpha: 1.0,
        bias: at(layer.narrow.as_ref())?,
        residual: at(residual)?,
        scales: tiles.scales,
    };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    Ok(unsafe { gpu.product(&product)? }.then_some(out))
}
