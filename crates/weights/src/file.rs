//! Which format a file has, told from its first bytes and never from its name.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::safetensors;
use crate::source::Source;
use crate::table::Weights;
use crate::torch;

/// Opens one weights file.
pub(crate) fn open(path: &Path) -> Result<Weights> {
    read(Arc::new(Source::open(path)?))
}

/// Reads a whole weights file.
pub(crate) fn read(source: Arc<Source>) -> Result<Weights> {
    let head = source.read_vec(0, source.len().min(64) as usize)?;
    if head.starts_with(b"PK") {
        return torch::read(source);
    }
    match stranger(&head) {
        Some(reason) => Err(Error::unsupported(source.path(), reason)),
        None => safetensors::read(source),
    }
}

/// What a file is that is no weights file, and what to do about it.
fn stranger(head: &[u8]) -> Option<&'static str> {
    // The number that opens torch.save's format of before 1.6, as a pickle writes it.
    const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    const TEXT_STARTS: [&[u8]; 2] = [b"<!", b"<h"];
    let looks_like_safetensors = head.get(8) == Some(&b'{');
    if head.is_empty() {
        return Some("it is empty; fetch it again");
    }
    if head.len() >= 2 && head[0] == 0x80 && head[2..].starts_with(LEGACY) {
        return Some(
            "it is in PyTorch's format of before 1.6, which is a bare pickle; load it in PyTorch with \
             weights_only=True and save it again, best as safetensors",
        );
    }
    if head[0] == 0x80 && head.get(1).is_some_and(|protocol| (2..=5).contains(protocol)) && !looks_like_safetensors {
        return Some("it is a bare pickle and no torch.save file; pickles can run code and are not opened");
    }
    if head.starts_with(b"version https://git-lfs") {
        return Some("it is a Git LFS pointer and not the file itself; fetch it with git lfs pull");
    }
    if head.starts_with(b"GGUF") {
        return Some("it is a GGUF file; safetensors and torch.save files are read");
    }
    if TEXT_STARTS.iter().any(|start| head.to_ascii_lowercase().starts_with(start)) {
        return Some("it is a web page and not the file that was asked for; fetch it again");
    }
    // Shorter files are left to the format's own reader, which says what is missing.
    if head.len() > 8 && !looks_like_safetensors {
        return Some("it is neither a safetensors file nor one that torch.save wrote");
    }
    None
}
