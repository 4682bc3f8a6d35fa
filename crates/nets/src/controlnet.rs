//! IdentityNet: a ControlNet (arXiv:2302.05543) that reads keypoints and identity tokens instead of a prompt.

use crate::encoder::{Context, Encoder, EncoderConfig, Gathered};
use crate::error::{input, unrecognised};
use crate::fields::{Fields, LARGEST, config_error};
use crate::load::Loader;
use crate::transformer::Step;
use crate::unet::Residuals;
use crate::{Added, Numbers, Result, UNetConfig};
use serde_json::Value;
use tensor::ops::{Activation, Conv2d, ConvOptions, Fused, Linear};
use tensor::{DType, Device, Tensor};
use weights::Scope;

const MODEL: &str = "ControlNet";

/// The sizes of a ControlNet.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetConfig {
    /// The copy of the UNet's way down and middle.
    pub encoder: EncoderConfig,
    /// Channels of the hint.
    pub conditioning_channels: usize,
    /// Channels of the hint's convolutions; each but the first halves its size.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Whether the network was trained on hints with blue first. The hint is given with red first all the same.
    pub bgr: bool,
}

impl ControlNetConfig {
    /// From diffusers' config.json.
    ///
    /// # Errors
    /// A field with a value that is unsupported or makes no sense.
    pub fn from_json(config: &Value) -> Result<ControlNetConfig> {
        let fields = Fields::new(MODEL, config)?;
        let cross = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
        let order = "controlnet_conditioning_channel_order";
        let config = ControlNetConfig {
            encoder: EncoderConfig::from_fields(&fields, &cross)?,
            conditioning_channels: fields.size("conditioning_channels", 3)?,
            conditioning_embedding_out_channels: fields
                .sizes("conditioning_embedding_out_channels")?
                .unwrap_or_else(|| vec![16, 32, 96, 256]),
            bgr: match fields.text(order)? {
                None | Some("rgb") => false,
                Some("bgr") => true,
                Some(_) => return Err(fields.refuse(order, "expected rgb or bgr")),
            },
        };
        config.check()?;
        Ok(config)
    }

    /// From the tensors of a ControlNet with diffusers' names; see [`UNetConfig::infer`] for what cannot be told.
    ///
    /// # Errors
    /// The tensors are not a ControlNet's.
    pub fn infer(scope: &Scope) -> Result<ControlNetConfig> {
        let encoder = EncoderConfig::infer(MODEL, scope)?;
        let hint = scope.push("controlnet_cond_embedding");
        let conv_in = hint.shape("conv_in.weight").filter(|shape| shape.len() == 4);
        let conv_in = conv_in
            .ok_or_else(|| unrecognised(MODEL, scope, format!("it has no `{}`", hint.name("conv_in.weight"))))?;
        let blocks = hint.push("blocks");
        // Every second convolution changes the number of channels.
        let widths = (0..Loader::count(&blocks) / 2)
            .filter_map(|i| blocks.shape(&format!("{}.weight", 2 * i + 1)))
            .filter_map(|shape| shape.first().copied());
        let config = ControlNetConfig {
            encoder,
            conditioning_channels: conv_in[1],
            conditioning_embedding_out_channels: std::iter::once(conv_in[0]).chain(widths).collect(),
            bgr: false,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        self.encoder.check(MODEL)?;
        if self.bgr && self.conditioning_channels != 3 {
            let field = "conditioning_channels";
            return Err(config_error(MODEL, field, self.conditioning_channels, "expected 3 for the channel order bgr"));
        }
        let widths = &self.conditioning_embedding_out_channels;
        let fine = (1..=16).contains(&widths.len()) && widths.iter().all(|width| (1..=LARGEST).contains(width));
        match fine {
            true => Ok(()),
            false => {
                let expected = format!("expected 1 to 16 numbers from 1 to {LARGEST}");
                Err(config_error(MODEL, "conditioning_embedding_out_channels", format!("{widths:?}"), expected))
            }
        }
    }

    /// How many times larger than the latent the hint is, in each direction.
    pub fn hint_zoom(&self) -> usize {
        1 << (self.conditioning_embedding_out_channels.len() - 1)
    }

    /// A ControlNet beside a UNet of this shape, with hint convolutions of these widths.
    pub fn beside(unet: UNetConfig, widths: &[usize]) -> ControlNetConfig {
        ControlNetConfig {
            encoder: unet.encoder,
            conditioning_channels: 3,
            conditioning_embedding_out_channels: widths.to_vec(),
            bgr: false,
        }
    }

    /// InstantID's IdentityNet for SDXL.
    pub fn sdxl() -> ControlNetConfig {
        Self::beside(UNetConfig::sdxl(), &[16, 32, 96, 256])
    }

    /// A ControlNet for Stable Diffusion 1.5.
    pub fn sd15() -> ControlNetConfig {
        Self::beside(UNetConfig::sd15(), &[16, 32, 96, 256])
    }

    /// The companion of [`UNetConfig::tiny`].
    pub fn tiny() -> ControlNetConfig {
        Self::beside(UNetConfig::tiny(), &[4, 6, 8, 12])
    }
}

/// The hint's way to the latent's size: convolutions, the later ones in pairs of which the second halves.
struct ConditioningEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ConditioningEmbedding {
    fn load(at: &Loader, inputs: usize, widths: &[usize], outputs: usize) -> Result<ConditioningEmbedding> {
        let halve = ConvOptions { stride: 2, ..ConvOptions::same3() };
        let mut blocks = Vec::with_capacity(2 * widths.len());
        for (i, pair) in widths.windows(2).enumerate() {
            let at = |j: usize| at.push("blocks").push(2 * i + j);
            blocks.push(at(0).conv3(pair[0], pair[0])?);
            blocks.push(at(1).conv(pair[0], pair[1], 3, halve)?);
        }
        Ok(ConditioningEmbedding {
            conv_in: at.push("conv_in").conv3(inputs, widths[0])?,
            blocks,
            conv_out: at.push("conv_out").conv3(widths[widths.len() - 1], outputs)?,
        })
    }

