//! What an applet reports when it cannot do what it was asked.

use std::fmt;
use std::io;

/// An applet's failure: printed as `applet: operation: reason`.
#[derive(Debug)]
pub enum ToolError {
    /// The arguments make no sense; the text tells how they should look.
    Usage(String),
    /// An operation on an object was refused by the kernel or the peer.
    Operation {
        /// Operation and object, e.g. `open /etc/hosts`.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// The operation ended with an answer that is not wanted.
    Answer(String),
}

impl ToolError {
    /// The exit status that stands for this failure.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Operation { .. } | Self::Answer(_) => 1,
        }
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => write!(f, "usage: {text}"),
            Self::Operation { what, source } => write!(f, "{what}: {source}"),
            Self::Answer(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ToolError {}

/// Names the operation that an I/O result belongs to.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, ToolError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, ToolError> {
        self.map_err(|e| ToolError::Operation {
            what: what(),
            source: e.into(),
        })
    }
}
