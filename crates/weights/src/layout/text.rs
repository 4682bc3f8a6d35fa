//! OpenCLIP's text tower in transformers' names: q, k and v are cut from one matrix, the projection is transposed.

use crate::stored::Stored;
use crate::table::{Entry, Weights};

use super::{Renamed, numbered, replace_prefix};

const OUTER: [(&str, &str); 5] = [
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("ln_final.", "text_model.final_layer_norm."),
    // A linear layer already, as some tools write it.
    ("text_projection.weight", "text_projection.weight"),
    ("text_projection.bias", "text_projection.bias"),
];

const LAYER: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
];

/// Renames the tensors of an OpenCLIP text model whose own prefix has been removed.
pub(super) fn rename_open_clip(weights: &Weights) -> Renamed {
    let mut renamed = Renamed::new();
    for (name, entry) in weights.entries() {
        if name == "logit_scale" || name == "attn_mask" {
            entry.mark();
            continue;
        }
        if name == "text_projection" {
            renamed.insert("text_projection.weight".into(), transposed(entry));
            continue;
        }
        match split(name).and_then(|(stem, leaf)| Some((stem, leaf, thirds(entry)?))) {
            Some((stem, leaf, parts)) => {
                for (projection, part) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(parts) {
                    renamed.insert(format!("{stem}.self_attn.{projection}.{leaf}"), part);
                }
            }
            None => {
                let new = rename_one(name).unwrap_or_else(|| name.clone());
                renamed.insert(new, entry.clone());
            }
        }
    }
    renamed
}

/// CLIP's own text model as transformers names it; the buffer of positions is not a weight.
pub(super) fn rename_clip(weights: &Weights) -> Renamed {
    let mut renamed = weights.entries().clone();
    renamed.retain(|name, entry| {
        let buffer = name.ends_with("position_ids") || name == "logit_scale";
        if buffer {
            entry.mark();
        }
        !buffer
    });
    renamed
}

fn rename_one(name: &str) -> Option<String> {
    replace_prefix(name, &OUTER).or_else(|| {
        let (stem, rest) = layer(name)?;
        Some(format!("{stem}.{}", replace_prefix(rest, &LAYER)?))
    })
}

/// `transformer.resblocks.3.rest` as (`text_model.encoder.layers.3`, `rest`).
fn layer(name: &str) -> Option<(String, &str)> {
    let (number, rest) = numbered(name.strip_prefix("transformer.resblocks.")?)?;
    Some((format!("text_model.encoder.layers.{number}"), rest))
}

/// The layer and leaf of a matrix that holds q, k and v.
fn split(name: &str) -> Option<(String, &'static str)> {
    let (stem, rest) = layer(name)?;
    match rest {
        "attn.in_proj_weight" => Some((stem, "weight")),
        "attn.in_proj_bias" => Some((stem, "bias")),
        _ => None,
    }
}

/// Three equal blocks of rows.
fn thirds(entry: &Entry) -> Option<[Entry; 3]> {
    let Stored { storage, dtype, shape, strides, offset } = &*entry.tensor;
    let rows = *shape.first()?;
    if rows % 3 != 0 {
        return None;
    }
    let mut part_shape = shape.clone();
    part_shape[0] = rows / 3;
    Some([0, 1, 2].map(|i| {
        entry.window(Stored {
            storage: storage.clone(),
            dtype: *dtype,
            shape: part_shape.clone(),
            strides: strides.clone(),
            offset: offset + i * (rows / 3) * strides[0],
        })
    }))
}

fn transposed(entry: &Entry) -> Entry {
    let Stored { storage, dtype, shape, strides, offset } = &*entry.tensor;
    entry.window(Stored {
        storage: storage.clone(),
        dtype: *dtype,
        shape: shape.iter().rev().copied().collect(),
        strides: strides.iter().rev().copied().collect(),
        offset: *offset,
    })
}
