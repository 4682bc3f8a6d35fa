//! Embeddings of time steps and of the numbers that SDXL adds to them.

use crate::load::Loader;
use crate::{Result, error::input};
use tensor::ops::{self, Activation, Linear};
use tensor::{DType, Device, Tensor};

/// What SDXL conditions on beside the text: the pooled text and six sizes.
#[derive(Debug, Clone)]
pub struct Added {
    /// Pooled text, `[b, p]`.
    pub pooled: Tensor,
    /// For each row: original height and width, crop top and left, target height and width, in pixels.
    pub time_ids: Vec<[f32; 6]>,
}

/// Sinusoids of a number, as in "Attention is all you need" (arXiv:1706.03762, section 3.5) and diffusers'
/// `get_timestep_embedding`.
pub(crate) struct Timesteps {
    frequencies: Vec<f32>,
    width: usize,
    flip_sin_to_cos: bool,
}

impl Timesteps {
    pub(crate) fn new(width: usize, flip_sin_to_cos: bool, freq_shift: f32) -> Timesteps {
        let half = width / 2;
        let frequencies = (0..half)
            .map(|i| {
                // In f32 as the reference does it: at a thousand steps one unit in the last place shows.
                let exponent = (-(10000f64.ln()) as f32 * i as f32) / (half as f32 - freq_shift);
                f64::from(exponent).exp() as f32
            })
            .collect();
        Timesteps { frequencies, width, flip_sin_to_cos }
    }

    /// Appends the embedding of `value` to `out`.
    pub(crate) fn embed(&self, value: f32, out: &mut Vec<f32>) {
        let end = out.len() + self.width;
        let sin = |f: &f32| f64::from(value * f).sin() as f32;
        let cos = |f: &f32| f64::from(value * f).cos() as f32;
        if self.flip_sin_to_cos {
            out.extend(self.frequencies.iter().map(cos));
            out.extend(self.frequencies.iter().map(sin));
        } else {
            out.extend(self.frequencies.iter().map(sin));
            out.extend(self.frequencies.iter().map(cos));
        }
        out.resize(end, 0.0);
    }
}

/// The embedding of a guidance weight in latent consistency models (arXiv:2310.04378), `width` numbers.
pub(crate) fn guidance_embedding(guidance: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    let rate = 10000f64.ln() / (half as f64 - 1.0);
    let angle = |i: usize| f64::from((guidance - 1.0) * 1000.0 * (i as f64 * -rate).exp() as f32);
    let mut out: Vec<f32> = (0..half).map(|i| angle(i).sin() as f32).collect();
    out.extend((0..half).map(|i| angle(i).cos() as f32));
    out.resize(width, 0.0);
    out
}

/// Two linear layers around an activation.
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    /// Of latent consistency models: the guidance weight's way in.
    pub(crate) cond_proj: Option<Linear>,
    act: Activation,
}

impl TimestepEmbedding {
    pub(crate) fn load(
        at: &Loader,
        inputs: usize,
        width: usize,
        act: Activation,
        cond_proj_dim: Option<usize>,
    ) -> Result<TimestepEmbedding> {
        Ok(TimestepEmbedding {
            linear_1: at.push("linear_1").linear(inputs, width, true)?,
            linear_2: at.push("linear_2").linear(width, width, true)?,
            cond_proj: cond_proj_dim.map(|dim| at.push("cond_proj").linear(dim, inputs, false)).transpose()?,
            act,
        })
    }

    /// `[b, inputs] -> [b, width]`, plus `residual`.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let x = self.linear_1.forward_with(x, self.act, None)?;
        Ok(self.linear_2.forward_with(&x, Activation::None, residual)?)
    }
}

/// The embedding of [`Added`], `[b, width]` in f32, constant over the steps.
pub(crate) fn added_embedding(
    model: &'static str,
    embedding: &TimestepEmbedding,
    added: &Added,
    batch: usize,
    inputs: usize,
    given_width: Option<usize>,
    timesteps: impl Fn(usize) -> Timesteps,
    device: &Device,
) -> Result<Tensor> {
    let (rows, pooled) = match *added.pooled.shape() {
        [rows, pooled] => (rows, pooled),
        _ => return Err(input(model, "the pooled text", added.pooled.shape(), "two dimensions")),
    };
    if rows != batch || added.time_ids.len() != batch {
        return Err(input(
            model,
            "the number of rows of pooled text and of sizes",
            (rows, added.time_ids.len()),
            format!("{batch}, as many as rows of text"),
        ));
    }
    // The width of one number's embedding cannot be told from the tensors alone; with the pooled text's it can.
    let width = given_width.unwrap_or(inputs.saturating_sub(pooled) / 6);
    if pooled + 6 * width != inputs {
        return Err(input(
            model,
            "the width of the pooled text",
            pooled,
            match given_width {
                Some(width) => {
                    format!("{}: `add_embedding` takes {inputs} less 6 x {width}", inputs as i64 - 6 * width as i64)
                }
                None => format!("{inputs} less a multiple of 6, as `add_embedding` takes it"),
            },
        ));
    }
    let table = timesteps(width);
    let mut ids = Vec::with_capacity(batch * 6 * width);
    added.time_ids.iter().flatten().for_each(|&id| table.embed(id, &mut ids));
    let ids = Tensor::from_f32(device, DType::F32, &[batch, 6 * width], &ids)?;
    embedding.forward(&ops::concat_last(&[&added.pooled.cast(DType::F32)?, &ids])?, None)
}
