//! CLIP's byte-pair encoding, equal to `CLIPTokenizer` of transformers 5.
//!
//! Written here rather than taken from a crate, after trying two on the texts of the fixture: `instant-clip-tokenizer`
//! 0.1 gives other tokens for 23 of 100 (no Unicode normalisation, no added tokens) and reads no folders; `tokenizers`
//! 0.23 is exact but brings some sixty crates and a minute of building for what is one regular expression and one loop
//! here. Of all code points this differs from transformers 5.23 in three, whose composition is new in Unicode 16.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::vocabulary::{self, Vocabulary};
use crate::Result;

/// Words, single digits, and runs of anything else but white space. As in CLIP.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
        .expect("a constant expression")
});

/// What tells that a neighbouring character continues a word, for added tokens that must stand alone.
static WORD_CHARACTER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\w$").expect("a constant expression"));

/// Text to token ids, for one text encoder.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    /// Tokens found in the text as it stands, and tokens found after normalisation.
    added: [Option<AddedTokens>; 2],
    bos: u32,
    eos: u32,
    pad: u32,
    unknown: Option<u32>,
    comma: Option<u32>,
    max_length: usize,
}

#[derive(Clone, Debug)]
struct AddedTokens {
    finder: AhoCorasick,
    tokens: Vec<(u32, bool)>, // id, must stand alone
}

/// A token that is looked for in the text before it is split into words.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) normalized: bool,
}

/// What a folder or the embedded vocabulary says.
pub(super) struct Parts {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) added: Vec<Added>,
    pub(super) bos: u32,
    pub(super) eos: u32,
    pub(super) pad: u32,
    pub(super) unknown: Option<u32>,
    pub(super) max_length: usize,
}

impl Tokenizer {
    /// The tokenizer of OpenAI's CLIP, from the embedded vocabulary: SD 1.5's, and SDXL's first. Pads with the end token.
    pub fn clip() -> Tokenizer {
        Tokenizer::from_parts(vocabulary::embedded("<|endoftext|>")).expect("the embedded vocabulary is sound")
    }

    /// SDXL's second tokenizer: the same vocabulary, padded with `!` (id 0).
    ///
    /// As in transformers, that makes every `!` of a prompt the padding token, also at the end of a word.
    pub fn clip_padded_with_zero() -> Tokenizer {
        Tokenizer::from_parts(vocabulary::embedded("!")).expect("the embedded vocabulary is sound")
    }

