//! Files that are there whole or not at all.

use crate::{Error, Result};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes beside the place, brings it to the disk, and renames; what was there is replaced.
///
/// # Errors
/// The file cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes)?.persist(path).map_err(|e| Error::unwritten(path)(plain(e.error)))?;
    Ok(())
}

/// As [`write_atomically`], but returns false where there is something already, which stays.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    match beside(path, bytes)?.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::unwritten(path)(plain(e.error))),
    }
}

/// Whether a file could be written into a folder, which may have still to be made: found out with a file that has no
/// name, so that nothing is left behind. Minutes of work must not end at a folder that takes nothing.
pub(crate) fn check_writable(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|f| f.as_os_str().is_empty() || f.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    if !there.is_dir() {
        return Error::refused(format!("{} is not a folder, so nothing can be written into it", there.display()));
    }
    tempfile::tempfile_in(there).map_err(|e| Error::unwritten(folder)(plain(e)))?;
    Ok(())
}

fn beside(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // Readable as any new file is: the system takes away what the user's mask says.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|e| Error::unwritten(path)(plain(e)))
}

/// The reason without the temporary file's name, which nobody has seen.
fn plain(error: std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => error.kind().into(),
    }
}
