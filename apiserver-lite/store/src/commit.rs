//! Batches: check, make durable, apply, tell.
//!
//! Everything here runs on one thread, and without any thread in the crash tests.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::disk::Disk;
use crate::embedded::{Clock, Options};
use crate::error::{Health, StoreError};
use crate::expiry::Expiry;
use crate::format::RecordBytes;
use crate::hub::Hub;
use crate::index::{Change, Garbage, Index, Version};
use crate::log::{CreateError, Log, LogError, is_full};
use crate::model::{Committed, Key, Page, Range, Record, Revision, Write};
use crate::retention::Retention;
use crate::snapshot::SnapshotJob;
use crate::{BATCH_WRITES_MAX, SCAN_KEYS_PER_LOCK};

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    index: RwLock<Index>,
    pub(crate) hub: Hub,
    health: Mutex<Health>,
    pub(crate) closing: AtomicBool,
    pub(crate) snapshotting: AtomicBool,
    pub(crate) batches: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) snapshots_failed: AtomicU64,
}

impl Shared {
    pub(crate) fn new(index: Index) -> Self {
        Self {
            hub: Hub::new(index.published()),
            index: RwLock::new(index),
            health: Mutex::new(Health::Ready),
            closing: AtomicBool::new(false),
            snapshotting: AtomicBool::new(false),
            batches: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            snapshots_failed: AtomicU64::new(0),
        }
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> Health {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.clone()
    }

    fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    pub(crate) fn get(
        &self,
        key: &[u8],
        at: Option<Revision>,
    ) -> Result<Option<Record>, StoreError> {
        let index = self.index();
        let at = index.readable(at)?;
        Ok(index.get(key, at))
    }

    pub(crate) fn range(&self, range: &Range<'_>) -> Result<Page, StoreError> {
        let mut revision = self.index().readable(range.at)?;
        loop {
            match self.range_at(range, revision) {
                // Compaction overtook a read of what had been the newest revision.
                Err(StoreError::Compacted { .. }) if range.at.is_none() => {
                    revision = self.index().readable(None)?;
                }
                done => return done,
            }
        }
    }

    fn range_at(&self, range: &Range<'_>, at: Revision) -> Result<Page, StoreError> {
        let limit = range.limit.unwrap_or(usize::MAX);
        let mut records: Vec<Record> = Vec::new();
        let mut left_off = 0_u64;
        let mut next: Option<Key> = None;
        loop {
            let index = self.index();
            index.readable(Some(at))?;
            let from = next.as_deref().or(range.start);
            let from = from.map_or(Bound::Unbounded, Bound::Included);
            let keys = SCAN_KEYS_PER_LOCK;
            next = index.scan(
                range.prefix,
                from,
                at,
                keys,
                |key, version| match &version.value {
                    Some(value) if records.len() < limit => records.push(Record {
                        key: key.clone(),
                        value: value.clone(),
                        revision: version.revision,
                    }),
                    _ => left_off += 1,
                },
            );
            if next.is_none() || (left_off > 0 && !range.count) {
                return Ok(Page {
                    revision: at,
                    records,
                    more: left_off > 0,
                    remaining: range.count.then_some(left_off),
                });
            }
        }
    }

    pub(crate) fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        {
            let mut index = self.index_mut();
            let current = index.published();
            if revision > current {
                return Err(StoreError::Future {
                    asked: revision,
                    current,
                });
            }
            index.compact(revision);
        }
        loop {
            // Freed after the lock.
            let mut garbage = Garbage::default();
            if !self.index_mut().prune(SCAN_KEYS_PER_LOCK, &mut garbage) {
                return Ok(());
            }
        }
    }
}

pub(crate) type Answer = Result<Committed, StoreError>;

/// A write that goes into the batch.
struct Accepted {
    change: Change,
    committed: Committed,
    old_expires_unix_s: u64,
}

/// The only one who changes anything.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    log: Log,
    expiry: Expiry,
    retention: Retention,
    options: Options,
    clock: Clock,
    /// Log bytes at which the next snapshot is tried, after one could not begin.
    snapshot_retry_bytes: u64,
}

