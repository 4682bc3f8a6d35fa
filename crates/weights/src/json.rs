//! JSON as Python writes it.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::source::Source;

const LONGEST: u64 = 16 << 20;

/// Reads a JSON file of at most 16 MiB.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let source = Source::open(path)?;
    if source.len() > LONGEST {
        return Err(Error::malformed(path, "JSON", "it is longer than 16 MiB"));
    }
    let bytes = source.read_vec(0, source.len() as usize)?;
    serde_json::from_slice(&without_infinities(&bytes)).map_err(|e| Error::malformed(path, "JSON", format!("{e}")))
}

/// Python writes `Infinity`, `-Infinity` and `NaN` into JSON, which has no such numbers; diffusers' configuration of
/// DPM-Solver++ holds one. They become `null`, so that whoever needs a number there says that it is missing.
fn without_infinities(bytes: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(bytes.len() + 64);
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        let word = WORDS.into_iter().find(|word| !in_string && bytes[at..].starts_with(word));
        if let Some(word) = word {
            out.extend(b"null");
            at += word.len();
            continue;
        }
        let len = if in_string && byte == b'\\' { 2 } else { 1 };
        in_string ^= byte == b'"';
        out.extend(bytes[at..].iter().take(len));
        at += len;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_infinities_become_null() {
        let text = br#"{"a": -Infinity, "b": Infinity, "NaN \" Infinity": [NaN, 1]}"#;
        let value: Value = serde_json::from_slice(&without_infinities(text)).unwrap();
        assert_eq!(value, serde_json::json!({"a": null, "b": null, "NaN \" Infinity": [null, 1]}));
        assert_eq!(without_infinities(b"\"\\"), b"\"\\");
    }
}
