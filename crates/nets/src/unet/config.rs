//! The UNet's sizes: published presets, config.json, or told from the tensors.

use super::{MODEL, identity};
use crate::Result;
use crate::encoder::{AdditionEmbed, EncoderConfig, Level, MidBlockConfig};
use crate::encoder::{check_level, head_counts, infer_level, kernel, transformer_depths};
use crate::error::unrecognised;
use crate::fields::{Fields, LARGEST, config_error};
use crate::load::Loader;
use serde_json::Value;
use tensor::ops::Activation;
use weights::Scope;

/// The sizes of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// The way down and the middle.
    pub encoder: EncoderConfig,
    /// The way up, from the smallest picture to the largest.
    pub up: Vec<Level>,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Kernel of `conv_out`.
    pub conv_out_kernel: usize,
}

impl UNetConfig {
    /// From diffusers' config.json.
    ///
    /// # Errors
    /// A field with a value that is unsupported or makes no sense.
    pub fn from_json(config: &Value) -> Result<UNetConfig> {
        let fields = Fields::new(MODEL, config)?;
        let cross = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
        let encoder = EncoderConfig::from_fields(&fields, &cross)?;
        let count = encoder.levels.len();
        let cross = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
        let types = fields.texts("up_block_types")?.unwrap_or_else(|| cross.to_vec());
        if types.len() != count {
            return Err(
                fields.refuse("up_block_types", format!("expected {count} names, as many as `block_out_channels`"))
            );
        }
        let heads = head_counts(&fields, count)?;
        let up = types
            .iter()
            .zip((0..count).rev())
            .map(|(kind, i)| {
                let level = &encoder.levels[i];
                let layers = level.layers + 1;
                let attention = match *kind {
                    "CrossAttnUpBlock2D" => Some(transformer_depths(&fields, count, i, layers, true)?),
                    "UpBlock2D" => None,
                    _ => return Err(fields.refuse("up_block_types", "expected UpBlock2D and CrossAttnUpBlock2D")),
                };
                let heads = attention.as_ref().map_or(1, |_| heads[i]);
                Ok(Level { width: level.width, layers, attention, heads })
            })
            .collect::<Result<_>>()?;
        let config = UNetConfig {
            out_channels: fields.size("out_channels", 4)?,
            conv_out_kernel: kernel(&fields, "conv_out_kernel")?,
            encoder,
            up,
        };
        config.check()?;
        Ok(config)
    }

    /// From the tensors of a UNet with diffusers' names. The number of heads cannot be told from them: models with
    /// linear projections are taken to have heads of 64 channels, others to have 8 heads.
    ///
    /// # Errors
    /// The tensors are not a UNet's.
    pub fn infer(scope: &Scope) -> Result<UNetConfig> {
        let encoder = EncoderConfig::infer(MODEL, scope)?;
        let blocks = scope.push("up_blocks");
        let up: Vec<Level> = (0..Loader::count(&blocks)).map_while(|i| infer_level(&blocks.push(i))).collect();
        let conv_out = scope.shape("conv_out.weight").filter(|shape| shape.len() == 4);
        let conv_out = conv_out.ok_or_else(|| unrecognised(MODEL, scope, "it has no `conv_out.weight`"))?;
        if up.len() != encoder.levels.len() {
            let reason =
                format!("it has {} blocks on the way down and {} on the way up", encoder.levels.len(), up.len());
            return Err(unrecognised(MODEL, scope, reason));
        }
        let config = UNetConfig { encoder, up, out_channels: conv_out[0], conv_out_kernel: conv_out[2] };
        config.check()?;
        Ok(config)
    }

    /// Refuses an identity adapter that is of another UNet, told from its tensors' shapes before anything is loaded.
    ///
    /// # Errors
    /// What differs, by name.
    pub fn check_adapter(&self, adapter: &Scope) -> Result<()> {
        let of = |level: &Level| {
            let depth: usize = level.attention.iter().flatten().sum();
            std::iter::repeat_n(level.width, depth)
        };
        let down: Vec<usize> = self.encoder.levels.iter().flat_map(of).collect();
        let mid = match (self.encoder.mid, self.encoder.levels.last()) {
            (MidBlockConfig::CrossAttention { depth, .. }, Some(level)) => vec![level.width; depth],
            _ => Vec::new(),
        };
        let up: Vec<usize> = self.up.iter().flat_map(of).collect();
        let widths = [&down[..], &mid, &up].concat();
        let places = identity::places(down.len(), mid.len(), widths.len());
        identity::check(adapter, &widths, &places, self.encoder.cross_attention_dim)
    }

