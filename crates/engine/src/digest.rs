//! SHA-256 of model files, by which a picture's record names them. Digests are remembered by path, size and
//! time of change, because reading gigabytes again for every picture would take longer than making it.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

#[derive(Serialize, Deserialize, Clone, PartialEq)]
struct Known {
    bytes: u64,
    /// Nanoseconds since 1970, as text: JSON has no integers of that size.
    changed: String,
    sha256: String,
}

/// Digests of files, in hexadecimal.
pub(crate) fn of_files(files: &[PathBuf], cache: Option<&Path>) -> Result<BTreeMap<PathBuf, String>> {
    let mut known: BTreeMap<String, Known> =
        cache.and_then(|c| std::fs::read(c).ok()).and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    let before = known.clone();
    // Each on a thread of its own: the largest file then says how long it takes, rather than their sum.
    let found: Vec<Result<(String, Known)>> = std::thread::scope(|scope| {
        let before = &before;
        let threads: Vec<_> = files.iter().map(|path| scope.spawn(move || of_file(path, before))).collect();
        let broke_off = || Error::Refused("reading a model file broke off".into());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(broke_off()))).collect()
    });
    let mut digests = BTreeMap::new();
    for (path, found) in files.iter().zip(found) {
        let (key, file) = found?;
        digests.insert(path.clone(), file.sha256.clone());
        known.insert(key, file);
    }
    if let Some(cache) = cache
        && known != before
    {
        // Losing the cache costs time only, so a full disk is no reason to fail.
        let _ = serde_json::to_vec_pretty(&known).map(|bytes| crate::files::write_atomically(cache, &bytes));
    }
    Ok(digests)
}

/// A file's place without links, and what is known of it or read now.
fn of_file(path: &Path, known: &BTreeMap<String, Known>) -> Result<(String, Known)> {
    let real = std::fs::canonicalize(path).map_err(Error::unread(path))?;
    let about = std::fs::metadata(&real).map_err(Error::unread(path))?;
    let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    let (bytes, changed) = (about.len(), changed.to_string());
    let key = real.display().to_string();
    let sha256 = match known.get(&key).filter(|k| k.bytes == bytes && k.changed == changed) {
        Some(k) => k.sha256.clone(),
        None => from_blob_name(&real).map_or_else(|| read(&real), Ok)?,
    };
    Ok((key, Known { bytes, changed, sha256 }))
}

/// The hub's cache names large files by their digest.
fn from_blob_name(real: &Path) -> Option<String> {
    let name = real.file_name()?.to_str()?;
    let blob = real.parent()?.file_name()? == "blobs" && name.len() == 64;
    (blob && name.bytes().all(|b| b.is_ascii_hexdigit())).then(|| name.to_ascii_lowercase())
}

/// Of numbers, by their bits.
pub(crate) fn of_numbers(numbers: &[f32]) -> String {
    let mut hasher = Sha256::new();
    numbers.iter().for_each(|number| hasher.update(number.to_le_bytes()));
    hex(&hasher.finalize())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

fn read(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::unread(path))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::unread(path))?;
        if count == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, cache) = (folder.path().join("a"), folder.path().join("digests.json"));
        std::fs::write(&file, b"abc").unwrap();
        let of = || of_files(std::slice::from_ref(&file), Some(&cache)).unwrap()[&file].clone();
        let first = of();
        assert_eq!(first, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let remembered = std::fs::read_to_string(&cache).unwrap();
        std::fs::write(&cache, remembered.replace(&first, "from the cache")).unwrap();
        assert_eq!(of(), "from the cache");
        std::fs::write(&file, b"abcd").unwrap();
        assert_ne!(of(), "from the cache");
    }
}
