//! Attention over a picture's positions and over the context (diffusers' `Transformer2DModel`).

use crate::Result;
use crate::load::{GroupNorm, LayerNorm, Loader};
use std::sync::Arc;
use tensor::Tensor;
use tensor::ops::{self, Activation, KeyValue, Linear, PackedKeyValue, Rows};

/// Keys and values of a context `[b, m, c]`, which does not change between steps: packed once for the product.
pub(crate) fn keys(to_k: &Linear, to_v: &Linear, context: &Tensor, heads: usize) -> Result<Arc<PackedKeyValue>> {
    let (k, v) = (to_k.forward(context)?, to_v.forward(context)?);
    Ok(Arc::new(PackedKeyValue::with(KeyValue { k: &k, v: &v }, heads, to_k.products())?))
}

/// What one cross-attention attends to: the text, and the identity tokens where there are any.
#[derive(Debug, Clone)]
pub(crate) struct CrossKeys {
    pub(crate) text: Arc<PackedKeyValue>,
    pub(crate) identity: Option<Arc<PackedKeyValue>>,
}

/// What the blocks of one forward pass share.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    /// What the time step gives the channels of all residual blocks, `[b, n]` in f32.
    pub(crate) times: &'a Tensor,
    /// Keys and values of every cross-attention, in the order in which they run.
    pub(crate) keys: &'a [CrossKeys],
    pub(crate) identity_scale: f32,
}

/// Attention of a picture's positions to one another.
struct SelfAttention {
    /// `to_q`, `to_k` and `to_v` as one product.
    to_qkv: Linear,
    to_out: Linear,
    heads: usize,
}

impl SelfAttention {
    fn load(at: &Loader, norm: &mut LayerNorm, width: usize, heads: usize) -> Result<SelfAttention> {
        Ok(SelfAttention {
            to_qkv: at.stacked_behind(norm, &["to_q", "to_k", "to_v"], width, width)?,
            to_out: at.push("to_out.0").linear(width, width, true)?,
            heads,
        })
    }

    /// `x` normalised, `residual` before normalisation, both `[b, n, c]`.
    fn forward(&self, x: &Rows, residual: &Tensor) -> Result<Tensor> {
        let scale = scale(residual.last_dim(), self.heads);
        let qkv = self.to_qkv.forward_rows(x, None)?;
        let x = ops::attention_joined_for(&self.to_out, &qkv, self.heads, scale, self.to_qkv.products())?;
        Ok(self.to_out.forward_rows(&x, Some(residual))?)
    }
}

/// Attention to a context.
pub(crate) struct CrossAttention {
    to_q: Linear,
    pub(crate) to_k: Linear,
    pub(crate) to_v: Linear,
    to_out: Linear,
    pub(crate) heads: usize,
}

impl CrossAttention {
    fn load(at: &Loader, norm: &mut LayerNorm, width: usize, context: usize, heads: usize) -> Result<CrossAttention> {
        Ok(CrossAttention {
            to_q: at.push("to_q").linear_behind(norm, width, width, false)?,
            to_k: at.push("to_k").once().linear(context, width, false)?,
            to_v: at.push("to_v").once().linear(context, width, false)?,
            to_out: at.push("to_out.0").linear(width, width, true)?,
            heads,
        })
    }

    /// As [`SelfAttention::forward`], to `keys`.
    fn forward(&self, x: &Rows, keys: &CrossKeys, identity_scale: f32, residual: &Tensor) -> Result<Tensor> {
        // A weight of nothing must give the bytes of no identity, so the branch is not run at all.
        let second = keys.identity.as_deref().filter(|_| identity_scale != 0.0).map(|keys| (keys, identity_scale));
        let q = self.to_q.forward_rows(x, None)?;
        let scale = scale(q.last_dim(), self.heads);
        let x = ops::attention_packed_for(&self.to_out, &q, &keys.text, scale, second)?;
        Ok(self.to_out.forward_rows(&x, Some(residual))?)
    }
}

fn scale(width: usize, heads: usize) -> f32 {
    1.0 / ((width / heads) as f32).sqrt()
}

/// Self-attention, cross-attention, feed-forward (diffusers' `BasicTransformerBlock` with layer norms and GEGLU).
pub(crate) struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    pub(crate) attn2: CrossAttention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

