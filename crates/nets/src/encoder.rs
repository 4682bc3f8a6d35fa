//! The half that UNet and ControlNet share: the way down and the middle.

mod config;
mod infer;

pub use config::{AdditionEmbed, EncoderConfig, Level, MidBlockConfig};

pub(crate) use config::{check_level, head_counts, kernel, transformer_depths};
pub(crate) use infer::{guess_groups, infer_level};

use crate::Result;
use crate::embed::{Added, TimestepEmbedding, Timesteps, added_embedding};
use crate::error::input;
use crate::load::Loader;
use crate::resnet::{ResnetBlock, ResnetOptions, TimeProjections, load_downsample};
use crate::transformer::{CrossAttention, CrossKeys, Step, Transformer2D, keys};
use tensor::ops::{self, Activation, Conv2d, ConvOptions};
use tensor::{DType, Device, Tensor};

/// What is gathered over a network while it is loaded.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Cross-attentions so far, in the order in which they run.
    pub(crate) attentions: usize,
    pub(crate) times: TimeProjections,
}

/// Residual blocks of one size, each followed by attention where the level has it.
pub(crate) struct Block {
    pub(crate) resnets: Vec<ResnetBlock>,
    pub(crate) attentions: Vec<Transformer2D>,
}

impl Block {
    /// `inputs` gives the width that enters each residual block.
    pub(crate) fn load(
        at: &Loader,
        config: &EncoderConfig,
        level: &Level,
        inputs: impl Fn(usize) -> usize,
        gathered: &mut Gathered,
    ) -> Result<Block> {
        let width = level.width;
        let resnets = (0..level.layers)
            .map(|i| {
                let (at, times) = (at.push("resnets").push(i), &mut gathered.times);
                ResnetBlock::load(&at, inputs(i), width, config.resnet(), Some(times))
            })
            .collect::<Result<_>>()?;
        let attentions = level
            .attention
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, &depth)| {
                let at = at.push("attentions").push(i);
                Transformer2D::load(
                    &at,
                    width,
                    depth,
                    level.heads,
                    config.cross_attention_dim,
                    config.norm_num_groups,
                    &mut gathered.attentions,
                )
            })
            .collect::<Result<_>>()?;
        Ok(Block { resnets, attentions })
    }

    /// Layer `i`: the residual block, then attention.
    pub(crate) fn layer(&self, i: usize, mut x: Tensor, step: Step<'_>) -> Result<Tensor> {
        x = self.resnets[i].forward(&x, Some(step.times))?;
        self.attend(i, x, step)
    }

    /// As [`Block::layer`] for `x` beside `skip` in channels.
    pub(crate) fn layer_joined(&self, i: usize, x: Tensor, skip: Tensor, step: Step<'_>) -> Result<Tensor> {
        let x = self.resnets[i].forward_joined(x, skip, Some(step.times))?;
        self.attend(i, x, step)
    }

    fn attend(&self, i: usize, x: Tensor, step: Step<'_>) -> Result<Tensor> {
        match self.attentions.get(i) {
            Some(attention) => attention.forward(&x, step),
            None => Ok(x),
        }
    }

    /// As [`Transformer2D::narrow`].
    pub(crate) fn narrow(&mut self) -> Result<bool> {
        self.attentions.iter_mut().try_fold(true, |all, attention| Ok(attention.narrow()? && all))
    }

    /// The cross-attentions in the order in which they run.
    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &CrossAttention> {
        self.attentions.iter().flat_map(|a| a.transformer_blocks.iter().map(|block| &block.attn2))
    }
}

struct DownBlock {
    block: Block,
    downsampler: Option<Conv2d>,
}

/// `mid_block`: residual block, then attention and another residual block where the model has them.
struct MidBlock {
    first: ResnetBlock,
    attention: Option<(Transformer2D, ResnetBlock)>,
}

/// Everything from `conv_in` to `mid_block`.
pub(crate) struct Encoder {
    model: &'static str,
    pub(crate) config: EncoderConfig,
    device: Device,
    dtype: DType,
    conv_in: Conv2d,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
}

/// What of a request does not change between steps, for one network.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) batch: usize,
    pub(crate) keys: Vec<CrossKeys>,
    added: Option<Tensor>,
    /// Latent consistency models: added to the sinusoids, `[b, c]`.
    guidance: Option<Tensor>,
}

