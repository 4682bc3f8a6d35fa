//! What a linear layer reads: rows as they are, in the order in which the layer reads them, or in 8 bits where it computes in
//! those.

use super::linear::Packed;
use super::norm::channels;
use super::{Activation, Linear};
use crate::cpu::columns::PackedColumns;
use crate::cpu::linear::Input;
use crate::{Error, Result, Tensor, cpu, cuda};
use half::bf16;
use std::sync::Arc;

/// Rows for linear layers.
#[derive(Clone)]
pub enum Rows {
    /// In the layer's element type.
    Plain(Tensor),
    /// The same in the order in which a product in tiles of the CPU reads them.
    Packed(PackedRows),
    /// For a layer in 8 bits; see [`Linear::narrow`].
    Narrow(NarrowRows),
    /// For a layer that normalises them itself; see [`Linear::behind_norm`].
    Normed(NormedRows),
}

/// Rows in the order of tiles.
#[derive(Clone)]
pub struct PackedRows {
    rows: Arc<cpu::rows::PackedRows>,
    shape: Vec<usize>,
}

impl PackedRows {
    pub(super) fn of(rows: cpu::rows::PackedRows, shape: &[usize]) -> PackedRows {
        PackedRows { rows: Arc::new(rows), shape: shape.to_vec() }
    }

    fn input(&self) -> Input<'_> {
        Input::Packed(&self.rows, &self.shape)
    }
}

/// Rows of 8-bit numbers with a scale for each row.
#[derive(Clone)]
pub struct NarrowRows(cuda::narrow::Rows);

/// Rows that are still to be normalised, and how.
#[derive(Clone)]
pub struct NormedRows {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl NormedRows {
    /// The product by the layer itself, gated or not; none where it cannot.
    fn by(&self, layer: &Linear, gated: bool) -> Result<Option<Tensor>> {
        match (&layer.packed, &layer.eights) {
            (Packed::Cuda(layer), None) => cuda::linear::forward_normed(&self.x, &*layer.at_hand()?, self.eps, gated),
            (Packed::Cuda(layer), Some(weight)) if !gated => match self.narrow()? {
                Some((x, norm)) => cuda::narrow::forward_normed(&x, norm, &weight.at_hand()?, layer),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// The rows in 8 bits and the norm that they still need, where the product that wrote them left both.
    fn narrow(&self) -> Result<Option<(cuda::narrow::Rows, cuda::tiles::RowNorm)>> {
        let copy = self.x.left().and_then(|left| left.copy).map(|copy| copy.shaped(self.x.shape()));
        Ok(copy.zip(cuda::tiles::RowNorm::of(&self.x, self.eps)?))
    }

    /// The rows, normalised, as the layer reads them.
    fn plain(&self, next: &Linear) -> Result<Rows> {
        normalised(next, &self.x, &self.weight, &self.bias, self.eps)
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rows::Plain(x) => write!(f, "Rows({x:?})"),
            Rows::Packed(rows) => rows.fmt(f),
            Rows::Narrow(_) => f.write_str("Rows(8 bits)"),
            Rows::Normed(rows) => write!(f, "Rows({:?}, to be normalised)", rows.x),
        }
    }
}

impl std::fmt::Debug for PackedRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({:?}, in the order of tiles)", self.shape)
    }
}

impl std::fmt::Debug for NarrowRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NarrowRows")
    }
}

