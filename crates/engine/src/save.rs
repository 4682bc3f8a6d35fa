//! Where pictures go: a file, or numbered names in a folder; nothing that exists is overwritten.

use crate::files::{check_writable, write_new};
use crate::generate::Picture;
use crate::plan::Plan;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// More names than anybody keeps in a folder.
const MOST_NAMES: u32 = 1_000_000;

/// The place for the pictures of one request.
#[derive(Debug, Clone)]
pub struct Target {
    folder: PathBuf,
    stem: String,
    /// Whether the very first name goes without a number.
    plain_first: bool,
}

impl Target {
    /// `path` is a folder, which may have still to be made, or a name that ends in `.png`.
    ///
    /// # Errors
    /// Another ending, a place that cannot be written to.
    pub fn new(path: &Path) -> Result<Target> {
        Target::named(path, "sameface")
    }

    /// As [`Target::new`], with another beginning of the names in a folder.
    ///
    /// # Errors
    /// As there.
    pub fn named(path: &Path, stem: &str) -> Result<Target> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let is_folder = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") || ending.is_none();
        let target = match ending.as_deref() {
            _ if is_folder => Target { folder: path.to_path_buf(), stem: stem.into(), plain_first: false },
            Some("png") => Target {
                folder: path.parent().map(Path::to_path_buf).unwrap_or_default(),
                stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                plain_first: true,
            },
            _ => {
                return Error::refused(format!(
                    "-o {}: pictures are written as .png, not .{}; name a .png file or a folder",
                    path.display(),
                    ending.unwrap_or_default()
                ));
            }
        };
        check_writable(&target.folder)?;
        Ok(target)
    }

    /// Whether a file of this name can be written, asked before the work is done.
    ///
    /// # Errors
    /// The path is a folder, or lies where nothing can be written.
    pub fn check_file(path: &Path) -> Result<()> {
        if path.is_dir() {
            return Error::refused(format!("{} is a folder; the name of a file is needed", path.display()));
        }
        check_writable(path.parent().unwrap_or(Path::new("")))
    }

    /// Writes a picture with its record, under the first name that is free.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, picture: &Picture, plan: &Plan) -> Result<PathBuf> {
        self.save_bytes(&plan.png(picture)?)
    }

    /// Writes a finished PNG file under the first name that is free.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_bytes(&self, bytes: &[u8]) -> Result<PathBuf> {
        write_free(&self.folder, &self.stem, ".png", self.plain_first, bytes)
    }
}

/// Writes a file of this name, or of the first numbered one where there is something already.
pub(crate) fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    write_free(path.parent().unwrap_or(Path::new("")), &stem, &ending, true, bytes)
}

/// Writes under the first name that is free: with `plain_first` the stem itself, then the stem with a number.
fn write_free(folder: &Path, stem: &str, ending: &str, plain_first: bool, bytes: &[u8]) -> Result<PathBuf> {
    for number in u32::from(!plain_first)..MOST_NAMES {
        let name = match number {
            0 => format!("{stem}{ending}"),
            n => format!("{stem}-{n:04}{ending}"),
        };
        let path = folder.join(name);
        if !path.exists() && write_new(&path, bytes)? {
            return Ok(path);
        }
    }
    let folder = folder.display();
    Error::refused(format!("{folder} holds {MOST_NAMES} files named {stem}; choose another name"))
}
