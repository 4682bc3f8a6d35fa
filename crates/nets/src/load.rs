//! From named tensors to layers: shapes are checked before a tensor is read, layers are packed once.

use crate::{Error, Result};
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, Linear, Normed, Products, Rows};
use tensor::{DType, Device, Tensor, Turn};
use weights::{Dtype, Scope};

/// The numbers that a network computes with: what its tensors hold, and how products of f32 are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Of activations, and of weights but for biases and norms.
    pub dtype: DType,
    /// Of layers in f32.
    pub products: Products,
}

impl From<DType> for Numbers {
    fn from(dtype: DType) -> Numbers {
        Numbers { dtype, products: Products::Whole }
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Numbers { dtype: DType::F32, products: Products::InParts } => f.write_str("bf16x3"),
            Numbers { dtype, .. } => dtype.fmt(f),
        }
    }
}

/// A place in the checkpoint, and where its tensors go.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) scope: Scope,
    pub(crate) device: Device,
    pub(crate) numbers: Numbers,
    /// When layers are needed, where they may wait on the host for it.
    turn: Option<Turn>,
}

/// Numbers from which on a GPU widens them faster than the processor.
const WORTH_WIDENING: usize = 1 << 16;

impl Loader {
    pub(crate) fn new(scope: &Scope, device: &Device, numbers: impl Into<Numbers>) -> Loader {
        Loader { scope: scope.clone(), device: *device, numbers: numbers.into(), turn: Some(Turn::Always) }
    }

    pub(crate) fn push(&self, part: impl std::fmt::Display) -> Loader {
        Loader { scope: self.scope.push(part), ..self.clone() }
    }

    /// The same place, computing in f32 as it is: for what is small and conditions everything, such as the time step.
    pub(crate) fn in_f32(&self) -> Loader {
        Loader { numbers: DType::F32.into(), ..self.clone() }
    }

    /// The same place, whose layers are needed once for a picture.
    pub(crate) fn once(&self) -> Loader {
        Loader { turn: Some(Turn::Once), ..self.clone() }
    }

    /// The same place, whose layers never wait on the host: what is small and works between the steps.
    pub(crate) fn staying(&self) -> Loader {
        Loader { turn: None, ..self.clone() }
    }

    /// The tensor in the compute type.
    pub(crate) fn tensor(&self, leaf: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor_as(leaf, shape, self.numbers.dtype)
    }

    fn tensor_as(&self, leaf: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let view = self.scope.get(leaf, shape)?;
        // Half the bytes on the way to a GPU, which widens them exactly; small ones are not worth the launch.
        let worth = self.device != Device::Cpu && shape.iter().product::<usize>() >= WORTH_WIDENING;
        match dtype {
            DType::F32 if worth && view.dtype() == Dtype::F16 => {
                let narrow = Tensor::write_f16_bits(&self.device, shape, |out| Ok::<_, Error>(view.read_f16(out)?))?;
                Ok(narrow.cast(DType::F32)?)
            }
            DType::F32 if worth && view.dtype() == Dtype::BF16 => {
                let narrow = Tensor::write_bf16_bits(&self.device, shape, |out| Ok::<_, Error>(view.read_bf16(out)?))?;
                Ok(narrow.cast(DType::F32)?)
            }
            DType::BF16 => Tensor::write_bf16_bits(&self.device, shape, |out| Ok(view.read_bf16(out)?)),
            DType::F32 => Tensor::write_f32(&self.device, shape, |out| Ok(view.read_f32(out)?)),
            DType::F16 => Tensor::write_f16_bits(&self.device, shape, |out| Ok(view.read_f16(out)?)),
        }
    }

    /// A vector that stays f32 whatever the compute type: biases and norms are small and their rounding is felt.
    fn vector(&self, leaf: &str, len: usize) -> Result<Tensor> {
        self.tensor_as(leaf, &[len], DType::F32)
    }

