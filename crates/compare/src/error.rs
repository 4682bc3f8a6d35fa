//! What can go wrong in a comparison.

/// An error of a comparison. Every message is a sentence that names the thing, its value and what would be valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something the user gave cannot be used.
    #[error("{0}")]
    Refused(String),
    /// A picture could not be made.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A face could not be read or judged.
    #[error(transparent)]
    Faces(#[from] faces::Error),
    /// The folder for what passes between the parts could not be written.
    #[error("the temporary folder could not be written: {0}")]
    Temporary(std::io::Error),
}

/// The results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether what the user gave is at fault (exit status 2) rather than this machine (1).
    pub fn is_user_fault(&self) -> bool {
        match self {
            Error::Refused(_) => true,
            Error::Engine(error) => error.is_user_fault(),
            Error::Faces(error) => error.is_user_fault(),
            Error::Temporary(_) => false,
        }
    }
}
