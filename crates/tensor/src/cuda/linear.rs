//! Linear layers on a GPU: cuBLASLt, with bias and residual in the product; own kernel for what it does not take.

use super::elementwise::{Finish, finish, geglu, optional};
use super::parked::Parked;
use super::product::{Matrix, Product};
use super::tiles::{RowNorm, Tiles};
use super::winograd::{Form, Tiled};
use super::{conv, fresh, narrow, place, transfer};
use crate::ops::Activation;
use crate::{DType, Result, Tensor};

/// A layer's weight `[out, in]`, and its bias in f32 and in the weight's type.
pub(crate) struct Layer {
    pub(crate) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) narrow: Option<Tensor>,
    /// The weight where it waits on the host; the other one is empty then.
    parked: Option<Parked>,
    /// A convolution's weight in tiles; but for [`Form::Doubled`], which cannot do all, the other one is empty then.
    pub(crate) tiled: Option<Tiled>,
    /// Whether results may be left in 8 bits, too.
    pub(crate) copies: bool,
}

/// A layer whose weight is on the GPU, for what is launched while this lives.
pub(crate) enum AtHand<'a> {
    Always(&'a Layer),
    Lent(Box<Layer>),
}

impl std::ops::Deref for AtHand<'_> {
    type Target = Layer;

    fn deref(&self) -> &Layer {
        match self {
            AtHand::Always(layer) => layer,
            AtHand::Lent(layer) => layer,
        }
    }
}

impl Layer {
    /// Takes a weight and a bias as they are.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Layer> {
        let bias_in = |dtype| bias.map(|b| b.cast(dtype)).transpose();
        let (narrow, bias) = (bias_in(weight.dtype())?, bias_in(DType::F32)?);
        Ok(Layer { weight: weight.clone(), bias, narrow, parked: None, tiled: None, copies: false })
    }

    /// From now on the weight waits on the host.
    pub(crate) fn park(&mut self) -> Result<()> {
        if self.parked.is_none() {
            self.parked = Some(Parked::new(&self.weight)?);
            self.clear()?;
        }
        Ok(())
    }

    /// The layer as products need it.
    pub(crate) fn at_hand(&self) -> Result<AtHand<'_>> {
        let Some(parked) = &self.parked else { return Ok(AtHand::Always(self)) };
        let (bias, narrow) = (self.bias.clone(), self.narrow.clone());
        let weight = parked.at_hand()?;
        Ok(AtHand::Lent(Box::new(Layer { weight, bias, narrow, parked: None, tiled: None, copies: self.copies })))
    }

    /// From now on the weight `[n, 3 3 c]` lies in tiles, unless it waits on the host.
    pub(crate) fn tile(&mut self, form: Form) -> Result<()> {
        if self.parked.is_none() && self.tiled.is_none() {
            self.tiled = Some(Tiled::new(&self.weight, form)?);
            if form != Form::Doubled {
                self.clear()?;
            }
        }
        Ok(())
    }

    /// Gives the weight up; whether it waited on the host.
    pub(crate) fn drop_weight(&mut self) -> Result<bool> {
        self.clear()?;
        Ok(self.parked.take().is_some())
    }

    fn clear(&mut self) -> Result<()> {
        let (gpu, _) = place(&self.weight)?;
        self.weight = transfer::empty(gpu, self.weight.dtype(), &[self.outputs(), 0])?;
        Ok(())
    }

    /// Takes another bias, in f32.
    pub(crate) fn replace_bias(&mut self, bias: Tensor) -> Result<()> {
        self.narrow = Some(bias.cast(self.weight.dtype())?);
        self.bias = Some(bias);
        Ok(())
    }

    fn outputs(&self) -> usize {
        self.weight.dim(0)
    }
}

/// `activation(x W^T + bias) + residual` over the last dimension.
pub(crate) fn forward(x: &Tensor, layer: &Layer, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
    forward_with(x, layer, &Finish { bias: None, add: None, activation, residual })
}

