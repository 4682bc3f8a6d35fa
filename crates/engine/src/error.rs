//! What the engine refuses, and what can go wrong in it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An error of the engine. Every message is a sentence that names the thing, its value and what would be valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something the user gave cannot be used (exit status 2).
    #[error("{0}")]
    Refused(String),
    /// A file could not be read or written.
    #[error("{} could not be {action}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// "read" or "written".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// Numbers that went astray, which no picture should come of.
    #[error(
        "{0} holds values that are not finite, so the networks overflowed; try --precision f32, and check that all models belong together"
    )]
    NotFinite(&'static str),
    /// Something failed on this machine, and what can be done about it.
    #[error("{0}")]
    Machine(String),
    /// A face, a photo or an identity.
    #[error(transparent)]
    Faces(#[from] faces::Error),
    /// A model file.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A network.
    #[error(transparent)]
    Nets(#[from] nets::Error),
    /// An operator failed.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
}

/// The engine's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether what the user gave is at fault (exit status 2) rather than this machine (1).
    pub fn is_user_fault(&self) -> bool {
        match self {
            Error::Refused(_) | Error::Nets(nets::Error::Weights(_)) | Error::Weights(_) => true,
            Error::Faces(error) => error.is_user_fault(),
            _ if self.is_lost_device() || self.is_out_of_memory() => false,
            Error::Nets(_) => true,
            Error::File { source, .. } => is_of_the_path(source.kind()),
            Error::Cancelled | Error::NotFinite(_) | Error::Machine(_) | Error::Tensor(_) => false,
        }
    }

    /// What a device said, if that is the trouble.
    fn of_device(&self) -> Option<&tensor::Error> {
        match self {
            Error::Tensor(error) | Error::Nets(nets::Error::Tensor(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether a device was lost, so that another one may go on.
    pub(crate) fn is_lost_device(&self) -> bool {
        matches!(self.of_device(), Some(tensor::Error::Lost { .. }))
    }

    /// Whether memory ran out.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self.of_device(), Some(tensor::Error::OutOfMemory { .. }))
    }

    /// A refusal in the user's words.
    pub(crate) fn refused<T>(sentence: impl Into<String>) -> Result<T> {
        Err(Error::Refused(sentence.into()))
    }

    /// For `map_err` on what the file system returns for a file that is read.
    pub(crate) fn unread(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::File { path, action: "read", source }
    }

    /// For `map_err` on what the file system returns for a file that is written.
    pub(crate) fn unwritten(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::File { path, action: "written", source }
    }
}

/// Whether another path would do, where a full or failing disk is this machine's trouble.
fn is_of_the_path(kind: ErrorKind) -> bool {
    use ErrorKind::{
        AlreadyExists, InvalidData, InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        ReadOnlyFilesystem,
    };
    matches!(
        kind,
        AlreadyExists
            | InvalidData
            | InvalidFilename
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
    )
}