    /// The linear layer here.
    pub(crate) fn linear(&self, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.weight(inputs, outputs)?;
        let bias = bias.then(|| self.vector("bias", outputs)).transpose()?;
        self.parked(Linear::with(&weight, bias.as_ref(), self.numbers.products)?)
    }

    /// As [`Loader::linear`], of a layer that reads what `norm` gives.
    pub(crate) fn linear_behind(
        &self,
        norm: &mut LayerNorm,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Linear> {
        let weight = self.weight(inputs, outputs)?;
        let bias = bias.then(|| self.vector("bias", outputs)).transpose()?;
        self.parked(norm.before(&weight, bias.as_ref(), self.numbers.products)?)
    }

    /// A layer that waits on the host for its turn where it shall.
    fn parked(&self, mut layer: Linear) -> Result<Linear> {
        self.turn.map_or(Ok(()), |turn| layer.park(turn))?;
        Ok(layer)
    }

    /// Linear layers of one input as one: their outputs come side by side, in the order of `layers`, each with its number.
    pub(crate) fn side_by_side(&self, layers: &[(Loader, usize)], inputs: usize, bias: bool) -> Result<Linear> {
        let (weight, bias) = joined(layers, inputs, bias)?;
        self.parked(Linear::with(&weight, bias.as_ref(), self.numbers.products)?)
    }

    /// As [`Loader::side_by_side`] of the layers named, of one width.
    pub(crate) fn stacked(&self, names: &[&str], inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        self.side_by_side(&self.named(names, outputs), inputs, bias)
    }

    fn named(&self, names: &[&str], outputs: usize) -> Vec<(Loader, usize)> {
        names.iter().map(|name| (self.push(name), outputs)).collect()
    }

    /// As [`Loader::stacked`] without bias, of layers which read what `norm` gives.
    pub(crate) fn stacked_behind(
        &self,
        norm: &mut LayerNorm,
        names: &[&str],
        inputs: usize,
        outputs: usize,
    ) -> Result<Linear> {
        let (weight, bias) = joined(&self.named(names, outputs), inputs, false)?;
        self.parked(norm.before(&weight, bias.as_ref(), self.numbers.products)?)
    }

    /// `[out, in]`; a 1x1 convolution `[out, in, 1, 1]` is the same thing on NHWC.
    fn weight(&self, inputs: usize, outputs: usize) -> Result<Tensor> {
        let as_conv = self.scope.shape("weight").is_some_and(|shape| shape.len() == 4);
        let shape: &[usize] = if as_conv { &[outputs, inputs, 1, 1] } else { &[outputs, inputs] };
        Ok(self.tensor("weight", shape)?.reshape(&[outputs, inputs])?)
    }

    /// The convolution here, with a square kernel.
    pub(crate) fn conv(&self, inputs: usize, outputs: usize, kernel: usize, options: ConvOptions) -> Result<Conv2d> {
        self.conv_and_weight([inputs, outputs, kernel], options).map(|both| both.0)
    }

    fn conv_and_weight(&self, [inputs, outputs, kernel]: [usize; 3], options: ConvOptions) -> Result<(Conv2d, Tensor)> {
        let weight = self.tensor("weight", &[outputs, inputs, kernel, kernel])?;
        let bias = self.vector("bias", outputs)?;
        let mut layer = Conv2d::with(&weight, Some(&bias), options, self.numbers.products)?;
        self.turn.map_or(Ok(()), |turn| layer.park(turn))?;
        Ok((layer, weight))
    }

    /// The 3x3 convolution here that reads a picture enlarged to twice its size.
    pub(crate) fn conv3_doubled(&self, inputs: usize, outputs: usize) -> Result<Conv2d> {
        let (mut layer, weight) = self.conv_and_weight([inputs, outputs, 3], ConvOptions::same3())?;
        layer.transform_doubled(&weight, self.numbers.products)?;
        Ok(layer)
    }

    /// The 3x3 convolution here that keeps the size.
    pub(crate) fn conv3(&self, inputs: usize, outputs: usize) -> Result<Conv2d> {
        let mut layer = self.conv(inputs, outputs, 3, ConvOptions::same3())?;
        layer.transform()?;
        Ok(layer)
    }

    pub(crate) fn group_norm(&self, channels: usize, groups: usize, eps: f32) -> Result<GroupNorm> {
        Ok(GroupNorm { weight: self.vector("weight", channels)?, bias: self.vector("bias", channels)?, groups, eps })
    }

    pub(crate) fn layer_norm(&self, channels: usize, eps: f32) -> Result<LayerNorm> {
        Ok(LayerNorm { weight: self.vector("weight", channels)?, bias: self.vector("bias", channels)?, eps })
    }

    /// How many numbered children there are: 0, 1, 2 and so on without a gap.
    pub(crate) fn count(scope: &Scope) -> usize {
        scope.children().iter().enumerate().take_while(|(i, name)| **name == i.to_string()).count()
    }
}

/// Weights and biases of several layers, one below the other.
fn joined(layers: &[(Loader, usize)], inputs: usize, bias: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for (at, outputs) in layers {
        weights.push(at.weight(inputs, *outputs)?);
        biases.extend(bias.then(|| at.vector("bias", *outputs)).transpose()?);
    }
    let join = |parts: &[Tensor]| ops::concat_rows(&parts.iter().collect::<Vec<_>>());
    let bias = bias.then(|| join(&biases)).transpose()?;
    Ok((join(&weights)?, bias))
}

/// Normalisation over groups of channels and the picture.
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    pub(crate) fn forward(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        Ok(ops::group_norm(x, self.groups, &self.weight, &self.bias, self.eps, act)?)
    }