    /// Reads the `tokenizer` or `tokenizer_2` folder of a model: `tokenizer.json`, or `vocab.json` with `merges.txt`,
    /// with `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// # Errors
    /// A missing or broken file, or one that describes another kind of tokenizer, named.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        Tokenizer::from_parts(vocabulary::open(folder)?)
    }

    pub(super) fn from_parts(parts: Parts) -> Result<Tokenizer> {
        let build = |normalized: bool| {
            let (patterns, tokens): (Vec<String>, Vec<(u32, bool)>) = parts
                .added
                .iter()
                .filter(|a| a.normalized == normalized)
                .map(|a| (if normalized { normalize(&a.content) } else { a.content.clone() }, (a.id, a.single_word)))
                .filter(|(content, _)| !content.is_empty())
                .unzip();
            let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns);
            // An automaton fails to build only for gigabytes of patterns, which the file size limits exclude.
            finder.ok().filter(|_| !patterns.is_empty()).map(|finder| AddedTokens { finder, tokens })
        };
        Ok(Tokenizer {
            added: [build(false), build(true)],
            comma: parts.vocabulary.id(",</w>"),
            bos: parts.bos,
            eos: parts.eos,
            pad: parts.pad,
            unknown: parts.unknown,
            max_length: parts.max_length,
            vocabulary: parts.vocabulary,
        })
    }

    /// The token that starts every sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The token that ends the text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token that fills a sequence after its end.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// A comma at the end of a word, where long prompts are best split.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// Length of a sequence with its start and end tokens (77 for CLIP).
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The largest id that can come out; the encoder's embedding must have more rows than this.
    pub fn largest_id(&self) -> u32 {
        let added = self.added.iter().flatten().flat_map(|a| a.tokens.iter().map(|t| t.0)).max().unwrap_or(0);
        self.vocabulary.largest_id().max(added).max(self.bos).max(self.eos).max(self.pad)
    }

    /// Token ids of a text, without start and end tokens, however long.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        split(&self.added[0], text, &mut ids, |raw, ids| {
            split(&self.added[1], &normalize(raw), ids, |normal, ids| self.encode_words(normal, ids));
        });
        ids
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) {
        for word in WORDS.find_iter(text) {
            match word.as_str() {
                // These reach this place only when written in capitals; the second split there is GPT-2's.
                word @ ("<|startoftext|>" | "<|endoftext|>") => {
                    for part in ["<|", &word[2..word.len() - 2], "|>"] {
                        self.encode_word(part, ids);
                    }
                }
                word => self.encode_word(word, ids),
            }
        }
    }

    /// Byte-pair encoding of one word: bytes become symbols, and the pair with the lowest rank is joined until none is left.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let bytes = word.as_bytes();
        let mut symbols: Vec<u32> = Vec::with_capacity(bytes.len());
        for (i, &byte) in bytes.iter().enumerate() {
            let known = self.vocabulary.byte(byte, i + 1 == bytes.len());
            symbols.extend(known.or(self.unknown));
        }
        if symbols.len() < 2 {
            ids.extend(symbols);
            return;
        }

        const GONE: u32 = u32::MAX;
        let end = symbols.len();
        let mut next: Vec<usize> = (1..=end).collect();
        let mut previous: Vec<usize> = (0..end).map(|i| i.wrapping_sub(1)).collect();
        let mut queue = BinaryHeap::new(); // lowest rank first, then leftmost
        let offer = |queue: &mut BinaryHeap<_>, at: usize, left: u32, right: u32| {
            if let Some((rank, joined)) = self.vocabulary.merge(left, right) {
                queue.push(Reverse((rank, at, joined)));
            }
        };
        for i in 0..end - 1 {
            offer(&mut queue, i, symbols[i], symbols[i + 1]);
        }
        while let Some(Reverse((rank, at, joined))) = queue.pop() {
            let right = next[at];
            if symbols[at] == GONE || right >= end {
                continue;
            }
            if self.vocabulary.merge(symbols[at], symbols[right]) != Some((rank, joined)) {
                continue; // an offer that an earlier join has overtaken
            }
            symbols[at] = joined;
            symbols[right] = GONE;
            next[at] = next[right];
            if next[at] < end {
                previous[next[at]] = at;
                offer(&mut queue, at, joined, symbols[next[at]]);
            }
            if previous[at] < end {
                offer(&mut queue, previous[at], symbols[previous[at]], joined);
            }
        }
        ids.extend(symbols.into_iter().filter(|s| *s != GONE));
    }
}

/// Calls `rest` for what lies between the added tokens, and appends these where they stand.
fn split(added: &Option<AddedTokens>, text: &str, ids: &mut Vec<u32>, mut rest: impl FnMut(&str, &mut Vec<u32>)) {
    let mut from = 0;
    for found in added.iter().flat_map(|a| a.finder.find_iter(text).map(|m| (m, a.tokens[m.pattern().as_usize()]))) {
        let (range, (id, single_word)) = found;
        let (before, after) = (&text[..range.start()], &text[range.end()..]);
        let continues = |c: Option<char>| c.is_some_and(|c| WORD_CHARACTER.is_match(c.encode_utf8(&mut [0; 4])));
        if single_word && (continues(before.chars().next_back()) || continues(after.chars().next())) {
            continue;
        }
        rest(&text[from..range.start()], ids);
        ids.push(id);
        from = range.end();
    }
    rest(&text[from..], ids);
}

/// NFC, runs of white space to one space, then lower case character by character (so that a final sigma stays a plain one).
fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in text.nfc() {
        if c.is_whitespace() {
            space = true;
            continue;
        }
        if std::mem::take(&mut space) {
            out.push(' ');
        }
        out.extend(c.to_lowercase());
    }
    if space {
        out.push(' ');
    }
    out
}

/// For vocabularies: the table from bytes to the printable characters that stand for them in vocabulary files.
pub(super) fn byte_characters() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut other = 256u32;
    for byte in 0..=255u8 {
        table[usize::from(byte)] = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                other += 1;
                char::from_u32(other - 1).unwrap_or('\0')
            }
        };
    }
    table
}

/// The order in which the embedded vocabulary numbers the bytes: the printable ones first.
pub(super) fn byte_order() -> Vec<u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    (0..=255).filter(printable).chain((0..=255).filter(|b| !printable(b))).collect()
}

/// Ids by token text.
pub(super) type Ids = HashMap<String, u32>;
