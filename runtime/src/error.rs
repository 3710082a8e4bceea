//! What can go wrong between a spec and a running process.

use std::path::PathBuf;

use rkube_keeper::plan::Failure;
use rustix::io::Errno;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per operation; fields name the object and what the kernel
/// answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{operation} {path}")]
    File {
        /// `read`, `write`, ...
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file or input is no JSON, or not of the shape it must have.
    #[error("parse {what}")]
    Parse {
        /// Which.
        what: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A value of the spec breaks a rule.
    #[error("{field}: {reason}")]
    Spec {
        /// Path of the field, as in `mounts[2].options`.
        field: String,
        /// The rule.
        reason: String,
    },
    /// A valid value that this runtime, or this kernel, cannot do.
    #[error("{field}: {reason} is not supported")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// What is not there.
        reason: String,
    },
    /// A system call that prepares a plan.
    #[error("{call} {object}")]
    Call {
        /// What was attempted.
        call: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The seccomp profile could not be compiled.
    #[error("linux.seccomp")]
    Seccomp {
        /// Why.
        source: rkube_seccomp::CompileError,
    },
    /// A cgroup operation.
    #[error(transparent)]
    Cgroup(#[from] rkube_cgroup::Error),
    /// The plan is too large for the small program.
    #[error("plan of {what}: {count} exceeds the limit of {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        count: usize,
        /// How much is allowed.
        limit: usize,
    },
    /// The small program could not be started.
    #[error("start the stage program")]
    Spawn {
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The small program ended without an answer.
    #[error("stage program: {0}")]
    Stage(String),
    /// A step in the new process did not work.
    #[error("{0}")]
    Container(Failure),
    /// A hook failed.
    #[error("{kind} hook {path}: {reason}")]
    Hook {
        /// `prestart`, `createRuntime`, ...
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// No such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// Its id.
        id: String,
    },
    /// There is one of this id.
    #[error("container with id {id:?} exists already")]
    Exists {
        /// Its id.
        id: String,
    },
    /// An id that may not be used.
    #[error("invalid container id {id:?}: {reason}")]
    Id {
        /// As given.
        id: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The process has ended.
    #[error("container not running")]
    NotRunning,
    /// The container's state forbids the operation.
    #[error("cannot {operation} container {id:?}: it is {status}")]
    State {
        /// `start`, `delete`, ...
        operation: &'static str,
        /// Its id.
        id: String,
        /// Its status.
        status: &'static str,
    },
    /// Several things went wrong while one was taken down.
    #[error("{}", .0.iter().map(crate::error::chain).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

/// An error and all its sources in one line.
#[must_use]
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Error {
    /// A value that breaks a rule.
    pub(crate) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Spec {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A value that cannot be honoured.
    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// This error and all its sources in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Adds what was attempted, on what.
pub(crate) trait Context<T> {
    /// Turns an errno into an error.
    fn on(self, call: &'static str, object: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn on(self, call: &'static str, object: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Call {
            call,
            object: object.into(),
            source,
        })
    }
}

impl<T> Context<T> for std::result::Result<T, std::io::Error> {
    fn on(self, call: &'static str, object: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::File {
            operation: call,
            path: PathBuf::from(object.into()),
            source,
        })
    }
}