    /// Refuses sizes that do not go together.
    pub(crate) fn check(&self) -> Result<()> {
        self.encoder.check(MODEL)?;
        let count = self.encoder.levels.len();
        if self.up.len() != count {
            return Err(config_error(MODEL, "up_block_types", self.up.len(), format!("expected {count} levels")));
        }
        for (i, (up, down)) in self.up.iter().zip(self.encoder.levels.iter().rev()).enumerate() {
            check_level(MODEL, i, up, self.encoder.norm_num_groups)?;
            if up.layers != down.layers + 1 || up.width != down.width {
                let value = format!("{} layers of {}", up.layers, up.width);
                let expected = format!("expected {} layers of {}, to mirror the way down", down.layers + 1, down.width);
                return Err(config_error(MODEL, format!("up_blocks[{i}]"), value, expected));
            }
        }
        match (1..=LARGEST).contains(&self.out_channels) {
            true => Ok(()),
            false => Err(config_error(MODEL, "out_channels", self.out_channels, format!("expected 1 to {LARGEST}"))),
        }
    }

    /// Stable Diffusion XL's base model.
    pub fn sdxl() -> UNetConfig {
        let levels = [(320, 5, None), (640, 10, Some(2)), (1280, 20, Some(10))];
        let addition = AdditionEmbed { time_embed_dim: Some(256), input_dim: 2816 };
        Self::published(&levels, 2, 2048, MidBlockConfig::CrossAttention { depth: 10, heads: 20 }, Some(addition))
    }

    /// Stable Diffusion 1.5.
    pub fn sd15() -> UNetConfig {
        let levels = [(320, 8, Some(1)), (640, 8, Some(1)), (1280, 8, Some(1)), (1280, 8, None)];
        Self::published(&levels, 2, 768, MidBlockConfig::CrossAttention { depth: 1, heads: 8 }, None)
    }

    /// SDXL's shape at a size for tests.
    pub fn tiny() -> UNetConfig {
        let levels = [(16, 2, None), (32, 4, Some(1)), (48, 6, Some(2))];
        let addition = AdditionEmbed { time_embed_dim: Some(8), input_dim: 48 + 32 };
        let mid = MidBlockConfig::CrossAttention { depth: 2, heads: 6 };
        let mut config = Self::published(&levels, 1, 48, mid, Some(addition));
        config.encoder.norm_num_groups = 8;
        config
    }

    /// `levels`: width, heads, transformer depth.
    fn published(
        levels: &[(usize, usize, Option<usize>)],
        layers: usize,
        context: usize,
        mid: MidBlockConfig,
        addition: Option<AdditionEmbed>,
    ) -> UNetConfig {
        let level = |&(width, heads, depth): &(usize, usize, Option<usize>), layers: usize| Level {
            width,
            layers,
            attention: depth.map(|depth| vec![depth; layers]),
            heads: depth.map_or(1, |_| heads),
        };
        UNetConfig {
            encoder: EncoderConfig {
                in_channels: 4,
                levels: levels.iter().map(|l| level(l, layers)).collect(),
                mid,
                cross_attention_dim: context,
                time_embed_dim: 4 * levels[0].0,
                flip_sin_to_cos: true,
                freq_shift: 0.0,
                time_cond_proj_dim: None,
                addition,
                act_fn: Activation::Silu,
                norm_num_groups: 32,
                norm_eps: 1e-5,
                downsample_padding: 1,
                conv_in_kernel: 3,
                center_input_sample: false,
            },
            up: levels.iter().rev().map(|l| level(l, layers + 1)).collect(),
            out_channels: 4,
            conv_out_kernel: 3,
        }
    }
}
