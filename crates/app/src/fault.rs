//! Errors as the user meets them: one sentence, and whose turn it is.

/// A failure with the exit status that belongs to it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// What was given cannot be used: status 2.
    #[error("{0}")]
    Given(String),
    /// Something went wrong here: status 1.
    #[error("{0}")]
    Here(String),
    /// Whoever read stdout stopped reading: no fault, and nobody to tell.
    #[error("stdout was closed")]
    Closed,
    /// Sentences have been said already, one for each thing given that could not be used: status 2.
    #[error("some of what was given could not be used")]
    Said,
}

impl Fault {
    /// The same fault in other words.
    pub(crate) fn reworded(self, word: impl Fn(&str) -> String) -> Fault {
        match self {
            Fault::Given(sentence) => Fault::Given(word(&sentence)),
            Fault::Here(sentence) => Fault::Here(word(&sentence)),
            other => other,
        }
    }

    pub(crate) fn status(&self) -> u8 {
        match self {
            Fault::Given(_) | Fault::Said => 2,
            Fault::Here(_) => 1,
            Fault::Closed => 0,
        }
    }
}

impl From<hub::Error> for Fault {
    fn from(error: hub::Error) -> Fault {
        match error.is_given() {
            true => Fault::Given(error.to_string()),
            false => Fault::Here(error.to_string()),
        }
    }
}

impl From<faces::Error> for Fault {
    fn from(error: faces::Error) -> Fault {
        match error.is_user_fault() {
            true => Fault::Given(error.to_string()),
            false => Fault::Here(error.to_string()),
        }
    }
}

impl From<compare::Error> for Fault {
    fn from(error: compare::Error) -> Fault {
        match error.is_user_fault() {
            true => Fault::Given(error.to_string()),
            false => Fault::Here(error.to_string()),
        }
    }
}

impl From<mini::Error> for Fault {
    fn from(error: mini::Error) -> Fault {
        Fault::Here(error.to_string())
    }
}

impl From<cast::Error> for Fault {
    fn from(error: cast::Error) -> Fault {
        Fault::Given(error.to_string())
    }
}

impl From<engine::Error> for Fault {
    fn from(error: engine::Error) -> Fault {
        match error.is_user_fault() {
            true => Fault::Given(error.to_string()),
            false => Fault::Here(error.to_string()),
        }
    }
}
