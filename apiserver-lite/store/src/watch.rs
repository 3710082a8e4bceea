//! Watchers: cursors over the shared history.
//!
//! No watcher has a queue. Its backlog is the history that the store keeps anyway, so a slow one
//! costs nothing and bounds itself: when compaction passes what it has not read, it ends with
//! [`StoreError::Lagged`].

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::commit::Shared;
use crate::error::StoreError;
use crate::hub::Since;
use crate::model::{Event, Revision};
use crate::pending::thread_waker;
use crate::{SCAN_KEYS_PER_LOCK, WATCH_BATCH_EVENTS_MAX};

/// Changes that a watcher had not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The events, in the order of revisions; 1 to
    /// [`WATCH_BATCH_EVENTS_MAX`](crate::WATCH_BATCH_EVENTS_MAX).
    pub events: Vec<Arc<Event>>,
    /// The watcher has now seen everything of its prefix up to this revision.
    pub complete: Revision,
}

/// Reads the changes under a prefix, in order and without gaps.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    id: u64,
    prefix: Box<[u8]>,
    /// Everything up to here was read.
    read: Revision,
    /// The hub notes changes since `read`.
    armed: bool,
}

impl Watcher {
    pub(crate) fn new(
        shared: Arc<Shared>,
        prefix: &[u8],
        after: Revision,
    ) -> Result<Self, StoreError> {
        shared.index().readable(Some(after))?;
        let id = shared.hub.subscribe(prefix)?;
        Ok(Self {
            shared,
            id,
            prefix: prefix.into(),
            read: after,
            armed: false,
        })
    }

    /// The next changes, for a task.
    ///
    /// # Errors
    /// [`StoreError::Lagged`] and [`StoreError::Closed`]; the watcher is of no use then.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Batch, StoreError>> {
        match self.next_or_arm(context.waker()) {
            Ok(Some(batch)) => Poll::Ready(Ok(batch)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The next changes, awaited. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`Watcher::poll_next`].
    pub async fn next(&mut self) -> Result<Batch, StoreError> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The next changes, waited for on this thread; `None` after the time is over.
    ///
    /// # Errors
    /// As [`Watcher::poll_next`].
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Batch>, StoreError> {
        let deadline = Instant::now() + timeout;
        let waker = thread_waker();
        loop {
            if let Some(batch) = self.next_or_arm(&waker)? {
                return Ok(Some(batch));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            thread::park_timeout(left);
        }
    }

    /// The revision up to which everything of the prefix was read: what a bookmark tells. It
    /// moves on while nothing of the prefix changes, without waking anyone.
    pub fn progress(&mut self) -> Revision {
        if self.armed
            && let Since::Quiet(notified) = self.shared.hub.since(self.id, None)
        {
            self.read = self.read.max(notified);
        }
        self.read
    }

    fn next_or_arm(&mut self, waker: &Waker) -> Result<Option<Batch>, StoreError> {
        match self.shared.hub.since(self.id, Some(waker)) {
            Since::Closed => return Err(StoreError::Closed),
            Since::Quiet(notified) if self.armed => {
                self.read = self.read.max(notified);
                return Ok(None);
            }
            Since::Changed(first) if self.armed => {
                self.read = self.read.max(first - 1);
            }
            Since::Quiet(_) | Since::Changed(_) => {}
        }
        // Armed first, read second: a change between the two is read, or wakes, or both.
        self.armed = false;
        self.shared.hub.arm(self.id, waker);
        loop {
            let mut events = Vec::new();
            let (complete, published) = {
                let index = self.shared.index();
                let complete = index
                    .events(
                        &self.prefix,
                        self.read,
                        SCAN_KEYS_PER_LOCK,
                        WATCH_BATCH_EVENTS_MAX,
                        &mut events,
                    )
                    .map_err(|compacted| StoreError::Lagged {
                        read: self.read,
                        compacted,
                    })?;
                (complete, index.published())
            };
            self.read = complete;
            if !events.is_empty() {
                return Ok(Some(Batch { events, complete }));
            }
            if complete >= published {
                self.armed = true;
                return Ok(None);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.hub.unsubscribe(self.id, &self.prefix);
    }
}
