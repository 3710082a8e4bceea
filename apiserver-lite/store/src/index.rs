//! The keys in memory, with their versions and the changes in order.
//!
//! A key has its newest version and those older ones that some readable revision shows. Beside
//! the keys stands the history: every change after the compacted revision, for watchers. One
//! goes with the other: compaction takes changes from the front of the history and drops what
//! each of them had superseded, so it never walks all keys.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::FIRST_REVISION;
use crate::error::StoreError;
use crate::model::{Event, Key, Previous, Record, Revision, Value};

/// What one change keeps in the history beside values: the event, its slot, the older version.
const CHANGE_BYTES: u64 = 160;

#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) revision: Revision,
    /// `None`: removed.
    pub(crate) value: Option<Value>,
    /// 0: never.
    pub(crate) expires_unix_s: u64,
}

impl Version {
    fn record(&self, key: &Key) -> Option<Record> {
        self.value.as_ref().map(|value| Record {
            key: key.clone(),
            value: value.clone(),
            revision: self.revision,
        })
    }

    pub(crate) fn previous(&self) -> Option<Previous> {
        self.value.as_ref().map(|value| Previous {
            value: value.clone(),
            revision: self.revision,
        })
    }
}

#[derive(Debug)]
struct Versions {
    newest: Version,
    /// Ascending.
    older: Vec<Version>,
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.newest.revision <= revision {
            return Some(&self.newest);
        }
        self.older
            .iter()
            .rev()
            .find(|version| version.revision <= revision)
    }
}

/// A change that is durable.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) version: Version,
}

#[derive(Debug)]
pub(crate) struct Index {
    keys: BTreeMap<Key, Versions>,
    /// Ascending and without gaps; all that is kept after a revision at or below `compacted`.
    history: VecDeque<Arc<Event>>,
    published: Revision,
    compacted: Revision,
    /// A snapshot being written needs this revision.
    pinned: Option<Revision>,
    live_keys: u64,
    live_bytes: u64,
    history_bytes: u64,
}

/// What compaction took out, to be dropped after the lock.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    versions: Vec<Version>,
    events: Vec<Arc<Event>>,
}

/// Sizes, for limits and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) live_keys: u64,
    pub(crate) live_bytes: u64,
    pub(crate) history_events: u64,
    pub(crate) history_bytes: u64,
}

impl Index {
    /// An index that shows `revision`, from entries in the order of their keys.
    pub(crate) fn new(revision: Revision, entries: Vec<Change>) -> Self {
        let mut live_bytes = 0;
        let live_keys = entries.len() as u64;
        let keys = entries
            .into_iter()
            .map(|entry| {
                live_bytes += bytes(&entry.key, &entry.version);
                let versions = Versions {
                    newest: entry.version,
                    older: Vec::new(),
                };
                (entry.key, versions)
            })
            .collect();
        Self {
            keys,
            history: VecDeque::new(),
            published: revision,
            compacted: revision,
            pinned: None,
            live_keys,
            live_bytes,
            history_bytes: 0,
        }
    }

    pub(crate) fn empty() -> Self {
        Self::new(FIRST_REVISION, Vec::new())
    }

