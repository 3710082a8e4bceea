//! The embedded back end: a queue, the committer's thread, and a thread for a snapshot's time.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::commit::{Committer, Shared};
use crate::disk::{Disk, RealDisk};
use crate::error::{Health, OpenError, StoreError};
use crate::model::{Page, Range, Record, Revision, Store, Write};
use crate::pending::{Pending, Ticket};
use crate::snapshot::SnapshotJob;
use crate::watch::Watcher;
use crate::{
    BATCH_BYTES_MAX, BATCH_WRITES_MAX, KEY_BYTES_MAX, QUEUE_BYTES_MAX, QUEUE_WRITES_MAX,
    VALUE_BYTES_MAX, recover,
};

/// Where the time comes from.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    System,
    #[cfg(test)]
    Test(Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// Seconds since 1970; times to live survive restarts, so this is the wall clock.
    pub(crate) fn unix_s(&self) -> u64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            #[cfg(test)]
            Self::Test(now) => now.load(Ordering::Relaxed),
        }
    }
}

/// What may be set.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seconds for which old revisions stay readable; 300 as upstream's compaction interval.
    /// Compaction happens when writes do.
    pub history_s: u64,
    /// Bytes that superseded values and events may keep; above it, history is cut before its
    /// time. What changes while a snapshot is written comes on top.
    pub history_bytes: u64,
    /// Bytes of log after which a snapshot is written, if the data is not larger.
    pub snapshot_log_bytes: u64,
    /// Bytes of space that the log reserves ahead.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history_s: 300,
            history_bytes: 64 << 20,
            snapshot_log_bytes: 64 << 20,
            reserve_bytes: 8 << 20,
        }
    }
}

/// Sizes and counts, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Keys that exist.
    pub live_keys: u64,
    /// Bytes of their keys and values.
    pub live_bytes: u64,
    /// Changes that watchers can still see.
    pub history_events: u64,
    /// Bytes that only history keeps, estimated.
    pub history_bytes: u64,
    /// Watchers.
    pub watchers: usize,
    /// Writes that wait.
    pub queued: usize,
    /// Batches made durable since the start, each with one fsync.
    pub batches: u64,
    /// Snapshots written since the start.
    pub snapshots: u64,
    /// Snapshots that failed since the start; the log is kept until one succeeds.
    pub snapshots_failed: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    writes: VecDeque<(Write, Ticket)>,
    bytes: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, write: Write) -> Pending {
        let bytes = write.bytes();
        let mut waiting = self.lock();
        if waiting.closed {
            return Pending::answered(Err(StoreError::Closed));
        }
        if waiting.writes.len() >= QUEUE_WRITES_MAX || waiting.bytes + bytes > QUEUE_BYTES_MAX {
            return Pending::answered(Err(StoreError::Busy));
        }
        let (ticket, pending) = Pending::new();
        waiting.bytes += bytes;
        waiting.writes.push_back((write, ticket));
        let first = waiting.writes.len() == 1;
        drop(waiting);
        if first {
            self.filled.notify_one();
        }
        pending
    }

    /// The next batch, empty after the time; `None` when closed and empty.
    fn take(&self, timeout: Option<Duration>) -> Option<(Vec<Write>, Vec<Ticket>)> {
        let mut waiting = self.lock();
        while waiting.writes.is_empty() && !waiting.closed {
            let Some(timeout) = timeout else {
                waiting = self
                    .filled
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (guard, result) = self
                .filled
                .wait_timeout(waiting, timeout)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if result.timed_out() {
                break;
            }
        }
        if waiting.writes.is_empty() && waiting.closed {
            return None;
        }
        let mut writes = Vec::new();
        let mut tickets = Vec::new();
        let mut bytes = 0;
        while writes.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
            let Some((write, ticket)) = waiting.writes.pop_front() else {
                break;
            };
            bytes += write.bytes();
            writes.push(write);
            tickets.push(ticket);
        }
        waiting.bytes -= bytes;
        Some((writes, tickets))
    }

    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }
}

/// Closes the queue however the committer's thread ends, so that nobody waits for it.
struct CloseAtEnd<'a>(&'a Queue, &'a Shared);

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.close();
        self.0.lock().writes.clear();
        self.1.hub.close();
    }
}

