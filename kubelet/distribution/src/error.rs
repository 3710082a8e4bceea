//! The crate's one error type.

use std::io;
use std::path::PathBuf;

use crate::limits::MAX_SHOWN_CHARS;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was attempted, on what, and what the peer answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the configuration or of credentials.
    #[error("{op} {}", path.display())]
    File {
        /// The operation, as a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file whose content cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A registry that the configuration blocks.
    #[error("registry {registry} is blocked in {}", path.display())]
    Blocked {
        /// The registry.
        registry: String,
        /// The configuration.
        path: PathBuf,
    },
    /// A host name without an address.
    #[error("look up {host}: {reason}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver found.
        reason: String,
    },
    /// No connection.
    #[error("connect to {host}")]
    Connect {
        /// `host:port`.
        host: String,
        /// Of the last address.
        source: io::Error,
    },
    /// TLS does not come about.
    #[error("TLS with {host}{hint}")]
    Tls {
        /// `host:port`.
        host: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A request that got no answer.
    #[error("{request}")]
    Transport {
        /// Method and address.
        request: String,
        /// Why.
        source: io::Error,
    },
    /// An answer that says no.
    #[error("{request}: {status}{}", said(message))]
    Status {
        /// Method and address.
        request: String,
        /// The status.
        status: http::StatusCode,
        /// What the registry says, shortened.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<std::time::Duration>,
    },
    /// The registry wants (other) credentials.
    #[error("{request}: access denied ({tried}){}", said(message))]
    Denied {
        /// Method and address.
        request: String,
        /// Which credentials were tried.
        tried: String,
        /// What the registry says, shortened.
        message: String,
    },
    /// An answer that breaks the protocol.
    #[error("{request}: {reason}")]
    Protocol {
        /// Method and address.
        request: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// Content that does not have the digest it was asked for by.
    #[error(
        "{what}: digest is {actual}, asked for was {expected}: the registry or something on the way is broken or lies"
    )]
    Digest {
        /// The object.
        what: String,
        /// Asked for.
        expected: String,
        /// Computed.
        actual: String,
    },
    /// A credential helper.
    #[error("credential helper {helper}: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// What it did.
        reason: String,
    },
    /// The image or the store.
    #[error(transparent)]
    Image(#[from] rkube_image::Error),
    /// Several endpoints, none of which worked.
    #[error("{image}: no endpoint had it: {}", all.join("; "))]
    Endpoints {
        /// The image.
        image: String,
        /// What each answered.
        all: Vec<String>,
    },
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Whether the way was cut and the same request may work later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Connect { .. } => true,
            Self::Tls { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Status { status, .. } => {
                matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }
}

/// An error with its sources, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// Foreign text in one short, harmless line.
pub(crate) fn shown(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { ' ' } else { c };
    let mut out: String = text
        .trim()
        .chars()
        .take(MAX_SHOWN_CHARS)
        .map(harmless)
        .collect();
    if text.chars().count() > MAX_SHOWN_CHARS {
        out.push_str("...");
    }
    out
}
