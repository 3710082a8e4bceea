//! The naive model: every change in a list, every state computed from it.

use std::collections::BTreeMap;

use super::sim::Random;
use crate::commit::{Committer, Shared};
use crate::error::{Health, StoreError};
use crate::index::Garbage;
use crate::model::{Key, Range, Revision, Value, Write};
use crate::snapshot::SnapshotJob;
use crate::{FIRST_REVISION, SCAN_KEYS_PER_LOCK};

type State = BTreeMap<Key, (Revision, Value)>;

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    /// In order; the first has revision `FIRST_REVISION + 1`.
    changes: Vec<(Key, Option<Value>)>,
    /// How many of them were answered or seen.
    seen: usize,
    /// Lengths of `changes` at which a batch ends.
    ends: Vec<usize>,
}

impl Model {
    pub(super) fn revision(&self) -> Revision {
        FIRST_REVISION + self.changes.len() as u64
    }

    pub(super) fn is_last_batch(&self, revision: Revision) -> bool {
        let ends = &self.ends;
        ends.len() > 1 && ends[ends.len() - 2] as u64 + FIRST_REVISION == revision
    }

    pub(super) fn unrelated_write() -> Write {
        Write::Create {
            key: "unrelated/x".into(),
            value: "x".into(),
            ttl_s: None,
        }
    }

    fn state(&self, revision: Revision) -> State {
        let mut state = State::new();
        for at in FIRST_REVISION + 1..=revision {
            self.advance(&mut state, at);
        }
        state
    }

    /// From the state before a revision to the one at it; returns the key before.
    fn advance(&self, state: &mut State, revision: Revision) -> Option<(Revision, Value)> {
        let at = usize::try_from(revision - FIRST_REVISION - 1).unwrap();
        let (key, value) = &self.changes[at];
        match value {
            Some(value) => state.insert(key.clone(), (revision, value.clone())),
            None => state.remove(key),
        }
    }

    /// What a restart shows is what was answered, or that and the whole batch in flight.
    pub(super) fn recovered(&mut self, committer: &Committer) {
        let shared = &committer.shared;
        let found = usize::try_from(shared.index().published() - FIRST_REVISION).unwrap();
        assert!(
            found == self.seen || found == self.changes.len(),
            "{found} changes found, {} answered, {} sent",
            self.seen,
            self.changes.len()
        );
        self.changes.truncate(found);
        self.ends.retain(|end| *end <= found);
        self.seen = found;
        self.check(shared);
    }

    /// Every readable revision, and every change since the oldest of them.
    pub(super) fn check(&self, shared: &Shared) {
        let index = shared.index();
        let (oldest, newest) = (index.compacted(), index.published());
        drop(index);
        assert_eq!(newest, FIRST_REVISION + self.seen as u64);
        let mut expected = self.state(oldest);
        for at in oldest..=newest {
            if at > oldest {
                self.advance(&mut expected, at);
            }
            let range = Range {
                at: Some(at),
                ..Range::prefix(b"")
            };
            let page = shared.range(&range).unwrap();
            let found: State = page
                .records
                .into_iter()
                .map(|record| (record.key, (record.revision, record.value)))
                .collect();
            assert_eq!(found, expected, "at {at} of {oldest}..={newest}");
        }
        let mut events = Vec::new();
        let complete = shared
            .index()
            .events(b"", oldest, usize::MAX, usize::MAX, &mut events);
        assert_eq!(complete, Ok(newest));
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.revision, event.key.clone(), event.value.clone()))
            .collect();
        let expected: Vec<_> = (FIRST_REVISION + 1..)
            .zip(&self.changes[..self.seen])
            .map(|(revision, (key, value))| (revision, key.clone(), value.clone()))
            .filter(|(revision, ..)| *revision > oldest)
            .collect();
        assert_eq!(told, expected);
        let mut state = self.state(oldest);
        for event in events {
            let before = self.advance(&mut state, event.revision);
            let previous = event.previous.as_ref();
            assert_eq!(
                before,
                previous.map(|previous| (previous.revision, previous.value.clone()))
            );
        }
    }
}

/// Random batches, with snapshots in between.
pub(super) struct Run<'a> {
    model: &'a mut Model,
    pub(super) committer: Committer,
    random: Random,
    job: Option<SnapshotJob>,
    pub(super) snapshots: bool,
    /// Batches that found the disk full.
    pub(super) full: u32,
}

