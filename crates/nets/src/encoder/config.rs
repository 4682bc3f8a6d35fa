//! The configuration that UNet and ControlNet share.

use crate::Result;
use crate::fields::{DEEPEST, Fields, LARGEST, config_error};
use serde_json::{Value, json};
use tensor::ops::Activation;

/// The most levels: each halves the sides, so more could not be told apart from none.
const LEVELS: usize = 16;

/// One level of a UNet: blocks of one width at one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Channels.
    pub width: usize,
    /// Residual blocks.
    pub layers: usize,
    /// Transformer blocks after each residual block; none where the level has no attention.
    pub attention: Option<Vec<usize>>,
    /// Attention heads.
    pub heads: usize,
}

/// The block at the lowest size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidBlockConfig {
    /// There is none.
    None,
    /// One residual block (`UNetMidBlock2D`).
    Resnet,
    /// Residual block, attention, residual block (`UNetMidBlock2DCrossAttn`).
    CrossAttention {
        /// Transformer blocks.
        depth: usize,
        /// Attention heads.
        heads: usize,
    },
}

/// SDXL's second embedding: pooled text and six numbers (`addition_embed_type` `text_time`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdditionEmbed {
    /// Width of the embedding of one number; none: told from the pooled text's width.
    pub time_embed_dim: Option<usize>,
    /// Width that `add_embedding` takes: the pooled text's and six times the former.
    pub input_dim: usize,
}

/// The sizes of the half that UNet and ControlNet share, with diffusers' field names where they mean the same.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Channels of the latent.
    pub in_channels: usize,
    /// The levels from the largest picture to the smallest.
    pub levels: Vec<Level>,
    /// The middle.
    pub mid: MidBlockConfig,
    /// Width of text or identity tokens.
    pub cross_attention_dim: usize,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Cosines before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f32,
    /// Width of the guidance embedding in latent consistency models.
    pub time_cond_proj_dim: Option<usize>,
    /// SDXL's second embedding.
    pub addition: Option<AdditionEmbed>,
    /// Activation of residual blocks and time embedding.
    pub act_fn: Activation,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Of the group norms.
    pub norm_eps: f32,
    /// Of the halving convolutions; 0 pads below and right only.
    pub downsample_padding: usize,
    /// Kernel of `conv_in`.
    pub conv_in_kernel: usize,
    /// Whether the latent is doubled and lessened by one.
    pub center_input_sample: bool,
}

/// A list item of `transformer_layers_per_block`: a number for all layers of a level, or one for each.
fn depths(fields: &Fields<'_>, field: &str, item: Option<&Value>, layers: usize) -> Result<Vec<usize>> {
    let depth = |value: &Value| value.as_u64().filter(|&n| n <= DEEPEST as u64).map(|n| n as usize);
    let parsed = match item {
        None => Some(vec![1; layers]),
        Some(Value::Array(list)) if list.len() == layers => list.iter().map(depth).collect(),
        Some(Value::Array(_)) => None,
        Some(value) => depth(value).map(|n| vec![n; layers]),
    };
    parsed.ok_or_else(|| {
        fields.refuse(field, format!("expected whole numbers up to {DEEPEST}: one, one for each level, or a list of {layers} for a level of {layers} layers"))
    })
}

/// The items of a per-level field that may be nested.
fn item<'a>(fields: &Fields<'a>, field: &str, levels: usize, i: usize) -> Result<Option<&'a Value>> {
    match fields.get(field) {
        Some(Value::Array(list)) if list.len() != levels => {
            Err(fields.refuse(field, format!("expected one number or a list of {levels}, one for each level")))
        }
        Some(Value::Array(list)) => Ok(list.get(i)),
        other => Ok(other),
    }
}

/// Transformer depths of level `i` counted from the top, with `layers` residual blocks; `up` for the way up.
pub(crate) fn transformer_depths(
    fields: &Fields<'_>,
    levels: usize,
    i: usize,
    layers: usize,
    up: bool,
) -> Result<Vec<usize>> {
    let (field, reverse) = ("transformer_layers_per_block", "reverse_transformer_layers_per_block");
    if up && fields.get(reverse).is_some() {
        return depths(fields, reverse, item(fields, reverse, levels, levels - 1 - i)?, layers);
    }
    let value = item(fields, field, levels, i)?;
    if up && value.is_some_and(Value::is_array) {
        return Err(fields.refuse(field, format!("a list for one level needs `{reverse}` beside it")));
    }
    depths(fields, field, value, layers)
}

