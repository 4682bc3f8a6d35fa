//! The weighting syntax of AUTOMATIC1111's web UI.
//!
//! `(word)` counts 1.1 times, `(word:1.2)` 1.2 times, `[word]` 1/1.1 times; brackets nest and multiply; an open bracket
//! reaches to the end; `\(` `\)` `\[` `\]` `\\` are the characters themselves; `BREAK` starts a new part. Anything else
//! is text. Two of its faults are not repeated: there a `BREAK` inside brackets is read as a word of weight -1.1, and
//! `(word:1.2.3)` ends the program.

use crate::{Error, Result};

/// Whether brackets and `BREAK` mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Syntax {
    /// Weights and `BREAK`.
    #[default]
    Weighted,
    /// Everything is text, as in diffusers' own pipelines.
    Plain,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text and how much it counts.
    Text(String, f32),
    /// What follows starts a new sequence for the text encoder.
    Break,
}

/// Largest weight taken, by amount. Beyond it a picture is noise.
pub const MAX_WEIGHT: f64 = 100.0;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// Splits a prompt into pieces of one weight each; neighbours of equal weight are one piece.
///
/// # Errors
/// A weight that is no number, or one beyond [`MAX_WEIGHT`].
pub fn parse(prompt: &str, syntax: Syntax) -> Result<Vec<Piece>> {
    if syntax == Syntax::Plain {
        return Ok(vec![Piece::Text(prompt.to_string(), 1.0)]);
    }
    let mut pieces: Vec<(Option<String>, f64)> = Vec::new(); // None is a break
    let (mut round, mut square) = (Vec::new(), Vec::new()); // where the open brackets started
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            '\\' => {
                // A lone backslash vanishes, as there.
                let escaped = rest[1..].chars().next().filter(|c| r"()[]\".contains(*c));
                pieces.push((Some(escaped.map(String::from).unwrap_or_default()), 1.0));
                length += escaped.map_or(0, char::len_utf8);
            }
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ':' if !round.is_empty() && weight(rest).is_some() => {
                let (number, consumed) = weight(rest).unwrap_or_default();
                let value = number.parse::<f64>().ok().filter(|w| w.abs() <= MAX_WEIGHT).ok_or_else(|| {
                    Error::Refused(format!(
                        "the weight `{number}` in the prompt is no number from -{MAX_WEIGHT} to {MAX_WEIGHT}; \
                         write it as in (word:1.2), or put a backslash before brackets that are text"
                    ))
                })?;
                multiply(&mut pieces, round.pop(), value);
                length = consumed;
            }
            ')' if !round.is_empty() => multiply(&mut pieces, round.pop(), ROUND),
            ']' if !square.is_empty() => multiply(&mut pieces, square.pop(), SQUARE),
            ')' | ']' | ':' => pieces.push((Some(first.to_string()), 1.0)),
            _ => {
                length = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                push_text(&mut pieces, &rest[..length]);
            }
        }
        rest = &rest[length..];
    }
    round.into_iter().for_each(|start| multiply(&mut pieces, Some(start), ROUND));
    square.into_iter().for_each(|start| multiply(&mut pieces, Some(start), SQUARE));
    if let Some((_, w)) = pieces.iter().find(|(text, w)| text.is_some() && w.abs() > MAX_WEIGHT) {
        return Error::refused(format!(
            "nested brackets of the prompt multiply to the weight {w:.3e}; at most {MAX_WEIGHT} can be used"
        ));
    }
    Ok(merge(pieces))
}

/// Of `:1.2)`: the number, and how many bytes that is with colon and bracket.
fn weight(text: &str) -> Option<(&str, usize)> {
    let inside = &text[1..text.find(')')?];
    let number = inside.trim();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let is_weight = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_weight.then_some((number, inside.len() + 2))
}

fn multiply(pieces: &mut [(Option<String>, f64)], start: Option<usize>, factor: f64) {
    for (text, weight) in pieces.iter_mut().skip(start.unwrap_or(usize::MAX)) {
        if text.is_some() {
            *weight *= factor;
        }
    }
}

/// Text with `BREAK` as a word of its own; the white space around that goes with it.
fn push_text(pieces: &mut Vec<(Option<String>, f64)>, text: &str) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut from, mut search) = (0, 0);
    while let Some(at) = text[search..].find("BREAK").map(|at| at + search) {
        let after = at + "BREAK".len();
        search = after;
        if text[..at].chars().next_back().is_some_and(is_word) || text[after..].chars().next().is_some_and(is_word) {
            continue;
        }
        // Two breaks share the white space between them, which the first takes.
        pieces.push((Some(text[from..at.max(from)].trim_end().to_string()), 1.0));
        pieces.push((None, 1.0));
        from = text.len() - text[after..].trim_start().len();
    }
    pieces.push((Some(text[from..].to_string()), 1.0));
}

fn merge(pieces: Vec<(Option<String>, f64)>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::new();
    let mut last = f64::NAN;
    for (text, weight) in pieces {
        match (text, merged.last_mut()) {
            (None, _) => {
                merged.push(Piece::Break);
                last = f64::NAN;
            }
            (Some(text), Some(Piece::Text(before, _))) if weight == last => before.push_str(&text),
            (Some(text), _) => {
                merged.push(Piece::Text(text, weight as f32));
                last = weight;
            }
        }
    }
    if merged.is_empty() {
        merged.push(Piece::Text(String::new(), 1.0));
    }
    merged
}
