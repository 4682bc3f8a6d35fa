//! What can be wrong with weights, one plain sentence each.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why weights could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file ends before its own header says.
    #[error("{} is truncated: it has {have} bytes and needs {need}; fetch it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes present.
        have: u64,
        /// Bytes that the header asks for.
        need: u64,
    },
    /// The file was written to after it had been opened.
    #[error("{} changed while it was being read; load it again once it is complete", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file breaks the rules of its own format.
    #[error("{} is not a valid {format} file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format it claims to be.
        format: &'static str,
        /// The rule that is broken.
        reason: String,
    },
    /// The file, or what is in it, is of a sort that is not read.
    #[error("{} cannot be loaded: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        reason: String,
    },
    /// A folder without the files of a model.
    #[error("{} is not a model folder: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// These weights are of another model than the one asked for.
    #[error("{file} is {found}; {expected} is needed here")]
    WrongKind {
        /// Where the tensors came from.
        file: String,
        /// What it is.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{} is missing from {file}; this model needs it{}", Quoted(name), Expected(expected))]
    Missing {
        /// The full name.
        name: String,
        /// Where it was looked for.
        file: String,
        /// The shape asked for, if the caller knew it.
        expected: Option<Vec<usize>>,
    },
    /// A tensor has another shape than the model's.
    #[error("{} in {file} is {found:?}; this model needs {expected:?}", Quoted(name))]
    Misshapen {
        /// The full name.
        name: String,
        /// Where it came from.
        file: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
    /// A tensor of whole numbers where a network needs fractions, as quantised files have them.
    #[error("{} in {file} holds {found} numbers; this model needs floating point, such as F16 or F32", Quoted(name))]
    NotFloat {
        /// The full name.
        name: String,
        /// Where it came from.
        file: String,
        /// The type found.
        found: Dtype,
    },
    /// A tensor holds NaN or infinity, or values that the target type cannot hold.
    #[error(
        "{} in {file} holds values that are not finite as {target}; the file is damaged or badly converted",
        Quoted(name)
    )]
    NonFinite {
        /// The full name.
        name: String,
        /// Where it came from.
        file: String,
        /// The type converted to.
        target: &'static str,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Error {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, format: &'static str, reason: impl Into<String>) -> Error {
        Error::Malformed { path: path.to_owned(), format, reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &Path, reason: impl Into<String>) -> Error {
        Error::Unsupported { path: path.to_owned(), reason: reason.into() }
    }
}

/// A name from a file, as it may be shown: quoted, short, and without characters that could forge a log line.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 160;
        f.write_str("`")?;
        for c in self.0.chars().take(LONGEST) {
            if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        if self.0.chars().nth(LONGEST).is_some() {
            f.write_str("...")?;
        }
        f.write_str("`")
    }
}

struct Expected<'a>(&'a Option<Vec<usize>>);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(shape) => write!(f, " as {shape:?}"),
            None => Ok(()),
        }
    }
}