impl Encoder {
    /// What the network's other half needs too goes into `gathered`.
    pub(crate) fn load(
        at: &Loader,
        model: &'static str,
        config: &EncoderConfig,
        gathered: &mut Gathered,
    ) -> Result<Encoder> {
        config.check(model)?;
        let first = config.levels[0].width;
        let width = config.time_embed_dim;
        let conv_in = ConvOptions { padding: [config.conv_in_kernel / 2; 4], ..ConvOptions::default() };
        let mut entering = first;
        let mut down_blocks = Vec::with_capacity(config.levels.len());
        for (i, level) in config.levels.iter().enumerate() {
            let at = at.push("down_blocks").push(i);
            let inputs = |layer| if layer == 0 { entering } else { level.width };
            let block = Block::load(&at, config, level, inputs, gathered)?;
            let last = i + 1 == config.levels.len();
            let downsampler =
                (!last).then(|| load_downsample(&at, level.width, config.downsample_padding)).transpose()?;
            down_blocks.push(DownBlock { block, downsampler });
            entering = level.width;
        }
        Ok(Encoder {
            model,
            device: at.device,
            dtype: at.numbers.dtype,
            conv_in: at.push("conv_in").conv(config.in_channels, first, config.conv_in_kernel, conv_in)?,
            time_proj: Timesteps::new(first, config.flip_sin_to_cos, config.freq_shift),
            time_embedding: TimestepEmbedding::load(
                &at.push("time_embedding").in_f32().staying(),
                first,
                width,
                config.act_fn,
                config.time_cond_proj_dim,
            )?,
            add_embedding: config
                .addition
                .as_ref()
                .map(|addition| {
                    let at = at.push("add_embedding").in_f32().staying();
                    TimestepEmbedding::load(&at, addition.input_dim, width, Activation::Silu, None)
                })
                .transpose()?,
            mid_block: Self::load_mid(&at.push("mid_block"), config, entering, gathered)?,
            down_blocks,
            config: config.clone(),
        })
    }

    fn load_mid(
        at: &Loader,
        config: &EncoderConfig,
        width: usize,
        gathered: &mut Gathered,
    ) -> Result<Option<MidBlock>> {
        let Gathered { attentions: next, times } = gathered;
        let mut resnet =
            |i: usize| ResnetBlock::load(&at.push("resnets").push(i), width, width, config.resnet(), Some(&mut *times));
        Ok(match config.mid {
            MidBlockConfig::None => None,
            MidBlockConfig::Resnet => Some(MidBlock { first: resnet(0)?, attention: None }),
            MidBlockConfig::CrossAttention { depth, heads } => {
                let (context, groups) = (config.cross_attention_dim, config.norm_num_groups);
                let at = &at.push("attentions.0");
                let attention = Transformer2D::load(at, width, depth, heads, context, groups, next)?;
                Some(MidBlock { first: resnet(0)?, attention: Some((attention, resnet(1)?)) })
            }
        })
    }

    /// As [`Transformer2D::narrow`].
    pub(crate) fn narrow(&mut self) -> Result<bool> {
        let mut all = true;
        for down in &mut self.down_blocks {
            all &= down.block.narrow()?;
        }
        if let Some((attention, _)) = self.mid_block.as_mut().and_then(|mid| mid.attention.as_mut()) {
            all &= attention.narrow()?;
        }
        Ok(all)
    }

    /// The cross-attentions of the way down and of the middle, in the order in which they run.
    pub(crate) fn cross_attentions(&self) -> (Vec<&CrossAttention>, Vec<&CrossAttention>) {
        let mid = self.mid_block.iter().filter_map(|mid| mid.attention.as_ref());
        (
            self.down_blocks.iter().flat_map(|down| down.block.cross_attentions()).collect(),
            mid.flat_map(|(attention, _)| attention.transformer_blocks.iter().map(|block| &block.attn2)).collect(),
        )
    }

    /// Checks a context's text or tokens, `[b, n, cross_attention_dim]`, and brings it to the compute type.
    pub(crate) fn tokens(&self, what: &'static str, tokens: &Tensor, batch: Option<usize>) -> Result<Tensor> {
        let width = self.config.cross_attention_dim;
        match *tokens.shape() {
            [b, n, c] if c == width && b > 0 && n > 0 && batch.is_none_or(|batch| batch == b) => {
                Ok(tokens.cast(self.dtype)?)
            }
            _ => {
                let rows = batch.map_or("rows".to_owned(), |batch| batch.to_string());
                Err(input(self.model, what, tokens.shape(), format!("[{rows}, tokens, {width}]")))
            }
        }
    }

