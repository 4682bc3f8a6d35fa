//! The UNet of Stable Diffusion 1.5, 2 and SDXL (diffusers' `UNet2DConditionModel`).

mod config;
mod identity;

pub use config::UNetConfig;

use crate::encoder::{Block, Context, Encoder, Gathered};
use crate::error::input;
use crate::load::{GroupNorm, Loader};
use crate::resnet::load_upsample;
use crate::transformer::{CrossAttention, Step, keys};
use crate::{Added, Numbers, Result};
use identity::IdentityAttention;
use tensor::ops::{self, Conv2d, ConvOptions, Linear};
use tensor::{DType, Device, Tensor};
use weights::Scope;

const MODEL: &str = "UNet";

struct UpBlock {
    block: Block,
    upsampler: Option<Conv2d>,
}

/// Predicts what the sampler asks for, noise in most models, from a noisy latent.
pub struct UNet {
    encoder: Encoder,
    time_projections: Linear,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNetConfig,
    device: Device,
    numbers: Numbers,
    /// One for each cross-attention in the order in which they run; empty without an adapter.
    identity: Vec<IdentityAttention>,
}

/// Everything of a request that does not change between the steps: keys and values of text and identity in every
/// cross-attention, and SDXL's added embedding.
#[derive(Debug, Clone)]
pub struct UNetContext(Context);

impl UNetContext {
    /// Rows, which the latent must have too.
    pub fn batch(&self) -> usize {
        self.0.batch
    }
}

/// What a ControlNet adds to a UNet: one tensor `[b, h, w, c]` for each that the way down leaves to the way up, and
/// one for the middle. `scale` has still to be multiplied in.
#[derive(Debug, Clone)]
pub struct Residuals {
    /// For the way up, in the order of the way down.
    pub down: Vec<Tensor>,
    /// For the middle.
    pub mid: Tensor,
    /// Weight of all of them.
    pub scale: f32,
}

