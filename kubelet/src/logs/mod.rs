//! Reading container logs in the CRI format.
//!
//! Layout: `<namespace>_<name>_<uid>/<container>/<attempt>.log`; a rotated
//! file is renamed to `<attempt>.log.<YYYYMMDD-HHMMSS>[.n]`. Lines are
//! written by the keeper; what is read here is bounded and may be broken,
//! since a machine may have crashed in the middle of a line.

pub mod files;
pub mod follow;
pub mod line;
pub mod read;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::SystemTime;

pub use follow::Follow;
pub use line::{Entry, Stream};
pub use read::read;

/// Which lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Only lines written at this time or later.
    pub since: Option<SystemTime>,
    /// The attempt before the latest one.
    pub previous: bool,
    /// Only one of the two streams.
    pub stream: Option<Stream>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The container has no such attempt.
    #[error("there is no log of {which} in {path:?}")]
    Missing {
        /// The latest or the previous attempt.
        which: &'static str,
        /// The container's log directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{call} {path:?}")]
    Call {
        /// The call.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
}