    /// `text [b, n, c]` in the compute type -> keys and values of `attentions`, and the added embedding.
    pub(crate) fn context(
        &self,
        attentions: &[&CrossAttention],
        text: &Tensor,
        added: Option<&Added>,
    ) -> Result<Context> {
        let batch = text.dim(0);
        let keys = attentions
            .iter()
            .map(|a| Ok(CrossKeys { text: keys(&a.to_k, &a.to_v, text, a.heads)?, identity: None }))
            .collect::<Result<_>>()?;
        let added = match (&self.add_embedding, &self.config.addition, added) {
            (Some(embedding), Some(addition), Some(added)) => Some(added_embedding(
                self.model,
                embedding,
                added,
                batch,
                addition.input_dim,
                addition.time_embed_dim,
                |width| Timesteps::new(width, self.config.flip_sin_to_cos, self.config.freq_shift),
                &self.device,
            )?),
            (None, _, None) => None,
            (Some(_), ..) => return Err(input(self.model, "the pooled text", "none", "some, with the sizes")),
            (None, ..) => {
                return Err(input(self.model, "the pooled text", "some", "none: the model has no `add_embedding`"));
            }
        };
        Ok(Context { batch, keys, added, guidance: None })
    }

    /// Gives the context the guidance weight of a latent consistency model; without effect on other models.
    pub(crate) fn set_guidance(&self, context: &mut Context, guidance: f32) -> Result<()> {
        if let (Some(dim), Some(project)) = (self.config.time_cond_proj_dim, &self.time_embedding.cond_proj) {
            let row = crate::embed::guidance_embedding(guidance, dim);
            let rows = Tensor::from_f32(&self.device, DType::F32, &[context.batch, dim], &row.repeat(context.batch))?;
            context.guidance = Some(project.forward(&rows)?);
        }
        Ok(())
    }

    /// The activated time embedding of a step, `[b, time]` in f32 whatever the compute type: it is small and reaches
    /// every layer.
    pub(crate) fn time(&self, timestep: f32, context: &Context) -> Result<Tensor> {
        let mut row = Vec::with_capacity(self.config.levels[0].width);
        self.time_proj.embed(timestep, &mut row);
        let rows = row.repeat(context.batch);
        let mut x = Tensor::from_f32(&self.device, DType::F32, &[context.batch, row.len()], &rows)?;
        if let Some(guidance) = &context.guidance {
            x = ops::add(&x, guidance)?;
        }
        let emb = self.time_embedding.forward(&x, context.added.as_ref())?;
        Ok(ops::activation(&emb, self.config.act_fn)?)
    }

    /// Latent in, `conv_in` out: `[b, h, w, in] -> [b, h, w, c]`, plus `hint` where there is one.
    pub(crate) fn enter(&self, latent: &Tensor, context: &Context, hint: Option<&Tensor>) -> Result<Tensor> {
        match *latent.shape() {
            [b, h, w, c] if b == context.batch && c == self.config.in_channels && h > 0 && w > 0 => {}
            _ => {
                let expected = format!("[{}, height, width, {}]", context.batch, self.config.in_channels);
                return Err(input(self.model, "the latent", latent.shape(), expected));
            }
        }
        let mut x = latent.cast(self.dtype)?;
        if self.config.center_input_sample {
            let minus_one = Tensor::from_f32(&self.device, self.dtype, x.shape(), &vec![-1.0; x.len()])?;
            x = ops::add_scaled(&minus_one, &x, 2.0)?;
        }
        Ok(self.conv_in.forward_with(&x, &ops::Fused { residual: hint, ..ops::Fused::default() })?)
    }

    /// `x [b, h, w, c]` from [`Encoder::enter`] -> what each layer leaves for the way up, and the middle's result.
    pub(crate) fn forward(&self, x: Tensor, step: Step<'_>) -> Result<(Vec<Tensor>, Tensor)> {
        let mut kept = vec![x.clone()];
        let mut x = x;
        for down in &self.down_blocks {
            for i in 0..down.block.resnets.len() {
                x = down.block.layer(i, x, step)?;
                kept.push(x.clone());
            }
            if let Some(conv) = &down.downsampler {
                x = conv.forward(&x)?;
                kept.push(x.clone());
            }
        }
        if let Some(mid) = &self.mid_block {
            x = mid.first.forward(&x, Some(step.times))?;
            if let Some((attention, resnet)) = &mid.attention {
                x = resnet.forward(&attention.forward(&x, step)?, Some(step.times))?;
            }
        }
        Ok((kept, x))
    }
}

impl EncoderConfig {
    /// What the residual blocks share.
    pub(crate) fn resnet(&self) -> ResnetOptions {
        ResnetOptions { groups: self.norm_num_groups, eps: self.norm_eps, act: self.act_fn }
    }
}
