//! The residual block of UNet, ControlNet and autoencoder, and the changes of size between levels.

use crate::Result;
use crate::load::{GroupNorm, Loader};
use std::ops::Range;
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, Linear, Normed};
use tensor::{Device, Tensor};

/// Two normalised convolutions with the time step added between, and a way around (diffusers' `ResnetBlock2D`).
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    /// The channels of all blocks' time steps that are this one's; none in autoencoders.
    time: Option<Range<usize>>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
    act: Activation,
}

/// What all residual blocks of one network share.
#[derive(Clone, Copy)]
pub(crate) struct ResnetOptions {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) act: Activation,
}

/// The way of the time step into the residual blocks of one network (each one's `time_emb_proj`): gathered while the blocks
/// are loaded, then one product for all of them, where a GPU would take as long for each.
#[derive(Default)]
pub(crate) struct TimeProjections {
    layers: Vec<(Loader, usize)>,
    columns: usize,
}

impl TimeProjections {
    fn add(&mut self, at: Loader, outputs: usize) -> Range<usize> {
        let first = self.columns;
        self.columns += outputs;
        self.layers.push((at, outputs));
        first..self.columns
    }

    /// The product of the activated time embedding, which is `width` wide; every network with a time step has a block.
    pub(crate) fn load(&self, at: &Loader, width: usize) -> Result<Linear> {
        at.in_f32().side_by_side(&self.layers, width, true)
    }
}

impl ResnetBlock {
    /// `times` gathers the projection of the time step; none in autoencoders.
    pub(crate) fn load(
        at: &Loader,
        inputs: usize,
        outputs: usize,
        options: ResnetOptions,
        times: Option<&mut TimeProjections>,
    ) -> Result<ResnetBlock> {
        let ResnetOptions { groups, eps, act } = options;
        Ok(ResnetBlock {
            norm1: at.push("norm1").group_norm(inputs, groups, eps)?,
            conv1: at.push("conv1").conv3(inputs, outputs)?,
            time: times.map(|times| times.add(at.push("time_emb_proj").in_f32(), outputs)),
            norm2: at.push("norm2").group_norm(outputs, groups, eps)?,
            conv2: at.push("conv2").conv3(outputs, outputs)?,
            conv_shortcut: (inputs != outputs)
                .then(|| at.push("conv_shortcut").linear(inputs, outputs, true))
                .transpose()?,
            act,
        })
    }

    /// `x [b, h, w, in]`, `times [b, n]` of all blocks in f32 -> `[b, h, w, out]`.
    pub(crate) fn forward(&self, x: &Tensor, times: Option<&Tensor>) -> Result<Tensor> {
        let first = |fused: &Fused| Ok(self.conv1.forward_normed(&self.norm1.of(x, self.act), fused)?);
        self.rest(first, times, || match &self.conv_shortcut {
            Some(conv) => Ok(conv.forward(x)?),
            None => Ok(x.clone()),
        })
    }

    /// As [`ResnetBlock::forward`] for `x` beside `skip` in channels, which are never put together in memory.
    pub(crate) fn forward_joined(&self, x: Tensor, skip: Tensor, times: Option<&Tensor>) -> Result<Tensor> {
        // A GPU would put them together for the norm and again for the way around.
        let Some(conv) = self.conv_shortcut.as_ref().filter(|_| *x.device() == Device::Cpu) else {
            return self.forward(&ops::concat_last(&[&x, &skip])?, times);
        };
        let h = self.norm1.forward_joined([&x, &skip], self.act)?;
        let around = || {
            let around = conv.forward_joined(&x, &skip)?;
            drop((x, skip));
            Ok(around)
        };
        // Moved, so that it is freed at once.
        self.rest(move |fused| Ok(self.conv1.forward_with(&h, fused)?), times, around)
    }

    /// From the first convolution, with what is fused behind it; `around` gives what is added at the end.
    fn rest(
        &self,
        first: impl FnOnce(&Fused) -> Result<Tensor>,
        times: Option<&Tensor>,
        around: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mine = self.time.as_ref().zip(times);
        // A GPU's convolution would add the time step in a launch of its own, its norm adds it in passing.
        let (fused, add) = match mine {
            Some((mine, times)) if *times.device() != Device::Cpu => (None, Some((times, mine.start))),
            Some((mine, times)) => {
                (Some(ops::slice_last(times, mine.start, mine.len())?.cast(self.conv1.dtype())?), None)
            }
            None => (None, None),
        };
        let mut h = first(&Fused { channel_add: fused.as_ref(), ..Fused::default() })?;
        if self.conv2.does_norms() {
            let around = around()?;
            let norm = Normed { add, ..self.norm2.of(&h, self.act) };
            return Ok(self.conv2.forward_normed(&norm, &Fused { residual: Some(&around), ..Fused::default() })?);
        }
        // Assigned, not shadowed: each old value is freed at once, and they are the largest in memory.
        h = Normed { add, ..self.norm2.of(&h, self.act) }.done()?;
        let around = around()?;
        Ok(self.conv2.forward_with(&h, &Fused { residual: Some(&around), ..Fused::default() })?)
    }
}

/// Halves height and width; `padding` 0 pads below and right only, as diffusers does.
pub(crate) fn load_downsample(at: &Loader, width: usize, padding: usize) -> Result<Conv2d> {
    let padding = if padding == 0 { [0, 1, 0, 1] } else { [padding; 4] };
    at.push("downsamplers.0.conv").conv(width, width, 3, ConvOptions { stride: 2, padding })
}

/// Follows a nearest-neighbour enlargement.
pub(crate) fn load_upsample(at: &Loader, width: usize) -> Result<Conv2d> {
    at.push("upsamplers.0.conv").conv3_doubled(width, width)
}
