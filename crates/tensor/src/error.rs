//! Errors of tensor operators.

use crate::DType;

/// What an operator refuses, or what the machine could not give.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shape does not fit the operator.
    #[error("{op}: {what} has shape {got:?}; expected {expected}")]
    Shape {
        /// The operator.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// The shape found.
        got: Vec<usize>,
        /// The shape that would be valid, in words.
        expected: String,
    },
    /// An element type does not fit the operator on this device.
    #[error("{op}: {what} has element type {got}; expected {expected}")]
    DType {
        /// The operator.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// The type found.
        got: DType,
        /// The types that would be valid.
        expected: &'static str,
    },
    /// An argument is out of its range.
    #[error("{op}: {message}")]
    Argument {
        /// The operator.
        op: &'static str,
        /// What is wrong and what would be valid.
        message: String,
    },
    /// Memory could not be had.
    #[error("out of memory: {} could not be allocated on {device}{advice}", said_bytes(*bytes))]
    OutOfMemory {
        /// The size asked for; 0 where it was not said.
        bytes: usize,
        /// Where.
        device: String,
        /// What is held there and what would need less; empty where nothing is known.
        advice: String,
    },
    /// The device cannot be used on this machine.
    #[error("{device} cannot be used: {reason}")]
    NoDevice {
        /// The device asked for.
        device: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The device failed for good: this process can do nothing on it any more.
    #[error("{device} failed for good ({doing}: {reason}), and this process cannot use it any more")]
    Lost {
        /// The device.
        device: String,
        /// What was being done; the work that failed may have been asked for before.
        doing: String,
        /// What the device says.
        reason: String,
    },
    /// The device or one of its libraries failed.
    #[error("{device}: {doing} failed: {reason}")]
    Failed {
        /// The device.
        device: String,
        /// What was being done.
        doing: String,
        /// What the device says, and what to do.
        reason: String,
    },
}

fn said_bytes(bytes: usize) -> String {
    if bytes == 0 { "what a library asked for".into() } else { format!("{bytes} bytes") }
}

/// The result of an operator.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn shape(op: &'static str, what: &'static str, got: &[usize], expected: impl Into<String>) -> Self {
        Error::Shape { op, what, got: got.to_vec(), expected: expected.into() }
    }

    pub(crate) fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Error::Argument { op, message: message.into() }
    }
}