impl EncoderConfig {
    pub(crate) fn from_fields(fields: &Fields<'_>, default_down: &[&str]) -> Result<EncoderConfig> {
        refuse_variants(fields)?;
        let widths = fields.sizes("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let levels = widths.len();
        let types = fields.texts("down_block_types")?.unwrap_or_else(|| default_down.to_vec());
        if types.len() != levels {
            return Err(
                fields.refuse("down_block_types", format!("expected {levels} names, as many as `block_out_channels`"))
            );
        }
        let layers = fields.per_level("layers_per_block", levels, 2)?;
        let heads = head_counts(fields, levels)?;
        let levels = types
            .iter()
            .enumerate()
            .map(|(i, kind)| {
                let attention = match *kind {
                    "CrossAttnDownBlock2D" => Some(transformer_depths(fields, levels, i, layers[i], false)?),
                    "DownBlock2D" => None,
                    _ => return Err(fields.refuse("down_block_types", "expected DownBlock2D and CrossAttnDownBlock2D")),
                };
                // A level without attention has heads in some files and none in others; here it is always one.
                let heads = attention.as_ref().map_or(1, |_| heads[i]);
                Ok(Level { width: widths[i], layers: layers[i], attention, heads })
            })
            .collect::<Result<Vec<_>>>()?;
        let mid = match fields.text("mid_block_type")? {
            Some("UNetMidBlock2DCrossAttn") => MidBlockConfig::CrossAttention {
                depth: transformer_depths_of_mid(fields, levels.len())?,
                heads: heads[levels.len() - 1],
            },
            Some("UNetMidBlock2D") => MidBlockConfig::Resnet,
            // Absent means the default; an explicit null means none.
            None if !fields.is_null("mid_block_type") => MidBlockConfig::CrossAttention {
                depth: transformer_depths_of_mid(fields, levels.len())?,
                heads: heads[levels.len() - 1],
            },
            None => MidBlockConfig::None,
            Some(_) => {
                return Err(fields.refuse("mid_block_type", "expected UNetMidBlock2DCrossAttn, UNetMidBlock2D or null"));
            }
        };
        let addition = match fields.text("addition_embed_type")? {
            None => None,
            Some("text_time") => Some(AdditionEmbed {
                time_embed_dim: fields.size_if("addition_time_embed_dim")?,
                input_dim: fields.size_if("projection_class_embeddings_input_dim")?.ok_or_else(|| {
                    fields.refuse(
                        "projection_class_embeddings_input_dim",
                        "expected a number, as `addition_embed_type` is text_time",
                    )
                })?,
            }),
            Some(_) => return Err(fields.refuse("addition_embed_type", "only text_time or null is supported")),
        };
        Ok(EncoderConfig {
            in_channels: fields.size("in_channels", 4)?,
            cross_attention_dim: context_width(fields)?,
            time_embed_dim: fields.size("time_embedding_dim", 4 * widths[0])?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            freq_shift: fields.number("freq_shift", 0.0)?,
            time_cond_proj_dim: fields.size_if("time_cond_proj_dim")?,
            act_fn: fields.activation("act_fn", Activation::Silu)?,
            norm_num_groups: groups(fields)?,
            norm_eps: fields.eps("norm_eps", 1e-5)?,
            downsample_padding: padding(fields)?,
            conv_in_kernel: kernel(fields, "conv_in_kernel")?,
            center_input_sample: fields.flag("center_input_sample", false)?,
            levels,
            mid,
            addition,
        })
    }

    /// Refuses sizes that do not go together, before anything is loaded.
    pub(crate) fn check(&self, model: &'static str) -> Result<()> {
        if self.levels.is_empty() || self.levels.len() > LEVELS {
            let expected = format!("expected 1 to {LEVELS} levels");
            return Err(config_error(model, "block_out_channels", self.levels.len(), expected));
        }
        for (i, level) in self.levels.iter().enumerate() {
            check_level(model, i, level, self.norm_num_groups)?;
        }
        let last = &self.levels[self.levels.len() - 1];
        if let MidBlockConfig::CrossAttention { heads, depth } = self.mid {
            let mid = Level { width: last.width, layers: 1, attention: Some(vec![depth]), heads };
            check_level(model, self.levels.len() - 1, &mid, self.norm_num_groups)?;
        }
        let half = self.levels[0].width / 2;
        if half as f32 == self.freq_shift || !self.freq_shift.is_finite() {
            return Err(config_error(
                model,
                "freq_shift",
                self.freq_shift,
                format!("expected another number than {half}, half of the first width"),
            ));
        }
        let sizes = [self.in_channels, self.cross_attention_dim, self.time_embed_dim];
        match sizes.iter().find(|size| !(1..=4 * LARGEST).contains(*size)) {
            Some(size) => Err(config_error(model, "a width", size, format!("expected 1 to {LARGEST}"))),
            None => Ok(()),
        }
    }
}

/// Refuses a level whose width its groups or heads do not divide.
pub(crate) fn check_level(model: &'static str, i: usize, level: &Level, groups: usize) -> Result<()> {
    let refuse = |field: &str, value: usize, expected: String| {
        Err(config_error(model, format!("{field}[{i}]"), value, expected))
    };
    if !(1..=LARGEST).contains(&level.width) {
        return refuse("block_out_channels", level.width, format!("expected 1 to {LARGEST}"));
    }
    if groups == 0 || !level.width.is_multiple_of(groups) {
        return refuse(
            "block_out_channels",
            level.width,
            format!("expected a multiple of `norm_num_groups`, {groups}"),
        );
    }
    if !(1..=DEEPEST).contains(&level.layers) {
        return refuse("layers_per_block", level.layers, format!("expected 1 to {DEEPEST}"));
    }
    if let Some(depths) = &level.attention {
        if depths.len() != level.layers || depths.iter().any(|&depth| depth > DEEPEST) {
            return refuse(
                "transformer_layers_per_block",
                depths.len(),
                format!("expected {} depths up to {DEEPEST}", level.layers),
            );
        }
        if level.heads == 0 || !level.width.is_multiple_of(level.heads) {
            let width = level.width;
            return refuse(
                "attention_head_dim",
                level.heads,
                format!("expected a divisor of the level's width, {width} (the field counts heads)"),
            );
        }
    }
    Ok(())
}

fn transformer_depths_of_mid(fields: &Fields<'_>, levels: usize) -> Result<usize> {
    let field = "transformer_layers_per_block";
    let value = item(fields, field, levels, levels - 1)?;
    // diffusers hands the last level's list to a middle of one attention, which takes its first number.
    let value = match value {
        Some(Value::Array(list)) => list.first(),
        other => other,
    };
    Ok(depths(fields, field, value, 1)?[0])
}

/// Heads of each level. In these configurations `attention_head_dim` counts heads: a misnomer that diffusers keeps
/// for the sake of published files; `num_attention_heads` is only ever null in a UNet and wins where it is given.
pub(crate) fn head_counts(fields: &Fields<'_>, levels: usize) -> Result<Vec<usize>> {
    match fields.get("num_attention_heads") {
        Some(_) => fields.per_level("num_attention_heads", levels, 8),
        None => fields.per_level("attention_head_dim", levels, 8),
    }
}

fn context_width(fields: &Fields<'_>) -> Result<usize> {
    match fields.get("cross_attention_dim") {
        Some(Value::Array(_)) => {
            let list = fields.sizes("cross_attention_dim")?.unwrap_or_default();
            match list.first() {
                Some(&first) if list.iter().all(|&width| width == first) => Ok(first),
                _ => Err(fields.refuse("cross_attention_dim", "expected one number, or the same for all levels")),
            }
        }
        _ => fields.size("cross_attention_dim", 1280),
    }
}

fn groups(fields: &Fields<'_>) -> Result<usize> {
    if fields.is_null("norm_num_groups") {
        return Err(fields.refuse("norm_num_groups", "expected a number"));
    }
    fields.size("norm_num_groups", 32)
}

fn padding(fields: &Fields<'_>) -> Result<usize> {
    match fields.get("downsample_padding") {
        None => Ok(1),
        Some(value) => match value.as_u64() {
            Some(padding @ 0..=1) => Ok(padding as usize),
            _ => Err(fields.refuse("downsample_padding", "expected 0 or 1")),
        },
    }
}

/// An odd kernel, which keeps the picture's size.
pub(crate) fn kernel(fields: &Fields<'_>, field: &str) -> Result<usize> {
    match fields.size(field, 3)? {
        kernel if kernel % 2 == 1 && kernel <= 31 => Ok(kernel),
        _ => Err(fields.refuse(field, "expected an odd number up to 31")),
    }
}

/// What other UNets of diffusers have and this one has no code for.
fn refuse_variants(fields: &Fields<'_>) -> Result<()> {
    let variants: [(&str, &[Value]); 18] = [
        ("class_embed_type", &[]),
        ("num_class_embeds", &[]),
        ("class_embeddings_concat", &[json!(false)]),
        ("encoder_hid_dim", &[]),
        ("encoder_hid_dim_type", &[]),
        ("only_cross_attention", &[json!(false)]),
        ("mid_block_only_cross_attention", &[json!(false)]),
        ("dual_cross_attention", &[json!(false)]),
        ("cross_attention_norm", &[]),
        ("attention_type", &[json!("default")]),
        ("resnet_time_scale_shift", &[json!("default")]),
        ("resnet_skip_time_act", &[json!(false)]),
        ("resnet_out_scale_factor", &[json!(1)]),
        ("mid_block_scale_factor", &[json!(1)]),
        ("time_embedding_type", &[json!("positional")]),
        ("time_embedding_act_fn", &[]),
        ("timestep_post_act", &[]),
        ("global_pool_conditions", &[json!(false)]),
    ];
    for (field, neutral) in variants {
        let all_neutral = |value: &Value| match value {
            Value::Array(list) => list.iter().all(|item| neutral.contains(item)),
            _ => false,
        };
        if !fields.get(field).is_some_and(all_neutral) {
            fields.only(field, neutral)?;
        }
    }
    Ok(())
}
