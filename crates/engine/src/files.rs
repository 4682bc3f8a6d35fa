//! Files that are there whole or not at all.

use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes beside the place, brings it to the disk, and renames.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::file(path))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::file(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::file(path))?;
    file.persist(path).map_err(|e| Error::file(path)(e.error))?;
    Ok(())
}
