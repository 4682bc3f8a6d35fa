//! Folders that builds before this one unpacked: removed when nobody uses them, and nothing else is.
//!
//! Each process holds a shared lock on `mini-<digest>.lock` while it uses that folder. What can be locked by nobody else
//! and has not been used for a day goes. A build from before these locks is protected by the day alone.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Begins the folders' names; a digest of [`DIGITS`] follows.
pub(crate) const PREFIX: &str = "mini-";
pub(crate) const DIGITS: usize = 16;
/// Begins the names of folders that are being filled.
pub(crate) const TEMPORARY: &str = ".mini-";
const LOCK: &str = ".lock";
/// Every folder of a stack has this file.
const INDEX: &str = "model_index.json";
/// Long enough that two builds used in turn do not unpack again and again.
const UNUSED: Duration = Duration::from_secs(24 * 60 * 60);

/// Says that this process uses a folder, until the file is closed. `None` where the file system knows no locks.
pub(crate) fn hold(folder: &Path) -> Option<File> {
    let file = open(&lock_of(folder)).ok()?;
    // The time of the last use; without it the folder only looks older than it is.
    let _ = file.set_modified(SystemTime::now());
    file.lock_shared().ok()?;
    Some(file)
}

/// Removes what builds before this one left in `cache` and nobody uses. What cannot be removed stays.
pub(crate) fn sweep(cache: &Path, own: &Path, now: SystemTime) {
    let Ok(entries) = std::fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let Ok(about) = entry.metadata() else { continue };
        if path == own || path == lock_of(own) || !is_old(&about, now) {
            continue;
        }
        if about.is_dir() && is_stack(&name) && path.join(INDEX).is_file() {
            remove_unused(&path, now);
        } else if about.is_dir() && name.strip_prefix(TEMPORARY).is_some_and(is_random) {
            // A process was killed while it unpacked.
            let _ = std::fs::remove_dir_all(&path);
        } else if about.is_file()
            && name.strip_suffix(LOCK).is_some_and(|stack| is_stack(stack) && !cache.join(stack).exists())
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn remove_unused(folder: &Path, now: SystemTime) {
    let lock = lock_of(folder);
    if std::fs::metadata(&lock).is_ok_and(|about| !is_old(&about, now)) {
        return;
    }
    let Ok(file) = open(&lock) else { return };
    match file.try_lock() {
        // In use, or nobody can tell.
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        Ok(()) => {
            // Moved first: what is removed only in part is still known as rubbish.
            let parent = folder.parent().unwrap_or(Path::new("."));
            let Ok(beside) = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent) else { return };
            if std::fs::rename(folder, beside.path().join("old")).is_ok() {
                let _ = std::fs::remove_file(&lock);
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

fn lock_of(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}{LOCK}"))
}

fn is_old(about: &Metadata, now: SystemTime) -> bool {
    about.modified().is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > UNUSED))
}

fn is_stack(name: &str) -> bool {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    name.strip_prefix(PREFIX).is_some_and(|digest| digest.len() == DIGITS && digest.chars().all(is_hex))
}

/// The end that a temporary folder's name gets.
fn is_random(end: &str) -> bool {
    end.len() == 6 && end.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "mini-00000000000000ff";
    const OTHER: &str = "mini-0123456789abcdef";

    fn stack(cache: &Path, name: &str) -> PathBuf {
        let folder = cache.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(INDEX), "{}").unwrap();
        folder
    }

    fn later() -> SystemTime {
        SystemTime::now() + 2 * UNUSED
    }

    #[test]
    fn only_what_earlier_builds_left_goes() {
        let cache = tempfile::tempdir().unwrap();
        let own = stack(cache.path(), OWN);
        let kept = ["mini-mine", "mini-0123456789abcdeg", "mini-0123456789abcdef0", "other", ".mini-notes of mine"];
        kept.iter().for_each(|name| drop(stack(cache.path(), name)));
        std::fs::write(cache.path().join("digests.json"), "{}").unwrap();
        std::fs::create_dir(cache.path().join("mini-ffffffffffffffff")).unwrap();
        let gone = [OTHER, ".mini-aB3x9Z"];
        gone.iter().for_each(|name| drop(stack(cache.path(), name)));
        let orphan = cache.path().join("mini-aaaaaaaaaaaaaaaa.lock");
        std::fs::write(&orphan, "").unwrap();

        sweep(cache.path(), &own, SystemTime::now());
        assert!(gone.iter().all(|name| cache.path().join(name).exists()), "what was used today stays");
        sweep(cache.path(), &own, later());
        assert!(gone.iter().all(|name| !cache.path().join(name).exists()) && !orphan.exists());
        assert!(own.exists() && kept.iter().all(|name| cache.path().join(name).exists()));
        assert!(cache.path().join("digests.json").exists() && cache.path().join("mini-ffffffffffffffff").exists());
        assert!(!lock_of(&cache.path().join(OTHER)).exists());
    }

    #[test]
    fn what_somebody_uses_stays() {
        let cache = tempfile::tempdir().unwrap();
        let (own, other) = (stack(cache.path(), OWN), stack(cache.path(), OTHER));
        let held = hold(&other).unwrap();
        sweep(cache.path(), &own, later());
        assert!(other.exists());
        drop(held);
        sweep(cache.path(), &own, later());
        assert!(!other.exists());
    }

    #[test]
    fn a_use_today_counts_however_old_the_folder_is() {
        let cache = tempfile::tempdir().unwrap();
        let (own, other) = (stack(cache.path(), OWN), stack(cache.path(), OTHER));
        let long_ago = SystemTime::now() - 3 * UNUSED;
        File::open(&other).unwrap().set_modified(long_ago).unwrap();
        drop(hold(&other));
        sweep(cache.path(), &own, SystemTime::now());
        assert!(other.exists());
        open(&lock_of(&other)).unwrap().set_modified(long_ago).unwrap();
        sweep(cache.path(), &own, SystemTime::now());
        assert!(!other.exists());
    }
}
