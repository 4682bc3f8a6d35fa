//! Files that are there whole or not at all.

use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes beside the place, brings it to the disk, and renames; what was there is replaced.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes)?.persist(path).map_err(|e| Error::file(path)(e.error))?;
    Ok(())
}

/// As [`write_atomically`], but returns false where there is something already, which stays.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    match beside(path, bytes)?.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::file(path)(e.error)),
    }
}

fn beside(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::file(path))?;
    let mut builder = tempfile::Builder::new();
    // Readable as any new file is: the system takes away what the user's mask says.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(Error::file(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::file(path))?;
    Ok(file)
}