/// A store in this process, on files. Dropping it answers what waits, then closes.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    committer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in a folder, or makes an empty one.
    ///
    /// # Errors
    /// Those of [`OpenError`].
    pub fn open(folder: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk::open(folder)?), options)
    }

    /// Opens the store on a disk.
    ///
    /// # Errors
    /// Those of [`OpenError`].
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Result<Self, OpenError> {
        let (index, log) = recover::open(&disk, &options)?;
        let committer = Committer::new(disk, index, log, options, Clock::System);
        let shared = Arc::clone(&committer.shared);
        let queue = Arc::new(Queue::default());
        let thread = thread::Builder::new()
            .name("rkube-store".to_owned())
            .spawn({
                let queue = Arc::clone(&queue);
                move || run(committer, &queue)
            });
        Ok(Self {
            shared,
            queue,
            committer: Some(thread.map_err(|source| OpenError::Thread { source })?),
        })
    }

    /// Sizes and counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let sizes = self.shared.index().sizes();
        Stats {
            live_keys: sizes.live_keys,
            live_bytes: sizes.live_bytes,
            history_events: sizes.history_events,
            history_bytes: sizes.history_bytes,
            watchers: self.shared.hub.watchers(),
            queued: self.queue.lock().writes.len(),
            batches: self.shared.batches.load(Ordering::Relaxed),
            snapshots: self.shared.snapshots.load(Ordering::Relaxed),
            snapshots_failed: self.shared.snapshots_failed.load(Ordering::Relaxed),
        }
    }
}

fn run(mut committer: Committer, queue: &Queue) {
    let shared = Arc::clone(&committer.shared);
    let _close = CloseAtEnd(queue, &shared);
    let mut snapshot: Option<JoinHandle<()>> = None;
    while let Some((writes, tickets)) = queue.take(committer.idle()) {
        if !writes.is_empty() {
            let answers = committer.commit(&writes);
            for (ticket, answer) in tickets.into_iter().zip(answers) {
                ticket.answer(answer);
            }
        }
        committer.expire();
        if let Some(job) = committer.snapshot_if_due() {
            snapshot = in_background(job, &shared);
        }
    }
    shared.closing.store(true, Ordering::Release);
    if let Some(thread) = snapshot
        && thread.join().is_err()
    {
        tracing::error!("a snapshot's thread panicked");
    }
}

fn in_background(job: SnapshotJob, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let write = {
        let shared = Arc::clone(shared);
        move || match job.run() {
            Ok(None) => {}
            Ok(Some(revision)) => {
                shared.snapshots.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(revision, "snapshot written");
            }
            Err(error) => {
                shared.snapshots_failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "snapshot not written, the log is kept");
            }
        }
    };
    let thread = thread::Builder::new()
        .name("rkube-snapshot".to_owned())
        .spawn(write);
    thread
        .inspect_err(|error| tracing::warn!(%error, "no thread for a snapshot, the log is kept"))
        .ok()
}

impl Store for Embedded {
    fn revision(&self) -> Revision {
        self.shared.index().published()
    }

    fn compacted(&self) -> Revision {
        self.shared.index().compacted()
    }

    fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<Record>, StoreError> {
        self.shared.get(key, at)
    }

    fn range(&self, range: &Range<'_>) -> Result<Page, StoreError> {
        self.shared.range(range)
    }

    fn submit(&self, write: Write) -> Pending {
        let key_bytes = write.key().len();
        if key_bytes == 0 || key_bytes > KEY_BYTES_MAX {
            return Pending::answered(Err(StoreError::Limit {
                what: "bytes of a key",
                got: key_bytes,
                max: KEY_BYTES_MAX,
            }));
        }
        let value_bytes = write.value().map_or(0, |value| value.len());
        if value_bytes > VALUE_BYTES_MAX {
            return Pending::answered(Err(StoreError::Limit {
                what: "bytes of a value",
                got: value_bytes,
                max: VALUE_BYTES_MAX,
            }));
        }
        self.queue.push(write)
    }

    fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher, StoreError> {
        Watcher::new(Arc::clone(&self.shared), prefix, after)
    }

    fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared.compact(revision)
    }

    fn health(&self) -> Health {
        if self.queue.lock().closed {
            return Health::Closed;
        }
        self.shared.health()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.committer.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}
