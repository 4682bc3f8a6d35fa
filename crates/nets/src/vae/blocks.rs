//! The way down to the latent and the way up from it.

use super::VaeConfig;
use crate::Result;
use crate::load::{GroupNorm, Loader};
use crate::resnet::{ResnetBlock, ResnetOptions, load_downsample, load_upsample};
use tensor::Tensor;
use tensor::ops::{self, Activation, Conv2d, Linear};

/// Of every norm in an autoencoder; no configuration has a field for it.
const EPS: f32 = 1e-6;

impl VaeConfig {
    fn resnet(&self) -> ResnetOptions {
        ResnetOptions { groups: self.norm_num_groups, eps: EPS, act: self.act_fn }
    }
}

/// Self-attention over the picture's positions with one head.
struct MidAttention {
    group_norm: GroupNorm,
    /// `to_q`, `to_k` and `to_v` as one product.
    to_qkv: Linear,
    to_out: Linear,
}

impl MidAttention {
    fn load(at: &Loader, width: usize, groups: usize) -> Result<MidAttention> {
        let name = |name, old| if at.scope.shape(&format!("{old}.weight")).is_some() { old } else { name };
        let names = [name("to_q", "query"), name("to_k", "key"), name("to_v", "value")];
        Ok(MidAttention {
            group_norm: at.push("group_norm").group_norm(width, groups, EPS)?,
            to_qkv: at.stacked(&names, width, width, true)?,
            to_out: at.push(name("to_out.0", "proj_attn")).linear(width, width, true)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [b, h, w, c] = x.dims4()?;
        let flat = x.reshape(&[b, h * w, c])?;
        let y = self.group_norm.forward(&flat, Activation::None)?;
        let (qkv, scale) = (self.to_qkv.forward(&y)?, 1.0 / (c as f32).sqrt());
        let y = ops::attention_joined_with(&qkv, 1, scale, false, self.to_qkv.products())?;
        Ok(self.to_out.forward_with(&y, Activation::None, Some(&flat))?.reshape(&[b, h, w, c])?)
    }
}

/// Residual block, attention, residual block.
struct MidBlock {
    first: ResnetBlock,
    attention: Option<MidAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    fn load(at: &Loader, config: &VaeConfig, width: usize) -> Result<MidBlock> {
        let resnet = |i: usize| ResnetBlock::load(&at.push("resnets").push(i), width, width, config.resnet(), None);
        Ok(MidBlock {
            first: resnet(0)?,
            attention: config
                .mid_block_add_attention
                .then(|| MidAttention::load(&at.push("attentions.0"), width, config.norm_num_groups))
                .transpose()?,
            second: resnet(1)?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        x = self.first.forward(&x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}

/// Residual blocks of one size and the change of size after them.
struct Block {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>,
}

impl Block {
    fn load(at: &Loader, config: &VaeConfig, entering: usize, width: usize, layers: usize) -> Result<Block> {
        let resnets = (0..layers)
            .map(|i| {
                let inputs = if i == 0 { entering } else { width };
                ResnetBlock::load(&at.push("resnets").push(i), inputs, width, config.resnet(), None)
            })
            .collect::<Result<_>>()?;
        Ok(Block { resnets, resample: None })
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        self.resnets.iter().try_fold(x, |x, resnet| resnet.forward(&x, None))
    }
}

/// Picture to moments.
pub(crate) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Block>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn load(at: &Loader, config: &VaeConfig) -> Result<Encoder> {
        let widths = &config.block_out_channels;
        let last = widths[widths.len() - 1];
        let mut entering = widths[0];
        let mut down_blocks = Vec::with_capacity(widths.len());
        for (i, &width) in widths.iter().enumerate() {
            let at = at.push("down_blocks").push(i);
            let mut block = Block::load(&at, config, entering, width, config.layers_per_block)?;
            if i + 1 < widths.len() {
                block.resample = Some(load_downsample(&at, width, 0)?);
            }
            down_blocks.push(block);
            entering = width;
        }
        Ok(Encoder {
            conv_in: at.push("conv_in").conv3(config.in_channels, widths[0])?,
            down_blocks,
            mid_block: MidBlock::load(&at.push("mid_block"), config, last)?,
            conv_norm_out: at.push("conv_norm_out").group_norm(last, config.norm_num_groups, EPS)?,
            conv_out: at.push("conv_out").conv3(last, 2 * config.latent_channels)?,
        })
    }

    /// `[b, H, W, in] -> [b, h, w, 2 latent]`.
    pub(crate) fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for block in &self.down_blocks {
            x = block.forward(x)?;
            if let Some(conv) = &block.resample {
                x = conv.forward(&x)?;
            }
        }
        x = self.mid_block.forward(x)?;
        self.conv_norm_out.forward_into(&self.conv_out, x, Activation::Silu)
    }
}

/// Bytes of freed activations that may stay for reuse from one level of the decoder to the next.
const KEPT: usize = 256 << 20;

/// Latent to picture.
pub(crate) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn load(at: &Loader, config: &VaeConfig) -> Result<Decoder> {
        let widths = &config.block_out_channels;
        let last = widths[widths.len() - 1];
        let mut entering = last;
        let mut up_blocks = Vec::with_capacity(widths.len());
        for (i, &width) in widths.iter().rev().enumerate() {
            let at = at.push("up_blocks").push(i);
            let mut block = Block::load(&at, config, entering, width, config.layers_per_block + 1)?;
            if i + 1 < widths.len() {
                block.resample = Some(load_upsample(&at, width)?);
            }
            up_blocks.push(block);
            entering = width;
        }
        Ok(Decoder {
            conv_in: at.push("conv_in").conv3(config.latent_channels, last)?,
            mid_block: MidBlock::load(&at.push("mid_block"), config, last)?,
            up_blocks,
            conv_norm_out: at.push("conv_norm_out").group_norm(widths[0], config.norm_num_groups, EPS)?,
            conv_out: at.push("conv_out").conv3(widths[0], config.out_channels)?,
        })
    }

    /// `[b, h, w, latent] -> [b, H, W, out]`.
    pub(crate) fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let mut x = self.mid_block.forward(self.conv_in.forward(latent)?)?;
        for block in &self.up_blocks {
            x = block.forward(x)?;
            if let Some(conv) = &block.resample {
                x = conv.forward_upsampled(&x)?;
            }
            // The next level's pictures are four times as large: where its blocks cannot be made of this one's, they go.
            tensor::trim_above(KEPT);
        }
        self.conv_norm_out.forward_into(&self.conv_out, x, Activation::Silu)
    }
}
