//! What can go wrong between a photograph and an identity.

use std::path::PathBuf;

/// A refusal or failure. Every message is one plain sentence that names the thing, its value and
/// what would be valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{what} `{}` could not be {action}: {reason}", path.display())]
    Io {
        /// What kind of thing the path names, such as "the photo".
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// "read" or "written".
        action: &'static str,
        /// The operating system's words.
        reason: String,
    },
    /// The place that was named takes no file; another would.
    #[error("{what} `{}` could not be written: {reason}", path.display())]
    Place {
        /// What kind of thing the path names.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A picture could not be used.
    #[error("{name}: {reason}")]
    Photo {
        /// The picture: its path, or what the caller called it.
        name: String,
        /// Why, and what would be valid.
        reason: String,
    },
    /// A face network could not be used.
    #[error("the face model `{name}` {reason}")]
    Model {
        /// The file.
        name: String,
        /// Why, and what would be valid.
        reason: String,
    },
    /// A face was not found or cannot be used.
    #[error("{name}: {reason}")]
    Face {
        /// The picture.
        name: String,
        /// Why, and what would be valid.
        reason: String,
    },
    /// An identity file could not be used.
    #[error("the identity `{name}` {reason}")]
    Identity {
        /// The file.
        name: String,
        /// Why, and what would be valid.
        reason: String,
    },
    /// Keypoints or sizes that cannot be drawn.
    #[error("{0}")]
    Keypoints(String),
}

impl Error {
    /// True when the user's input is at fault (exit status 2), false when the machine is.
    pub fn is_user_fault(&self) -> bool {
        !matches!(self, Error::Io { action, .. } if *action == "written")
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
