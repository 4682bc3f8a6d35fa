//! Where the bytes lie: an open file read at positions, or memory.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crc32fast::Hasher;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// An open file, with what was known of it when it was opened; or bytes in memory.
pub(crate) struct Source {
    bytes: Bytes,
    /// Where the bytes came from, for messages.
    path: PathBuf,
    len: u64,
}

enum Bytes {
    File { file: File, modified: Option<SystemTime> },
    Memory(Cow<'static, [u8]>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let fail = |e| Error::io(path, e);
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(Error::unsupported(path, "it is not a regular file"));
        }
        let bytes = Bytes::File { file, modified: meta.modified().ok() };
        Ok(Source { bytes, path: path.to_owned(), len: meta.len() })
    }

    pub(crate) fn memory(name: &str, bytes: Cow<'static, [u8]>) -> Source {
        Source { len: bytes.len() as u64, bytes: Bytes::Memory(bytes), path: name.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length when opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `at`. A file that has become shorter is an error, never a signal.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.bytes {
            Bytes::File { file, .. } => read_exact_at(file, buffer, at).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
                _ => Error::io(&self.path, e),
            }),
            Bytes::Memory(bytes) => {
                let range = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..buffer.len()));
                let need = at.saturating_add(buffer.len() as u64);
                buffer.copy_from_slice(range.ok_or_else(|| self.truncated(need))?);
                Ok(())
            }
        }
    }

    /// Reads a range that the caller has bounded.
    pub(crate) fn read_vec(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let end = at.saturating_add(len as u64);
        if end > self.len {
            return Err(self.truncated(end));
        }
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn truncated(&self, need: u64) -> Error {
        Error::Truncated { path: self.path.clone(), have: self.len, need }
    }

    /// An error if the file was written to since it was opened.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let Bytes::File { file, modified } = &self.bytes else { return Ok(()) };
        let meta = file.metadata().map_err(|e| Error::io(&self.path, e))?;
        if meta.len() != self.len || meta.modified().ok() != *modified {
            return Err(Error::Changed { path: self.path.clone() });
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

/// A range of bytes that tensors are cut from. The reader of the format has checked that it lies inside the source.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) source: Arc<Source>,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) checksum: Option<Arc<Checksum>>,
}

impl Storage {
    /// Fills `buffer` from `at` bytes into the storage; the range has been checked when the tensor was made.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.source.read(self.start + at, buffer)
    }

    /// To be called before the first bytes are used: an error if the bytes are not those that were written.
    pub(crate) fn verify(&self) -> Result<()> {
        self.checksum.as_ref().map_or(Ok(()), |checksum| checksum.verify(&self.source))
    }

    /// To be called before and after a conversion: an error if the bytes may have changed under it.
    pub(crate) fn unchanged(&self) -> Result<()> {
        self.source.unchanged()
    }
}

/// The CRC-32 that a zip file holds for a range of its bytes; compared once, when the range is first used, so that
/// opening a large file costs nothing.
pub(crate) struct Checksum {
    start: u64,
    len: u64,
    crc: u32,
    matches: OnceLock<bool>,
}

impl Checksum {
    pub(crate) fn new(start: u64, len: u64, crc: u32) -> Checksum {
        Checksum { start, len, crc, matches: OnceLock::new() }
    }

    pub(crate) fn verify(&self, source: &Source) -> Result<()> {
        let matches = match self.matches.get() {
            Some(&matches) => matches,
            None => *self.matches.get_or_init({
                let matches = self.sum(source)? == self.crc;
                move || matches
            }),
        };
        if matches {
            return Ok(());
        }
        let reason = format!("the {} bytes from {} do not match their check sum; fetch it again", self.len, self.start);
        Err(Error::malformed(source.path(), "zip", reason))
    }

    fn sum(&self, source: &Source) -> Result<u32> {
        const PIECE: u64 = 1 << 20;
        let piece = |i: u64| -> Result<Hasher> {
            let at = i * PIECE;
            let mut hasher = Hasher::new();
            let bytes = source.read_vec(self.start + at, PIECE.min(self.len - at) as usize)?;
            hasher.update(&bytes);
            Ok(hasher)
        };
        let pieces = self.len.div_ceil(PIECE);
        if pieces == 1 {
            return Ok(piece(0)?.finalize());
        }
        let sums: Vec<Hasher> = (0..pieces).into_par_iter().map(piece).collect::<Result<_>>()?;
        let whole = sums.into_iter().reduce(|mut whole, next| {
            whole.combine(&next);
            whole
        });
        Ok(whole.unwrap_or_default().finalize())
    }
}
