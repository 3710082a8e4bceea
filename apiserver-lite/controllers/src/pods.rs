//! What controllers ask of pods, and how they make and remove them.
//!
//! Rules: upstream's `controller_utils.go` and `pkg/api/v1/pod`.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use rkube_client::{
    ApiError, Client, DeleteParams, EventType, Object, ObjectKey, Recorder, reference,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::owner;

/// Pods made in the first batch; each batch that succeeds doubles the next
/// (`SlowStartInitialBatchSize`).
const FIRST_BATCH_COUNT: usize = 1;
/// Which pods to remove first; lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.unwrap_or("Pending")
}

/// `Succeeded` or `Failed`.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither terminal nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Not terminal and on its way out.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when a pod is ready, in seconds since 1970; `None` if it is not.
fn ready_since(pod: &Pod) -> Option<i64> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    let since = ready.last_transition_time.as_ref();
    Some(since.map_or(0, |t| t.0.as_second()))
}

/// Whether a pod has been ready for so many seconds.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    ready_since(pod).is_some_and(|since| {
        let after = since.saturating_add(min_ready_seconds.into());
        min_ready_seconds == 0 || (since != 0 && after <= now.as_second())
    })
}

/// After how many seconds a ready pod becomes available, if it is not yet.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<u64> {
    let since = ready_since(pod)?;
    let wait = since
        .saturating_add(min_ready_seconds.into())
        .saturating_sub(now.as_second());
    u64::try_from(wait).ok().filter(|s| *s > 0)
}

pub(crate) fn node_of(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    name.unwrap_or_default()
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref());
    let restarts = containers.into_iter().flatten().map(|c| c.restart_count);
    restarts.max().unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|a| a.get(DELETION_COST));
    cost.and_then(|c| c.parse().ok()).unwrap_or(0)
}

/// An age on a logarithmic scale: pods of about the same age count as equal,
/// so that not always the newest goes (KEP 2185).
fn age_class(since: i64, now: Timestamp) -> u32 {
    let age = u64::try_from(now.as_second().saturating_sub(since)).unwrap_or(0);
    age.checked_ilog2().map_or(0, |l| l + 1)
}

/// Orders pods so that those to remove first come first. `ranks` tells how
/// many related pods are on a pod's node.
pub(crate) fn sort_for_removal(
    pods: &mut [Arc<Pod>],
    ranks: &HashMap<String, usize>,
    now: Timestamp,
) {
    let order_of_phase = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let rank = |pod: &Pod| Reverse(ranks.get(node_of(pod)).copied().unwrap_or(0));
    let created = |pod: &Pod| {
        let at = pod.metadata.creation_timestamp.as_ref();
        at.map_or(0, |t| t.0.as_second())
    };
    let by = |a: &Pod, b: &Pod| -> Ordering {
        let assigned = |p: &Pod| !node_of(p).is_empty();
        let younger = |a: i64, b: i64| age_class(a, now).cmp(&age_class(b, now));
        assigned(a)
            .cmp(&assigned(b))
            .then_with(|| order_of_phase(a).cmp(&order_of_phase(b)))
            .then_with(|| is_ready(a).cmp(&is_ready(b)))
            .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
            .then_with(|| rank(a).cmp(&rank(b)))
            .then_with(|| match (ready_since(a), ready_since(b)) {
                (Some(a), Some(b)) => younger(a, b),
                _ => Ordering::Equal,
            })
            .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
            .then_with(|| younger(created(a), created(b)))
            .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
    };
    pods.sort_by(|a, b| by(a, b));
}

/// The body of a pod that a controller makes from a template.
pub(crate) fn from_template<K: Object>(template: &PodTemplateSpec, owner: &K) -> Value {
    let meta = template.metadata.as_ref();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", owner::name(owner)),
            "namespace": owner::namespace(owner),
            "labels": meta.and_then(|m| m.labels.clone()).unwrap_or_default(),
            "annotations": meta.and_then(|m| m.annotations.clone()).unwrap_or_default(),
            "finalizers": meta.and_then(|m| m.finalizers.clone()).unwrap_or_default(),
            "ownerReferences": [owner::controller_reference(owner)],
        },
        "spec": template.spec,
    })
}

/// Makes and removes the pods of owners, and tells events about the owners.
#[derive(Debug, Clone)]
pub(crate) struct PodControl {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
}

