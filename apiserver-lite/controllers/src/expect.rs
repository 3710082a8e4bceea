//! Expectations: what a controller has done and its informers do not show yet.
//!
//! A controller that created two pods must not count the pods in its cache
//! before it has seen both, or it would create two more. Constant: upstream's
//! `ExpectationsTimeout`.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rkube_client::ObjectKey;
use tokio::time::Instant;

/// After this an expectation is given up: an event was missed.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Expected {
    creations: usize,
    deletions: HashSet<ObjectKey>,
    since: Instant,
}

/// Expectations by the key of the owner.
#[derive(Debug, Default)]
pub(crate) struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

impl Expectations {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<ObjectKey, Expected>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// So many objects will appear, and these will go.
    pub(crate) fn expect(
        &self,
        owner: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = ObjectKey>,
    ) {
        let expected = Expected {
            creations,
            deletions: deletions.into_iter().collect(),
            since: Instant::now(),
        };
        self.with(|all| all.insert(owner.clone(), expected));
    }

    /// One has appeared, or will not.
    pub(crate) fn created(&self, owner: &ObjectKey) {
        self.with(|all| {
            if let Some(expected) = all.get_mut(owner) {
                expected.creations = expected.creations.saturating_sub(1);
            }
        });
    }

    /// This one has gone, or will not.
    pub(crate) fn deleted(&self, owner: &ObjectKey, object: &ObjectKey) {
        self.with(|all| {
            if let Some(expected) = all.get_mut(owner) {
                expected.deletions.remove(object);
            }
        });
    }

    /// Whether the cache shows everything that was done.
    pub(crate) fn are_met(&self, owner: &ObjectKey) -> bool {
        self.with(|all| {
            all.get(owner).is_none_or(|e| {
                (e.creations == 0 && e.deletions.is_empty()) || e.since.elapsed() > TIMEOUT
            })
        })
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.with(|all| all.remove(owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_waits_until_the_cache_shows_it() {
        let expectations = Expectations::default();
        let (owner, a) = (ObjectKey::new("ns", "rs"), ObjectKey::new("ns", "a"));
        assert!(expectations.are_met(&owner));
        expectations.expect(&owner, 2, [a.clone()]);
        expectations.created(&owner);
        expectations.created(&owner);
        assert!(!expectations.are_met(&owner));
        expectations.deleted(&owner, &ObjectKey::new("ns", "other"));
        assert!(!expectations.are_met(&owner));
        expectations.deleted(&owner, &a);
        assert!(expectations.are_met(&owner));
        expectations.expect(&owner, 1, []);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.are_met(&owner), "given up");
    }
}
