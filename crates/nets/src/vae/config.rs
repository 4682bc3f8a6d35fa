//! The autoencoder's sizes, and the scale between its latents and the diffusion's.

use super::MODEL;
use crate::Result;
use crate::encoder::guess_groups;
use crate::error::unrecognised;
use crate::fields::{DEEPEST, Fields, LARGEST, config_error};
use crate::load::Loader;
use serde_json::Value;
use tensor::ops::Activation;
use tensor::{DType, Tensor};
use weights::Scope;

/// The sizes of an autoencoder, under diffusers' names.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the picture going in.
    pub in_channels: usize,
    /// Channels of the picture coming out.
    pub out_channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Widths from the largest picture to the smallest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Activation of residual blocks.
    pub act_fn: Activation,
    /// Whether the encoder ends in a 1x1 convolution.
    pub use_quant_conv: bool,
    /// Whether the decoder begins with a 1x1 convolution.
    pub use_post_quant_conv: bool,
    /// Whether the middle attends.
    pub mid_block_add_attention: bool,
    /// The diffusion's latent is the encoder's times this.
    pub scaling_factor: f32,
    /// For each channel: mean and deviation, beside the scaling. A `shift_factor` is of later models; the pipelines of
    /// Stable Diffusion leave it aside, and so it is here.
    pub latents_mean_std: Option<(Vec<f32>, Vec<f32>)>,
    /// The picture size that the model was made for; diffusers' tile size.
    pub sample_size: usize,
    /// Whether the model overflows in f16 (`force_upcast`); bf16 and f32 are safe.
    pub force_upcast: bool,
}

