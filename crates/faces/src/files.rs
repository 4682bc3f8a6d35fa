//! Reading only what is a file, and writing whole or not at all.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Whether a photo or saved identity can be opened, before anything is looked for that would make use of it.
///
/// # Errors
/// The file is not there, no file, or closed to this user.
pub fn readable(path: &Path) -> Result<()> {
    open_regular(path).map(drop).map_err(|reason| unread(path, reason))
}

/// The refusal of a photo that cannot be read.
pub(crate) fn unread(path: &Path, reason: String) -> Error {
    Error::Io { what: "the photo", path: path.to_owned(), action: "read", reason }
}

/// The fault of a file that could not be written: the place's, or this machine's, as when the disk is full.
pub(crate) fn unwritten(what: &'static str, path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{
        InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.kind() {
        InvalidFilename | IsADirectory | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem => {
            Error::Place { what, path, reason }
        }
        _ => Error::Io { what, path, action: "written", reason },
    }
}

/// Opens a regular file for reading: a pipe or device would block or never end.
pub(crate) fn open_regular(path: &Path) -> std::result::Result<File, String> {
    let plain = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => e.to_string(),
    };
    let meta = fs::metadata(path).map_err(plain)?;
    if meta.is_dir() {
        return Err("it is a folder; a file is needed".into());
    }
    if !meta.is_file() {
        return Err("it is not a regular file".into());
    }
    File::open(path).map_err(plain)
}

/// Writes beside the target, syncs, then renames, so that no reader ever sees half a file. Folders on the way are made.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let attempt = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    attempt().inspect_err(|_| {
        // The error at hand matters more than a leftover.
        let _ = fs::remove_file(&beside);
    })
}
