//! Taint eviction: pods leave nodes whose `NoExecute` taints they do not
//! tolerate, at once or when the time that they tolerate them is over.
//!
//! Rules and words: upstream's `pkg/controller/tainteviction`. The time runs
//! from the taint's `timeAdded`, so that it does not begin anew when this
//! process does.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use rkube_client::{
    Change, Client, EventType, Informer, ObjectKey, Recorder, WorkQueue, clock, reference,
};

use super::{BY_NODE, index_by_node, remove_pod, taints};
use crate::error::Outcome;
use crate::owner;
use crate::pods;
use crate::starter::Starter;

struct Eviction {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    /// Pods that are told to go later.
    marked: Mutex<HashSet<ObjectKey>>,
    client: Client,
    recorder: Recorder,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Eviction {
        nodes: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        marked: Mutex::default(),
        client: starter.client.clone(),
        recorder: starter.recorder("taint-eviction-controller"),
    });
    index_by_node(&controller.pods);
    let own = Arc::clone(&controller);
    controller.nodes.on_change(move |change| {
        let changed = match change {
            Change::Added(node) => !driving(node).is_empty(),
            Change::Modified(old, new) => driving(old) != driving(new),
            Change::Deleted(_) => false,
        };
        if changed {
            for pod in own
                .pods
                .store()
                .by_index(BY_NODE, owner::name(&**change.object()))
            {
                own.queue.add(ObjectKey::of(&*pod));
            }
        }
    });
    let own = Arc::clone(&controller);
    controller.pods.on_change(move |change| {
        let pod = change.object();
        let node = ObjectKey::new("", pods::node_of(pod));
        let node = own.nodes.store().get(&node);
        let gone = matches!(change, Change::Deleted(_));
        if gone || node.is_some_and(|n| !driving(&n).is_empty()) {
            own.queue.add(ObjectKey::of(&**pod));
        }
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.nodes.synced().await;
        own.pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("taint-eviction-controller", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

fn driving(node: &Node) -> Vec<Taint> {
    let all = taints(node).iter();
    all.filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// When a pod has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Never, as it is.
    Stay,
    /// At this time.
    Leave(Timestamp),
}

/// Whether a toleration covers a `NoExecute` taint.
fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match text(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

/// A pod leaves when the first of its times is over; a taint that nothing
/// covers leaves it none.
fn decide(tolerations: &[Toleration], driving: &[Taint], now: Timestamp) -> Verdict {
    let mut soonest: Option<Timestamp> = None;
    for taint in driving {
        let covering = tolerations.iter().filter(|t| covers(t, taint));
        let covering: Vec<_> = covering.collect();
        if covering.is_empty() {
            return Verdict::Leave(now);
        }
        let seconds = covering.iter().filter_map(|t| t.toleration_seconds).min();
        let Some(seconds) = seconds else { continue };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let at = since.as_second().saturating_add(seconds.max(0));
        let at = Timestamp::from_second(at)
            .unwrap_or(Timestamp::MAX)
            .max(since);
        soonest = Some(soonest.map_or(at, |s| s.min(at)));
    }
    soonest.map_or(Verdict::Stay, Verdict::Leave)
}

impl Eviction {
    fn with<T>(&self, f: impl FnOnce(&mut HashSet<ObjectKey>) -> T) -> T {
        f(&mut self.marked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(pod) = self.pods.store().get(&key) else {
            self.with(|marked| marked.remove(&key));
            return Ok(());
        };
        if owner::is_deleting(&*pod) {
            return Ok(());
        }
        let node = ObjectKey::new("", pods::node_of(&pod));
        let node = self.nodes.store().get(&node);
        let driving = node.map(|n| driving(&n)).unwrap_or_default();
        let spec = pod.spec.as_ref();
        let tolerations = spec.and_then(|s| s.tolerations.as_deref());
        let now = clock::now();
        let at = match decide(tolerations.unwrap_or_default(), &driving, now) {
            Verdict::Stay => {
                if self.with(|marked| marked.remove(&key)) {
                    self.tell(&pod, &format!("Cancelling deletion of Pod {key}"));
                }
                return Ok(());
            }
            Verdict::Leave(at) => at,
        };
        let wait = at.as_millisecond().saturating_sub(now.as_millisecond());
        if let Ok(wait @ 1..) = u64::try_from(wait) {
            self.with(|marked| marked.insert(key.clone()));
            self.queue.add_after(key, Duration::from_millis(wait));
            return Ok(());
        }
        self.tell(&pod, &format!("Marking for deletion Pod {key}"));
        let reason = "DeletionByTaintManager";
        let message = "Taint manager: deleting due to NoExecute taint";
        remove_pod(&self.client, &pod, reason, message, false).await?;
        self.with(|marked| marked.remove(&key));
        Ok(())
    }

    fn tell(&self, pod: &Pod, message: &str) {
        let about = reference(pod);
        self.recorder
            .event(about, EventType::Normal, "TaintManagerEviction", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object};
    use serde_json::json;

    #[test]
    fn when_pods_leave() {
        let taints: Vec<Taint> = object(json!([
            {"key": "a", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"},
            {"key": "b", "value": "v", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:50Z"},
        ]));
        let leave = |seconds: i64| Verdict::Leave(at(seconds));
        for (tolerations, expected) in [
            (json!([]), leave(500)),
            (json!([{"operator": "Exists"}]), Verdict::Stay),
            (json!([{"key": "a", "operator": "Exists"}]), leave(500)),
            (
                json!([{"operator": "Exists", "tolerationSeconds": 300, "effect": "NoExecute"}]),
                leave(400),
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}, {"key": "b", "value": "v", "tolerationSeconds": 20}]),
                leave(130),
            ),
            (
                json!([{"key": "a", "operator": "Exists"}, {"key": "b", "value": "w"}]),
                leave(500),
            ),
            (
                json!([{"operator": "Exists", "effect": "NoSchedule"}]),
                leave(500),
            ),
            (
                json!([{"operator": "Exists", "tolerationSeconds": -1}]),
                leave(100),
            ),
        ] {
            let list: Vec<Toleration> = object(tolerations.clone());
            assert_eq!(decide(&list, &taints, at(500)), expected, "{tolerations}");
        }
        assert_eq!(decide(&[], &[], at(500)), Verdict::Stay);
    }
}