impl<'a> Run<'a> {
    pub(super) fn new(model: &'a mut Model, committer: Committer, seed: u64) -> Self {
        Self {
            model,
            committer,
            random: Random::new(seed),
            job: None,
            snapshots: true,
            full: 0,
        }
    }

    /// Makes batches until one is refused for good.
    pub(super) fn batches(&mut self, count: usize) {
        for _ in 0..count {
            self.batch();
            if matches!(self.committer.shared.health(), Health::ReadOnly { .. }) {
                // What was answered can still be read.
                self.model.check(&self.committer.shared);
                return;
            }
            if self.snapshots {
                self.snapshot();
            }
            if self.random.below(8) == 0 {
                let shared = &self.committer.shared;
                let newest = shared.index().published();
                let back = self.random.below(12) as u64;
                shared.compact(newest.saturating_sub(back)).unwrap();
                let mut garbage = Garbage::default();
                while shared.index_mut().prune(SCAN_KEYS_PER_LOCK, &mut garbage) {}
            }
        }
        self.model.check(&self.committer.shared);
    }

    fn snapshot(&mut self) {
        if self.job.is_none() {
            self.job = self.committer.snapshot_if_due();
        }
        let Some(mut job) = self.job.take() else {
            return;
        };
        // Batches go on while one is written.
        if self.random.below(3) > 0 {
            self.job = Some(job);
        } else if let Ok(false) = job.step() {
            // A failed snapshot costs nothing but the log's space.
            let _ = job.finish();
        }
    }

    fn batch(&mut self) {
        let mut state = self.model.state(self.model.revision());
        let mut writes = Vec::new();
        let mut accepted = Vec::new();
        let mut next = self.model.revision();
        for _ in 0..=self.random.below(5) {
            let key = Key::from(format!("pods/{}", self.random.below(9)).as_str());
            let newest = state.get(&key).map(|(revision, _)| *revision);
            // Sometimes what the key is not.
            let stale = self.random.below(5) == 0;
            let expected = if stale {
                newest.map(|at| at - 1)
            } else {
                newest
            };
            let value = Value::new(&vec![b'x'; self.random.below(900)]);
            let write = match expected {
                None => Write::Create {
                    key: key.clone(),
                    value: value.clone(),
                    ttl_s: None,
                },
                Some(expected) if self.random.below(4) == 0 => Write::Delete {
                    key: key.clone(),
                    expected,
                },
                Some(expected) => Write::Update {
                    key: key.clone(),
                    expected,
                    value: value.clone(),
                    ttl_s: None,
                },
            };
            if expected == newest {
                next += 1;
                match write.value() {
                    Some(value) => state.insert(key.clone(), (next, value.clone())),
                    None => state.remove(&key),
                };
                accepted.push((key, write.value().cloned()));
            }
            writes.push((expected == newest, write));
        }
        let only: Vec<Write> = writes.iter().map(|(_, write)| write.clone()).collect();
        let before = self.model.changes.len();
        self.model.changes.extend(accepted);
        let answers = self.committer.commit(&only);
        assert_eq!(answers.len(), writes.len());
        let full = answers
            .iter()
            .any(|answer| matches!(answer, Err(StoreError::Full { .. })));
        let lost = answers
            .iter()
            .any(|answer| matches!(answer, Err(StoreError::Unconfirmed { .. })));
        let refused = answers
            .iter()
            .any(|answer| matches!(answer, Err(StoreError::ReadOnly { .. })));
        if full || refused {
            // Nothing of it happened, now or after any restart.
            self.full += u32::from(full);
            self.model.changes.truncate(before);
            return;
        }
        if lost {
            return;
        }
        let mut revision = FIRST_REVISION + before as u64;
        for (answer, (accepted, write)) in answers.iter().zip(&writes) {
            match answer {
                Ok(committed) => {
                    assert!(accepted, "{write:?}");
                    revision += 1;
                    assert_eq!(committed.revision, revision);
                }
                Err(StoreError::Conflict { current, .. }) => {
                    assert!(!accepted, "{write:?}");
                    let current = current.as_ref().map(|record| record.revision);
                    assert_ne!(current, write.expected());
                }
                Err(error) => panic!("{write:?}: {error}"),
            }
        }
        self.model.seen = self.model.changes.len();
        self.model.ends.push(self.model.seen);
    }
}
