//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// `read`, `write` or `make`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file or text is not what it should be.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// What was read, such as `the key in /etc/...` or `a token`.
        what: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A certificate or key could not be made.
    #[error("make {what}: {reason}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// What the library says.
        reason: String,
    },
    /// A certificate or token proves nothing.
    #[error("{what} is refused: {reason}")]
    Refused {
        /// What was checked.
        what: &'static str,
        /// Why; holds no secret.
        reason: String,
    },
}

impl PkiError {
    pub(crate) fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Make {
            what,
            reason: error.to_string(),
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Invalid {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn refused(what: &'static str, reason: impl ToString) -> Self {
        Self::Refused {
            what,
            reason: reason.to_string(),
        }
    }
}
