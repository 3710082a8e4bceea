//! The pods that wait for a node.
//!
//! ```text
//!            ┌────────────── new, or an event that may help ──────────┐
//!            ▼                                                        │
//! pop ◄── active ◄── backoff ◄── an event, back-off not over ── unschedulable
//!            (heap by priority)  (heap by its end)              (until an event, or 5 min)
//! ```
//!
//! A pod with scheduling gates waits among the unschedulable until its last
//! gate is gone; no event moves it.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rkube_client::ObjectKey;
use tokio::time::Instant;

use crate::framework::ClusterEvent;

/// First wait of a pod that was not scheduled (`podInitialBackoffSeconds`).
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait (`podMaxBackoffSeconds`).
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Time after which an unschedulable pod is tried again without any event
/// (`podMaxInUnschedulablePodsDuration`).
pub const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// A pod in the queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The object as last seen.
    pub pod: Arc<Pod>,
    /// How often it was tried.
    pub attempts: u32,
    /// The plugins that rejected it last.
    pub rejected_by: BTreeSet<&'static str>,
    /// When it was put where it is.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Backoff,
    Unschedulable,
    Gated,
    /// Popped; its cycle runs.
    Flying,
}

#[derive(Debug)]
struct Entry {
    queued: Queued,
    place: Place,
    /// Tells stale heap entries from this one.
    ticket: u64,
    /// An event that came while its cycle ran.
    missed: Vec<ClusterEvent>,
}

/// The order of the active heap: the higher priority, then who waits longer.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    priority: i32,
    since: Reverse<Instant>,
    ticket: Reverse<u64>,
    key: ObjectKey,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.priority, self.since, self.ticket).cmp(&(other.priority, other.since, other.ticket))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The queue; the caller says what time it is.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<ObjectKey, Entry>,
    active: BinaryHeap<Turn>,
    backoff: BinaryHeap<Reverse<(Instant, u64, ObjectKey)>>,
    next_ticket: u64,
}

fn is_gated(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref());
    gates.is_some_and(|g| !g.is_empty())
}

/// The wait after the given number of attempts.
fn backoff(attempts: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
    BACKOFF_MIN.saturating_mul(doubled).min(BACKOFF_MAX)
}

impl Queue {
    /// A new pod, or a change of one that waits.
    pub fn set(&mut self, pod: Arc<Pod>, now: Instant) {
        let key = ObjectKey::of(&*pod);
        let gated = is_gated(&pod);
        let Some(entry) = self.entries.get_mut(&key) else {
            let queued = Queued {
                pod,
                attempts: 0,
                rejected_by: BTreeSet::new(),
                since: now,
            };
            let entry = Entry {
                queued,
                place: Place::Gated,
                ticket: 0,
                missed: Vec::new(),
            };
            self.entries.insert(key.clone(), entry);
            if !gated {
                self.activate(&key, now);
            }
            return;
        };
        let same = entry.queued.pod.metadata.uid == pod.metadata.uid;
        let changed = entry.queued.pod.spec != pod.spec
            || entry.queued.pod.metadata.labels != pod.metadata.labels;
        entry.queued.pod = pod;
        if !same {
            entry.queued.attempts = 0;
            entry.queued.rejected_by.clear();
        }
        match entry.place {
            Place::Gated if !gated => self.activate(&key, now),
            Place::Unschedulable if !same => self.activate(&key, now),
            Place::Unschedulable if changed => self.wake(&key, now),
            Place::Flying if changed => entry.missed.push(ClusterEvent::PodUpdated),
            _ => {}
        }
    }

