//! Prompts to what the UNet attends to.

use crate::plan::Plan;
use crate::prompt::{self, Chunks, Syntax};
use crate::session::Session;
use crate::{Error, Result};
use nets::{Added, ClipText};
use tensor::{DType, Device, Tensor, ops};

/// Text for both guidance halves, the negative first; one half where guidance is off.
pub(crate) struct Text {
    /// `[halves, chunks * 77, c]`, the encoders' channels side by side.
    pub(crate) tokens: Tensor,
    /// SDXL's pooled text with the picture's sizes.
    pub(crate) added: Option<Added>,
    /// What the user may want to know, in sentences.
    pub(crate) notes: Vec<String>,
}

/// One prompt through one encoder.
struct Coded {
    hidden: Tensor,
    pooled: Tensor,
}

/// Runs all text encoders in turn.
pub(crate) fn encode(plan: &Plan, session: &mut Session, device: &Device) -> Result<Text> {
    let syntax = if plan.plain_prompt { Syntax::Plain } else { Syntax::Weighted };
    let tokenizers = session.stack.tokenizers();
    let encoded = prompt::encode(&tokenizers, &plan.prompt, plan.negative.as_deref().unwrap_or(""), syntax)?;
    // The reference drops the negative prompt's code, not only its words, where none was given.
    let (has_added, count) = (session.stack.has_added(), tokenizers.len());
    let zeros = plan.negative.is_none() && session.stack.zeros_for_no_negative && has_added;
    let mut halves: Vec<Vec<Coded>> = if plan.guided { vec![Vec::new(), Vec::new()] } else { vec![Vec::new()] };
    for i in 0..count {
        let encoder = session.text_encoder(i, device)?;
        let positive = encode_one(encoder, &encoded.prompt[i], has_added)?;
        if plan.guided {
            halves[0].push(match zeros {
                true => Coded { hidden: zero(&positive.hidden)?, pooled: zero(&positive.pooled)? },
                false => encode_one(encoder, &encoded.negative[i], has_added)?,
            });
        }
        halves.last_mut().unwrap_or(&mut Vec::new()).push(positive);
    }
    let joined: Vec<Tensor> = halves
        .iter()
        .map(|half| ops::concat_last(&half.iter().map(|c| &c.hidden).collect::<Vec<_>>()))
        .collect::<std::result::Result<_, _>>()?;
    let tokens = ops::concat_rows(&joined.iter().collect::<Vec<_>>())?;
    let added = match has_added {
        true => {
            let last: Vec<&Tensor> = halves.iter().filter_map(|half| half.last()).map(|c| &c.pooled).collect();
            let (w, h) = (plan.width as f32, plan.height as f32);
            // Original size, crop, target size (SDXL, section 2.2), height before width.
            Some(Added { pooled: ops::concat_rows(&last)?, time_ids: vec![[h, w, 0.0, 0.0, h, w]; last.len()] })
        }
        false => None,
    };
    Ok(Text { tokens, added, notes: encoded.notes })
}

fn zero(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(like.device(), like.dtype(), like.shape())?)
}

/// SDXL reads the last layer's input, Stable Diffusion 1.5 its normalised output.
fn encode_one(encoder: &ClipText, chunks: &Chunks, penultimate: bool) -> Result<Coded> {
    let longest = chunks.ids().iter().map(Vec::len).max().unwrap_or(0);
    if longest > encoder.config().max_position_embeddings {
        return Error::refused(format!(
            "the tokenizer makes sequences of {longest} tokens, but the text encoder has {} positions; they are not of one model",
            encoder.config().max_position_embeddings
        ));
    }
    let out = encoder.forward(chunks.ids(), usize::from(penultimate))?;
    let hidden = if penultimate { out.hidden } else { out.last };
    let hidden = if chunks.is_weighted() { weighted(&hidden, chunks)? } else { hidden };
    let [count, n, c] = hidden.dims3()?;
    Ok(Coded { hidden: hidden.reshape(&[1, count * n, c])?, pooled: out.pooled.rows(0, 1)? })
}

fn weighted(hidden: &Tensor, chunks: &Chunks) -> Result<Tensor> {
    let mut values = hidden.to_vec_f32()?;
    chunks.apply_weights(&mut values);
    Ok(Tensor::from_f32(hidden.device(), DType::F32, hidden.shape(), &values)?)
}