impl PodControl {
    /// Makes pods in batches that double, so that a refusal that holds for
    /// all is not asked for a thousand times. Answers how many were not made
    /// and the first refusal; `failed` is called for each one not made.
    pub(crate) async fn create_all<K: Object>(
        &self,
        owner: &K,
        bodies: Vec<Value>,
        mut failed: impl FnMut(),
    ) -> Result<(), ApiError> {
        let mut bodies = bodies.into_iter();
        let mut batch = FIRST_BATCH_COUNT;
        loop {
            let mut requests = JoinSet::new();
            for body in bodies.by_ref().take(batch) {
                let api = self.client.namespaced::<Pod>(owner::namespace(owner));
                requests.spawn(async move { api.create(&body).await });
            }
            if requests.is_empty() {
                return Ok(());
            }
            let mut first = None;
            while let Some(answer) = requests.join_next().await {
                let error = match answer {
                    Ok(Ok(pod)) => {
                        let message = format!("Created pod: {}", owner::name(&pod));
                        self.tell(owner, EventType::Normal, "SuccessfulCreate", &message);
                        continue;
                    }
                    Ok(Err(error)) => error,
                    Err(error) => ApiError::Connection {
                        attempt: "create pods".to_owned(),
                        reason: error.to_string(),
                    },
                };
                failed();
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.tell(owner, EventType::Warning, "FailedCreate", &message);
                }
                first.get_or_insert(error);
            }
            if let Some(error) = first {
                bodies.for_each(|_| failed());
                return Err(error);
            }
            batch *= 2;
        }
    }

    /// Removes pods at once. `failed` is called for each one that stays or
    /// was gone already.
    pub(crate) async fn delete_all<K: Object>(
        &self,
        owner: &K,
        pods: Vec<Arc<Pod>>,
        mut failed: impl FnMut(&ObjectKey),
    ) -> Result<(), ApiError> {
        let mut requests = JoinSet::new();
        for pod in pods {
            let api = self.client.namespaced::<Pod>(owner::namespace(&*pod));
            requests.spawn(async move {
                let params = DeleteParams {
                    uid: pod.metadata.uid.clone(),
                    ..DeleteParams::default()
                };
                let answer = api.delete(owner::name(&*pod), &params).await;
                (ObjectKey::of(&*pod), answer)
            });
        }
        let mut first = None;
        while let Some(answer) = requests.join_next().await {
            match answer {
                Ok((key, Ok(_))) => {
                    let message = format!("Deleted pod: {}", key.name);
                    self.tell(owner, EventType::Normal, "SuccessfulDelete", &message);
                }
                Ok((key, Err(error))) => {
                    failed(&key);
                    if error.is_not_found() || error.is_conflict() {
                        continue;
                    }
                    let message = format!("Error deleting: {error}");
                    self.tell(owner, EventType::Warning, "FailedDelete", &message);
                    first.get_or_insert(error);
                }
                Err(error) => {
                    first.get_or_insert(ApiError::Connection {
                        attempt: "delete pods".to_owned(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn tell<K: Object>(&self, owner: &K, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(reference(owner), kind, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn pod(name: &str, extra: Value) -> Arc<Pod> {
        let object = json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:10:00Z"}]}});
        let object = rkube_api::patch::merge(object, extra).unwrap();
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let now = at(100_000);
        let mut pods = vec![
            pod("good", json!({})),
            pod(
                "new",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-02T03:46:00Z"}]}}),
            ),
            pod(
                "dear",
                json!({"metadata": {"annotations": {DELETION_COST: "10"}}}),
            ),
            pod(
                "cheap",
                json!({"metadata": {"annotations": {DELETION_COST: "-1"}}}),
            ),
            pod("unready", json!({"status": {"conditions": []}})),
            pod(
                "pending",
                json!({"status": {"phase": "Pending", "conditions": []}}),
            ),
            pod(
                "unassigned",
                json!({"spec": {"nodeName": ""}, "status": {"phase": "Pending", "conditions": []}}),
            ),
            pod("crowded", json!({"spec": {"nodeName": "m"}})),
        ];
        let ranks = [("n".to_owned(), 1), ("m".to_owned(), 5)].into();
        sort_for_removal(&mut pods, &ranks, now);
        let names: Vec<&str> = pods.iter().map(|p| owner::name(&**p)).collect();
        assert_eq!(
            names,
            [
                "unassigned",
                "pending",
                "unready",
                "cheap",
                "crowded",
                "new",
                "good",
                "dear"
            ]
        );
    }

    #[test]
    fn availability_waits_for_its_seconds() {
        let pod = pod("p", json!({}));
        assert!(is_available(&pod, 0, at(600)));
        assert!(!is_available(&pod, 10, at(605)));
        assert_eq!(available_in(&pod, 10, at(605)), Some(5));
        assert!(is_available(&pod, 10, at(610)));
        assert_eq!(available_in(&pod, 10, at(610)), None);
    }
}
