//! What networks refuse.

/// Why a network could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operator refused, or memory ran out.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    /// A tensor of the checkpoint is missing, misshapen or damaged.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// A field of the configuration has a value that is not supported or makes no sense.
    #[error("{model} configuration: `{field}` is {value}; {expected}")]
    Config {
        /// The network.
        model: &'static str,
        /// The field's name in config.json.
        field: String,
        /// Its value, shortened.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// The tensors do not tell a configuration.
    #[error("{file} does not look like a {model}: {reason}")]
    Unrecognised {
        /// The network.
        model: &'static str,
        /// Where the tensors came from.
        file: String,
        /// What is missing or contradictory.
        reason: String,
    },
    /// The identity adapter is of another UNet.
    #[error("the identity adapter in {file} does not fit this UNet: {reason}")]
    Adapter {
        /// Where the adapter came from.
        file: String,
        /// What differs.
        reason: String,
    },
    /// An input does not fit the network.
    #[error("{model}: {what} is {got}; expected {expected}")]
    Input {
        /// The network.
        model: &'static str,
        /// Which input.
        what: &'static str,
        /// What was given.
        got: String,
        /// What would be valid.
        expected: String,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error about an input.
pub(crate) fn input(
    model: &'static str,
    what: &'static str,
    got: impl std::fmt::Debug,
    expected: impl Into<String>,
) -> Error {
    Error::Input { model, what, got: format!("{got:?}"), expected: expected.into() }
}

/// An error where the tensors show no such network.
pub(crate) fn unrecognised(model: &'static str, scope: &weights::Scope, reason: impl Into<String>) -> Error {
    Error::Unrecognised { model, file: scope.file().to_owned(), reason: reason.into() }
}
