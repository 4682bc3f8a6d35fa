//! CLIP's text encoders (arXiv:2103.00020; transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`).

mod config;

pub use config::ClipTextConfig;

use crate::error::input;
use crate::load::{LayerNorm, Loader};
use crate::{Numbers, Result};
use tensor::ops::{self, Activation, Linear};
use tensor::{Device, Tensor};
use weights::Scope;

const MODEL: &str = "CLIP text encoder";

struct SelfAttention {
    /// `q_proj`, `k_proj` and `v_proj` as one product.
    qkv_proj: Linear,
    out_proj: Linear,
}

struct Layer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// Where the layers come from.
enum Layers {
    /// In memory.
    Built(Vec<Layer>),
    /// From their tensors, each when its turn comes, in the memory of the one before.
    Streamed(Loader),
}

/// Token numbers to hidden states.
pub struct ClipText {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Layers,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

/// What the encoder gives, in its compute type.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// The requested layer without the final norm, `[b, n, c]`.
    pub hidden: Tensor,
    /// The last layer with the final norm, `[b, n, c]`.
    pub last: Tensor,
    /// `last` at the end of the text, projected where the encoder has a projection, `[b, p]`.
    pub pooled: Tensor,
}

impl ClipText {
    /// Builds the encoder from its tensors, whether their names begin with `text_model.` or not.
    ///
    /// # Errors
    /// As [`crate::UNet::load`].
    pub fn load(
        scope: &Scope,
        config: &ClipTextConfig,
        device: &Device,
        numbers: impl Into<Numbers>,
    ) -> Result<ClipText> {
        let mut encoder = ClipText::open(scope, config, device, numbers)?;
        if let Layers::Streamed(at) = &encoder.layers {
            let layers = (0..config.num_hidden_layers).map(|i| Layer::load(at, i, config));
            encoder.layers = Layers::Built(layers.collect::<Result<_>>()?);
        }
        Ok(encoder)
    }

    /// As [`ClipText::load`], but the layers are built anew in each [`ClipText::forward`], one after the other in the
    /// same memory: for an encoder that is used once, which most are.
    ///
    /// # Errors
    /// As there; what is wrong with a layer's tensors is told by `forward`.
    pub fn open(
        scope: &Scope,
        config: &ClipTextConfig,
        device: &Device,
        numbers: impl Into<Numbers>,
    ) -> Result<ClipText> {
        config.check()?;
        let root = Loader::new(scope, device, numbers);
        let at = match config::is_prefixed(scope) {
            true => root.push("text_model"),
            false => root.clone(),
        };
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = at.push("embeddings");
        // A buffer of 0, 1, 2, ... that older files hold.
        embeddings.scope.ignore("position_ids");
        Ok(ClipText {
            token_embedding: embeddings.tensor("token_embedding.weight", &[config.vocab_size, width])?,
            position_embedding: embeddings
                .tensor("position_embedding.weight", &[config.max_position_embeddings, width])?,
            layers: Layers::Streamed(at.push("encoder.layers")),
            final_layer_norm: at.push("final_layer_norm").layer_norm(width, eps)?,
            text_projection: config
                .projection_dim
                .map(|dim| root.push("text_projection").linear(width, dim, false))
                .transpose()?,
            config: config.clone(),
        })
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        *self.token_embedding.device()
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// `ids`: rows of equal length, at most [`ClipTextConfig::max_position_embeddings`]. `skip`: how many of the last
    /// layers the `hidden` result leaves out; SDXL takes 1, a clip skip of n adds n.
    ///
    /// # Errors
    /// Rows of different or too great length, a number beyond the vocabulary, `skip` beyond the layers, no memory.
    pub fn forward(&self, ids: &[Vec<u32>], skip: usize) -> Result<ClipOutput> {
        let (rows, len) = self.check_ids(ids)?;
        let layers = self.config.num_hidden_layers;
        if skip > layers {
            return Err(input(MODEL, "the number of skipped layers", skip, format!("0 to {layers}")));
        }
        let width = self.config.hidden_size;
        let tokens = ops::embedding(&self.token_embedding, &ids.concat())?.reshape(&[rows, len, width])?;
        let places = self.position_embedding.rows(0, len)?.reshape(&[1, len, width])?;
        let mut x = ops::add(&tokens, &ops::repeat_rows(&places, rows)?)?;
        let mut hidden = x.clone();
        let (heads, act) = (self.config.num_attention_heads, self.config.hidden_act);
        for i in 0..layers {
            x = match &self.layers {
                Layers::Built(layers) => layers[i].forward(&x, heads, act)?,
                Layers::Streamed(at) => Layer::load(at, i, &self.config)?.forward(&x, heads, act)?,
            };
            if i + 1 + skip == layers {
                hidden = x.clone();
            }
        }
        let last = self.final_layer_norm.forward(&x)?;
        let flat = last.reshape(&[rows * len, width])?;
        let ends = ids.iter().enumerate().map(|(row, ids)| flat.rows(row * len + self.end(ids), 1));
        let ends = ends.collect::<std::result::Result<Vec<_>, _>>()?;
        let pooled = ops::concat_rows(&ends.iter().collect::<Vec<_>>())?;
        let pooled = match &self.text_projection {
            Some(project) => project.forward(&pooled)?,
            None => pooled,
        };
        Ok(ClipOutput { hidden, last, pooled })
    }

    /// Applies the encoder's final norm, which Stable Diffusion 1.5 wants on a skipped layer and SDXL does not.
    ///
    /// # Errors
    /// A shape that does not fit, no memory.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.final_layer_norm.forward(hidden)
    }