    fn forward(&self, hint: &Tensor) -> Result<Tensor> {
        let silu = Fused { activation: Activation::Silu, ..Fused::default() };
        let mut x = self.conv_in.forward_with(hint, &silu)?;
        for conv in &self.blocks {
            x = conv.forward_with(&x, &silu)?;
        }
        Ok(self.conv_out.forward(&x)?)
    }
}

/// A copy of the UNet's way down whose results, through 1x1 convolutions, are added to the UNet's.
pub struct ControlNet {
    encoder: Encoder,
    time_projections: Linear,
    controlnet_cond_embedding: ConditioningEmbedding,
    controlnet_down_blocks: Vec<Linear>,
    controlnet_mid_block: Linear,
    config: ControlNetConfig,
    dtype: DType,
}

/// What does not change between the steps: keys and values of the identity tokens, the hint's embedding, the added
/// embedding.
#[derive(Debug, Clone)]
pub struct ControlNetContext {
    context: Context,
    hint: Tensor,
}

impl ControlNet {
    /// Builds the network from its tensors.
    ///
    /// # Errors
    /// As [`crate::UNet::load`].
    pub fn load(
        scope: &Scope,
        config: &ControlNetConfig,
        device: &Device,
        numbers: impl Into<Numbers>,
    ) -> Result<ControlNet> {
        config.check()?;
        let at = Loader::new(scope, device, numbers);
        let levels = &config.encoder.levels;
        let first = levels[0].width;
        let mut gathered = Gathered::default();
        let encoder = Encoder::load(&at, MODEL, &config.encoder, &mut gathered)?;
        // One after `conv_in`, then one after each layer and each halving.
        let mut widths = vec![first];
        for (i, level) in levels.iter().enumerate() {
            let count = level.layers + usize::from(i + 1 < levels.len());
            widths.resize(widths.len() + count, level.width);
        }
        let zero = |at: Loader, width: usize| at.linear(width, width, true);
        Ok(ControlNet {
            encoder,
            time_projections: gathered.times.load(&at, config.encoder.time_embed_dim)?,
            controlnet_cond_embedding: ConditioningEmbedding::load(
                &at.push("controlnet_cond_embedding").once(),
                config.conditioning_channels,
                &config.conditioning_embedding_out_channels,
                first,
            )?,
            controlnet_down_blocks: widths
                .iter()
                .enumerate()
                .map(|(i, &width)| zero(at.push("controlnet_down_blocks").push(i), width))
                .collect::<Result<_>>()?,
            controlnet_mid_block: zero(at.push("controlnet_mid_block"), levels[levels.len() - 1].width)?,
            config: config.clone(),
            dtype: at.numbers.dtype,
        })
    }

