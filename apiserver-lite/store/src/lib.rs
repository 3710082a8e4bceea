//! Revisioned keys: the store of the API server.
//!
//! **Purpose.** Keep small values (one encoded API object each) under ordered keys, with one
//! global revision that every change raises by one; answer reads at the newest and at older
//! revisions, tell changes in order to watchers, and lose nothing that was answered.
//!
//! **Boundary.** [`Store`] is what the API server knows; [`Embedded`] is the back end in this
//! process. Keys and values are bytes: nothing here knows Kubernetes, JSON or HTTP. Of the
//! operating system it uses plain files ([`Disk`]), two threads and a clock. An etcd back end
//! finds its place behind the same trait: its watch feeds the same kind of index, its
//! transactions resolve [`Pending`].
//!
//! **Invariants.**
//! 1. An answered write has been fsynced. Writes that wait at the same time share one fsync; an
//!    answer that depends on another write of the batch (a conflict with it) waits for it too.
//! 2. A revision that anyone saw never names another change, also across crashes: nothing is
//!    readable before its fsync, and what a restart finds is made durable before it is served.
//! 3. Log order = revision order = watch order. A batch is one checksummed frame: found whole or
//!    not at all. Checksums are chained, so an old frame never passes for a new one.
//! 4. A frame is written only after the fsync of the one before it. A damaged frame with a later
//!    one behind it is therefore corruption of answered data, and the store refuses to open;
//!    without one it is the torn tail of a crash, and is cut.
//! 5. After an I/O error of a write or fsync the store is read-only until restarted (the kernel
//!    may have dropped the pages; asking again would lie). A full disk is undone cleanly and
//!    lifts by itself when there is room.
//! 6. A value's bytes exist once: index, history, events and pages share them.
//! 7. Readers never wait for the disk: the index lock is held for lookups and for applying one
//!    durable batch, never across I/O, and long scans give it back every
//!    [`SCAN_KEYS_PER_LOCK`] keys.
//! 8. Memory and disk are bounded: history by age, revisions and bytes; the log by snapshots;
//!    queues by the constants below. At rest nothing runs: no timers but the next expiry.
//!
//! **Absent on purpose.** Transactions over several keys, locks, authentication, leases with
//! keep-alive (a key has a time to live, and a write renews it): the API server needs none.
//! Writes without fsync: the promise is for every answered write.

mod commit;
mod disk;
mod embedded;
mod error;
mod expiry;
mod format;
mod hub;
mod index;
mod log;
mod model;
mod pending;
mod recover;
mod retention;
mod snapshot;
mod watch;

#[cfg(test)]
mod crash;

pub use disk::{Disk, DiskFile, RealDisk};
pub use embedded::{Embedded, Options, Stats};
pub use error::{Health, OpenError, StoreError};
pub use model::{
    Committed, Event, Key, Page, Previous, Range, Record, Revision, Store, Value, Write,
};
pub use pending::Pending;
pub use watch::{Batch, Watcher};

/// Longest key, in bytes. Kubernetes' longest are a resource with its group (at most 63 + 1 +
/// 253), a namespace (63) and a name (253).
pub const KEY_BYTES_MAX: usize = 1024;

/// Largest value, in bytes: 1.5 MiB, etcd's `--max-request-bytes`, which users meet as the
/// largest object.
pub const VALUE_BYTES_MAX: usize = 1_572_864;

/// Writes that may wait for the committer; one more is [`StoreError::Busy`].
pub const QUEUE_WRITES_MAX: usize = 4096;

/// Bytes of keys and values that may wait for the committer; more is [`StoreError::Busy`].
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Writes that share one frame and one fsync at most.
pub const BATCH_WRITES_MAX: usize = 1024;

/// Bytes after which a batch takes no further write (one value more may exceed it).
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Watchers at a time; one more is [`StoreError::Limit`].
pub const WATCHERS_MAX: usize = 16_384;

/// Events in one [`Batch`] of a watcher.
pub const WATCH_BATCH_EVENTS_MAX: usize = 512;

/// Keys or events looked at while the index lock is held once.
pub const SCAN_KEYS_PER_LOCK: usize = 1024;

/// Revision of an empty store. Lists never show 0, which means "any" to clients; etcd begins at
/// 1 as well.
pub const FIRST_REVISION: Revision = 1;