    /// Where the text ends. Configurations from before transformers' #24773 say 2, which is no token of CLIP's: there
    /// the greatest number is the end. Otherwise the first end token is, and the first place if there is none.
    fn end(&self, ids: &[u32]) -> usize {
        let end = match self.config.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or(0),
            eos => eos,
        };
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }

    fn check_ids(&self, ids: &[Vec<u32>]) -> Result<(usize, usize)> {
        let len = ids.first().map_or(0, Vec::len);
        let most = self.config.max_position_embeddings;
        if !(1..=most).contains(&len) || ids.iter().any(|row| row.len() != len) {
            let got: Vec<usize> = ids.iter().map(Vec::len).take(8).collect();
            return Err(input(
                MODEL,
                "the number of tokens in each row",
                got,
                format!("the same everywhere, 1 to {most}"),
            ));
        }
        match ids.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(id) => Err(input(MODEL, "a token", id, format!("less than {}", self.config.vocab_size))),
            None => Ok((ids.len(), len)),
        }
    }
}

impl Layer {
    /// Layer `i` of those at `at`.
    fn load(at: &Loader, i: usize, config: &ClipTextConfig) -> Result<Layer> {
        let &ClipTextConfig { hidden_size: width, intermediate_size: inner, layer_norm_eps: eps, .. } = config;
        let (at, attention) = (at.push(i), at.push(i).push("self_attn"));
        Ok(Layer {
            layer_norm1: at.push("layer_norm1").layer_norm(width, eps)?,
            self_attn: SelfAttention {
                qkv_proj: attention.stacked(&["q_proj", "k_proj", "v_proj"], width, width, true)?,
                out_proj: attention.push("out_proj").linear(width, width, true)?,
            },
            layer_norm2: at.push("layer_norm2").layer_norm(width, eps)?,
            fc1: at.push("mlp.fc1").linear(width, inner, true)?,
            fc2: at.push("mlp.fc2").linear(inner, width, true)?,
        })
    }

    /// `[b, n, c] -> [b, n, c]`.
    fn forward(&self, x: &Tensor, heads: usize, act: Activation) -> Result<Tensor> {
        let SelfAttention { qkv_proj, out_proj } = &self.self_attn;
        let qkv = qkv_proj.forward(&self.layer_norm1.forward(x)?)?;
        let scale = 1.0 / ((x.last_dim() / heads) as f32).sqrt();
        let h = ops::attention_joined_with(&qkv, heads, scale, true, qkv_proj.products())?;
        let x = out_proj.forward_with(&h, Activation::None, Some(x))?;
        let h = self.fc1.forward_with(&self.layer_norm2.forward(&x)?, act, None)?;
        Ok(self.fc2.forward_with(&h, Activation::None, Some(&x))?)
    }
}