    /// From now on computes the linear layers behind the transformers' norms in 8 bits (e4m3), where the device can;
    /// returns whether it does.
    ///
    /// # Errors
    /// What the device says; no memory.
    pub fn narrow(&mut self) -> Result<bool> {
        self.encoder.narrow()
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// How many times larger than the latent the hint is, in each direction.
    pub fn hint_zoom(&self) -> usize {
        self.config.hint_zoom()
    }

    /// Computes what is constant over the steps: `tokens [b, m, c]` in the place of text, `hint [b or 1, H, W, 3]`
    /// with red first and values from 0 to 1, `added` for SDXL.
    ///
    /// # Errors
    /// Shapes that do not fit, no memory.
    pub fn context(&self, tokens: &Tensor, added: Option<&Added>, hint: &Tensor) -> Result<ControlNetContext> {
        let tokens = self.encoder.tokens("the tokens", tokens, None)?;
        let (down, mid) = self.encoder.cross_attentions();
        let context = self.encoder.context(&[down, mid].concat(), &tokens, added)?;
        let channels = self.config.conditioning_channels;
        let rows = match *hint.shape() {
            [b, h, w, c] if c == channels && h > 0 && w > 0 && (b == 1 || b == context.batch) => b,
            _ => {
                let expected = format!("[1 or {}, height, width, {channels}]", context.batch);
                return Err(input(MODEL, "the hint", hint.shape(), expected));
            }
        };
        let mut hint = hint.clone();
        if self.config.bgr {
            let mut pixels = hint.to_vec_f32()?;
            pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
            hint = Tensor::from_f32(hint.device(), self.dtype, hint.shape(), &pixels)?;
        }
        let mut hint = self.controlnet_cond_embedding.forward(&hint.cast(self.dtype)?)?;
        if rows != context.batch {
            hint = tensor::ops::repeat_rows(&hint, context.batch)?;
        }
        Ok(ControlNetContext { context, hint })
    }

    /// One evaluation: `latent [b, h, w, in_channels]` -> what to add to a UNet, weighted by `scale`.
    ///
    /// # Errors
    /// Shapes that do not fit, a hint of another size than [`ControlNet::hint_zoom`] times the latent's, no memory.
    pub fn forward(
        &self,
        latent: &Tensor,
        timestep: f32,
        context: &ControlNetContext,
        scale: f32,
    ) -> Result<Residuals> {
        self.forward_at(latent, &self.time(timestep, context)?, context, scale)
    }

    /// The time embedding of a step, `[b, time]`: all of [`ControlNet::forward`] that brings numbers from the host.
    ///
    /// # Errors
    /// No memory.
    pub fn time(&self, timestep: f32, context: &ControlNetContext) -> Result<Tensor> {
        self.encoder.time(timestep, &context.context)
    }

    /// As [`ControlNet::forward`] with the embedding that [`ControlNet::time`] gave.
    ///
    /// # Errors
    /// As [`ControlNet::forward`].
    pub fn forward_at(
        &self,
        latent: &Tensor,
        temb: &Tensor,
        context: &ControlNetContext,
        scale: f32,
    ) -> Result<Residuals> {
        let ControlNetContext { context, hint } = context;
        if hint.shape().get(1..3) != latent.shape().get(1..3) {
            let expected =
                format!("{:?}: the hint must be {} times the latent's size", &hint.shape()[1..3], self.hint_zoom());
            return Err(input(MODEL, "the latent", latent.shape(), expected));
        }
        let (down, mid) = self.encoder.cross_attentions();
        if context.keys.len() != down.len() + mid.len() {
            let expected = format!("{}: the context must be of the same ControlNet", down.len() + mid.len());
            return Err(input(MODEL, "the number of cross-attentions in the context", context.keys.len(), expected));
        }
        let step = Step { times: &self.time_projections.forward(temb)?, keys: &context.keys, identity_scale: 0.0 };
        let x = self.encoder.enter(latent, context, Some(hint))?;
        let (kept, x) = self.encoder.forward(x, step)?;
        let down = kept.iter().zip(&self.controlnet_down_blocks);
        Ok(Residuals {
            down: down.map(|(x, conv)| Ok(conv.forward(x)?)).collect::<Result<_>>()?,
            mid: self.controlnet_mid_block.forward(&x)?,
            scale,
        })
    }
}
