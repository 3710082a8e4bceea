//! What can go wrong, and what was left undone on purpose.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;

use crate::hierarchy::{Controller, Mode};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One variant per operation; fields name the object and what the kernel
/// answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No cgroup file system is mounted where this process can see it.
    #[error("find a cgroup file system: none in the mount table (mount cgroup2 on /sys/fs/cgroup)")]
    NoHierarchy,
    /// A table of the kernel could not be read or understood.
    #[error("read {path}")]
    Table {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// A cgroup path that may not be used.
    #[error("cgroup path {path:?}: {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Opening a cgroup directory or file.
    #[error("open {path}")]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Reading a cgroup file.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// A cgroup file whose content is not what the kernel documents.
    #[error("read {path}: cannot understand {content:?}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        content: String,
    },
    /// systemd is not PID 1 here.
    #[error("ask systemd: it is not PID 1 of this host")]
    NoSystemd,
    /// The connection to systemd.
    #[error("{what}")]
    BusIo {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// What came over that connection is not what D-Bus defines.
    #[error("talk to systemd over D-Bus: {reason}")]
    Bus {
        /// What is wrong.
        reason: &'static str,
    },
    /// systemd has refused.
    #[error("systemd's {call}: {message} ({name})")]
    Systemd {
        /// The method.
        call: String,
        /// Name of the D-Bus error, or of the unit.
        name: String,
        /// systemd's words.
        message: String,
    },
    /// A name that no unit of systemd's can have.
    #[error("systemd unit {name:?}: {reason}")]
    Unit {
        /// As given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Writing a cgroup file.
    #[error("write {value:?} to {path}{hint}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What this errno means for this file, where it is known; starts
        /// with a separator, or is empty.
        hint: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Making a cgroup directory.
    #[error("make cgroup {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Removing a cgroup directory.
    #[error("remove cgroup {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// A cgroup that still has processes at the end of the wait.
    #[error("remove cgroup {path}: still has processes {pids:?} after {waited:?}")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Some of the processes (at most 16).
        pids: Vec<u32>,
        /// How long was waited.
        waited: Duration,
    },
    /// A controller that the host does not have (or not where it is needed).
    #[error(
        "{setting}: controller {controller} is not available on this {mode} host (have: {available})"
    )]
    MissingController {
        /// The controller.
        controller: Controller,
        /// The mode of the host.
        mode: Mode,
        /// The setting that needs it.
        setting: String,
        /// The controllers that are there.
        available: String,
    },
    /// A controller that exists but not for this cgroup.
    #[error("{setting}: cgroup {path} has no directory in the {controller} hierarchy")]
    NotJoined {
        /// The controller.
        controller: Controller,
        /// The cgroup.
        path: String,
        /// The setting that needs it.
        setting: String,
    },
    /// A value that this kernel and mode cannot express.
    #[error("{setting}: controller {controller} on this {mode} host cannot: {reason} ({file})")]
    NotExpressible {
        /// The controller.
        controller: Controller,
        /// The file that would hold it.
        file: String,
        /// The mode of the host.
        mode: Mode,
        /// The setting.
        setting: String,
        /// Why not.
        reason: &'static str,
    },
    /// A value that no kernel would take.
    #[error("{setting} = {value}: {reason}")]
    Invalid {
        /// The setting.
        setting: String,
        /// The value.
        value: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The group exists and has processes.
    #[error("make cgroup {path}: it exists and has processes {pids:?}")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Some of them (at most 16).
        pids: Vec<u32>,
    },
    /// The group, or one above it, is frozen: a process started in it would
    /// never run.
    #[error("make cgroup {path}: it or a parent is frozen (thaw it first)")]
    Frozen {
        /// The directory.
        path: PathBuf,
    },
    /// Cgroup v2 lets no controller be enabled below a group that has
    /// processes itself.
    #[error(
        "enable {controllers} below {path}: the group has processes of its own, move them to a leaf first (no internal process rule)"
    )]
    InternalProcess {
        /// The group above.
        path: PathBuf,
        /// `+cpu +memory` and so on.
        controllers: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The wanted memory limit is below what the group uses.
    #[error("memory.limit = {limit}: the group {path} uses {usage} bytes")]
    MemoryInUse {
        /// The group.
        path: PathBuf,
        /// Wanted bytes.
        limit: i64,
        /// Bytes in use.
        usage: u64,
    },
    /// A process that could not be moved into the group.
    #[error("attach process {pid} to {path}")]
    Attach {
        /// The process.
        pid: u32,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Ending a process of the group.
    #[error("kill process {pid} of {path}")]
    Kill {
        /// The process.
        pid: u32,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// An operation that did not come to its end in time.
    #[error("{operation} {path}: not done after {waited:?}{detail}")]
    Timeout {
        /// `freeze`, `thaw` or `kill`.
        operation: &'static str,
        /// The group.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// More, with its separator, or empty.
        detail: String,
    },
    /// Waiting on a descriptor, or making one to wait on.
    #[error("{call} for {path}")]
    Watch {
        /// The system call.
        call: &'static str,
        /// What was to be watched.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel refused the device filter.
    #[error("load device filter for {path} ({instructions} instructions){log}")]
    FilterLoad {
        /// The group.
        path: PathBuf,
        /// Length of the program.
        instructions: usize,
        /// The verifier's words with their separator, or empty.
        log: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// Attaching, detaching or listing device filters.
    #[error("{operation} device filter of {path}")]
    FilterAttach {
        /// `attach`, `replace`, `detach` or `query`.
        operation: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// Several things went wrong in a teardown; each was tried.
    #[error("{operation}: {}", list(errors))]
    Several {
        /// What was done.
        operation: &'static str,
        /// Every failure.
        errors: Vec<Error>,
    },
}

/// The failures of a teardown, each with its whole chain.
fn list(errors: &[Error]) -> String {
    let mut out = String::new();
    for (index, error) in errors.iter().enumerate() {
        if index > 0 {
            out.push_str("; ");
        }
        out.push_str(&error.to_string());
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            out.push_str(": ");
            out.push_str(&inner.to_string());
            source = inner.source();
        }
    }
    out
}

impl Error {
    /// The errno at the bottom, where the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Table { source, .. }
            | Error::Open { source, .. }
            | Error::Read { source, .. }
            | Error::Write { source, .. }
            | Error::Create { source, .. }
            | Error::Remove { source, .. }
            | Error::InternalProcess { source, .. }
            | Error::Attach { source, .. }
            | Error::Kill { source, .. }
            | Error::Watch { source, .. }
            | Error::FilterLoad { source, .. }
            | Error::FilterAttach { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// A setting that was not applied because it may be ignored; the caller
/// decides who hears of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The setting, by its OCI name (`memory.kernel`).
    pub setting: &'static str,
    /// What became of it.
    pub message: String,
}