/// Layer normalisation over the last dimension, `[.., c] -> [.., c]`, as `next` reads it.
///
/// # Errors
/// As [`super::layer_norm`].
pub fn layer_norm_for(next: &Linear, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Rows> {
    let left = x.left().filter(|_| next.folded && x.dtype() == next.dtype());
    if left.is_some_and(|left| next.eights.is_none() || left.copy.is_some()) {
        next.check(x)?;
        let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
        return Ok(Rows::Normed(NormedRows { x, weight, bias, eps }));
    }
    normalised(next, x, weight, bias, eps)
}

/// As [`layer_norm_for`], here and now.
fn normalised(next: &Linear, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Rows> {
    let narrow = next.eights.is_some() && !x.is_empty() && x.last_dim() <= cuda::narrow::WIDEST_NORM;
    if narrow && x.dtype() == next.dtype() {
        let weight = channels("layer_norm", "the weight", weight, x, x.last_dim())?;
        let bias = channels("layer_norm", "the bias", bias, x, x.last_dim())?;
        return Ok(Rows::Narrow(NarrowRows(cuda::narrow::layer_norm(x, &weight, &bias, eps)?)));
    }
    if next.reads_packed() && !x.is_empty() {
        next.check(x)?;
        let weight = channels("layer_norm", "the weight", weight, x, x.last_dim())?;
        let bias = channels("layer_norm", "the bias", bias, x, x.last_dim())?;
        let rows = cpu::norm::layer_norm_packed(x, weight.data(), Some(bias.data()), eps)?;
        return Ok(Rows::Packed(PackedRows::of(rows, x.shape())));
    }
    super::layer_norm(x, weight, Some(bias), eps).map(Rows::Plain)
}

impl Linear {
    /// Whether it best reads rows in the order of tiles.
    pub(super) fn reads_packed(&self) -> bool {
        match &self.packed {
            Packed::Cpu(weight, _) => cpu::linear::reads_packed(self.dtype, weight),
            Packed::Cuda(_) => false,
        }
    }

    /// Its weight and bias, if it can read such rows.
    fn packed_for(&self, x: &PackedRows) -> Result<(&PackedColumns, Option<&[f32]>)> {
        let fits = x.shape.last() == Some(&self.inputs) && self.reads_packed();
        match &self.packed {
            Packed::Cpu(weight, bias) if fits => Ok((weight, bias.as_deref())),
            _ => {
                let expected = format!("[.., {}] for a layer whose products run in tiles", self.inputs);
                Err(Error::shape("linear", "the packed input", &x.shape, expected))
            }
        }
    }

    /// From now on computes in 8 bits (e4m3) with a scale for each row of weight and input, where the device can: twice
    /// the speed of 16 bits, at an error of some percent. Returns whether it does; where not, nothing has changed.
    ///
    /// # Errors
    /// What the device says; no memory.
    pub fn narrow(&mut self) -> Result<bool> {
        let Packed::Cuda(layer) = &self.packed else { return Ok(false) };
        if self.eights.is_some() {
            return Ok(true);
        }
        let whole = layer.at_hand()?;
        if !cuda::narrow::fits(&whole.weight)? {
            return Ok(false);
        }
        let eights = cuda::narrow::rows(&whole.weight)?;
        drop(whole);
        Ok(self.takes(&eights)? && self.replace(eights)?)
    }

    /// As [`Linear::narrow`] of this layer and of the one that reads its gated outputs, see [`Linear::forward_geglu_for`];
    /// where this one is behind a norm, they get a size that needs no scale for each row.
    ///
    /// # Errors
    /// As [`Linear::narrow`].
    pub fn narrow_gated(&mut self, next: &mut Linear) -> Result<bool> {
        let (Packed::Cuda(first), Packed::Cuda(second)) = (&self.packed, &next.packed) else { return Ok(false) };
        let whole = [first.at_hand()?, second.at_hand()?];
        let fits = cuda::narrow::fits(&whole[0].weight)? && cuda::narrow::fits(&whole[1].weight)?;
        let new = self.eights.is_none() && next.eights.is_none();
        if !self.folded || self.outputs != 2 * next.inputs || !fits || !new {
            drop(whole);
            return Ok(self.narrow()? && next.narrow()?);
        }
        let ([one, other], bias) = cuda::narrow::gated_pair(&whole[0], &whole[1])?;
        drop(whole);
        if !self.takes(&one)? || !next.takes(&other)? {
            return Ok(false);
        }
        if let Packed::Cuda(layer) = &mut self.packed {
            layer.replace_bias(bias)?;
        }
        self.sized = true;
        Ok(self.replace(one)? && next.replace(other)?)
    }

    /// Whether products with these as weight can be computed: the library decides, which a small one tells.
    fn takes(&self, eights: &cuda::narrow::Rows) -> Result<bool> {
        let Packed::Cuda(layer) = &self.packed else { return Ok(false) };
        let trial = Tensor::zeros(&self.device, self.dtype, &[16, self.inputs])?;
        Ok(cuda::narrow::forward(&cuda::narrow::rows(&trial)?, eights, layer, None)?.is_some())
    }

    /// From now on what reads this layer's results computes in 8 bits: results may be left in those beside themselves.
    pub fn copy_in_eight(&mut self) {
        if let Packed::Cuda(layer) = &mut self.packed {
            layer.copies = true;
        }
    }

    /// From now on these are the weight; true.
    fn replace(&mut self, mut eights: cuda::narrow::Rows) -> Result<bool> {
        if let Packed::Cuda(layer) = &mut self.packed
            && layer.drop_weight()?
        {
            eights.park()?;
        }
        self.eights = Some(eights);
        Ok(true)
    }

    /// `x W^T + b + residual`: `[.., in] -> [.., out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_rows(&self, x: &Rows, residual: Option<&Tensor>) -> Result<Tensor> {
        match x {
            Rows::Plain(x) => self.forward_with(x, Activation::None, residual),
            Rows::Packed(x) => {
                let (weight, bias) = self.packed_for(x)?;
                self.check_residual(x.rows.count(), residual)?;
                cpu::linear::forward::<bf16>(x.input(), weight, bias, Activation::None, residual)
            }
            Rows::Narrow(NarrowRows(x)) => self.forward_narrow(x, residual),
            Rows::Normed(rows) => match residual.is_none().then(|| rows.by(self, false)).transpose()?.flatten() {
                Some(y) => Ok(y),
                None => self.forward_rows(&rows.plain(self)?, residual),
            },
        }
    }

    /// [`Linear::forward_geglu`], as `next` reads it.
    ///
    /// # Errors
    /// As [`Linear::forward_geglu`].
    pub fn forward_geglu_for(&self, next: &Linear, x: &Rows) -> Result<Rows> {
        if next.eights.is_some()
            && let Some(gated) = self.gate_narrow(x)?
        {
            return Ok(Rows::Narrow(NarrowRows(gated)));
        }
        if let Rows::Normed(rows) = x {
            return match next.eights.is_none().then(|| rows.by(self, true)).transpose()?.flatten() {
                Some(gated) => Ok(Rows::Plain(gated)),
                None => self.forward_geglu_for(next, &rows.plain(self)?),
            };
        }
        if next.eights.is_some() && self.outputs / 2 <= cuda::narrow::WIDEST_GEGLU && self.dtype == next.dtype {
            return Ok(Rows::Narrow(NarrowRows(cuda::narrow::geglu(&self.forward_rows(x, None)?)?)));
        }
        match x {
            Rows::Packed(x) => self.gate_packed(next, x),
            Rows::Plain(x) if self.eights.is_none() => self.forward_geglu(x).map(Rows::Plain),
            _ => cuda::elementwise::geglu(&self.forward_rows(x, None)?).map(Rows::Plain),
        }
    }

    /// [`Linear::forward_geglu_for`] of packed rows.
    fn gate_packed(&self, next: &Linear, x: &PackedRows) -> Result<Rows> {
        let (weight, bias) = self.packed_for(x)?;
        if !self.outputs.is_multiple_of(2) {
            return Err(Error::shape("geglu", "the weight", &[self.outputs, self.inputs], "an even number of outputs"));
        }
        let mut shape = x.shape.clone();
        shape.splice(shape.len() - 1.., [self.outputs / 2]);
        if next.reads_packed() && next.inputs == self.outputs / 2 {
            let rows = cpu::linear::forward_geglu_packed(x.input(), weight, bias)?;
            return Ok(Rows::Packed(PackedRows::of(rows, &shape)));
        }
        cpu::linear::forward_geglu::<bf16>(x.input(), weight, bias).map(Rows::Plain)
    }

    /// [`Linear::forward_geglu_for`] by the layer itself in 8 bits, whose outputs have a size for them; none where it cannot.
    fn gate_narrow(&self, x: &Rows) -> Result<Option<cuda::narrow::Rows>> {
        let (Packed::Cuda(layer), Some(weight), true) = (&self.packed, &self.eights, self.sized) else {
            return Ok(None);
        };
        match x {
            Rows::Narrow(NarrowRows(x)) => cuda::narrow::forward_geglu(x, None, &weight.at_hand()?, layer),
            Rows::Normed(rows) => match rows.narrow()? {
                Some((x, norm)) => cuda::narrow::forward_geglu(&x, Some(norm), &weight.at_hand()?, layer),
                None => Ok(None),
            },
            Rows::Plain(_) | Rows::Packed(_) => Ok(None),
        }
    }

    /// A product in 8 bits.
    pub(super) fn forward_narrow(&self, x: &cuda::narrow::Rows, residual: Option<&Tensor>) -> Result<Tensor> {
        let done = match (&self.packed, &self.eights) {
            (Packed::Cuda(layer), Some(weight)) => cuda::narrow::forward(x, &weight.at_hand()?, layer, residual)?,
            _ => None,
        };
        done.ok_or_else(|| Error::argument("linear", "the library refuses a product in 8 bits; use f16 instead"))
    }

    /// [`Linear::forward_with`] of a layer in 8 bits on an input that is not.
    pub(super) fn forward_narrowing(&self, x: &Tensor, act: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        let rows = cuda::narrow::rows(x)?;
        if act == Activation::None {
            return self.forward_narrow(&rows, residual);
        }
        let y = super::activation(&self.forward_narrow(&rows, None)?, act)?;
        residual.map_or(Ok(y.clone()), |residual| super::add(&y, residual))
    }
}
