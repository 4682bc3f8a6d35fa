//! Tokens laid into sequences of the text encoder's length, as AUTOMATIC1111's web UI does.
//!
//! A prompt of any length becomes chunks of 75 tokens between a start and an end token. Where a chunk would end within
//! [`COMMA_REACH`] tokens after a comma, what follows the comma moves to the next one. The encoders read each chunk by
//! itself, their outputs stand one after the other, and the pooled output is the first chunk's. A prompt of up to 75
//! tokens without weights gives exactly what diffusers' pipelines give.

use super::{Piece, Tokenizer};

/// How many tokens a chunk may give up to end at a comma.
pub const COMMA_REACH: usize = 20;

/// One prompt for one text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    ids: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
    tokens: usize,
    room: usize,
}

impl Chunks {
    /// Lays out the pieces; there is always at least one chunk.
    pub fn new(tokenizer: &Tokenizer, pieces: &[Piece]) -> Chunks {
        let room = tokenizer.max_length() - 2;
        let mut chunks = Chunks { ids: Vec::new(), weights: Vec::new(), tokens: 0, room };
        let mut open: Vec<(u32, f32)> = Vec::with_capacity(room);
        let mut last_comma = None;
        for piece in pieces {
            let Piece::Text(text, weight) = piece else {
                chunks.close(tokenizer, &mut open);
                last_comma = None;
                continue;
            };
            for id in tokenizer.encode(text) {
                if Some(id) == tokenizer.comma() {
                    last_comma = Some(open.len());
                } else if let Some(comma) = last_comma.filter(|c| open.len() == room && room - c <= COMMA_REACH) {
                    let moved = open.split_off(comma + 1);
                    chunks.close(tokenizer, &mut open);
                    last_comma = None;
                    open = moved;
                }
                if open.len() == room {
                    chunks.close(tokenizer, &mut open);
                    last_comma = None;
                }
                open.push((id, *weight));
                chunks.tokens += 1;
            }
        }
        if !open.is_empty() || chunks.ids.is_empty() {
            chunks.close(tokenizer, &mut open);
        }
        chunks
    }

    fn close(&mut self, tokenizer: &Tokenizer, open: &mut Vec<(u32, f32)>) {
        let length = tokenizer.max_length();
        let mut ids = vec![tokenizer.pad(); length];
        let mut weights = vec![1.0; length];
        ids[0] = tokenizer.bos();
        ids[open.len() + 1] = tokenizer.eos();
        for (i, (id, weight)) in open.drain(..).enumerate() {
            (ids[i + 1], weights[i + 1]) = (id, weight);
        }
        self.ids.push(ids);
        self.weights.push(weights);
    }

    /// Appends empty chunks until there are `count`.
    pub fn pad_to(&mut self, count: usize, tokenizer: &Tokenizer) {
        while self.ids.len() < count {
            self.close(tokenizer, &mut Vec::new());
        }
    }

    /// The sequences, each of the tokenizer's `max_length`, with start, end and padding.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// The weight of each token, in the shape of [`Chunks::ids`].
    pub fn weights(&self) -> &[Vec<f32>] {
        &self.weights
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Never: there is always one chunk.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// How many tokens the prompt has, without start, end and padding.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many of these fit one chunk.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Whether any token counts other than once.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().flatten().any(|w| *w != 1.0)
    }

    /// Scales what the encoder gave, `hidden` [chunks, max_length, c], by the tokens' weights, and restores each chunk's
    /// mean: the web UI's default ("Original" emphasis), there too by encoder and chunk. The pooled output stays as it is.
    ///
    /// Chunks without weights are left untouched, byte for byte.
    pub fn apply_weights(&self, hidden: &mut [f32]) {
        let size = hidden.len() / self.len().max(1);
        if size == 0 {
            return;
        }
        for (chunk, weights) in hidden.chunks_exact_mut(size).zip(&self.weights) {
            if weights.iter().all(|w| *w == 1.0) {
                continue;
            }
            let channels = size / weights.len();
            let before = mean(chunk);
            for (row, weight) in chunk.chunks_exact_mut(channels.max(1)).zip(weights) {
                row.iter_mut().for_each(|v| *v *= weight);
            }
            let scale = (before / mean(chunk)) as f32;
            if scale.is_finite() {
                chunk.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64
}
