//! Linear layers in 8 bits (e4m3) with a scale for each row of the input and of the weight: twice the arithmetic of 16
//! bits on Hopper, at about three bits of mantissa. Rows are rounded by the product that makes them where that is this
//! crate's own (see [`super::tiles`]), else in a pass of their own.

use super::elementwise::optional;
use super::gpu::Gpu;
use super::kernels::{Family, HOPPERS};
use super::linear::Layer;
use super::parked::Parked;
use super::product::{Matrix, Product};
use super::profile::Work;
use super::tiles::{RowNorm, Tiles};
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
    pub(super) fn empty(gpu: &'static Gpu, shape: &[usize], dtype: DType) -> Result<Rows> {
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

    /// The same rows, as many and as wide, of another shape.
    pub(crate) fn shaped(self, shape: &[usize]) -> Rows {
        Rows { shape: shape.to_vec(), ..self }
    }

    /// The shape of as many rows of another width.
    fn shape_of(&self, width: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        shape
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    pub(super) fn places(&self) -> Result<[u64; 2]> {
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
    rows_by(x, None)
}

/// The rows of `x`, whose columns have been given factors in f32, in 8 bits.
fn rows_by(x: &Tensor, columns: Option<&Tensor>) -> Result<Rows> {
    let (gpu, from) = place(x)?;
    let out = Rows::empty(gpu, x.shape(), x.dtype())?;
    let ([to, scales], columns) = (out.places()?, optional(columns)?);
    let kernel = gpu.kernel(Family::Narrow, "narrow_rows", x.dtype())?;
    let (rows, c) = (out.rows() as i64, out.width() as i32);
    let grid = [out.rows().div_ceil(4) as u32, 1, 1];
    // SAFETY: the sizes are the tensors' own; a block has four rows.
    unsafe { gpu.launch("narrow", kernel, grid, 128, 0, &[&from, &columns, &to, &scales, &rows, &c])? };
    Ok(out)
}

/// The weights of two layers in 8 bits, the second of which reads the gated outputs of the first, which is behind a layer norm:
/// between them numbers have a size that 8 bits hold without a scale for each row. With them the bias that the first has then.
pub(crate) fn gated_pair(first: &Layer, next: &Layer) -> Result<([Rows; 2], Tensor)> {
    let (gpu, weight) = place(&first.weight)?;
    let (outputs, count) = (first.weight.dim(0), next.weight.last_dim());
    let narrow = rows(&first.weight)?;
    let bias = match &first.bias {
        Some(bias) => bias.clone(),
        None => Tensor::zeros(first.weight.device(), DType::F32, &[outputs])?,
    };
    let ((sized, to), (columns, factors)) = (fresh(gpu, DType::F32, &[outputs])?, fresh(gpu, DType::F32, &[count])?);
    let ((_, bias), (_, scales)) = (place(&bias)?, place(&narrow.scales)?);
    let kernel = gpu.kernel(Family::Narrow, "gated_sizes", first.weight.dtype())?;
    let (n, c) = (count as i32, first.weight.last_dim() as i32);
    let grid = [count.div_ceil(4) as u32, 1, 1];
    // SAFETY: the sizes are the tensors' own; the first layer has twice as many outputs as the second inputs.
    unsafe {
        gpu.launch("narrow", kernel, grid, 128, 0, &[&weight, &bias, &scales, &to, &factors, &n, &c])?;
    }
    Ok(([narrow, rows_by(&next.weight, Some(&columns))?], sized))
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

/// A product of rows and a weight in 8 bits, as this crate's own kernel is told of it; where it goes is still to be said.
fn tiles(x: &Rows, weight: &Rows, layer: &Layer) -> Result<Tiles> {
    let ([x_at, x_scales], [at, scales]) = (x.places()?, weight.places()?);
    Ok(Tiles {
        rows: x.rows(),
        depth: x.width(),
        columns: weight.rows(),
        dtype: x.dtype,
        x: x_at,
        weight: at,
        bias: optional(layer.bias.as_ref())?,
        residual: 0,
        out: 0,
        gated: false,
        scales: Some([x_scales, scales]),
        norm: None,
        narrow: [0; 2],
    })
}

/// First half of `x W^T + bias` times GELU of the second in 8 bits, of rows and a weight in 8 bits; `norm`: of rows that are
/// still to be normalised. None where this crate's own kernel does not take it. The layer is the first of a [`gated_pair`].
pub(crate) fn forward_geglu(x: &Rows, norm: Option<RowNorm>, weight: &Rows, layer: &Layer) -> Result<Option<Rows>> {
    let (gpu, _) = place(&x.bytes)?;
    let columns = weight.rows() / 2;
    let out = Rows::empty(gpu, &x.shape_of(columns), x.dtype)?;
    let tiles = Tiles { columns, gated: true, norm, narrow: out.places()?, ..tiles(x, weight, layer)? };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    let done = unsafe { gpu.tiles(&tiles, 0)? };
    if done {
        crate::meter::count(x.rows(), x.width(), weight.rows());
    }
    Ok(done.then_some(out))
}

/// `x W^T + bias` of rows in 8 bits that are still to be normalised; none where this crate's own kernel does not take it.
pub(crate) fn forward_normed(x: &Rows, norm: RowNorm, weight: &Rows, layer: &Layer) -> Result<Option<Tensor>> {
    let (gpu, _) = place(&x.bytes)?;
    let (out, to) = fresh(gpu, x.dtype, &x.shape_of(weight.rows()))?;
    let tiles = Tiles { out: to, norm: Some(norm), ..tiles(x, weight, layer)? };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    let done = unsafe { gpu.tiles(&tiles, 0)? };
    if done {
        crate::meter::count(x.rows(), x.width(), weight.rows());
    }
    Ok(done.then_some(out))
}

/// Where a copy of a product's result goes and the sums that tell how large it is, if those of the residual's rows are known.
pub(super) fn copy(out: &Tensor, residual: &Tensor) -> Result<Option<(RowNorm, Rows)>> {
    let (gpu, _) = place(out)?;
    let norm = RowNorm::of(residual, 0.0)?;
    norm.map(|norm| Ok((norm, Rows::empty(gpu, out.shape(), out.dtype())?))).transpose()
}

/// `x W^T + bias + residual` of rows and a weight in 8 bits; none where cuBLASLt does not take it. Where the sums of the
/// residual's rows are known, the result may be left in 8 bits beside itself.
pub(crate) fn forward(x: &Rows, weight: &Rows, layer: &Layer, residual: Option<&Tensor>) -> Result<Option<Tensor>> {
    let (gpu, _) = place(&x.bytes)?;
    crate::meter::count(x.rows(), x.width(), weight.rows());
    let (out, to) = fresh(gpu, x.dtype, &x.shape_of(weight.rows()))?;
    let (norm, copy) = residual.map_or(Ok(None), |residual| copy(&out, residual))?.unzip();
    let narrow = copy.as_ref().map_or(Ok([0; 2]), Rows::places)?;
    let tiles = Tiles { residual: optional(residual)?, out: to, norm, narrow, ..tiles(x, weight, layer)? };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    if unsafe { gpu.tiles_into(&out, &tiles, copy)? } {
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
