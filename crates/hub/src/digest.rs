//! Checksums of files: sha256 for large ones, git's blob hash for small ones.
//!
//! The hub names a file's content in its ETag: 64 hex digits are the sha256 of a file kept in large-file storage,
//! 40 are the hash of a git blob, which is sha1 over `blob SIZE\0` and the content.

use std::io::{Read, Write};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A checksum that content is expected to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Sha256(String),
    GitBlob(String),
}

impl Sum {
    /// What an ETag says about the content; `None` for those of other servers.
    pub(crate) fn from_etag(etag: &str) -> Option<Sum> {
        let etag = etag.to_ascii_lowercase();
        match etag.len() {
            _ if !etag.bytes().all(|c| c.is_ascii_hexdigit()) => None,
            64 => Some(Sum::Sha256(etag)),
            40 => Some(Sum::GitBlob(etag)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sum::Sha256(hex) => write!(f, "sha256 {hex}"),
            Sum::GitBlob(hex) => write!(f, "git hash {hex}"),
        }
    }
}

/// Computes the checksums that are wanted while bytes stream by.
pub(crate) struct Digests {
    wanted: Vec<Sum>,
    sha256: Option<Sha256>,
    git: Option<Sha1>,
}

impl Digests {
    /// `size` is the whole file's, which git hashes first.
    pub(crate) fn new(wanted: &[Sum], size: u64) -> Digests {
        let wanted = wanted.to_vec();
        let sha256 = wanted.iter().any(|sum| matches!(sum, Sum::Sha256(_))).then(Sha256::new);
        let git = wanted.iter().any(|sum| matches!(sum, Sum::GitBlob(_)));
        let git = git.then(|| Sha1::new_with_prefix(format!("blob {size}\0")));
        Digests { wanted, sha256, git }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.sha256 {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.git {
            hash.update(bytes);
        }
    }

    /// Takes in what a file holds already; returns its length.
    pub(crate) fn update_file(&mut self, path: &Path) -> Result<u64> {
        let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        let mut buffer = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => return Ok(length),
                n => {
                    self.update(&buffer[..n]);
                    length += n as u64;
                }
            }
        }
    }

    /// The first checksum that is not as wanted, as (found, wanted).
    pub(crate) fn mismatch(self) -> Option<(Sum, Sum)> {
        let sha256 = self.sha256.map(|hash| hex(&hash.finalize()));
        let git = self.git.map(|hash| hex(&hash.finalize()));
        self.wanted.into_iter().find_map(|wanted| {
            let found = match &wanted {
                Sum::Sha256(_) => Sum::Sha256(sha256.clone()?),
                Sum::GitBlob(_) => Sum::GitBlob(git.clone()?),
            };
            (found != wanted).then_some((found, wanted))
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        // `printf 'hello\n' | git hash-object --stdin`, and sha256sum of the same.
        let git = Sum::from_etag("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let sha = Sum::from_etag("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap();
        let mut digests = Digests::new(&[git, sha], 6);
        digests.update(b"hel");
        digests.update(b"lo\n");
        assert_eq!(digests.mismatch(), None);
        let mut digests = Digests::new(&[Sum::Sha256("0".repeat(64))], 6);
        digests.update(b"hello\n");
        assert!(digests.mismatch().is_some());
        assert_eq!(Sum::from_etag("5d41402abc4b2a76b9719d911017c592"), None);
    }
}
