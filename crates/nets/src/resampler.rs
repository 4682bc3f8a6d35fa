//! InstantID's perceiver resampler (arXiv:2204.14198): a face embedding becomes identity tokens.

use crate::error::{input, unrecognised};
use crate::fields::{DEEPEST, Fields, LARGEST, config_error};
use crate::load::{LayerNorm, Loader};
use crate::{Numbers, Result};
use serde_json::Value;
use tensor::ops::{self, Activation, KeyValue, Linear};
use tensor::{DType, Device, Tensor};
use weights::Scope;

const MODEL: &str = "Resampler";

/// The sizes of a resampler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResamplerConfig {
    /// Width inside.
    pub dim: usize,
    /// Layers.
    pub depth: usize,
    /// Width of an attention head. Shapes do not tell it.
    pub dim_head: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens that come out.
    pub num_queries: usize,
    /// Width of the face embedding.
    pub embedding_dim: usize,
    /// Width of the tokens that come out: the UNet's context width.
    pub output_dim: usize,
    /// Width inside the feed-forward layers.
    pub ff_dim: usize,
}

impl ResamplerConfig {
    /// From the tensors (`latents`, `proj_in.weight` and so on), and a sidecar's `dim_head` or `heads` where there is
    /// one. Without it a head has 64 channels as in InstantID, or, where 64 does not divide the inner width, the
    /// greatest power of two that does; an odd width is one head.
    ///
    /// # Errors
    /// The tensors are not a resampler's, or the sidecar contradicts them.
    pub fn infer(scope: &Scope, sidecar: Option<&Value>) -> Result<ResamplerConfig> {
        let two = |leaf: &str| match scope.shape(leaf).as_deref() {
            Some(&[a, b]) => Ok((a, b)),
            Some(_) => Err(unrecognised(MODEL, scope, format!("`{}` does not have two dimensions", scope.name(leaf)))),
            None => Err(unrecognised(MODEL, scope, format!("it has no `{}`", scope.name(leaf)))),
        };
        let num_queries = match scope.shape("latents").as_deref() {
            Some(&[1, queries, _]) => queries,
            _ => {
                return Err(unrecognised(
                    MODEL,
                    scope,
                    format!("it has no `{}` of [1, tokens, width]", scope.name("latents")),
                ));
            }
        };
        let (dim, embedding_dim) = two("proj_in.weight")?;
        let (output_dim, _) = two("proj_out.weight")?;
        let (inner, _) = two("layers.0.0.to_q.weight")?;
        let (ff_dim, _) = two("layers.0.1.1.weight")?;
        let dim_head = match sidecar {
            Some(value) => Self::head_width(&Fields::new(MODEL, value)?, inner)?,
            None => Self::guess_head_width(inner),
        };
        let config = ResamplerConfig {
            dim,
            depth: Loader::count(&scope.push("layers")),
            dim_head,
            heads: inner / dim_head.max(1),
            num_queries,
            embedding_dim,
            output_dim,
            ff_dim,
        };
        config.check()?;
        Ok(config)
    }

    fn guess_head_width(inner: usize) -> usize {
        match 1 << inner.trailing_zeros().min(6) {
            1 => inner,
            power => power,
        }
    }

    fn head_width(fields: &Fields<'_>, inner: usize) -> Result<usize> {
        let by_heads = fields.size_if("heads")?;
        if by_heads.is_some_and(|heads| !inner.is_multiple_of(heads)) {
            return Err(fields.refuse("heads", format!("expected a divisor of the inner width, {inner}")));
        }
        let by_heads = by_heads.map(|heads| inner / heads);
        match (fields.size_if("dim_head")?, by_heads) {
            (Some(width), by_heads) if inner.is_multiple_of(width) && by_heads.is_none_or(|other| other == width) => {
                Ok(width)
            }
            (Some(_), Some(other)) => Err(fields.refuse("dim_head", format!("expected {other}, as `heads` says"))),
            (Some(_), None) => {
                Err(fields.refuse("dim_head", format!("expected a divisor of the inner width, {inner}")))
            }
            (None, Some(width)) => Ok(width),
            (None, None) => Ok(Self::guess_head_width(inner)),
        }
    }

    /// InstantID's resampler for SDXL.
    pub fn instantid() -> ResamplerConfig {
        ResamplerConfig {
            dim: 1280,
            depth: 4,
            dim_head: 64,
            heads: 20,
            num_queries: 16,
            embedding_dim: 512,
            output_dim: 2048,
            ff_dim: 5120,
        }
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("dim", self.dim),
            ("dim_head", self.dim_head),
            ("heads", self.heads),
            ("num_queries", self.num_queries),
            ("embedding_dim", self.embedding_dim),
            ("output_dim", self.output_dim),
            ("the feed-forward width", self.ff_dim),
        ];
        for (field, size) in sizes {
            if !(1..=4 * LARGEST).contains(&size) {
                return Err(config_error(MODEL, field, size, format!("expected 1 to {}", 4 * LARGEST)));
            }
        }
        match self.depth <= DEEPEST {
            true => Ok(()),
            false => Err(config_error(MODEL, "depth", self.depth, format!("expected up to {DEEPEST}"))),
        }
    }
}