/// Of the layer norms in every published model; no configuration has a field for it.
const LAYER_NORM_EPS: f32 = 1e-5;

impl TransformerBlock {
    fn load(at: &Loader, width: usize, context: usize, heads: usize) -> Result<TransformerBlock> {
        let norm = |name| at.push(name).layer_norm(width, LAYER_NORM_EPS);
        let (mut norm1, mut norm2, mut norm3) = (norm("norm1")?, norm("norm2")?, norm("norm3")?);
        Ok(TransformerBlock {
            attn1: SelfAttention::load(&at.push("attn1"), &mut norm1, width, heads)?,
            attn2: CrossAttention::load(&at.push("attn2"), &mut norm2, width, context, heads)?,
            ff_in: at.push("ff.net.0.proj").linear_behind(&mut norm3, width, 8 * width, true)?,
            norm1,
            norm2,
            norm3,
            ff_out: at.push("ff.net.2").linear(4 * width, width, true)?,
        })
    }

    fn forward(&self, x: &Tensor, keys: &CrossKeys, identity_scale: f32) -> Result<Tensor> {
        let mut x = self.attn1.forward(&self.norm1.forward_for(&self.attn1.to_qkv, x)?, x)?;
        let mut h = self.norm2.forward_for(&self.attn2.to_q, &x)?;
        x = self.attn2.forward(&h, keys, identity_scale, &x)?;
        h = self.norm3.forward_for(&self.ff_in, &x)?;
        h = self.ff_in.forward_geglu_for(&self.ff_out, &h)?;
        Ok(self.ff_out.forward_rows(&h, Some(&x))?)
    }

    /// The layers that read normalised rows compute in 8 bits from now on, and the one behind them; whether they can.
    fn narrow(&mut self) -> Result<bool> {
        let behind = self.attn1.to_qkv.narrow()? && self.attn2.to_q.narrow()?;
        if !(self.ff_in.narrow_gated(&mut self.ff_out)? && behind) {
            return Ok(false);
        }
        self.attn1.to_out.copy_in_eight();
        self.attn2.to_out.copy_in_eight();
        Ok(true)
    }
}

/// A stack of transformer blocks on the positions of a picture.
pub(crate) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Linear,
    pub(crate) transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
    /// Place of the first block among the network's cross-attentions, in the order in which they run.
    first: usize,
}

impl Transformer2D {
    /// Computes what the blocks' norms lead to in 8 bits from now on; whether all of it can be.
    pub(crate) fn narrow(&mut self) -> Result<bool> {
        self.transformer_blocks.iter_mut().try_fold(true, |all, block| Ok(block.narrow()? && all))
    }

    /// `next` counts the cross-attentions loaded so far.
    pub(crate) fn load(
        at: &Loader,
        width: usize,
        depth: usize,
        heads: usize,
        context: usize,
        groups: usize,
        next: &mut usize,
    ) -> Result<Transformer2D> {
        let first = *next;
        *next += depth;
        Ok(Transformer2D {
            norm: at.push("norm").group_norm(width, groups, 1e-6)?,
            proj_in: at.push("proj_in").linear(width, width, true)?,
            transformer_blocks: (0..depth)
                .map(|i| TransformerBlock::load(&at.push("transformer_blocks").push(i), width, context, heads))
                .collect::<Result<_>>()?,
            proj_out: at.push("proj_out").linear(width, width, true)?,
            first,
        })
    }

    /// `[b, h, w, c] -> [b, h, w, c]`.
    pub(crate) fn forward(&self, x: &Tensor, step: Step<'_>) -> Result<Tensor> {
        let [b, h, w, c] = x.dims4()?;
        let flat = x.reshape(&[b, h * w, c])?;
        let mut y = self.proj_in.forward(&self.norm.forward(&flat, Activation::None)?)?;
        for (block, keys) in self.transformer_blocks.iter().zip(&step.keys[self.first..]) {
            y = block.forward(&y, keys, step.identity_scale)?;
        }
        Ok(self.proj_out.forward_with(&y, Activation::None, Some(&flat))?.reshape(&[b, h, w, c])?)
    }
}