    pub(crate) fn published(&self) -> Revision {
        self.published
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            live_keys: self.live_keys,
            live_bytes: self.live_bytes,
            history_events: self.history.len() as u64,
            history_bytes: self.history_bytes,
        }
    }

    /// The newest version of a key; `None` too if it was removed.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<&Version> {
        let newest = &self.keys.get(key)?.newest;
        newest.value.is_some().then_some(newest)
    }

    /// Adds the next change; it is readable after [`Index::publish`].
    pub(crate) fn apply(&mut self, change: Change) -> Arc<Event> {
        let Change { key, version } = change;
        let value = version.value.clone();
        let revision = version.revision;
        if version.value.is_some() {
            self.live_keys += 1;
            self.live_bytes += bytes(&key, &version);
        }
        let mut previous = None;
        let mut shared_key = key.clone();
        match self.keys.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Versions {
                    newest: version,
                    older: Vec::new(),
                });
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                // The key's bytes, too, exist once.
                shared_key = place.key().clone();
                let versions = place.get_mut();
                let old = std::mem::replace(&mut versions.newest, version);
                previous = old.previous();
                if old.value.is_some() {
                    self.live_keys -= 1;
                    self.live_bytes -= bytes(&shared_key, &old);
                }
                versions.older.push(old);
            }
        }
        let event = Arc::new(Event {
            revision,
            key: shared_key,
            value,
            previous,
        });
        self.history_bytes += change_bytes(&event);
        self.history.push_back(Arc::clone(&event));
        event
    }

    /// Lets readers see all changes up to a revision.
    pub(crate) fn publish(&mut self, revision: Revision) {
        self.published = revision;
    }

    /// The revision that a read at `asked` shows.
    pub(crate) fn readable(&self, asked: Option<Revision>) -> Result<Revision, StoreError> {
        let Some(asked) = asked else {
            return Ok(self.published);
        };
        if asked > self.published {
            return Err(StoreError::Future {
                asked,
                current: self.published,
            });
        }
        if asked < self.compacted {
            return Err(StoreError::Compacted {
                asked,
                compacted: self.compacted,
            });
        }
        Ok(asked)
    }

    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<Record> {
        let (key, versions) = self.keys.get_key_value(key)?;
        versions.at(at)?.record(key)
    }

    /// Calls `found` for every version that `at` shows, from a key on, for at most `keys` keys
    /// of a prefix. Returns the key to go on from.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        from: Bound<&[u8]>,
        at: Revision,
        keys: usize,
        mut found: impl FnMut(&Key, &Version),
    ) -> Option<Key> {
        let from = match from {
            Bound::Included(start) | Bound::Excluded(start) if start >= prefix => from,
            _ => Bound::Included(prefix),
        };
        let all = self.keys.range::<[u8], _>((from, Bound::Unbounded));
        for (seen, (key, versions)) in all.enumerate() {
            if !key.starts_with(prefix) {
                return None;
            }
            if seen == keys {
                return Some(key.clone());
            }
            if let Some(version) = versions.at(at)
                && version.value.is_some()
            {
                found(key, version);
            }
        }
        None
    }

    /// Events of a prefix after a revision, from at most `look` changes. Returns the revision
    /// up to which they are complete; `Err` with the compacted one if some are gone.
    pub(crate) fn events(
        &self,
        prefix: &[u8],
        after: Revision,
        look: usize,
        limit: usize,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Revision, Revision> {
        if after < self.compacted {
            return Err(self.compacted);
        }
        let begin = self
            .history
            .partition_point(|event| event.revision <= after);
        let mut complete = after;
        for event in self.history.range(begin..).take(look) {
            if event.key.starts_with(prefix) {
                if events.len() == limit {
                    return Ok(complete);
                }
                events.push(Arc::clone(event));
            }
            complete = event.revision;
        }
        Ok(complete)
    }

    /// Makes revisions before `revision` unreadable; [`Index::prune`] frees what they kept.
    pub(crate) fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.published));
    }

    /// The revision to compact to so that the history keeps at most so many bytes; frees a
    /// quarter more, so that it is not asked at every batch.
    pub(crate) fn oldest_within(&self, limit_bytes: u64) -> Revision {
        if self.history_bytes <= limit_bytes {
            return self.compacted;
        }
        let mut excess = self.history_bytes - limit_bytes / 4 * 3;
        let mut oldest = self.compacted;
        for event in &self.history {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(change_bytes(event));
            oldest = event.revision;
        }
        oldest
    }

    /// Frees what no readable revision shows, for at most `look` changes of the history.
    /// Returns whether more is left.
    pub(crate) fn prune(&mut self, look: usize, garbage: &mut Garbage) -> bool {
        let floor = self.pinned.unwrap_or(self.compacted).min(self.compacted);
        for _ in 0..look {
            match self.history.front() {
                Some(event) if event.revision <= floor => {}
                _ => return false,
            }
            let Some(event) = self.history.pop_front() else {
                return false;
            };
            self.history_bytes -= change_bytes(&event);
            self.prune_key(&event.key, floor, garbage);
            garbage.events.push(event);
        }
        true
    }

    fn prune_key(&mut self, key: &Key, floor: Revision, garbage: &mut Garbage) {
        let Some(versions) = self.keys.get_mut(&**key) else {
            return;
        };
        if versions.newest.revision <= floor {
            garbage.versions.append(&mut versions.older);
            versions.older = Vec::new();
            if versions.newest.value.is_none() {
                self.keys.remove(&**key);
            }
            return;
        }
        let superseded = versions
            .older
            .partition_point(|version| version.revision <= floor)
            .saturating_sub(1);
        garbage.versions.extend(versions.older.drain(..superseded));
        // A removal that every readable revision shows is the same as nothing.
        if let Some(oldest) = versions.older.first()
            && oldest.revision <= floor
            && oldest.value.is_none()
        {
            versions.older.remove(0);
        }
    }

    /// Keeps everything that `revision` shows until [`Index::unpin`].
    pub(crate) fn pin(&mut self, revision: Revision) {
        self.pinned = Some(revision);
    }

    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Every key with a time to live, and when it ends.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = (u64, Key)> {
        self.keys
            .iter()
            .filter(|(_, versions)| {
                versions.newest.expires_unix_s != 0 && versions.newest.value.is_some()
            })
            .map(|(key, versions)| (versions.newest.expires_unix_s, key.clone()))
    }
}

fn bytes(key: &Key, version: &Version) -> u64 {
    let value = version.value.as_ref().map_or(0, |value| value.len());
    (key.len() + value) as u64
}

fn change_bytes(event: &Event) -> u64 {
    let old = event.previous.as_ref().map_or(0, |old| old.value.len());
    old as u64 + CHANGE_BYTES
}
