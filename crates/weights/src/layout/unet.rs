//! UNet and ControlNet: one flat list of blocks per side becomes levels of resnets, attentions and samplers.

use std::collections::BTreeMap;

use crate::table::Weights;

use super::{Renamed, numbered, replace_prefix};

pub(super) const PREFIX: &str = "model.diffusion_model.";
pub(super) const CONTROL_PREFIX: &str = "control_model.";

const OUTER: [(&str, &str); 9] = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
    ("middle_block_out.0.", "controlnet_mid_block."),
    ("input_hint_block.0.", "controlnet_cond_embedding.conv_in."),
];

const RESNET: [(&str, &str); 6] = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

/// Where a block of the flat list stands: level, and layer within it.
type Places = BTreeMap<usize, (usize, usize)>;

/// Renames the tensors of a UNet or ControlNet whose own prefix has been removed.
pub(super) fn rename(weights: &Weights) -> Renamed {
    let names = Names::read(weights);
    let renamed = |name: &str| names.rename(name).unwrap_or_else(|| name.to_owned());
    weights.entries().iter().map(|(name, entry)| (renamed(name), entry.clone())).collect()
}

/// What has to be counted before a single name can be mapped.
struct Names {
    inputs: Places,
    outputs: Places,
    /// Which parts of the middle block are resnets: (index, number among its kind).
    middle: BTreeMap<usize, (bool, usize)>,
    /// The last convolution of a ControlNet's hint encoder.
    last_hint: usize,
}

impl Names {
    fn read(weights: &Weights) -> Names {
        let mut inputs: BTreeMap<usize, bool> = BTreeMap::new();
        let mut outputs: BTreeMap<usize, bool> = BTreeMap::new();
        let mut parts: BTreeMap<usize, bool> = BTreeMap::new();
        let mut last_hint = 0;
        for name in weights.entries().keys() {
            if let Some((i, rest)) = below(name, "input_blocks.") {
                *inputs.entry(i).or_default() |= rest.starts_with("0.op.");
            } else if let Some((i, rest)) = below(name, "output_blocks.") {
                let samples = numbered(rest).is_some_and(|(_, leaf)| leaf.starts_with("conv."));
                *outputs.entry(i).or_default() |= samples;
            } else if let Some((i, rest)) = below(name, "middle_block.") {
                *parts.entry(i).or_default() |= rest.starts_with("in_layers.");
            } else if let Some((i, _)) = below(name, "input_hint_block.") {
                last_hint = last_hint.max(i);
            }
        }
        inputs.remove(&0);
        let mut counts = [0, 0];
        let middle = parts.into_iter().map(|(i, is_resnet)| {
            let count = &mut counts[is_resnet as usize];
            *count += 1;
            (i, (is_resnet, *count - 1))
        });
        Names { middle: middle.collect(), inputs: places(inputs), outputs: places(outputs), last_hint }
    }

    fn rename(&self, name: &str) -> Option<String> {
        if let Some(name) = replace_prefix(name, &OUTER) {
            return Some(name);
        }
        if let Some((i, rest)) = below(name, "input_blocks.") {
            let (level, layer) = *self.inputs.get(&i)?;
            let inner = match rest.strip_prefix("0.op.") {
                Some(leaf) => format!("downsamplers.0.conv.{leaf}"),
                None => part(rest, layer)?,
            };
            return Some(format!("down_blocks.{level}.{inner}"));
        }
        if let Some((i, rest)) = below(name, "output_blocks.") {
            let (level, layer) = *self.outputs.get(&i)?;
            let inner = match numbered(rest)?.1.strip_prefix("conv.") {
                Some(leaf) => format!("upsamplers.0.conv.{leaf}"),
                None => part(rest, layer)?,
            };
            return Some(format!("up_blocks.{level}.{inner}"));
        }
        if let Some((i, rest)) = below(name, "middle_block.") {
            let (is_resnet, number) = *self.middle.get(&i)?;
            return Some(match is_resnet {
                true => format!("mid_block.resnets.{number}.{}", replace_prefix(rest, &RESNET)?),
                false => format!("mid_block.attentions.{number}.{rest}"),
            });
        }
        if let Some((i, rest)) = below(name, "zero_convs.") {
            return Some(format!("controlnet_down_blocks.{i}.{}", rest.strip_prefix("0.")?));
        }
        if let Some((i, leaf)) = below(name, "input_hint_block.") {
            // Convolutions stand at even places, activations between them.
            return Some(match i {
                i if i == self.last_hint => format!("controlnet_cond_embedding.conv_out.{leaf}"),
                i if i >= 2 && i % 2 == 0 => {
                    format!("controlnet_cond_embedding.blocks.{}.{leaf}", i / 2 - 1)
                }
                _ => return None,
            });
        }
        None
    }
}

/// A resnet stands first in its block, an attention after it.
fn part(rest: &str, layer: usize) -> Option<String> {
    Some(match numbered(rest)? {
        (0, leaf) => format!("resnets.{layer}.{}", replace_prefix(leaf, &RESNET)?),
        (_, leaf) => format!("attentions.{layer}.{leaf}"),
    })
}

/// A level ends with the block that samples down or up.
fn places(blocks: BTreeMap<usize, bool>) -> Places {
    let (mut level, mut layer) = (0, 0);
    let place = |(i, samples)| {
        let place = (level, layer);
        (level, layer) = if samples { (level + 1, 0) } else { (level, layer + 1) };
        (i, place)
    };
    blocks.into_iter().map(place).collect()
}

fn below<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    numbered(name.strip_prefix(prefix)?)
}