    /// A pod is gone, or has its node.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.entries.remove(key);
    }

    /// Whether a pod is known here.
    #[must_use]
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.entries.contains_key(key)
    }

    /// The pod whose turn it is.
    pub fn pop(&mut self, now: Instant) -> Option<Queued> {
        self.flush_backoff(now);
        while let Some(turn) = self.active.pop() {
            let Some(entry) = self.entries.get_mut(&turn.key) else {
                continue;
            };
            if entry.place != Place::Active || entry.ticket != turn.ticket.0 {
                continue;
            }
            entry.place = Place::Flying;
            entry.missed.clear();
            entry.queued.attempts = entry.queued.attempts.saturating_add(1);
            return Some(entry.queued.clone());
        }
        None
    }

    /// When [`Queue::pop`] has something new without any event.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.backoff.peek().map(|Reverse((at, _, _))| *at)
    }

    /// A popped pod found no node. `helps` tells whether an event could help
    /// a pod that these plugins rejected.
    pub fn unschedulable(
        &mut self,
        key: &ObjectKey,
        rejected_by: BTreeSet<&'static str>,
        now: Instant,
        helps: impl Fn(&BTreeSet<&'static str>, ClusterEvent) -> bool,
    ) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.place != Place::Flying {
            return;
        }
        let missed = std::mem::take(&mut entry.missed);
        // An error instead of a rejection is tried again after its back-off.
        let again = rejected_by.is_empty() || missed.into_iter().any(|e| helps(&rejected_by, e));
        entry.queued.rejected_by = rejected_by;
        entry.queued.since = now;
        if again {
            self.back_off(key, now);
        } else {
            entry.place = Place::Unschedulable;
        }
    }

    /// Something happened: pods that it may help move.
    pub fn happened(
        &mut self,
        event: ClusterEvent,
        now: Instant,
        helps: impl Fn(&BTreeSet<&'static str>, ClusterEvent) -> bool,
    ) {
        let mut moved = Vec::new();
        for (key, entry) in &mut self.entries {
            match entry.place {
                Place::Flying if !entry.missed.contains(&event) => entry.missed.push(event),
                Place::Unschedulable if helps(&entry.queued.rejected_by, event) => {
                    moved.push(key.clone());
                }
                _ => {}
            }
        }
        for key in moved {
            self.wake(&key, now);
        }
    }

    /// Moves pods that have been unschedulable for long.
    pub fn flush_unschedulable(&mut self, now: Instant) {
        let due: Vec<ObjectKey> = self
            .entries
            .iter()
            .filter(|(_, e)| {
                e.place == Place::Unschedulable
                    && now.duration_since(e.queued.since) >= UNSCHEDULABLE_MAX
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.wake(&key, now);
        }
    }

    /// To the active heap, or to the back-off that is not over.
    fn wake(&mut self, key: &ObjectKey, now: Instant) {
        self.back_off(key, now);
        self.flush_backoff(now);
    }

    fn back_off(&mut self, key: &ObjectKey, now: Instant) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(entry) = self.entries.get_mut(key) {
            let until = entry.queued.since + backoff(entry.queued.attempts);
            entry.place = Place::Backoff;
            entry.ticket = ticket;
            let at = until.max(now);
            self.backoff.push(Reverse((at, ticket, key.clone())));
        }
    }

    fn flush_backoff(&mut self, now: Instant) {
        while let Some(Reverse((at, _, _))) = self.backoff.peek() {
            if *at > now {
                return;
            }
            if let Some(Reverse((_, ticket, key))) = self.backoff.pop()
                && let Some(entry) = self.entries.get(&key)
                && entry.place == Place::Backoff
                && entry.ticket == ticket
            {
                self.activate(&key, now);
            }
        }
    }

    fn activate(&mut self, key: &ObjectKey, now: Instant) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Active;
            entry.ticket = ticket;
            entry.queued.since = now;
            let spec = entry.queued.pod.spec.as_ref();
            self.active.push(Turn {
                priority: spec.and_then(|s| s.priority).unwrap_or(0),
                since: Reverse(now),
                ticket: Reverse(ticket),
                key: key.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pod, pod_of};
    use serde_json::json;

    fn name(queued: Option<Queued>) -> Option<String> {
        queued.and_then(|q| q.pod.metadata.name.clone())
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    const FIT: &str = "NodeResourcesFit";

    fn helps(by: &BTreeSet<&'static str>, event: ClusterEvent) -> bool {
        by.contains(FIT) && event == ClusterEvent::PodRemoved
    }

    #[test]
    fn priority_goes_first_then_who_waits_longer() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", "1", "1"), now);
        queue.set(pod("b", "1", "1"), now);
        queue.set(
            pod_of("urgent", json!({"containers": [], "priority": 10})),
            now,
        );
        queue.remove(&key("a"));
        assert_eq!(name(queue.pop(now)), Some("urgent".into()));
        assert_eq!(name(queue.pop(now)), Some("b".into()));
        assert!(queue.pop(now).is_none());
    }

    #[test]
    fn unschedulable_pods_wait_for_an_event_and_their_back_off() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", "1", "1"), now);
        queue.pop(now);
        queue.unschedulable(&key("a"), [FIT].into(), now, helps);
        assert!(queue.pop(now + BACKOFF_MAX).is_none(), "nothing happened");
        queue.happened(ClusterEvent::NodeLabels, now, helps);
        assert_eq!(queue.next_wake(), None, "labels do not help");
        queue.happened(ClusterEvent::PodRemoved, now, helps);
        assert!(queue.pop(now).is_none(), "the back-off is not over");
        assert_eq!(queue.next_wake(), Some(now + BACKOFF_MIN));
        assert_eq!(queue.pop(now + BACKOFF_MIN).unwrap().attempts, 2);
        // Once more: the wait has doubled.
        let now = now + BACKOFF_MIN;
        queue.unschedulable(&key("a"), [FIT].into(), now, helps);
        queue.happened(ClusterEvent::PodRemoved, now, helps);
        assert_eq!(queue.next_wake(), Some(now + 2 * BACKOFF_MIN));
    }

    #[test]
    fn an_event_during_the_cycle_is_not_missed() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", "1", "1"), now);
        queue.pop(now);
        queue.happened(ClusterEvent::PodRemoved, now, helps);
        queue.unschedulable(&key("a"), [FIT].into(), now, helps);
        assert!(queue.pop(now + BACKOFF_MIN).is_some());
        // And an error comes back by itself.
        queue.unschedulable(&key("a"), BTreeSet::new(), now, helps);
        assert!(queue.pop(now + BACKOFF_MAX).is_some());
    }

    #[test]
    fn gated_pods_wait_for_their_last_gate() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let gated = json!({"containers": [], "schedulingGates": [{"name": "x"}]});
        queue.set(pod_of("g", gated), now);
        queue.happened(ClusterEvent::NodeAdded, now, |_, _| true);
        queue.flush_unschedulable(now + UNSCHEDULABLE_MAX);
        assert!(queue.pop(now + UNSCHEDULABLE_MAX).is_none());
        queue.set(pod_of("g", json!({"containers": []})), now);
        assert_eq!(name(queue.pop(now)), Some("g".into()));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", "1", "1"), now);
        queue.pop(now);
        queue.unschedulable(&key("a"), ["Other"].into(), now, helps);
        queue.flush_unschedulable(now + UNSCHEDULABLE_MAX / 2);
        assert!(queue.pop(now + UNSCHEDULABLE_MAX / 2).is_none());
        queue.flush_unschedulable(now + UNSCHEDULABLE_MAX);
        assert!(queue.pop(now + UNSCHEDULABLE_MAX).is_some());
    }
}
