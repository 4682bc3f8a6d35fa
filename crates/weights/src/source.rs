//! Where the bytes lie: an open file read at positions, or memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crc32fast::Hasher;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// An open file, with what was known of it when it was opened.
pub(crate) struct Source {
    file: File,
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let fail = |e| Error::io(path, e);
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(Error::unsupported(path, "it is not a regular file"));
        }
        Ok(Source { file, path: path.to_owned(), len: meta.len(), modified: meta.modified().ok() })
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
        read_exact_at(&self.file, buffer, at).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
            _ => Error::io(&self.path, e),
        })
    }

    /// Reads a range that the caller has bounded.
    pub(crate) fn read_vec(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(Error::Truncated {
                path: self.path.clone(),
                have: self.len,
                need: at.saturating_add(len as u64),
            });
        }
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// An error if the file was written to since it was opened.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|e| Error::io(&self.path, e))?;
        if meta.len() != self.len || meta.modified().ok() != self.modified {
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

/// A range of bytes that tensors are cut from.
#[derive(Clone)]
pub(crate) enum Storage {
    /// `len` bytes of a file from `start`; the reader of the format has checked that they lie inside it.
    File { source: Arc<Source>, start: u64, len: u64, checksum: Option<Arc<Checksum>> },
    /// Bytes in memory, little-endian as in files.
    Memory(Arc<[u8]>),
}

impl Storage {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Storage::File { len, .. } => *len,
            Storage::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `at` bytes into the storage; the range has been checked when the tensor was made.
    pub(crate) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Storage::File { source, start, .. } => source.read(start + at, buffer),
            Storage::Memory(bytes) => {
                let at = at as usize;
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(())
            }
        }
    }

    /// To be called before the first bytes are used: an error if the bytes are not those that were written.
    pub(crate) fn verify(&self) -> Result<()> {
        match self {
            Storage::File { source, checksum: Some(checksum), .. } => checksum.verify(source),
            _ => Ok(()),
        }
    }

    /// To be called before and after a conversion: an error if the bytes may have changed under it.
    pub(crate) fn unchanged(&self) -> Result<()> {
        match self {
            Storage::File { source, .. } => source.unchanged(),
            Storage::Memory(_) => Ok(()),
        }
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
