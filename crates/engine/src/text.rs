//! Prompts to what the UNet attends to.

use crate::networks::each;
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

impl Text {
    /// What one half of the guidance needs of it, on another device.
    pub(crate) fn half(&self, half: usize, device: &Device) -> Result<Text> {
        let added = self.added.as_ref().map(|added| {
            let time_ids = added.time_ids[half..half + 1].to_vec();
            Ok::<_, Error>(Added { pooled: added.pooled.rows(half, 1)?.to_device(device)?, time_ids })
        });
        let tokens = self.tokens.rows(half, 1)?.to_device(device)?;
        Ok(Text { tokens, added: added.transpose()?, notes: Vec::new() })
    }

    /// The same for so many pictures: rows half by half.
    pub(crate) fn of(&self, pictures: usize) -> Result<Text> {
        let added = self.added.as_ref().map(|added| {
            let time_ids = added.time_ids.iter().flat_map(|ids| vec![*ids; pictures]).collect();
            Ok::<_, Error>(Added { pooled: each(&added.pooled, pictures)?, time_ids })
        });
        Ok(Text { tokens: each(&self.tokens, pictures)?, added: added.transpose()?, notes: Vec::new() })
    }
}

/// One prompt through one encoder.
struct Coded {
    hidden: Tensor,
    pooled: Tensor,
}

/// Runs all text encoders in turn.
pub(crate) fn encode(plan: &Plan, session: &mut Session) -> Result<Text> {
    let syntax = if plan.plain_prompt { Syntax::Plain } else { Syntax::Weighted };
    let tokenizers = session.stack.tokenizers();
    let encoded = prompt::encode(&tokenizers, &plan.prompt, plan.negative.as_deref().unwrap_or(""), syntax)?;
    // The reference drops the negative prompt's code, not only its words, where none was given.
    let (has_added, count) = (session.stack.has_added(), tokenizers.len());
    let zeros = plan.negative.is_none() && session.stack.zeros_for_no_negative && has_added;
    let mut halves: Vec<Vec<Coded>> = if plan.guided { vec![Vec::new(), Vec::new()] } else { vec![Vec::new()] };
    for i in 0..count {
        let encoder = session.text_encoder(i, plan.compute)?;
        let both = [&encoded.prompt[i], &encoded.negative[i]];
        let wanted = if plan.guided && !zeros { &both[..] } else { &both[..1] };
        let mut coded = encode_together(encoder, wanted, has_added)?.into_iter();
        let positive = coded.next().ok_or_else(|| Error::Refused("the text encoder gave nothing".into()))?;
        if plan.guided {
            halves[0].push(match coded.next() {
                Some(negative) => negative,
                None => Coded { hidden: zero(&positive.hidden)?, pooled: zero(&positive.pooled)? },
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

/// All prompts in one run, so that weights are read once. SDXL reads the last layer's input, Stable Diffusion 1.5 its
/// normalised output.
fn encode_together(encoder: &ClipText, prompts: &[&Chunks], penultimate: bool) -> Result<Vec<Coded>> {
    let ids: Vec<Vec<u32>> = prompts.iter().flat_map(|chunks| chunks.ids()).cloned().collect();
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    if longest > encoder.config().max_position_embeddings {
        return Error::refused(format!(
            "the tokenizer makes sequences of {longest} tokens, but the text encoder has {} positions; they are not of one model",
            encoder.config().max_position_embeddings
        ));
    }
    let out = encoder.device().run(|| encoder.forward(&ids, usize::from(penultimate)))?;
    let all = if penultimate { out.hidden } else { out.last };
    let mut row = 0;
    let one = |chunks: &&Chunks| {
        let count = chunks.ids().len();
        let (hidden, pooled) = (all.rows(row, count)?, out.pooled.rows(row, 1)?);
        row += count;
        let hidden = if chunks.is_weighted() { weighted(&hidden, chunks)? } else { hidden };
        let [count, n, c] = hidden.dims3()?;
        Ok(Coded { hidden: hidden.reshape(&[1, count * n, c])?, pooled })
    };
    prompts.iter().map(one).collect()
}

fn weighted(hidden: &Tensor, chunks: &Chunks) -> Result<Tensor> {
    let mut values = hidden.to_vec_f32()?;
    chunks.apply_weights(&mut values);
    Ok(Tensor::from_f32(hidden.device(), DType::F32, hidden.shape(), &values)?)
}
