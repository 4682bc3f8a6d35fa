//! The text encoders' sizes.

use super::MODEL;
use crate::Result;
use crate::error::unrecognised;
use crate::fields::{DEEPEST, Fields, LARGEST, config_error};
use crate::load::Loader;
use serde_json::Value;
use tensor::ops::Activation;
use weights::Scope;

/// The sizes of a text encoder, under transformers' names.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// Tokens known.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Tokens in a row at most.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Of the layer norms.
    pub layer_norm_eps: f32,
    /// Width of the pooled text after projection; none where the encoder has no projection.
    pub projection_dim: Option<usize>,
    /// The token that ends a text; 2 in older files, where the greatest number in a row ends it.
    pub eos_token_id: u32,
}

/// Whether the names begin with `text_model.`, as in published files; transformers 5 writes the encoder without
/// projection without it.
pub(crate) fn is_prefixed(scope: &Scope) -> bool {
    scope.shape("embeddings.token_embedding.weight").is_none()
}

impl ClipTextConfig {
    /// From transformers' config.json. Whether there is a projection is in the tensors, so `scope` is asked.
    ///
    /// # Errors
    /// A field with a value that is unsupported or makes no sense.
    pub fn from_json(config: &Value, scope: &Scope) -> Result<ClipTextConfig> {
        // A configuration of a whole CLIP has the text encoder's in a field.
        let fields = Fields::new(MODEL, config.get("text_config").filter(|inner| inner.is_object()).unwrap_or(config))?;
        let eos = match fields.get("eos_token_id") {
            None => 49407,
            Some(value) => {
                let one = match value {
                    Value::Array(list) if list.len() == 1 => &list[0],
                    other => other,
                };
                let one = one.as_u64().and_then(|id| u32::try_from(id).ok());
                one.ok_or_else(|| fields.refuse("eos_token_id", "expected the number of one token"))?
            }
        };
        let has_projection =
            scope.shape("text_projection.weight").is_some() || (scope.is_random() && is_with_projection(&fields)?);
        let config = ClipTextConfig {
            vocab_size: vocabulary(&fields)?,
            hidden_size: fields.size("hidden_size", 512)?,
            intermediate_size: fields.size("intermediate_size", 2048)?,
            num_hidden_layers: fields.size("num_hidden_layers", 12)?,
            num_attention_heads: fields.size("num_attention_heads", 8)?,
            max_position_embeddings: fields.size("max_position_embeddings", 77)?,
            hidden_act: fields.activation("hidden_act", Activation::QuickGelu)?,
            layer_norm_eps: fields.eps("layer_norm_eps", 1e-5)?,
            projection_dim: has_projection.then(|| fields.size("projection_dim", 512)).transpose()?,
            eos_token_id: eos,
        };
        config.check()?;
        Ok(config)
    }

    /// From the tensors alone. Heads are taken to have 64 channels (one head where 64 does not divide the width), the
    /// activation to be quick GELU in OpenAI's encoder and GELU in OpenCLIP's, which have a projection or 1024 channels
    /// and more, and the greatest token number to end a text.
    ///
    /// # Errors
    /// The tensors are not a text encoder's.
    pub fn infer(scope: &Scope) -> Result<ClipTextConfig> {
        let at = if is_prefixed(scope) { scope.push("text_model") } else { scope.clone() };
        let two = |leaf: &str| match at.shape(leaf).as_deref() {
            Some(&[a, b]) => Ok((a, b)),
            _ => Err(unrecognised(MODEL, scope, format!("it has no `{}` of two dimensions", at.name(leaf)))),
        };
        let (vocab_size, hidden_size) = two("embeddings.token_embedding.weight")?;
        let projection_dim = scope.shape("text_projection.weight").and_then(|shape| shape.first().copied());
        let gelu = projection_dim.is_some() || hidden_size >= 1024;
        let config = ClipTextConfig {
            vocab_size,
            hidden_size,
            intermediate_size: two("encoder.layers.0.mlp.fc1.weight")?.0,
            num_hidden_layers: Loader::count(&at.push("encoder.layers")),
            num_attention_heads: if hidden_size.is_multiple_of(64) { hidden_size / 64 } else { 1 },
            max_position_embeddings: two("embeddings.position_embedding.weight")?.0,
            hidden_act: if gelu { Activation::Gelu } else { Activation::QuickGelu },
            layer_norm_eps: 1e-5,
            projection_dim,
            eos_token_id: 2,
        };
        config.check()?;
        Ok(config)
    }

    /// SDXL's first encoder and SD 1.5's: CLIP ViT-L/14.
    pub fn clip_l() -> ClipTextConfig {
        ClipTextConfig {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: None,
            eos_token_id: 2,
        }
    }

    /// SDXL's second encoder: OpenCLIP ViT-bigG/14.
    pub fn open_clip_g() -> ClipTextConfig {
        ClipTextConfig {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            projection_dim: Some(1280),
            ..Self::clip_l()
        }
    }

    /// A size for tests.
    pub fn tiny() -> ClipTextConfig {
        ClipTextConfig {
            hidden_size: 24,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            ..Self::clip_l()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 20),
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, 4 * LARGEST),
            ("num_hidden_layers", self.num_hidden_layers, DEEPEST),
            ("max_position_embeddings", self.max_position_embeddings, LARGEST),
            ("projection_dim", self.projection_dim.unwrap_or(1), LARGEST),
        ];
        for (field, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(config_error(MODEL, field, size, format!("expected 1 to {most}")));
            }
        }
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        if heads == 0 || !width.is_multiple_of(heads) {
            let expected = format!("expected a divisor of `hidden_size`, {width}");
            return Err(config_error(MODEL, "num_attention_heads", heads, expected));
        }
        Ok(())
    }
}

fn vocabulary(fields: &Fields<'_>) -> Result<usize> {
    match fields.get("vocab_size").map(Value::as_u64) {
        None => Ok(49408),
        Some(Some(size @ 1..=0x10_0000)) => Ok(size as usize),
        Some(_) => Err(fields.refuse("vocab_size", "expected a whole number from 1 to 1048576")),
    }
}

fn is_with_projection(fields: &Fields<'_>) -> Result<bool> {
    let names = fields.texts("architectures")?.unwrap_or_default();
    Ok(names.contains(&"CLIPTextModelWithProjection"))
}
