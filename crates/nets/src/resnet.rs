//! The residual block of UNet, ControlNet and autoencoder, and the changes of size between levels.

use crate::Result;
use crate::load::{GroupNorm, Loader};
use tensor::ops::{self, Activation, Conv2d, ConvOptions, Fused, Linear};
use tensor::{Device, Tensor};

/// Two normalised convolutions with the time step added between, and a way around (diffusers' `ResnetBlock2D`).
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
    act: Activation,
}

/// What all residual blocks of one network share.
#[derive(Clone, Copy)]
pub(crate) struct ResnetOptions {
    /// Width of the time embedding; none in autoencoders.
    pub(crate) time: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) act: Activation,
}

impl ResnetBlock {
    pub(crate) fn load(at: &Loader, inputs: usize, outputs: usize, options: ResnetOptions) -> Result<ResnetBlock> {
        let ResnetOptions { time, groups, eps, act } = options;
        Ok(ResnetBlock {
            norm1: at.push("norm1").group_norm(inputs, groups, eps)?,
            conv1: at.push("conv1").conv3(inputs, outputs)?,
            time_emb_proj: time
                .map(|width| at.push("time_emb_proj").in_f32().linear(width, outputs, true))
                .transpose()?,
            norm2: at.push("norm2").group_norm(outputs, groups, eps)?,
            conv2: at.push("conv2").conv3(outputs, outputs)?,
            conv_shortcut: (inputs != outputs)
                .then(|| at.push("conv_shortcut").linear(inputs, outputs, true))
                .transpose()?,
            act,
        })
    }

    /// `x [b, h, w, in]`, `temb [b, time]` already activated, in f32 -> `[b, h, w, out]`.
    pub(crate) fn forward(&self, x: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let h = self.norm1.forward(x, self.act)?;
        self.rest(h, temb, || match &self.conv_shortcut {
            Some(conv) => Ok(conv.forward(x)?),
            None => Ok(x.clone()),
        })
    }

    /// As [`ResnetBlock::forward`] for `x` beside `skip` in channels, which are never put together in memory.
    pub(crate) fn forward_joined(&self, x: Tensor, skip: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        // A GPU would put them together for the norm and again for the way around.
        let Some(conv) = self.conv_shortcut.as_ref().filter(|_| *x.device() == Device::Cpu) else {
            return self.forward(&ops::concat_last(&[&x, &skip])?, temb);
        };
        let h = self.norm1.forward_joined([&x, &skip], self.act)?;
        let around = || {
            let around = conv.forward_joined(&x, &skip)?;
            drop((x, skip));
            Ok(around)
        };
        self.rest(h, temb, around)
    }

    /// From the first norm's result; `around` gives what is added at the end.
    fn rest(&self, mut h: Tensor, temb: Option<&Tensor>, around: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let time = match (&self.time_emb_proj, temb) {
            (Some(project), Some(temb)) => Some(project.forward(temb)?),
            _ => None,
        };
        // Assigned, not shadowed: each old value is freed at once, and they are the largest in memory.
        match time {
            // A GPU's convolution would add it in a launch of its own, its norm adds it in passing.
            Some(time) if *h.device() != Device::Cpu => {
                h = self.conv1.forward(&h)?;
                h = self.norm2.forward_added(&h, &time, self.act)?;
            }
            time => {
                let time = time.map(|time| time.cast(h.dtype())).transpose()?;
                h = self.conv1.forward_with(&h, &Fused { channel_add: time.as_ref(), ..Fused::default() })?;
                h = self.norm2.forward(&h, self.act)?;
            }
        }
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
    at.push("upsamplers.0.conv").conv3(width, width)
}
