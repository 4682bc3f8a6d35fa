//! Configurations told from tensors alone, for checkpoints without config.json.
//!
//! Not everything can be: the width of a head, the number of groups, epsilons and the embeddings' order leave no trace
//! in shapes. Published models agree on the last three. For heads see [`guess_heads`].

use super::{AdditionEmbed, EncoderConfig, Level, MidBlockConfig};
use crate::Result;
use crate::error::unrecognised;
use crate::load::Loader;
use tensor::ops::Activation;
use weights::Scope;

/// Attention heads of a level. Models with linear projections (SD 2, SDXL) have heads of 64 channels; those with
/// convolutions (SD 1) have 8 heads. Where the one does not divide the width the other is tried, then one head.
pub(crate) fn guess_heads(width: usize, linear: bool) -> usize {
    let by_64 = width.is_multiple_of(64).then_some(width / 64);
    let eight = width.is_multiple_of(8).then_some(8);
    let order = if linear { [by_64, eight] } else { [eight, by_64] };
    order.into_iter().flatten().next().unwrap_or(1)
}

/// 32 as published, or the greatest power of two below it that divides all widths.
pub(crate) fn guess_groups(widths: impl Iterator<Item = usize>) -> usize {
    widths.fold(32, |groups, width| {
        std::iter::successors(Some(groups), |g| (*g > 1).then_some(g / 2))
            .find(|g| width.is_multiple_of(*g))
            .unwrap_or(1)
    })
}

/// A level of `down_blocks` or `up_blocks`, none where there is no such block.
pub(crate) fn infer_level(block: &Scope) -> Option<Level> {
    let layers = Loader::count(&block.push("resnets"));
    let width = *block.shape("resnets.0.conv1.weight")?.first()?;
    let attentions = block.push("attentions");
    let count = Loader::count(&attentions);
    let attention: Vec<usize> =
        (0..count).map(|i| Loader::count(&attentions.push(i).push("transformer_blocks"))).collect();
    let linear = attentions.shape("0.proj_in.weight").is_none_or(|shape| shape.len() == 2);
    let heads = if count > 0 { guess_heads(width, linear) } else { 1 };
    Some(Level { width, layers, attention: (count > 0).then_some(attention), heads })
}

/// Width of the tokens that the first cross-attention takes.
fn context_width(scope: &Scope, levels: usize) -> Option<usize> {
    let blocks = (0..levels).map(|i| scope.push("down_blocks").push(i)).chain([scope.push("mid_block")]);
    let attentions = blocks.flat_map(|block| {
        let attentions = block.push("attentions");
        (0..Loader::count(&attentions)).map(move |i| attentions.push(i))
    });
    attentions.filter_map(|a| a.shape("transformer_blocks.0.attn2.to_k.weight")).find_map(|shape| shape.get(1).copied())
}

impl EncoderConfig {
    /// The configuration of the tensors below `scope`.
    pub(crate) fn infer(model: &'static str, scope: &Scope) -> Result<EncoderConfig> {
        let unlike = |reason: &str| unrecognised(model, scope, reason);
        let conv_in = scope.shape("conv_in.weight").filter(|shape| shape.len() == 4);
        let conv_in = conv_in.ok_or_else(|| unlike("it has no `conv_in.weight` of four dimensions"))?;
        let down = scope.push("down_blocks");
        let levels: Vec<Level> = (0..Loader::count(&down)).map_while(|i| infer_level(&down.push(i))).collect();
        if levels.is_empty() {
            return Err(unlike("it has no `down_blocks.0.resnets.0.conv1.weight`"));
        }
        let mid = scope.push("mid_block");
        let mid = match (infer_level(&mid), mid.shape("attentions.0.proj_in.weight")) {
            (None, _) => MidBlockConfig::None,
            (Some(_), None) => MidBlockConfig::Resnet,
            (Some(level), Some(_)) => MidBlockConfig::CrossAttention {
                depth: level.attention.map_or(0, |depths| depths[0]),
                heads: level.heads,
            },
        };
        let second = |leaf: &str| scope.shape(leaf).and_then(|shape| shape.get(1).copied());
        let context = context_width(scope, levels.len());
        let time = scope.shape("time_embedding.linear_1.weight").and_then(|shape| shape.first().copied());
        Ok(EncoderConfig {
            in_channels: conv_in[1],
            cross_attention_dim: context.unwrap_or(1280),
            time_embed_dim: time.ok_or_else(|| unlike("it has no `time_embedding.linear_1.weight`"))?,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_cond_proj_dim: second("time_embedding.cond_proj.weight"),
            addition: second("add_embedding.linear_1.weight")
                .map(|input_dim| AdditionEmbed { time_embed_dim: None, input_dim }),
            act_fn: Activation::Silu,
            norm_num_groups: guess_groups(levels.iter().map(|level| level.width)),
            norm_eps: 1e-5,
            downsample_padding: 1,
            conv_in_kernel: conv_in[2],
            center_input_sample: false,
            levels,
            mid,
        })
    }
}
