//! The crate's one error type.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was attempted, on what, and why it did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation of the store.
    #[error("{op} {}", path.display())]
    Io {
        /// The operation, as a verb.
        op: &'static str,
        /// Its object.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An image reference that cannot be parsed (`InvalidImageName`).
    #[error("invalid image name {reference:?}: {reason}")]
    InvalidReference {
        /// As given.
        reference: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// No such image in the store.
    #[error("no image {query:?} in the store{}", did_you_mean(similar))]
    NotFound {
        /// As given.
        query: String,
        /// References with the same last part.
        similar: Vec<String>,
    },
    /// A prefix that fits several images.
    #[error("{query:?} fits {} images: {}", matches.len(), matches.join(", "))]
    Ambiguous {
        /// As given.
        query: String,
        /// What it fits.
        matches: Vec<String>,
    },
    /// The image cannot go: something uses it.
    #[error("image {image} is in use by {}", by.join(", "))]
    InUse {
        /// The image.
        image: String,
        /// Container ids.
        by: Vec<String>,
    },
    /// One entry of a layer archive.
    #[error("layer {layer}: entry {entry:?}: {problem}")]
    Entry {
        /// The layer's name in its image.
        layer: String,
        /// The entry's path, escaped.
        entry: String,
        /// What is wrong with it.
        problem: Refusal,
    },
    /// Making one entry of a layer on the disk.
    #[error("layer {layer}: entry {entry:?}: {op}")]
    Unpack {
        /// The layer's name in its image.
        layer: String,
        /// The entry's path, escaped.
        entry: String,
        /// The system call.
        op: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The archive itself is broken.
    #[error("{what}: not a sound tar archive at byte {offset}: {problem}")]
    Tar {
        /// The archive or layer.
        what: String,
        /// Offset in the decompressed archive.
        offset: u64,
        /// What is wrong.
        problem: Refusal,
    },
    /// Reading or decompressing the source.
    #[error("read {what}")]
    Read {
        /// What was read.
        what: String,
        /// Why it ended.
        source: io::Error,
    },
    /// Content that does not have the digest it was announced with.
    #[error("{what}: digest is {actual}, announced was {expected}")]
    Digest {
        /// The blob.
        what: String,
        /// From the manifest, index or configuration.
        expected: String,
        /// Computed.
        actual: String,
    },
    /// A named limit was reached.
    #[error("{what}: more than {limit} {unit}")]
    Limit {
        /// What grew.
        what: String,
        /// The limit.
        limit: u64,
        /// Its unit.
        unit: &'static str,
    },
    /// A JSON document that cannot be used.
    #[error("{what}")]
    Document {
        /// Which document.
        what: String,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// A source that is no image in a known form.
    #[error("{what}: {reason}")]
    Malformed {
        /// The object.
        what: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// An index without a manifest for the wanted platform.
    #[error("{what}: no image for {wanted}, only for {}", found.join(", "))]
    Platform {
        /// The index.
        what: String,
        /// The wanted platform.
        wanted: String,
        /// Platforms in the index.
        found: Vec<String>,
    },
    /// A step of a mount.
    #[error("mount overlay ({method}): {step}{}", kernel_says(log))]
    Mount {
        /// How the mount was tried.
        method: &'static str,
        /// The system call and its arguments.
        step: String,
        /// The kernel's messages from the mount context, if any.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A user specification that cannot be turned into ids.
    #[error("user {user:?}: {reason}")]
    User {
        /// As given.
        user: String,
        /// What is wrong.
        reason: String,
    },
    /// A container id that cannot name a directory.
    #[error("container id {id:?}: {reason}")]
    ContainerId {
        /// As given.
        id: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Several clean-up steps did not work.
    #[error("{what}: {} steps did not work, the first: {}", all.len(), all.first().map_or("", String::as_str))]
    Cleanup {
        /// What was cleaned up.
        what: String,
        /// Every problem.
        all: Vec<String>,
    },
}

/// Why an archive or one of its entries is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A rule is broken.
    #[error("{0}")]
    Rule(&'static str),
    /// An entry type that is not part of an image layer.
    #[error("unknown entry type {}", escape_byte(*.0))]
    UnknownType(u8),
    /// A number that does not fit its field.
    #[error("{0} is not a number in range")]
    Number(&'static str),
    /// A pax record that cannot be used.
    #[error("pax record {0:?} cannot be used")]
    Pax(String),
    /// A named limit.
    #[error("{what} has more than {limit} {unit}")]
    Limit {
        /// What grew.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Its unit.
        unit: &'static str,
    },
}

fn escape_byte(b: u8) -> String {
    format!("'{}'", b.escape_ascii())
}

fn did_you_mean(similar: &[String]) -> String {
    if similar.is_empty() {
        String::new()
    } else {
        format!("; there is {}", similar.join(", "))
    }
}

fn kernel_says(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" (kernel: {log})")
    }
}

/// Adds operation and object to an I/O error.
pub(crate) trait Context<T> {
    fn ctx(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn ctx(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io {
            op,
            path: path.as_ref().to_path_buf(),
            source: e.into(),
        })
    }
}
