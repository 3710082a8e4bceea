//! What can go wrong, and whether the store takes writes.

use std::io;
use std::sync::Arc;

use crate::model::{Key, Record, Revision};

/// Why a read, write or watch was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The key is not as the write expected; nothing changed.
    #[error(
        "{key}: expected {}, found {}",
        revision_or_none(*expected),
        revision_or_none(current.as_ref().map(|record| record.revision))
    )]
    Conflict {
        /// The key.
        key: Key,
        /// What the write expected; `None`: no such key.
        expected: Option<Revision>,
        /// What is there; `None`: no such key.
        current: Option<Record>,
    },
    /// The revision is older than the history that is kept (HTTP 410, `Expired`).
    #[error("revision {asked} is gone: the oldest kept is {compacted}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest that can be read.
        compacted: Revision,
    },
    /// A watcher read so slowly that events it had not read are gone (HTTP 410, `Expired`).
    #[error(
        "watcher too slow: events after revision {read} are gone, the oldest kept is {compacted}"
    )]
    Lagged {
        /// The last revision that the watcher has seen everything of.
        read: Revision,
        /// The oldest that can be watched after.
        compacted: Revision,
    },
    /// The revision is not there yet.
    #[error("revision {asked} is not there yet: the newest is {current}")]
    Future {
        /// The revision asked for.
        asked: Revision,
        /// The newest.
        current: Revision,
    },
    /// A key, value or number of watchers above its limit, or an empty key.
    #[error("{what} of {got}: must be 1 to {max}")]
    Limit {
        /// What is out of bounds, with its unit.
        what: &'static str,
        /// The size asked for.
        got: usize,
        /// The largest allowed.
        max: usize,
    },
    /// Too many writes wait already; try again (HTTP 429).
    #[error("store is busy: too many writes wait for the disk")]
    Busy,
    /// The disk is full. Nothing was written; writes are taken again when there is room.
    #[error("no space left for the store's log: free some and try again")]
    Full {
        /// The kernel's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk did not confirm this write: it may or may not be there after a restart.
    #[error("the disk did not confirm the write: it may or may not be there after a restart")]
    Unconfirmed {
        /// The kernel's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store takes no writes since an earlier I/O error. Nothing was written.
    #[error("store is read-only since an I/O error ({reason}): check the disk and restart")]
    ReadOnly {
        /// The first error.
        reason: Arc<str>,
    },
    /// The store was closed before the write was begun, or while the watcher waited.
    #[error("store is closed")]
    Closed,
}

fn revision_or_none(revision: Option<Revision>) -> String {
    revision.map_or_else(
        || "no such key".to_owned(),
        |revision| format!("revision {revision}"),
    )
}

/// Whether the store takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// The last write found the disk full; the next one tries again.
    Full,
    /// An I/O error; reads go on, writes are refused until a restart.
    ReadOnly {
        /// The error.
        reason: Arc<str>,
    },
    /// Closed.
    Closed,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An operation on the store's folder or a file in it.
    #[error("{operation} {file} of the store")]
    Io {
        /// What was done.
        operation: &'static str,
        /// The file's name in the store's folder.
        file: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another process has the store open.
    #[error("the store in {folder} is open in another process")]
    Locked {
        /// The folder.
        folder: String,
    },
    /// Written by a newer rkube.
    #[error("{file} has format {found}, this rkube reads up to {known}: use the newer one")]
    Version {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// Answered data is damaged: not the tail that a crash leaves. Nothing was changed.
    #[error("{file} is damaged at byte {offset}: {what}; restore the folder from a copy")]
    Corrupt {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The committer's thread could not be started.
    #[error("start the store's thread")]
    Thread {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
