//! What can go wrong, as plain sentences that name the thing, its value and what would be valid.

use std::path::PathBuf;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model was not found or not brought.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that no table and no folder knows.
    #[error("no model is called `{name}`; known are {known}, or a repository of the hub written ORG/NAME")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A path or name was given, and there is nothing usable.
    #[error("{flag} `{given}` {why}")]
    Given {
        /// The option, as the user writes it.
        flag: &'static str,
        /// Its value.
        given: String,
        /// What is wrong with it and what would be valid.
        why: String,
    },
    /// Nothing was given and nothing was found.
    #[error(
        "no {what} was found (looked in {looked}); `sameface models pull {pull}` brings it, or name one with {flag}"
    )]
    NotInstalled {
        /// The part of the stack.
        what: &'static str,
        /// The option that would name one.
        flag: &'static str,
        /// The places that were searched.
        looked: String,
        /// The name to pull.
        pull: String,
    },
    /// A copy exists but files are lacking, as after an interrupted download.
    #[error("the {what} in {folder} is incomplete: it lacks {lacks}; `sameface models pull {pull}` completes it")]
    Incomplete {
        /// The part of the stack.
        what: &'static str,
        /// Where the copy is.
        folder: PathBuf,
        /// What is lacking.
        lacks: String,
        /// The name to pull.
        pull: String,
    },
    /// Several files could be meant.
    #[error("{folder} holds several files that could be the {what} ({found}); name one with {flag}")]
    Ambiguous {
        /// The part of the stack.
        what: &'static str,
        /// The option that would decide.
        flag: &'static str,
        /// The folder with too many.
        folder: PathBuf,
        /// Their names.
        found: String,
    },
    /// The hub must not be asked.
    #[error("HF_HUB_OFFLINE is set, so `{name}` is not fetched; unset it to download")]
    Offline {
        /// What was to be fetched.
        name: String,
    },
    /// The address of the hub or of the proxy makes no sense.
    #[error("{variable} is `{value}`; it must be an address such as {example}")]
    BadAddress {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What would be valid.
        example: &'static str,
    },
    /// 401 or 403.
    #[error("{endpoint} refuses {repo} ({status}): {advice}")]
    Refused {
        /// The hub's address.
        endpoint: String,
        /// The repository.
        repo: String,
        /// The status code.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// 404.
    #[error("{endpoint} has no {what}")]
    NotThere {
        /// The hub's address.
        endpoint: String,
        /// The repository, revision or file.
        what: String,
    },
    /// The connection failed for good.
    #[error(
        "{what} could not be fetched from {host} after {attempts} attempts: {why}; what arrived is kept, and the same command goes on from there"
    )]
    Network {
        /// The file.
        what: String,
        /// The server.
        host: String,
        /// How often it was tried.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// The server speaks, but not the hub's language.
    #[error("{host} gave a reply that the hub would not give for {what}: {why}")]
    BadReply {
        /// The server.
        host: String,
        /// The file or repository.
        what: String,
        /// What is odd.
        why: String,
    },
    /// Checksums differ, twice.
    #[error("{file} arrived with {got} where {expected} was expected, twice; nothing was kept")]
    WrongBytes {
        /// The file.
        file: String,
        /// The checksum or size found.
        got: String,
        /// The checksum or size wanted.
        expected: String,
    },
    /// The disk is too small.
    #[error("{} are needed in {folder}, and {} are free", crate::progress::human(*.need), crate::progress::human(*.free))]
    NoSpace {
        /// The cache.
        folder: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The callback said stop.
    #[error("cancelled; what arrived is kept, and the same command goes on from there")]
    Cancelled,
    /// A file operation failed.
    #[error("{path} could not be {what}: {source}")]
    Io {
        /// The verb, such as "written".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the cause is something that the user wrote, rather than this machine or the network.
    pub fn is_given(&self) -> bool {
        matches!(
            self,
            Error::UnknownModel { .. } | Error::Given { .. } | Error::Ambiguous { .. } | Error::BadAddress { .. }
        )
    }

    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