/// Attention of the latents to the embedding and to themselves.
struct PerceiverAttention {
    norm1: LayerNorm,
    norm2: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

struct Layer {
    attention: PerceiverAttention,
    norm: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

/// Face embeddings to identity tokens.
pub struct Resampler {
    latents: Tensor,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
    norm_out: LayerNorm,
    config: ResamplerConfig,
    dtype: DType,
}

/// PyTorch's default; the resampler sets none.
const EPS: f32 = 1e-5;

impl Resampler {
    /// Builds the network from its tensors.
    ///
    /// # Errors
    /// As [`crate::UNet::load`].
    pub fn load(
        scope: &Scope,
        config: &ResamplerConfig,
        device: &Device,
        numbers: impl Into<Numbers>,
    ) -> Result<Resampler> {
        config.check()?;
        let at = Loader::new(scope, device, numbers);
        let Numbers { dtype, products } = at.numbers;
        let &ResamplerConfig { dim, ff_dim, .. } = config;
        let inner = config.heads * config.dim_head;
        let layer = |i: usize| -> Result<Layer> {
            let (attention, ff) = (at.push("layers").push(i).push(0), at.push("layers").push(i).push(1));
            // One tensor for keys and values in the file; their rows come one after the other.
            let to_kv = attention.push("to_kv").tensor("weight", &[2 * inner, dim])?;
            Ok(Layer {
                attention: PerceiverAttention {
                    norm1: attention.push("norm1").layer_norm(dim, EPS)?,
                    norm2: attention.push("norm2").layer_norm(dim, EPS)?,
                    to_q: attention.push("to_q").linear(dim, inner, false)?,
                    to_k: Linear::with(&to_kv.rows(0, inner)?, None, products)?,
                    to_v: Linear::with(&to_kv.rows(inner, inner)?, None, products)?,
                    to_out: attention.push("to_out").linear(inner, dim, false)?,
                },
                norm: ff.push(0).layer_norm(dim, EPS)?,
                ff_in: ff.push(1).linear(dim, ff_dim, false)?,
                ff_out: ff.push(3).linear(ff_dim, dim, false)?,
            })
        };
        Ok(Resampler {
            latents: at.tensor("latents", &[1, config.num_queries, dim])?,
            proj_in: at.push("proj_in").linear(config.embedding_dim, dim, true)?,
            layers: (0..config.depth).map(layer).collect::<Result<_>>()?,
            proj_out: at.push("proj_out").linear(dim, config.output_dim, true)?,
            norm_out: at.push("norm_out").layer_norm(config.output_dim, EPS)?,
            config: config.clone(),
            dtype,
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ResamplerConfig {
        &self.config
    }

    /// `[b, n, embedding_dim] -> [b, num_queries, output_dim]` in the compute type; n is 1 for a face.
    ///
    /// # Errors
    /// A shape that does not fit, no memory.
    pub fn forward(&self, embedding: &Tensor) -> Result<Tensor> {
        let batch = match *embedding.shape() {
            [b, n, c] if c == self.config.embedding_dim && b > 0 && n > 0 => b,
            _ => {
                let expected = format!("[rows, faces, {}]", self.config.embedding_dim);
                return Err(input(MODEL, "the face embedding", embedding.shape(), expected));
            }
        };
        let x = self.proj_in.forward(&embedding.cast(self.dtype)?)?;
        let mut latents = ops::repeat_rows(&self.latents, batch)?;
        for layer in &self.layers {
            latents = self.attend(&layer.attention, &x, &latents)?;
            let h = layer.ff_in.forward_with(&layer.norm.forward(&latents)?, Activation::Gelu, None)?;
            latents = layer.ff_out.forward_with(&h, Activation::None, Some(&latents))?;
        }
        self.norm_out.forward(&self.proj_out.forward(&latents)?)
    }

    /// `x [b, n, c]`, `latents [b, m, c] -> [b, m, c]`.
    fn attend(&self, attention: &PerceiverAttention, x: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let queries = attention.norm2.forward(latents)?;
        let seen = ops::concat_axis1(&[&attention.norm1.forward(x)?, &queries])?;
        let q = attention.to_q.forward(&queries)?;
        let (k, v) = (attention.to_k.forward(&seen)?, attention.to_v.forward(&seen)?);
        let scale = 1.0 / (self.config.dim_head as f32).sqrt();
        let y = ops::attention(&q, KeyValue { k: &k, v: &v }, self.config.heads, scale, false, None)?;
        Ok(attention.to_out.forward_with(&y, Activation::None, Some(latents))?)
    }
}
