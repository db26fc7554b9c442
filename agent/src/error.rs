//! What can go wrong, by what it means to the host: each variant is one status code of agent.proto.

use std::error::Error as StdError;

/// Why a request could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is wrong; the message names the field.
    #[error("{0}")]
    Invalid(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// Understood and not supported; the message names the field.
    #[error("{0}")]
    Unimplemented(String),
    /// An operation failed: what was being done to what.
    #[error("{doing}")]
    Failed {
        doing: String,
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when a lower layer failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Failed { doing: what(), source: source.into() })
    }
}

impl Error {
    /// The same kind of error, with more about where it happened in front.
    pub(crate) fn within(self, place: impl std::fmt::Display) -> Self {
        let at = |text: String| format!("{place}: {text}");
        match self {
            Self::NotFound(text) => Self::NotFound(at(text)),
            Self::AlreadyExists(text) => Self::AlreadyExists(at(text)),
            Self::Invalid(text) => Self::Invalid(at(text)),
            Self::Precondition(text) => Self::Precondition(at(text)),
            Self::Unimplemented(text) => Self::Unimplemented(at(text)),
            Self::Failed { doing, source } => Self::Failed { doing: at(doing), source },
        }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Libraries are not all as strict about repeating their source as we are.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::NotFound(_) => ttrpc::Code::NOT_FOUND,
            Error::AlreadyExists(_) => ttrpc::Code::ALREADY_EXISTS,
            Error::Invalid(_) => ttrpc::Code::INVALID_ARGUMENT,
            Error::Precondition(_) => ttrpc::Code::FAILED_PRECONDITION,
            Error::Unimplemented(_) => ttrpc::Code::UNIMPLEMENTED,
            Error::Failed { .. } => ttrpc::Code::INTERNAL,
        };
        ttrpc::error::get_rpc_status(code, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = Err::<(), _>(cause).doing(|| "read /x".into()).unwrap_err();
        assert_eq!(chain(&error), "read /x: disk on fire");
    }
}
