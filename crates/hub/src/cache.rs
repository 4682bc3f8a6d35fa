//! The hub's cache on disk, laid out as `huggingface_hub` does it:
//! `models--ORG--NAME/{refs/main, blobs/<etag>, snapshots/<commit>/<file> -> blob}` and `.locks` beside them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// One repository's folder in the cache.
#[derive(Clone, Debug)]
pub(crate) struct RepoCache {
    cache: PathBuf,
    name: String,
}

impl RepoCache {
    /// `repo` is `ORG/NAME`, checked by [`is_repo`].
    pub(crate) fn new(cache: &Path, repo: &str) -> RepoCache {
        RepoCache { cache: cache.to_path_buf(), name: format!("models--{}", repo.replace('/', "--")) }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// A folder of a snapshot; an empty name is the snapshot itself.
    pub(crate) fn folder_at(&self, commit: &str, folder: &str) -> PathBuf {
        below(&self.snapshot(commit), folder)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    pub(crate) fn partial(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The commit that a branch stood at when it was last asked about.
    pub(crate) fn read_ref(&self, branch: &str) -> Option<String> {
        let commit = std::fs::read_to_string(self.folder().join("refs").join(branch)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn write_ref(&self, branch: &str, commit: &str) -> Result<()> {
        let path = self.folder().join("refs").join(branch);
        make_parent(&path)?;
        std::fs::write(&path, commit).map_err(Error::io("written", path))
    }

    /// All snapshots, the best first: the wanted commit, then the branch `main`, then the others by age.
    pub(crate) fn snapshots(&self, wanted: Option<&str>) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.folder().join("snapshots")) else { return Vec::new() };
        let main = self.read_ref("main");
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let rank = if Some(name.as_str()) == wanted {
                    0
                } else if Some(&name) == main.as_ref() {
                    1
                } else {
                    2
                };
                let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
                (rank, age.unwrap_or_default(), entry.path())
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, _, path)| path).collect()
    }

    /// Makes `snapshots/<commit>/<file>` stand for the blob: a relative link, or on systems without links the file.
    pub(crate) fn point(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(file);
        make_parent(&pointer)?;
        match std::fs::remove_file(&pointer) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("replaced", pointer)(error));
            }
            _ => {}
        }
        #[cfg(unix)]
        {
            let up = "../".repeat(file.split('/').count() + 1);
            let target = PathBuf::from(format!("{up}blobs/{etag}"));
            match std::os::unix::fs::symlink(target, &pointer) {
                // Another process was as quick, with the same content.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                outcome => outcome.map_err(Error::io("linked", pointer.clone()))?,
            }
        }
        #[cfg(not(unix))]
        std::fs::rename(self.blob(etag), &pointer).map_err(Error::io("moved", pointer.clone()))?;
        Ok(pointer)
    }

    /// Waits until no other process fetches this blob; `waiting` is called while it waits and may say stop.
    pub(crate) fn lock(&self, etag: &str, mut waiting: impl FnMut() -> Result<()>) -> Result<File> {
        let path = self.cache.join(".locks").join(&self.name).join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path).map_err(Error::io("opened", path.clone()))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => waiting()?,
                // Some network disks have no locks. Content is checked before it gets its name, so going on is safe.
                Err(TryLockError::Error(_)) => return Ok(file),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// `path.join("")` would end in a slash.
pub(crate) fn below(path: &Path, folder: &str) -> PathBuf {
    match folder.trim_end_matches('/') {
        "" => path.to_path_buf(),
        folder => path.join(folder),
    }
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => std::fs::create_dir_all(parent).map_err(Error::io("created", parent)),
        None => Ok(()),
    }
}

/// A commit becomes a folder's name, so nothing else may pass for one.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// A checksum becomes a part of a file's name.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// An ETag becomes a file's name.
pub(crate) fn is_etag(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// `ORG/NAME` as the hub allows it.
pub(crate) fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        (1..=96).contains(&part.len()) && part.bytes().all(plain) && !part.starts_with('.')
    };
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
        && !text.contains("--")
        && !text.contains("..")
}

/// A file's path in a repository, which becomes a path on this disk.
pub(crate) fn is_file_path(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    text.len() <= 512 && !text.contains(|c: char| c.is_control() || c == '\\' || c == ':') && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_come_from_outside_are_checked() {
        assert!(is_commit(&"a1".repeat(20)) && !is_commit("main") && !is_commit(&"../../".repeat(7)[..40]));
        assert!(is_etag("ce013625030ba8dba906f756967f9e9ca394464a") && !is_etag("../x") && !is_etag(""));
        assert!(is_repo("InstantX/InstantID") && !is_repo("InstantID") && !is_repo("a/../b") && !is_repo("a/b/c"));
        assert!(is_file_path("unet/config.json"));
        for bad in ["../x", "/etc/passwd", "a//b", "a/..", "C:\\x", "a\n", "\u{1b}[2J", ""] {
            assert!(!is_file_path(bad), "{bad}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn links_are_relative_and_refs_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoCache::new(folder.path(), "a/b");
        let commit = "0".repeat(40);
        make_parent(&repo.blob("e")).unwrap();
        std::fs::write(repo.blob("e"), "hello").unwrap();
        let pointer = repo.point(&commit, "unet/config.json", "e").unwrap();
        assert_eq!(std::fs::read_link(&pointer).unwrap(), Path::new("../../../blobs/e"));
        assert_eq!(std::fs::read_to_string(&pointer).unwrap(), "hello");
        repo.write_ref("main", &commit).unwrap();
        assert_eq!(repo.read_ref("main"), Some(commit.clone()));
        assert_eq!(repo.snapshots(None), [repo.snapshot(&commit)]);
    }
}
