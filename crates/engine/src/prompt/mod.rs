//! Prompts: words with weights, to tokens, to chunks that fit the text encoders.
//!
//! The way: [`weighting`] splits a prompt into pieces with weights, [`Tokenizer`] turns each into token ids, and
//! [`chunks`] lays these into as many sequences of the encoder's length as they need. After the encoders have run,
//! [`Chunks::apply_weights`] scales what they gave.

pub mod chunks;
pub mod tokenizer;
mod vocabulary;
pub mod weighting;

pub use chunks::Chunks;
pub use tokenizer::Tokenizer;
pub use weighting::{Piece, Syntax};

use crate::{Error, Result};

/// Longest prompt taken, in bytes. Each 75 tokens cost a pass of both text encoders and lengthen every attention.
pub const MAX_PROMPT_BYTES: usize = 16 * 1024;

/// A prompt and a negative prompt as the text encoders want them.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The prompt's chunks, one entry for each tokenizer.
    pub prompt: Vec<Chunks>,
    /// The negative prompt's chunks, one entry for each tokenizer, as many chunks as the prompt's.
    pub negative: Vec<Chunks>,
    /// What the user may want to know, in sentences.
    pub notes: Vec<String>,
}

/// Encodes a prompt and its negative for all text encoders, padded to one common number of chunks.
///
/// # Errors
/// A prompt that is too long, holds control characters, or has a weight that is no number.
pub fn encode(tokenizers: &[&Tokenizer], prompt: &str, negative: &str, syntax: Syntax) -> Result<Encoded> {
    let mut notes = Vec::new();
    let mut encode_one = |name: &str, text: &str| -> Result<Vec<Chunks>> {
        check(name, text)?;
        let pieces = weighting::parse(text, syntax)?;
        let encoded: Vec<Chunks> = tokenizers.iter().map(|t| Chunks::new(t, &pieces)).collect();
        if let Some(longest) = encoded.iter().max_by_key(|c| c.len()).filter(|c| c.len() > 1) {
            notes.push(format!(
                "the {name} has {} tokens, which the text encoder reads in {} parts of up to {}",
                longest.tokens(),
                longest.len(),
                longest.room()
            ));
        }
        Ok(encoded)
    };
    let mut prompt = encode_one("prompt", prompt)?;
    let mut negative = encode_one("negative prompt", negative)?;
    let most = prompt.iter().chain(&negative).map(Chunks::len).max().unwrap_or(0);
    for (i, tokenizer) in tokenizers.iter().enumerate() {
        prompt[i].pad_to(most, tokenizer);
        negative[i].pad_to(most, tokenizer);
    }
    Ok(Encoded { prompt, negative, notes })
}

/// Refuses what is too long or would travel badly: control characters other than tab and line ends.
fn check(name: &str, text: &str) -> Result<()> {
    if text.len() > MAX_PROMPT_BYTES {
        return Error::refused(format!(
            "the {name} is {} bytes long; at most {MAX_PROMPT_BYTES} can be used",
            text.len()
        ));
    }
    match text.chars().enumerate().find(|(_, c)| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        Some((place, c)) => Error::refused(format!(
            "the {name} holds the control character U+{:04X} as its character {}; only text, tabs and line ends can be used",
            u32::from(c),
            place + 1
        )),
        None => Ok(()),
    }
}
