//! What a linear layer reads: rows as they are, or in 8 bits where the layer computes in those.

use super::linear::Packed;
use super::norm::channels;
use super::{Activation, Linear};
use crate::{Error, Result, Tensor, cuda};

/// Rows for linear layers.
#[derive(Clone)]
pub enum Rows {
    /// In the layer's element type.
    Plain(Tensor),
    /// For a layer in 8 bits; see [`Linear::narrow`].
    Narrow(NarrowRows),
    /// For a layer that normalises them itself; see [`Linear::behind_norm`].
    Normed(NormedRows),
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
        match &layer.packed {
            Packed::Cuda(layer) => cuda::linear::forward_normed(&self.x, &*layer.at_hand()?, self.eps, gated),
            Packed::Cpu(..) => Ok(None),
        }
    }

    /// The rows, normalised.
    fn plain(&self) -> Result<Rows> {
        super::layer_norm(&self.x, &self.weight, Some(&self.bias), self.eps).map(Rows::Plain)
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rows::Plain(x) => write!(f, "Rows({x:?})"),
            Rows::Narrow(_) => f.write_str("Rows(8 bits)"),
            Rows::Normed(rows) => write!(f, "Rows({:?}, to be normalised)", rows.x),
        }
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
    match next.eights {
        Some(_) if !x.is_empty() && x.last_dim() <= cuda::narrow::WIDEST_NORM && x.dtype() == next.dtype() => {
            let weight = channels("layer_norm", "the weight", weight, x, x.last_dim())?;
            let bias = channels("layer_norm", "the bias", bias, x, x.last_dim())?;
            Ok(Rows::Narrow(NarrowRows(cuda::narrow::layer_norm(x, &weight, &bias, eps)?)))
        }
        None if next.folded && x.dtype() == next.dtype() && x.row_sums().is_some() => {
            next.check(x)?;
            let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
            Ok(Rows::Normed(NormedRows { x, weight, bias, eps }))
        }
        _ => super::layer_norm(x, weight, Some(bias), eps).map(Rows::Plain),
    }
}

impl Linear {
    /// From now on computes in 8 bits (e4m3) with a scale for each row of weight and input, where the device can: twice
    /// the speed of 16 bits, at an error of some percent. Returns whether it does; where not, nothing has changed.
    ///
    /// # Errors
    /// What the device says; no memory.
    pub fn narrow(&mut self) -> Result<bool> {
        let Packed::Cuda(layer) = &mut self.packed else { return Ok(false) };
        if self.eights.is_some() {
            return Ok(true);
        }
        let whole = layer.at_hand()?;
        if !cuda::narrow::fits(&whole.weight)? {
            return Ok(false);
        }
        let mut eights = cuda::narrow::rows(&whole.weight)?;
        drop(whole);
        // The library decides, which a small product tells.
        let trial = Tensor::zeros(&self.device, self.dtype, &[16, self.inputs])?;
        if cuda::narrow::forward(&cuda::narrow::rows(&trial)?, &eights, layer, None)?.is_none() {
            return Ok(false);
        }
        if layer.drop_weight()? {
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
            Rows::Narrow(NarrowRows(x)) => self.forward_narrow(x, residual),
            Rows::Normed(rows) => match residual.is_none().then(|| rows.by(self, false)).transpose()?.flatten() {
                Some(y) => Ok(y),
                None => self.forward_rows(&rows.plain()?, residual),
            },
        }
    }

    /// [`Linear::forward_geglu`], as `next` reads it.
    ///
    /// # Errors
    /// As [`Linear::forward_geglu`].
    pub fn forward_geglu_for(&self, next: &Linear, x: &Rows) -> Result<Rows> {
        if let Rows::Normed(rows) = x {
            return match rows.by(self, true)? {
                Some(gated) if next.eights.is_none() => Ok(Rows::Plain(gated)),
                _ => self.forward_geglu_for(next, &rows.plain()?),
            };
        }
        if next.eights.is_some() && self.outputs / 2 <= cuda::narrow::WIDEST_GEGLU && self.dtype == next.dtype {
            if let (Rows::Narrow(NarrowRows(x)), Packed::Cuda(layer), Some(weight)) = (x, &self.packed, &self.eights)
                && let Some(gated) = cuda::narrow::forward_geglu(x, &weight.at_hand()?, layer)?
            {
                return Ok(Rows::Narrow(NarrowRows(cuda::narrow::rows(&gated)?)));
            }
            return Ok(Rows::Narrow(NarrowRows(cuda::narrow::geglu(&self.forward_rows(x, None)?)?)));
        }
        match x {
            Rows::Plain(x) if self.eights.is_none() => self.forward_geglu(x).map(Rows::Plain),
            _ => cuda::elementwise::geglu(&self.forward_rows(x, None)?).map(Rows::Plain),
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
