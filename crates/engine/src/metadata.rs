//! What a picture carries about its making: PNG text chunks.
//!
//! `parameters` holds the text of AUTOMATIC1111's web UI, so that it and all that read its pictures can:
//!
//! ```text
//! PROMPT
//! Negative prompt: NEGATIVE
//! Steps: 30, Sampler: Euler, CFG scale: 5.0, Seed: 1, Size: 1024x1024, Model hash: …, Model: …, Version: …
//! ```
//!
//! `sameface` holds the whole plan as JSON. Texts within Latin-1 go into tEXt chunks and others into iTXt, as Pillow
//! does it for the web UI; all stand before the picture's data.

use std::io::Cursor;

use crate::{Error, Result};

/// Key of the web UI's text.
pub const PARAMETERS: &str = "parameters";
/// Key of the plan.
pub const PLAN: &str = "sameface";
/// Key of the truth about a picture that was drawn, as JSON.
pub const DRAWN: &str = "sameface-cast";

/// The web UI's text, taken apart or to be put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What was asked for.
    pub prompt: String,
    /// What was not wanted; may be empty.
    pub negative: String,
    /// Name and value of everything else, in order. Names hold letters, digits, spaces, `_`, `-` and `/`.
    pub fields: Vec<(String, String)>,
}

impl Parameters {
    /// Appends a field.
    pub fn field(mut self, name: &str, value: impl ToString) -> Parameters {
        self.fields.push((name.to_string(), value.to_string()));
        self
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Takes the web UI's text apart; what it does not understand counts as prompt, as there.
    pub fn parse(text: &str) -> Parameters {
        let mut lines: Vec<&str> = text.trim().split('\n').collect();
        let mut fields = fields(lines.last().copied().unwrap_or_default());
        if fields.len() < 3 {
            fields.clear(); // too few to be the last line of settings
        } else {
            lines.pop();
        }
        let mut parameters = Parameters { fields, ..Parameters::default() };
        let mut negative = false;
        for line in lines {
            let mut line = line.trim();
            if let Some(rest) = line.strip_prefix("Negative prompt:") {
                (negative, line) = (true, rest.trim());
            }
            let target = if negative { &mut parameters.negative } else { &mut parameters.prompt };
            if !target.is_empty() {
                target.push('\n');
            }
            target.push_str(line);
        }
        parameters
    }
}

impl std::fmt::Display for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.prompt.clone();
        if !self.negative.is_empty() {
            text += &format!("\nNegative prompt: {}", self.negative);
        }
        let fields: Vec<String> = self.fields.iter().map(|(name, value)| format!("{name}: {}", quote(value))).collect();
        text += &format!("\n{}", fields.join(", "));
        f.write_str(text.trim())
    }
}

/// A JSON string where the value holds what separates fields.
fn quote(value: &str) -> String {
    if value.contains([',', '\n', ':']) { serde_json::Value::from(value).to_string() } else { value.to_string() }
}

/// Fields of a line: `name: value` or `name: "JSON string"`, separated by commas.
fn fields(line: &str) -> Vec<(String, String)> {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | ' ' | '-' | '/');
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((name, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let quoted = after.starts_with('"').then(|| closing_quote(after)).flatten();
        let length = match quoted {
            Some(end) if after[end..].is_empty() || after[end..].starts_with(',') => end,
            _ => after.find(',').unwrap_or(after.len()),
        };
        let value = &after[..length];
        let value = match serde_json::from_str::<String>(value) {
            Ok(unquoted) if value.starts_with('"') => unquoted,
            _ => value.to_string(),
        };
        let name = name.trim();
        if name.len() > 1 && name.chars().all(is_name) {
            found.push((name.to_string(), value));
        }
        rest = after[length..].strip_prefix(',').unwrap_or_default();
    }
    found
}

/// Where the JSON string at the start of the text ends.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A PNG file of 8-bit RGB pixels, row by row, with texts by key.
///
/// # Errors
/// Pixels that do not fill the picture, or a key or text that PNG cannot hold.
pub fn encode_png(width: u32, height: u32, rgb: &[u8], texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    let refuse = |e: png::EncodingError| Error::Refused(format!("the picture cannot be written as PNG: {e}"));
    let expected = u64::from(width) * u64::from(height) * 3;
    if rgb.len() as u64 != expected {
        return Error::refused(format!(
            "{} bytes were given for a picture of {width}x{height}; it has {expected}",
            rgb.len()
        ));
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, text) in texts {
        let latin1 = text.chars().all(|c| u32::from(c) < 256);
        let added = if latin1 {
            encoder.add_text_chunk(key.to_string(), text.to_string())
        } else {
            encoder.add_itxt_chunk(key.to_string(), text.to_string())
        };
        added.map_err(refuse)?;
    }
    let mut writer = encoder.write_header().map_err(refuse)?;
    writer.write_image_data(rgb).map_err(refuse)?;
    writer.finish().map_err(refuse)?;
    Ok(bytes)
}

/// The truth about a picture, if the file is one that was drawn.
pub fn drawn(path: &std::path::Path) -> Option<serde_json::Value> {
    /// A drawing of 2048 pixels has some megabytes.
    const MOST_BYTES: u64 = 64 << 20;
    // Pipes would block: only what is a file is read, and only what begins as a PNG does.
    let about = std::fs::metadata(path).ok().filter(|about| about.is_file() && about.len() <= MOST_BYTES)?;
    let bytes = (about.len() > 8).then(|| std::fs::read(path).ok()).flatten()?;
    let texts = bytes.starts_with(b"\x89PNG").then(|| read_texts(&bytes).ok()).flatten()?;
    texts.into_iter().find(|(key, _)| key == DRAWN).and_then(|(_, text)| serde_json::from_str(&text).ok())
}

/// Bytes that all compressed texts of a picture may have together: a megabyte of zeros takes a thousand to write.
const MOST_TEXT: usize = 8 << 20;

/// The texts of a PNG file that stand before its picture data, by key.
///
/// # Errors
/// Bytes that are no PNG file, or texts that would fill memory.
pub fn read_texts(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let refuse = |e: png::DecodingError| Error::Refused(format!("the file is no readable PNG: {e}"));
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(refuse)?;
    let info = reader.info();
    let mut texts: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone())).collect();
    let mut left = MOST_TEXT;
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(left).map_err(refuse)?;
        let text = chunk.get_text().map_err(refuse)?;
        left = left.saturating_sub(text.len());
        texts.push((chunk.keyword, text));
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(left).map_err(refuse)?;
        let text = chunk.get_text().map_err(refuse)?;
        left = left.saturating_sub(text.len());
        texts.push((chunk.keyword, text));
    }
    Ok(texts)
}
