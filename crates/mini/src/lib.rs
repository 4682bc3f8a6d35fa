//! The built-in miniature stack: the files of `models/mini`, carried inside the program.
//!
//! They are unpacked once into a cache folder, so that the very same loading code runs that runs on any other model:
//! memory maps, digests in the picture's record, messages that name files. The folder's name carries the digest of its
//! content, and before each use its files are compared byte for byte with what is embedded (some 20 ms for 50 MB), so a
//! damaged or foreign folder is never loaded. Folders of other builds that nobody uses any more are removed. A build
//! without `models/mini` has no built-in model and says so.

mod old;
mod table {
    include!(concat!(env!("OUT_DIR"), "/table.rs"));
}

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;
use table::{DIGEST, FILES};

/// The built-in files could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("the built-in models could not be unpacked into {}: {source}; set SAMEFACE_HOME to a folder that can be written", folder.display())]
pub struct Error {
    folder: PathBuf,
    source: std::io::Error,
}

/// Whether this build carries the models.
pub fn is_built_in() -> bool {
    !FILES.is_empty()
}

/// Bytes of all files together.
pub fn bytes() -> u64 {
    FILES.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// The content of a file by its path below `models/mini`, if this build carries it.
pub fn file(path: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, bytes)| *bytes)
}

/// The folder that this process uses, and the lock that says so to others.
static IN_USE: Mutex<Option<(PathBuf, Option<File>)>> = Mutex::new(None);

/// Unpacks the files below `cache` unless they are there, and returns their folder: `cache/mini-<digest>`. `None` where
/// this build carries none. The folder stays as long as the process runs; after a day in which nobody has used it, another
/// build may remove it.
///
/// # Errors
/// The folder cannot be written.
pub fn unpack(cache: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_built_in() {
        return Ok(None);
    }
    let folder = cache.join(format!("{}{}", old::PREFIX, &DIGEST[..old::DIGITS]));
    let mut in_use = IN_USE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if in_use.as_ref().is_none_or(|(used, _)| *used != folder) {
        std::fs::create_dir_all(cache).map_err(|source| Error { folder: folder.clone(), source })?;
        let lock = old::hold(&folder);
        place(FILES, &folder).map_err(|source| Error { folder: folder.clone(), source })?;
        old::sweep(cache, &folder, SystemTime::now());
        *in_use = Some((folder.clone(), lock));
    }
    Ok(Some(folder))
}

/// Makes `folder` hold exactly these files, in one step: readers see all of it or nothing.
fn place(files: &[(&str, &[u8])], folder: &Path) -> std::io::Result<()> {
    if is_whole(files, folder) {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let beside = tempfile::Builder::new().prefix(old::TEMPORARY).tempdir_in(parent)?;
    let fresh = beside.path().join("new");
    std::fs::create_dir(&fresh)?;
    for (name, bytes) in files {
        let path = fresh.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&fresh))?;
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    // A damaged folder makes way; it goes with the temporary one.
    if folder.exists() && !is_whole(files, folder) {
        let _ = std::fs::rename(folder, beside.path().join("old"));
    }
    match std::fs::rename(&fresh, folder) {
        // Another process was faster, and did the same.
        Err(_) if is_whole(files, folder) => Ok(()),
        moved => moved,
    }
}

fn is_whole(files: &[(&str, &[u8])], folder: &Path) -> bool {
    let same = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let long = std::fs::metadata(&path).is_ok_and(|about| about.is_file() && about.len() == bytes.len() as u64);
        long && std::fs::read(&path).is_ok_and(|read| read == bytes)
    };
    folder.is_dir() && files.iter().all(|(name, bytes)| same(name, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &[(&str, &[u8])] = &[("a", b"1"), ("unet/config.json", b"{}")];

    #[test]
    fn files_are_placed_once_and_mended() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("deep/mini-0");
        place(SMALL, &folder).unwrap();
        assert!(is_whole(SMALL, &folder));
        let changed = || std::fs::metadata(folder.join("a")).unwrap().modified().unwrap();
        let before = changed();
        place(SMALL, &folder).unwrap();
        assert_eq!(changed(), before);
        for damage in [&b"2"[..], b"", b"12"] {
            std::fs::write(folder.join("a"), damage).unwrap();
            place(SMALL, &folder).unwrap();
            assert!(is_whole(SMALL, &folder), "{damage:?}");
        }
        // Half of it, as a power cut may leave it.
        std::fs::remove_dir_all(folder.join("unet")).unwrap();
        place(SMALL, &folder).unwrap();
        assert!(is_whole(SMALL, &folder));
        let left = std::fs::read_dir(cache.path().join("deep")).unwrap().count();
        assert_eq!(left, 1, "nothing is left beside");
    }

    #[test]
    fn many_at_once_agree() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("mini-0");
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| place(SMALL, &folder))).collect();
            all.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert!(is_whole(SMALL, &folder));
    }

    #[test]
    fn a_place_that_takes_nothing_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(place(SMALL, &file.join("mini-0")).is_err());
        assert_eq!(unpack(&file).is_err(), is_built_in());
    }
}
