//! What a controller's work on one key may fail with. The key comes back.

use rkube_client::ApiError;

/// Why a key has to come back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request was refused, or had no answer.
    #[error("{action} {object}")]
    Request {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The answer.
        source: ApiError,
    },
    /// No token could be made.
    #[error("make a token for service account {account}: {reason}")]
    Token {
        /// The account, with its namespace.
        account: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    pub(crate) fn request(
        action: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(ApiError) -> Self {
        let object = object.to_string();
        move |source| Self::Request {
            action,
            object,
            source,
        }
    }

    /// Whether somebody else was faster: nothing to worry about.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Request { source, .. } if source.is_conflict())
    }
}

pub(crate) type Outcome = Result<(), Error>;

/// An error with its sources, for a log line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
