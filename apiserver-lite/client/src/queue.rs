//! A work queue: keys, each once at a time, with back-off and delays.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First wait of a key that failed; client-go's default.
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest wait of a key that failed, 1000 s; client-go's default.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1000);

#[derive(Debug)]
struct Inner<T> {
    ready: VecDeque<T>,
    /// What is in `ready`, or must go there once it is done.
    wanted: HashSet<T>,
    running: HashSet<T>,
    /// Keys by the time they become ready, with a number that keeps the
    /// order of equal times.
    later: BinaryHeap<Reverse<(Instant, u64)>>,
    delayed: HashMap<u64, T>,
    /// The one time that a key waits for.
    waits: HashMap<T, (Instant, u64)>,
    next_id: u64,
    failures: HashMap<T, u32>,
    closed: bool,
}

/// The queue. All methods may be called from any task.
#[derive(Debug)]
pub struct WorkQueue<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

impl<T> Default for WorkQueue<T> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                wanted: HashSet::new(),
                running: HashSet::new(),
                later: BinaryHeap::new(),
                delayed: HashMap::new(),
                waits: HashMap::new(),
                next_id: 0,
                failures: HashMap::new(),
                closed: false,
            }),
            changed: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash + Debug> WorkQueue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner<T>) -> R) -> R {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a key. One that waits already stays where it is; one that is
    /// being worked on is worked on again afterwards.
    pub fn add(&self, key: T) {
        if self.with(|inner| inner.add(key)) {
            self.changed.notify_one();
        }
    }

    /// Adds a key after some time. A key waits for one time only, the
    /// earliest that it was given.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        self.with(|inner| {
            if let Some((before, id)) = inner.waits.get(&key).copied() {
                if before <= at {
                    return;
                }
                // Its place in the heap means nobody from now on.
                inner.delayed.remove(&id);
            }
            let id = inner.next_id;
            inner.next_id += 1;
            inner.later.push(Reverse((at, id)));
            inner.waits.insert(key.clone(), (at, id));
            inner.delayed.insert(id, key);
        });
        self.changed.notify_one();
    }

    /// Adds a key after its back-off: 5 ms, doubled with each failure since
    /// the last [`WorkQueue::forget`], at most 1000 s.
    pub fn add_rate_limited(&self, key: T) {
        let delay = self.with(|inner| {
            let failures = inner.failures.entry(key.clone()).or_default();
            let delay = BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(*failures));
            *failures = failures.saturating_add(1);
            delay.min(BACKOFF_MAX)
        });
        self.add_after(key, delay);
    }

    /// The key succeeded: its next failure waits shortly again.
    pub fn forget(&self, key: &T) {
        self.with(|inner| inner.failures.remove(key));
    }

    /// How often the key failed since it succeeded last.
    #[must_use]
    pub fn failures(&self, key: &T) -> u32 {
        self.with(|inner| inner.failures.get(key).copied().unwrap_or_default())
    }

    /// The next key, which is then being worked on until [`WorkQueue::done`].
    /// `None`: the queue is closed.
    pub async fn next(&self) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            let wait = self.with(|inner| {
                if inner.closed {
                    return Err(None);
                }
                inner.promote(Instant::now());
                match inner.ready.pop_front() {
                    Some(key) => {
                        inner.wanted.remove(&key);
                        inner.running.insert(key.clone());
                        Err(Some((key, !inner.ready.is_empty())))
                    }
                    None => Ok(inner.later.peek().map(|Reverse((at, _))| *at)),
                }
            });
            match wait {
                Err(None) => {
                    // The next worker has to see it too.
                    self.changed.notify_one();
                    return None;
                }
                Err(Some((key, more))) => {
                    if more {
                        self.changed.notify_one();
                    }
                    return Some(key);
                }
                Ok(None) => changed.await,
                Ok(Some(at)) => {
                    // Reaching the time is no more than a reason to look.
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
            }
        }
    }

    /// The key is not worked on any more.
    pub fn done(&self, key: &T) {
        let again = self.with(|inner| {
            inner.running.remove(key);
            let again = inner.wanted.contains(key);
            if again {
                inner.ready.push_back(key.clone());
            }
            again
        });
        if again {
            self.changed.notify_one();
        }
    }

    /// Ends all workers once they are done with what they have.
    pub fn close(&self) {
        self.with(|inner| inner.closed = true);
        self.changed.notify_one();
    }

    /// Works on keys one after another until the queue is closed; run it as
    /// often as there shall be workers. A key that fails comes back after its
    /// back-off.
    pub async fn work<E, F>(&self, sync: impl Fn(T) -> F)
    where
        E: std::fmt::Display,
        F: Future<Output = Result<(), E>>,
    {
        while let Some(key) = self.next().await {
            match sync(key.clone()).await {
                Ok(()) => self.forget(&key),
                Err(error) => {
                    tracing::debug!(?key, %error, "comes back after its back-off");
                    self.add_rate_limited(key.clone());
                }
            }
            self.done(&key);
        }
    }
}

impl<T: Clone + Eq + Hash> Inner<T> {
    /// Whether a worker has something new to do.
    fn add(&mut self, key: T) -> bool {
        if self.closed || !self.wanted.insert(key.clone()) || self.running.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Makes ready what has waited long enough.
    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((at, id))) = self.later.peek().copied() {
            if at > now {
                return;
            }
            self.later.pop();
            if let Some(key) = self.delayed.remove(&id) {
                self.waits.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_alone() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        let none = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(none.is_err(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.close();
        assert_eq!(queue.next().await, None);
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        for _ in 0..4 {
            queue.add_rate_limited("a");
            assert_eq!(queue.next().await, Some("a"));
            queue.done(&"a");
        }
        let waited = start.elapsed();
        assert!(
            waited >= Duration::from_millis(5 + 10 + 20 + 40),
            "{waited:?}"
        );
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_for_its_earliest_time_only() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        for seconds in [9, 3, 5] {
            queue.add_after("a", Duration::from_secs(seconds));
        }
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        let none = tokio::time::timeout(Duration::from_secs(20), queue.next()).await;
        assert!(none.is_err(), "nothing else waits");
    }

    #[tokio::test(start_paused = true)]
    async fn later_keys_come_in_the_order_of_their_times() {
        let queue = WorkQueue::new();
        queue.add_after("b", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(1));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(queue.next().await, Some("b"));
    }
}