/// As [`forward`], with all that may follow; the bias is the layer's.
pub(super) fn forward_with(x: &Tensor, layer: &Layer, after: &Finish) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = layer.outputs();
    }
    let rows = x.len() / x.last_dim();
    crate::meter::count(rows, x.last_dim(), layer.outputs());
    let (out, to) = fresh(gpu, x.dtype(), &shape)?;
    if out.is_empty() {
        return Ok(out);
    }
    // The product itself can add the bias and, behind no activation, the residual.
    let plain = after.activation == Activation::None && after.add.is_none();
    let (bias, residual) = if plain { (layer.narrow.as_ref(), after.residual) } else { (None, None) };
    let at = |t: Option<&Tensor>| t.map(|t| place(t).map(|(_, at)| at)).transpose();
    let (depth, columns) = (x.last_dim(), layer.outputs());
    if plain {
        let copied =
            after.residual.filter(|_| layer.copies).map_or(Ok(None), |residual| narrow::copy(&out, residual))?;
        let (norm, copy) = copied.unzip();
        let narrow = copy.as_ref().map_or(Ok([0; 2]), narrow::Rows::places)?;
        let tiles = Tiles { residual: optional(after.residual)?, norm, narrow, ..tiles(x, layer, &out)? };
        // SAFETY: the sizes are the tensors' own, which the caller compared.
        if unsafe { gpu.tiles_into(&out, &tiles, copy)? } {
            return Ok(out);
        }
    }
    let product = Product {
        planes: 1,
        rows,
        depth,
        columns,
        dtype: x.dtype(),
        x: Matrix { at: from, stride: depth },
        w: Matrix { at: place(&layer.weight)?.1, stride: depth },
        transposed: true,
        out: Matrix { at: to, stride: columns },
        out_dtype: x.dtype(),
        alpha: 1.0,
        bias: at(bias)?,
        residual: at(residual)?,
        scales: None,
    };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    if unsafe { gpu.product(&product)? } {
        if !plain {
            finish(&out, &Finish { bias: layer.bias.as_ref(), ..*after })?;
        }
        return Ok(out);
    }
    conv::own_product(x, layer, rows, after, &out)?;
    Ok(out)
}

/// `(x W1^T + b1) * gelu(x W2^T + b2)` where the weight holds W1 above W2.
pub(crate) fn forward_geglu(x: &Tensor, layer: &Layer) -> Result<Tensor> {
    match in_tiles(x, layer, true, None)? {
        Some(gated) => Ok(gated),
        None => geglu(&forward(x, layer, Activation::None, None)?),
    }
}

/// `x W^T + bias` of a layer made by [`super::tiles::fold`] on rows that are still to be normalised; `gated`: the first half
/// of the outputs times GELU of the second. None where their sums are not known or this crate's own kernel does not take it.
pub(crate) fn forward_normed(x: &Tensor, layer: &Layer, eps: f32, gated: bool) -> Result<Option<Tensor>> {
    match RowNorm::of(x, eps)? {
        Some(norm) if !x.is_empty() => in_tiles(x, layer, gated, Some(norm)),
        _ => Ok(None),
    }
}

/// A product by this crate's own kernel, if that takes it.
fn in_tiles(x: &Tensor, layer: &Layer, gated: bool, norm: Option<RowNorm>) -> Result<Option<Tensor>> {
    let (gpu, _) = place(x)?;
    let columns = layer.outputs() / if gated { 2 } else { 1 };
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    let (out, _) = fresh(gpu, x.dtype(), &shape)?;
    let tiles = Tiles { columns, gated, norm, ..tiles(x, layer, &out)? };
    // SAFETY: the sizes are the tensors' own, which the caller compared.
    let done = unsafe { gpu.tiles(&tiles, 0)? };
    if done {
        crate::meter::count(tiles.rows, tiles.depth, layer.outputs());
    }
    Ok(done.then_some(out))
}

/// A plain product as this crate's own kernel is told of it.
fn tiles(x: &Tensor, layer: &Layer, out: &Tensor) -> Result<Tiles> {
    Ok(Tiles {
        rows: x.len() / x.last_dim(),
        depth: x.last_dim(),
        columns: layer.outputs(),
        dtype: x.dtype(),
        x: place(x)?.1,
        weight: place(&layer.weight)?.1,
        bias: optional(layer.bias.as_ref())?,
        residual: 0,
        out: place(out)?.1,
        gated: false,
        scales: None,
        norm: None,
        narrow: [0; 2],
    })
}