impl VaeConfig {
    /// From diffusers' config.json.
    ///
    /// # Errors
    /// A field with a value that is unsupported or makes no sense.
    pub fn from_json(config: &Value) -> Result<VaeConfig> {
        let fields = Fields::new(MODEL, config)?;
        for (field, kind) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            if fields.texts(field)?.is_some_and(|types| types.iter().any(|name| *name != kind)) {
                return Err(fields.refuse(field, format!("only {kind} is supported")));
            }
        }
        let block_out_channels = fields.sizes("block_out_channels")?.unwrap_or_else(|| vec![64]);
        for field in ["down_block_types", "up_block_types"] {
            let count = fields.texts(field)?.map_or(1, |types| types.len());
            if count != block_out_channels.len() {
                let expected = format!("expected {} names, as many as `block_out_channels`", block_out_channels.len());
                return Err(fields.refuse(field, expected));
            }
        }
        let latent_channels = fields.size("latent_channels", 4)?;
        let mean = fields.numbers("latents_mean", latent_channels)?;
        let std = fields.numbers("latents_std", latent_channels)?;
        let sample_size = match fields.get("sample_size") {
            Some(Value::Array(list)) if !list.is_empty() => fields.sizes("sample_size")?.map_or(512, |list| list[0]),
            _ => fields.size("sample_size", 32)?,
        };
        let config = VaeConfig {
            in_channels: fields.size("in_channels", 3)?,
            out_channels: fields.size("out_channels", 3)?,
            layers_per_block: fields.size("layers_per_block", 1)?,
            norm_num_groups: fields.size("norm_num_groups", 32)?,
            act_fn: fields.activation("act_fn", Activation::Silu)?,
            use_quant_conv: fields.flag("use_quant_conv", true)?,
            use_post_quant_conv: fields.flag("use_post_quant_conv", true)?,
            mid_block_add_attention: fields.flag("mid_block_add_attention", true)?,
            scaling_factor: fields.number("scaling_factor", 0.18215)?,
            latents_mean_std: mean.zip(std),
            force_upcast: fields.flag("force_upcast", true)?,
            sample_size,
            latent_channels,
            block_out_channels,
        };
        config.check()?;
        Ok(config)
    }

    /// From the tensors of an autoencoder with diffusers' names. The scaling factor is not in them: SDXL's and SD 1.5's
    /// autoencoders have the same shapes, so the caller sets it, and until then it is SD 1.5's 0.18215.
    ///
    /// # Errors
    /// The tensors are not an autoencoder's.
    pub fn infer(scope: &Scope) -> Result<VaeConfig> {
        let four = |leaf: &str| {
            let shape = scope.shape(leaf).filter(|shape| shape.len() == 4);
            shape.ok_or_else(|| {
                unrecognised(MODEL, scope, format!("it has no `{}` of four dimensions", scope.name(leaf)))
            })
        };
        let blocks = scope.push("encoder.down_blocks");
        let widths: Vec<usize> = (0..Loader::count(&blocks))
            .map_while(|i| blocks.shape(&format!("{i}.resnets.0.conv1.weight"))?.first().copied())
            .collect();
        let groups = guess_groups(widths.iter().copied());
        let config = VaeConfig {
            in_channels: four("encoder.conv_in.weight")?[1],
            out_channels: four("decoder.conv_out.weight")?[0],
            latent_channels: four("decoder.conv_in.weight")?[1],
            layers_per_block: Loader::count(&blocks.push("0.resnets")),
            use_quant_conv: scope.shape("quant_conv.weight").is_some(),
            use_post_quant_conv: scope.shape("post_quant_conv.weight").is_some(),
            mid_block_add_attention: !scope.push("encoder.mid_block.attentions").children().is_empty(),
            block_out_channels: widths,
            norm_num_groups: groups,
            ..Self::sd15()
        };
        config.check()?;
        Ok(config)
    }

    /// Stable Diffusion XL's autoencoder.
    pub fn sdxl() -> VaeConfig {
        VaeConfig { scaling_factor: 0.13025, sample_size: 1024, ..Self::sd15() }
    }

    /// Stable Diffusion 1.5's autoencoder.
    pub fn sd15() -> VaeConfig {
        VaeConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            act_fn: Activation::Silu,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            scaling_factor: 0.18215,
            latents_mean_std: None,
            sample_size: 512,
            force_upcast: true,
        }
    }

    /// A size for tests.
    pub fn tiny() -> VaeConfig {
        VaeConfig { block_out_channels: vec![8, 16, 16, 16], layers_per_block: 1, norm_num_groups: 4, ..Self::sdxl() }
    }

    /// How many times larger than the latent the picture is, in each direction.
    pub fn zoom(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// From the diffusion's latent `[b, h, w, c]` to the decoder's, in f32.
    ///
    /// # Errors
    /// No memory.
    pub fn to_decoder(&self, latent: &Tensor) -> Result<Tensor> {
        self.each(latent, |x, mean, std| x * std / self.scaling_factor + mean)
    }

    /// From the encoder's latent `[b, h, w, c]` to the diffusion's, in f32.
    ///
    /// # Errors
    /// No memory.
    pub fn to_diffusion(&self, latent: &Tensor) -> Result<Tensor> {
        self.each(latent, |x, mean, std| (x - mean) * self.scaling_factor / std)
    }

    fn each(&self, latent: &Tensor, f: impl Fn(f32, f32, f32) -> f32) -> Result<Tensor> {
        let mut values = latent.to_vec_f32()?;
        match &self.latents_mean_std {
            Some((mean, std)) => values.iter_mut().enumerate().for_each(|(i, x)| {
                let c = i % mean.len();
                *x = f(*x, mean[c], std[c]);
            }),
            None => values.iter_mut().for_each(|x| *x = f(*x, 0.0, 1.0)),
        }
        Ok(Tensor::from_f32(latent.device(), DType::F32, latent.shape(), &values)?)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("in_channels", self.in_channels, LARGEST),
            ("out_channels", self.out_channels, LARGEST),
            ("latent_channels", self.latent_channels, LARGEST),
            ("layers_per_block", self.layers_per_block, DEEPEST),
            ("norm_num_groups", self.norm_num_groups, LARGEST),
        ];
        for (field, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(config_error(MODEL, field, size, format!("expected 1 to {most}")));
            }
        }
        let widths = &self.block_out_channels;
        let bad = |width: &usize| !(1..=LARGEST).contains(width) || !width.is_multiple_of(self.norm_num_groups);
        if !(1..=16).contains(&widths.len()) || widths.iter().any(bad) {
            let groups = self.norm_num_groups;
            let expected = format!("expected 1 to 16 multiples of `norm_num_groups`, {groups}, up to {LARGEST}");
            return Err(config_error(MODEL, "block_out_channels", format!("{widths:?}"), expected));
        }
        if self.scaling_factor == 0.0 || !self.scaling_factor.is_finite() {
            return Err(config_error(MODEL, "scaling_factor", self.scaling_factor, "expected a number other than 0"));
        }
        if let Some((mean, std)) = &self.latents_mean_std
            && (mean.len() != self.latent_channels || std.len() != mean.len() || std.contains(&0.0))
        {
            let expected = format!("expected {} numbers other than 0", self.latent_channels);
            return Err(config_error(MODEL, "latents_std", format!("{std:?}"), expected));
        }
        Ok(())
    }
}