    /// Of `x`, to be done by what reads it.
    pub(crate) fn of<'a>(&'a self, x: &'a Tensor, activation: Activation) -> Normed<'a> {
        let GroupNorm { weight, bias, groups, eps } = self;
        Normed { x, add: None, groups: *groups, weight, bias, eps: *eps, activation }
    }

    /// What `conv` makes of it, in passing where it can; elsewhere `x` is freed before.
    pub(crate) fn forward_into(&self, conv: &Conv2d, x: Tensor, activation: Activation) -> Result<Tensor> {
        if conv.does_norms() {
            return Ok(conv.forward_normed(&self.of(&x, activation), &Fused::default())?);
        }
        let normed = self.forward(&x, activation)?;
        drop(x);
        Ok(conv.forward(&normed)?)
    }

    /// Of channels that lie in two tensors, one after the other.
    pub(crate) fn forward_joined(&self, parts: [&Tensor; 2], act: Activation) -> Result<Tensor> {
        Ok(ops::group_norm_joined(parts, self.groups, &self.weight, &self.bias, self.eps, act)?)
    }
}

/// Normalisation over channels.
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, Some(&self.bias), self.eps)?)
    }

    /// The layer that reads what this gives. Where it takes this norm's weight and bias over, they are 1 and 0 from now on.
    fn before(&mut self, weight: &Tensor, bias: Option<&Tensor>, products: Products) -> Result<Linear> {
        let (layer, takes) = Linear::behind_norm(weight, bias, products, [&self.weight, &self.bias])?;
        if takes {
            let like = |all: f32, like: &Tensor| {
                let all = Tensor::from_f32(&Device::Cpu, DType::F32, like.shape(), &vec![all; like.len()])?;
                all.cast(like.dtype())?.to_device(like.device())
            };
            (self.weight, self.bias) = (like(1.0, &self.weight)?, like(0.0, &self.bias)?);
        }
        Ok(layer)
    }

    /// As `next` reads it.
    pub(crate) fn forward_for(&self, next: &Linear, x: &Tensor) -> Result<Rows> {
        Ok(ops::layer_norm_for(next, x, &self.weight, &self.bias, self.eps)?)
    }
}