impl UNet {
    /// Builds the network from its tensors.
    ///
    /// # Errors
    /// A configuration whose sizes do not go together, a tensor that is missing, misshapen or damaged, no memory.
    pub fn load(scope: &Scope, config: &UNetConfig, device: &Device, numbers: impl Into<Numbers>) -> Result<UNet> {
        config.check()?;
        let at = Loader::new(scope, device, numbers);
        let mut gathered = Gathered::default();
        let encoder = Encoder::load(&at, MODEL, &config.encoder, &mut gathered)?;
        let levels = &config.encoder.levels;
        let mut up_blocks = Vec::with_capacity(config.up.len());
        let mut below = levels[levels.len() - 1].width;
        for (i, level) in config.up.iter().enumerate() {
            let at = at.push("up_blocks").push(i);
            // The last block has no level above it; its skips come from its own level and from `conv_in`.
            let above = levels[levels.len().saturating_sub(i + 2)].width;
            let inputs = |layer| {
                let entering = if layer == 0 { below } else { level.width };
                entering + if layer + 1 == level.layers { above } else { level.width }
            };
            let block = Block::load(&at, &config.encoder, level, inputs, &mut gathered)?;
            let last = i + 1 == config.up.len();
            let upsampler = (!last).then(|| load_upsample(&at, level.width)).transpose()?;
            up_blocks.push(UpBlock { block, upsampler });
            below = level.width;
        }
        let first = levels[0].width;
        let conv_out = ConvOptions { padding: [config.conv_out_kernel / 2; 4], ..ConvOptions::default() };
        let (groups, eps) = (config.encoder.norm_num_groups, config.encoder.norm_eps);
        Ok(UNet {
            encoder,
            time_projections: gathered.times.load(&at, config.encoder.time_embed_dim)?,
            up_blocks,
            conv_norm_out: at.push("conv_norm_out").group_norm(first, groups, eps)?,
            conv_out: at.push("conv_out").conv(first, config.out_channels, config.conv_out_kernel, conv_out)?,
            config: config.clone(),
            device: *device,
            numbers: at.numbers,
            identity: Vec::new(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Whether an identity adapter is attached.
    pub fn has_identity(&self) -> bool {
        !self.identity.is_empty()
    }

    /// From now on computes the linear layers behind the transformers' norms in 8 bits (e4m3), where the device can;
    /// returns whether it does.
    ///
    /// # Errors
    /// What the device says; no memory.
    pub fn narrow(&mut self) -> Result<bool> {
        let mut all = self.encoder.narrow()?;
        for up in &mut self.up_blocks {
            all &= up.block.narrow()?;
        }
        Ok(all)
    }

    /// Attaches the second branch of every text cross-attention (IP-Adapter, arXiv:2308.06721), replacing an earlier
    /// one. The adapter's names number diffusers' attention processors, `1.to_k_ip.weight` being the first.
    ///
    /// # Errors
    /// The adapter is of a UNet with other cross-attentions.
    pub fn attach_identity(&mut self, adapter: &Scope) -> Result<()> {
        let at = Loader::new(adapter, &self.device, self.numbers);
        let widths: Vec<usize> = self.cross_attentions().iter().map(|a| a.to_k.out_features()).collect();
        let (down, mid) = self.encoder.cross_attentions();
        let places = identity::places(down.len(), mid.len(), widths.len());
        self.identity = identity::load(&at, &widths, &places, self.config.encoder.cross_attention_dim)?;
        Ok(())
    }

    /// The cross-attentions in the order in which they run.
    fn cross_attentions(&self) -> Vec<&CrossAttention> {
        let (mut all, mid) = self.encoder.cross_attentions();
        all.extend(mid);
        all.extend(self.up_blocks.iter().flat_map(|up| up.block.cross_attentions()));
        all
    }

    /// Computes what is constant over the steps: `text [b, n, c]`, `identity [b, m, c]` if an adapter is attached,
    /// `added` for SDXL.
    ///
    /// # Errors
    /// Shapes that do not fit, identity tokens without an adapter, no memory.
    pub fn context(&self, text: &Tensor, identity: Option<&Tensor>, added: Option<&Added>) -> Result<UNetContext> {
        let text = self.encoder.tokens("the text", text, None)?;
        let mut context = self.encoder.context(&self.cross_attentions(), &text, added)?;
        if let Some(identity) = identity {
            if self.identity.is_empty() && !context.keys.is_empty() {
                return Err(input(MODEL, "the identity", identity.shape(), "none: no identity adapter is attached"));
            }
            let identity = self.encoder.tokens("the identity", identity, Some(context.batch))?;
            for ((known, branch), attention) in context.keys.iter_mut().zip(&self.identity).zip(self.cross_attentions())
            {
                known.identity = Some(keys(&branch.to_k_ip, &branch.to_v_ip, &identity, attention.heads)?);
            }
        }
        Ok(UNetContext(context))
    }

    /// Tells a latent consistency model the guidance weight it shall imitate (arXiv:2310.04378); without effect on
    /// models that have no such input.
    ///
    /// # Errors
    /// No memory.
    pub fn set_guidance(&self, context: &mut UNetContext, guidance: f32) -> Result<()> {
        self.encoder.set_guidance(&mut context.0, guidance)
    }

    /// One evaluation: `latent [b, h, w, in_channels]` -> `[b, h, w, out_channels]` in f32. An `identity_scale` of 0
    /// gives the very bytes of a context without identity, a residuals' scale of 0 those of no residuals.
    ///
    /// # Errors
    /// Shapes that do not fit, a context of another network, no memory.
    pub fn forward(
        &self,
        latent: &Tensor,
        timestep: f32,
        context: &UNetContext,
        identity_scale: f32,
        residuals: Option<&Residuals>,
    ) -> Result<Tensor> {
        let temb = self.time(timestep, context)?;
        self.forward_at(latent, &temb, context, identity_scale, residuals)
    }

    /// The time embedding of a step, `[b, time]`: all of [`UNet::forward`] that brings numbers from the host.
    ///
    /// # Errors
    /// No memory.
    pub fn time(&self, timestep: f32, context: &UNetContext) -> Result<Tensor> {
        self.encoder.time(timestep, &context.0)
    }

    /// As [`UNet::forward`] with the embedding that [`UNet::time`] gave.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_at(
        &self,
        latent: &Tensor,
        temb: &Tensor,
        context: &UNetContext,
        identity_scale: f32,
        residuals: Option<&Residuals>,
    ) -> Result<Tensor> {
        self.forward_beside(latent, temb, context, identity_scale, || Ok(residuals.cloned()))
    }

    /// As [`UNet::forward_at`] with residuals that are made at the same time as the way down where the device can
    /// ([`Device::both`]), as they are needed only after it.
    ///
    /// # Errors
    /// As [`UNet::forward`], and what `residuals` says.
    pub fn forward_beside(
        &self,
        latent: &Tensor,
        temb: &Tensor,
        context: &UNetContext,
        identity_scale: f32,
        residuals: impl FnOnce() -> Result<Option<Residuals>>,
    ) -> Result<Tensor> {
        let context = &context.0;
        let cross_attentions = self.cross_attentions().len();
        if context.keys.len() != cross_attentions {
            let expected = format!("{cross_attentions}: the context must be of the same UNet");
            return Err(input(MODEL, "the number of cross-attentions in the context", context.keys.len(), expected));
        }
        let step = Step { times: &self.time_projections.forward(temb)?, keys: &context.keys, identity_scale };
        let down = || self.encoder.forward(self.encoder.enter(latent, context, None)?, step);
        let (residuals, down) = self.device.both(residuals, down);
        let (residuals, (mut kept, mut x)) = (residuals?, down?);
        if let Some(residuals) = residuals.filter(|residuals| residuals.scale != 0.0) {
            (kept, x) = residuals.add_to(kept, x)?;
        }
        for up in &self.up_blocks {
            for i in 0..up.block.resnets.len() {
                let Some(skip) = kept.pop() else { return Err(self.too_few_skips()) };
                x = up.block.layer_joined(i, x, skip, step)?;
            }
            if let (Some(conv), Some(next)) = (&up.upsampler, kept.last()) {
                // To the size of what comes next rather than to the double, which differs at odd sizes.
                x = conv.forward_upsampled_to(&x, next.dim(1), next.dim(2))?;
            }
        }
        Ok(self.conv_norm_out.forward_into(&self.conv_out, x, self.config.encoder.act_fn)?.cast(DType::F32)?)
    }

    fn too_few_skips(&self) -> crate::Error {
        input(
            MODEL,
            "the number of layers on the way up",
            self.config.up.len(),
            "one more in each level than on the way down",
        )
    }
}

impl Residuals {
    /// Adds the residuals, weighted, to what the way down left and to the middle's result.
    fn add_to(&self, kept: Vec<Tensor>, x: Tensor) -> Result<(Vec<Tensor>, Tensor)> {
        let own: Vec<&[usize]> = kept.iter().chain([&x]).map(Tensor::shape).collect();
        let given: Vec<&[usize]> = self.down.iter().chain([&self.mid]).map(Tensor::shape).collect();
        if own != given {
            let first = own.iter().zip(&given).position(|(a, b)| a != b);
            let (got, expected) = match first {
                Some(i) => (format!("{:?} at place {i}", given[i]), format!("{:?}", own[i])),
                None => (format!("{} tensors", given.len()), own.len().to_string()),
            };
            return Err(crate::Error::Input { model: MODEL, what: "a ControlNet's residual", got, expected });
        }
        let add = |own: &Tensor, residual: &Tensor| -> Result<Tensor> {
            Ok(ops::add_scaled(own, &residual.cast(own.dtype())?, self.scale)?)
        };
        let kept = kept.iter().zip(&self.down).map(|(own, residual)| add(own, residual)).collect::<Result<_>>()?;
        Ok((kept, add(&x, &self.mid)?))
    }
}