impl Committer {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        index: Index,
        log: Log,
        options: Options,
        clock: Clock,
    ) -> Self {
        let mut retention = Retention::new(options.history_s);
        retention.note(clock.unix_s(), index.published());
        Self {
            expiry: Expiry::new(index.expiries()),
            shared: Arc::new(Shared::new(index)),
            disk,
            log,
            retention,
            options,
            clock,
            snapshot_retry_bytes: 0,
        }
    }

    /// Answers writes, in order, as one durable batch.
    pub(crate) fn commit(&mut self, writes: &[Write]) -> Vec<Answer> {
        if let Health::ReadOnly { reason } = self.shared.health() {
            let refused = StoreError::ReadOnly { reason };
            return writes.iter().map(|_| Err(refused.clone())).collect();
        }
        let now = self.clock.unix_s();
        let mut changed: HashMap<Key, Version> = HashMap::new();
        let mut accepted = Vec::new();
        // `None`: accepted.
        let mut refused: Vec<Option<StoreError>> = Vec::with_capacity(writes.len());
        let mut depends: Vec<bool> = Vec::with_capacity(writes.len());
        {
            let index = self.shared.index();
            for write in writes {
                let pending = changed.get(write.key());
                depends.push(pending.is_some());
                let newest = match pending {
                    Some(version) => version.value.is_some().then_some(version),
                    None => index.newest(write.key()),
                };
                if newest.map(|version| version.revision) != write.expected() {
                    refused.push(Some(conflict(write, newest)));
                    continue;
                }
                let expires_unix_s = write.ttl_s().map_or(0, |ttl| now + u64::from(ttl).max(1));
                let revision = self.log.push(&RecordBytes {
                    key: write.key(),
                    value: write.value().map(|value| &**value),
                    expires_unix_s,
                    revision: None,
                });
                let version = Version {
                    revision,
                    value: write.value().cloned(),
                    expires_unix_s,
                };
                accepted.push(Accepted {
                    committed: Committed {
                        revision,
                        previous: newest.and_then(Version::previous),
                    },
                    old_expires_unix_s: newest.map_or(0, |version| version.expires_unix_s),
                    change: Change {
                        key: write.key().clone(),
                        version: version.clone(),
                    },
                });
                changed.insert(write.key().clone(), version);
                refused.push(None);
            }
        }
        if accepted.is_empty() {
            return refused.into_iter().flatten().map(Err).collect();
        }
        match self.log.commit() {
            Ok(()) => {}
            Err(error) => {
                let error = self.failed(error);
                let answers = refused.into_iter().zip(depends);
                return answers
                    .map(|(conflict, depends)| match conflict {
                        // What it conflicts with did not happen, or nobody knows.
                        Some(conflict) if !depends => Err(conflict),
                        _ => Err(error.clone()),
                    })
                    .collect();
            }
        }
        let mut committed = self.apply(accepted, now).into_iter();
        refused
            .into_iter()
            .map(|refused| match refused {
                Some(error) => Err(error),
                None => Ok(committed
                    .next()
                    .expect("one for every write that was not refused")),
            })
            .collect()
    }

    fn apply(&mut self, accepted: Vec<Accepted>, now: u64) -> Vec<Committed> {
        let mut committed = Vec::with_capacity(accepted.len());
        let mut events = Vec::with_capacity(accepted.len());
        let mut garbage = Garbage::default();
        {
            let mut index = self.shared.index_mut();
            for item in accepted {
                self.expiry.replace(
                    &item.change.key,
                    item.old_expires_unix_s,
                    item.change.version.expires_unix_s,
                );
                let revision = item.change.version.revision;
                events.push(index.apply(item.change));
                index.publish(revision);
                committed.push(item.committed);
            }
            let aged = self.retention.note(now, index.published());
            let fitting = index.oldest_within(self.options.history_bytes);
            index.compact(aged.max(fitting));
            // More than one batch adds, so that it catches up.
            index.prune(2 * events.len() + 64, &mut garbage);
        }
        self.shared.set_health(Health::Ready);
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
        self.shared.hub.notify(&events);
        committed
    }

    fn failed(&self, error: LogError) -> StoreError {
        match error {
            LogError::Full(source) => {
                if self.shared.health() != Health::Full {
                    tracing::warn!(error = %source, "the store's disk is full, writes are refused");
                }
                self.shared.set_health(Health::Full);
                StoreError::Full {
                    source: Arc::new(source),
                }
            }
            LogError::Failed(source) => {
                self.read_only(&source);
                StoreError::Unconfirmed {
                    source: Arc::new(source),
                }
            }
        }
    }

    fn read_only(&self, source: &std::io::Error) {
        tracing::error!(error = %source, "I/O error of the store's log, read-only until restart");
        self.shared.set_health(Health::ReadOnly {
            reason: source.to_string().into(),
        });
    }

    /// How long nothing is to be done without a write; `None`: for ever.
    pub(crate) fn idle(&self) -> Option<Duration> {
        if matches!(self.shared.health(), Health::ReadOnly { .. }) {
            return None;
        }
        self.expiry.wait(self.clock.unix_s())
    }

    /// Deletes keys whose time is over.
    pub(crate) fn expire(&mut self) {
        let now = self.clock.unix_s();
        let due = self.expiry.due(now, BATCH_WRITES_MAX);
        if due.is_empty() {
            return;
        }
        let deletes: Vec<Write> = {
            let index = self.shared.index();
            due.into_iter()
                .filter_map(|key| {
                    let expected = index.newest(&key)?.revision;
                    Some(Write::Delete { key, expected })
                })
                .collect()
        };
        if self.commit(&deletes).iter().any(Result::is_err) {
            self.expiry.postpone(now);
        }
    }

    /// Begins a snapshot where the log has outgrown the data.
    pub(crate) fn snapshot_if_due(&mut self) -> Option<SnapshotJob> {
        let log_bytes = self.log.unsnapshotted_bytes();
        let live_bytes = self.shared.index().sizes().live_bytes;
        let threshold = self
            .options
            .snapshot_log_bytes
            .max(live_bytes)
            .max(self.snapshot_retry_bytes);
        if log_bytes < threshold
            || self.shared.snapshotting.load(Ordering::Acquire)
            || self.shared.health() != Health::Ready
        {
            return None;
        }
        match self.log.rotate() {
            Ok(()) => self.snapshot_retry_bytes = 0,
            Err(CreateError::Before(error)) => {
                tracing::warn!(%error, full = is_full(&error), "no new log for a snapshot, trying later");
                self.snapshot_retry_bytes = log_bytes + threshold / 4;
                return None;
            }
            Err(CreateError::Named(error)) => {
                self.read_only(&error);
                return None;
            }
        }
        let position = self.log.position();
        let job = SnapshotJob::begin(Arc::clone(&self.disk), Arc::clone(&self.shared), &position);
        match job {
            Ok(job) => Some(job),
            Err(error) => {
                self.shared.snapshots_failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "begin a snapshot");
                None
            }
        }
    }
}

fn conflict(write: &Write, newest: Option<&Version>) -> StoreError {
    StoreError::Conflict {
        key: write.key().clone(),
        expected: write.expected(),
        current: newest.and_then(|version| {
            Some(Record {
                key: write.key().clone(),
                value: version.value.clone()?,
                revision: version.revision,
            })
        }),
    }
}
