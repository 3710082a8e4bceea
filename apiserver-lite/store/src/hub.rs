//! Who waits for which keys.
//!
//! A watcher reads the shared history itself, at its own pace; the hub only wakes it. While one
//! waits (is armed), the hub notes the first change that concerns it, so that an armed watcher
//! that was not woken has missed nothing, however far the history has moved on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::WATCHERS_MAX;
use crate::error::StoreError;
use crate::model::{Event, Revision};

#[derive(Debug)]
struct Waiter {
    waker: Option<Waker>,
    /// The first change of its prefix since it was armed.
    first: Option<Revision>,
}

#[derive(Debug)]
struct Inner {
    waiters: HashMap<u64, Waiter>,
    next_id: u64,
    by_prefix: HashMap<Box<[u8]>, Vec<u64>>,
    /// How many prefixes there are of each length: a change looks up one prefix per length.
    lengths: BTreeMap<usize, usize>,
    notified: Revision,
    closed: bool,
}

/// What happened to an armed watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// Nothing of its prefix up to this revision.
    Quiet(Revision),
    /// A change of its prefix, the first at this revision.
    Changed(Revision),
    Closed,
}

#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

impl Hub {
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            inner: Mutex::new(Inner {
                waiters: HashMap::new(),
                next_id: 0,
                by_prefix: HashMap::new(),
                lengths: BTreeMap::new(),
                notified: revision,
                closed: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self, prefix: &[u8]) -> Result<u64, StoreError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        if inner.waiters.len() >= WATCHERS_MAX {
            return Err(StoreError::Limit {
                what: "number of watchers",
                got: inner.waiters.len() + 1,
                max: WATCHERS_MAX,
            });
        }
        let id = inner.next_id;
        inner.next_id += 1;
        let waiter = Waiter {
            waker: None,
            first: None,
        };
        inner.waiters.insert(id, waiter);
        let ids = inner.by_prefix.entry(prefix.into()).or_default();
        let new_prefix = ids.is_empty();
        ids.push(id);
        if new_prefix {
            *inner.lengths.entry(prefix.len()).or_default() += 1;
        }
        Ok(id)
    }

    pub(crate) fn unsubscribe(&self, id: u64, prefix: &[u8]) {
        let mut inner = self.lock();
        inner.waiters.remove(&id);
        let Some(ids) = inner.by_prefix.get_mut(prefix) else {
            return;
        };
        ids.retain(|other| *other != id);
        if !ids.is_empty() {
            return;
        }
        inner.by_prefix.remove(prefix);
        if let Some(count) = inner.lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                inner.lengths.remove(&prefix.len());
            }
        }
    }

    /// Begins to note changes for a watcher, which reads the history after this.
    pub(crate) fn arm(&self, id: u64, waker: &Waker) {
        if let Some(waiter) = self.lock().waiters.get_mut(&id) {
            waiter.first = None;
            waiter.waker = Some(waker.clone());
        }
    }

    /// What happened since a watcher was armed; it is woken by `waker` from now on.
    pub(crate) fn since(&self, id: u64, waker: Option<&Waker>) -> Since {
        let mut inner = self.lock();
        if inner.closed {
            return Since::Closed;
        }
        let notified = inner.notified;
        let Some(waiter) = inner.waiters.get_mut(&id) else {
            return Since::Closed;
        };
        if let Some(first) = waiter.first {
            return Since::Changed(first);
        }
        if let Some(waker) = waker {
            waiter.waker = Some(waker.clone());
        }
        Since::Quiet(notified)
    }

    /// Wakes those whom published changes concern.
    pub(crate) fn notify(&self, events: &[Arc<Event>]) {
        let Some(last) = events.last() else {
            return;
        };
        let mut wakers = Vec::new();
        {
            let mut inner = self.lock();
            let Inner {
                waiters,
                by_prefix,
                lengths,
                notified,
                ..
            } = &mut *inner;
            for event in events {
                for length in lengths.keys() {
                    let Some(ids) = event.key.get(..*length).and_then(|key| by_prefix.get(key))
                    else {
                        continue;
                    };
                    for id in ids {
                        let Some(waiter) = waiters.get_mut(id) else {
                            continue;
                        };
                        if waiter.first.is_none() {
                            waiter.first = Some(event.revision);
                            wakers.extend(waiter.waker.take());
                        }
                    }
                }
            }
            *notified = last.revision;
        }
        for waker in wakers {
            waker.wake();
        }
    }

    pub(crate) fn watchers(&self) -> usize {
        self.lock().waiters.len()
    }

    /// Ends all watchers.
    pub(crate) fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut inner = self.lock();
            inner.closed = true;
            let waiters = inner.waiters.values_mut();
            waiters.filter_map(|waiter| waiter.waker.take()).collect()
        };
        for waker in wakers {
            waker.wake();
        }
    }
}
