//! The autoencoder: levels are counted from the image on both sides, attention is made of 1x1 convolutions.

use crate::stored::Stored;
use crate::table::{Entry, Weights};

use super::{Renamed, numbered};

pub(super) const PREFIX: &str = "first_stage_model.";

/// Attention leaves: the original's, then those of diffusers before 0.17.
const ATTENTION: [(&str, &str); 9] = [
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out.0"),
];

/// Renames the tensors of a VAE whose own prefix has been removed; current names stay.
pub(super) fn rename(weights: &Weights) -> Renamed {
    let levels = |side: &str| {
        let level = |name: &String| numbered(name.strip_prefix(side)?)?.0.checked_add(1);
        weights.entries().keys().filter_map(level).max().unwrap_or(0)
    };
    let up_levels = levels("decoder.up.");
    let mut renamed = Renamed::new();
    for (name, entry) in weights.entries() {
        if name.starts_with("loss.") || name.starts_with("model_ema.") {
            // What training leaves behind in a file of its own.
            entry.mark();
            continue;
        }
        let new = rename_one(name, up_levels).unwrap_or_else(|| name.clone());
        let entry = if new.contains(".attentions.") { as_linear(entry) } else { entry.clone() };
        renamed.insert(new, entry);
    }
    renamed
}

fn rename_one(name: &str, up_levels: usize) -> Option<String> {
    let (side, rest) = name.split_once('.')?;
    if side != "encoder" && side != "decoder" {
        return None;
    }
    if let Some(leaf) = rest.strip_prefix("norm_out.") {
        return Some(format!("{side}.conv_norm_out.{leaf}"));
    }
    if let Some(rest) = rest.strip_prefix("mid.block_") {
        let (number, leaf) = numbered(rest)?;
        return Some(format!("{side}.mid_block.resnets.{}.{}", number.checked_sub(1)?, shortcut(leaf)));
    }
    if let Some(rest) = rest.strip_prefix("mid.attn_") {
        let (number, leaf) = numbered(rest)?;
        return attention(side, number.checked_sub(1)?, leaf);
    }
    if let Some(rest) = rest.strip_prefix("mid_block.attentions.") {
        let (number, leaf) = numbered(rest)?;
        return attention(side, number, leaf);
    }
    if let Some(rest) = rest.strip_prefix("down.") {
        let (level, rest) = numbered(rest)?;
        if let Some(leaf) = rest.strip_prefix("downsample.conv.") {
            return Some(format!("{side}.down_blocks.{level}.downsamplers.0.conv.{leaf}"));
        }
        let (layer, leaf) = numbered(rest.strip_prefix("block.")?)?;
        return Some(format!("{side}.down_blocks.{level}.resnets.{layer}.{}", shortcut(leaf)));
    }
    let (level, rest) = numbered(rest.strip_prefix("up.")?)?;
    let level = up_levels.checked_sub(level.checked_add(1)?)?;
    if let Some(leaf) = rest.strip_prefix("upsample.conv.") {
        return Some(format!("{side}.up_blocks.{level}.upsamplers.0.conv.{leaf}"));
    }
    let (layer, leaf) = numbered(rest.strip_prefix("block.")?)?;
    Some(format!("{side}.up_blocks.{level}.resnets.{layer}.{}", shortcut(leaf)))
}

fn attention(side: &str, number: usize, rest: &str) -> Option<String> {
    let (old, leaf) = rest.split_once('.')?;
    let new = ATTENTION.iter().find(|(name, _)| *name == old)?.1;
    Some(format!("{side}.mid_block.attentions.{number}.{new}.{leaf}"))
}

fn shortcut(leaf: &str) -> String {
    leaf.replace("nin_shortcut", "conv_shortcut")
}

/// A 1x1 convolution's weight [out, in, 1, 1] as that of a linear layer [out, in].
fn as_linear(entry: &Entry) -> Entry {
    let Stored { storage, dtype, shape, strides, offset } = &*entry.tensor;
    if shape.len() <= 2 || shape[2..].iter().any(|&n| n != 1) {
        return entry.clone();
    }
    entry.window(Stored {
        storage: storage.clone(),
        dtype: *dtype,
        shape: shape[..2].to_vec(),
        strides: strides[..2].to_vec(),
        offset: *offset,
    })
}
