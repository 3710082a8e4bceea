//! PodDisruptionBudgets: how many pods may be evicted.
//!
//! Rules and words: upstream's `pkg/controller/disruption`. The eviction
//! subresource reads and writes `disruptionsAllowed` and `disruptedPods`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use rkube_client::{
    Change, Client, EventType, Informer, ObjectKey, Recorder, WorkQueue, clock, reference,
};

use crate::deployment::resolve;
use crate::error::Outcome;
use crate::owner::{self, Selector};
use crate::pods;
use crate::starter::Starter;
use crate::status::{self, count};

/// How long an eviction that was granted may take to show in the pod
/// (`DeletionTimeout`), in seconds.
const GRANT_SECONDS: i64 = 120;

struct Disruption {
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    sets: Arc<Informer<ReplicaSet>>,
    controllers: Arc<Informer<ReplicationController>>,
    stateful: Arc<Informer<StatefulSet>>,
    deployments: Arc<Informer<Deployment>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    client: Client,
    recorder: Recorder,
}

/// Starts the controller.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Disruption {
        budgets: starter.informers.of(),
        pods: starter.informers.of(),
        sets: starter.informers.of(),
        controllers: starter.informers.of(),
        stateful: starter.informers.of(),
        deployments: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        recorder: starter.recorder("controllermanager"),
    });
    let own = Arc::clone(&controller);
    controller.budgets.on_change(move |change| {
        own.queue.add(ObjectKey::of(&**change.object()));
    });
    let own = Arc::clone(&controller);
    controller.pods.on_change(move |change| {
        own.wake(change.object());
        if let Change::Modified(old, _) = change {
            own.wake(old);
        }
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.budgets.synced().await;
        own.pods.synced().await;
        own.sets.synced().await;
        own.controllers.synced().await;
        own.stateful.synced().await;
        own.deployments.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("disruption", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

/// A budget's selector: absent matches nothing, empty everything.
fn selector(budget: &PodDisruptionBudget) -> Selector {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.map_or_else(Selector::nothing, Selector::new)
}

impl Disruption {
    fn wake(&self, pod: &Pod) {
        for budget in self.budgets.store().of_namespace(owner::namespace(pod)) {
            if selector(&budget).matches(pod.metadata.labels.as_ref()) {
                self.queue.add(ObjectKey::of(&*budget));
            }
        }
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(budget) = self.budgets.store().get(&key) else {
            return Ok(());
        };
        let selector = selector(&budget);
        let pods: Vec<Arc<Pod>> = self
            .pods
            .store()
            .of_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selector.matches(p.metadata.labels.as_ref()))
            .collect();
        if pods.is_empty() {
            let about = reference(&*budget);
            let message = "No matching pods found";
            self.recorder
                .event(about, EventType::Normal, "NoPods", message);
        }
        let old = budget.status.clone().unwrap_or_default();
        let spec = budget.spec.clone().unwrap_or_default();
        let now = clock::now();
        let expected = expected(&spec, &pods, |owner| self.size_of(&key.namespace, owner));
        let mut new = match expected {
            Ok(expected) => decide(&old, &pods, expected, now),
            Err(message) => {
                let about = reference(&*budget);
                let reason = "CalculateExpectedPodCountFailed";
                let told = format!("Failed to calculate the number of expected pods: {message}");
                self.recorder
                    .event(about, EventType::Warning, reason, &told);
                failed(&old, &message, now)
            }
        };
        new.observed_generation = budget.metadata.generation;
        status::write(&self.client, &*budget, &old, &new).await?;
        let oldest = new
            .disrupted_pods
            .iter()
            .flatten()
            .map(|(_, t)| t.0.as_second());
        if let Some(granted) = oldest.min() {
            let wait = granted + GRANT_SECONDS - now.as_second();
            let wait = u64::try_from(wait).unwrap_or(1).max(1);
            self.queue.add_after(key, Duration::from_secs(wait));
        }
        Ok(())
    }

    /// The uid and the size of what controls a pod.
    fn size_of(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let key = ObjectKey::new(namespace, &owner.name);
        let one = |uid: &str, size: Option<i32>| {
            (uid == owner.uid).then(|| (uid.to_owned(), size.unwrap_or(1)))
        };
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.sets.store().get(&key)?;
                if owner::uid(&*set) != owner.uid {
                    return None;
                }
                let parent = owner::controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                let Some(parent) = parent else {
                    return one(
                        owner::uid(&*set),
                        set.spec.as_ref().and_then(|s| s.replicas),
                    );
                };
                let key = ObjectKey::new(namespace, &parent.name);
                let deployment = self.deployments.store().get(&key)?;
                let size = deployment.spec.as_ref().and_then(|s| s.replicas);
                Some((parent.uid.clone(), size.unwrap_or(1)))
            }
            "ReplicationController" => {
                let found = self.controllers.store().get(&key)?;
                one(
                    owner::uid(&*found),
                    found.spec.as_ref().and_then(|s| s.replicas),
                )
            }
            "StatefulSet" => {
                let found = self.stateful.store().get(&key)?;
                one(
                    owner::uid(&*found),
                    found.spec.as_ref().and_then(|s| s.replicas),
                )
            }
            _ => None,
        }
    }
}

/// How many pods there should be, and how many of them healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    pods: i32,
    healthy: i32,
}

fn expected(
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<Pod>],
    size_of: impl Fn(&OwnerReference) -> Option<(String, i32)>,
) -> Result<Expected, String> {
    if let Some(most) = &spec.max_unavailable {
        let all = sum_of_owners(pods, size_of)?;
        let healthy = (all - resolve(Some(most), all, true)).max(0);
        return Ok(Expected { pods: all, healthy });
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => Ok(Expected {
            pods: count(pods.len()),
            healthy: *least,
        }),
        Some(percent) => {
            let all = sum_of_owners(pods, size_of)?;
            let healthy = resolve(Some(percent), all, true);
            Ok(Expected { pods: all, healthy })
        }
        None => Ok(Expected {
            pods: count(pods.len()),
            healthy: 0,
        }),
    }
}

/// The sizes of all controllers of the pods, each once.
fn sum_of_owners(
    pods: &[Arc<Pod>],
    size_of: impl Fn(&OwnerReference) -> Option<(String, i32)>,
) -> Result<i32, String> {
    let mut sizes = HashMap::new();
    for pod in pods {
        let name = owner::name(&**pod);
        let Some(owner) = owner::controller_of(&pod.metadata) else {
            return Err(format!("found no controller ref for pod {name:?}"));
        };
        let Some((uid, size)) = size_of(owner) else {
            return Err(format!("found no controllers for pod {name:?}"));
        };
        sizes.insert(uid, size);
    }
    Ok(sizes.values().copied().fold(0, i32::saturating_add))
}

fn decide(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    expected: Expected,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let mut disrupted: BTreeMap<String, Time> = BTreeMap::new();
    for (name, granted) in old.disrupted_pods.iter().flatten() {
        let waits = granted.0.as_second() + GRANT_SECONDS > now.as_second();
        let pod = pods.iter().find(|p| owner::name(&***p) == name);
        if waits && pod.is_some_and(|p| !owner::is_deleting(&**p)) {
            disrupted.insert(name.clone(), granted.clone());
        }
    }
    let healthy = pods.iter().filter(|p| {
        pods::is_ready(p)
            && !owner::is_deleting(&***p)
            && !disrupted.contains_key(owner::name(&***p))
    });
    let healthy = count(healthy.count());
    let allowed = if expected.pods <= 0 {
        0
    } else {
        (healthy - expected.healthy).max(0)
    };
    let (state, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.pods),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        conditions: Some(condition(old, state, reason, "", now)),
        observed_generation: old.observed_generation,
    }
}

/// Nobody may be evicted while it is not known how many there should be.
fn failed(
    old: &PodDisruptionBudgetStatus,
    message: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        conditions: Some(condition(old, "False", "SyncFailed", message, now)),
        ..old.clone()
    }
}

fn condition(
    old: &PodDisruptionBudgetStatus,
    state: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let mut all = old.conditions.clone().unwrap_or_default();
    let before = all.iter().find(|c| c.type_ == KIND && c.status == state);
    let since = before.map_or_else(|| clock::time(now), |c| c.last_transition_time.clone());
    all.retain(|c| c.type_ != KIND);
    all.push(Condition {
        type_: KIND.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: old.observed_generation,
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object};
    use serde_json::{Value, json};

    fn pod(name: &str, ready: &str, extra: Value) -> Arc<Pod> {
        let base = json!({"metadata": {"name": name, "uid": name,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(object(rkube_api::patch::merge(base, extra).unwrap()))
    }

    fn spec(spec: Value) -> PodDisruptionBudgetSpec {
        object(spec)
    }

    #[test]
    fn how_many_are_expected() {
        let pods = [pod("a", "True", json!({})), pod("b", "True", json!({}))];
        let size = |_: &OwnerReference| Some(("rs".to_owned(), 7));
        for (budget, all, healthy) in [
            (json!({"minAvailable": 1}), 2, 1),
            (json!({"minAvailable": "50%"}), 7, 4),
            (json!({"maxUnavailable": 2}), 7, 5),
            (json!({"maxUnavailable": "50%"}), 7, 3),
            (json!({"maxUnavailable": 10}), 7, 0),
        ] {
            let found = expected(&spec(budget.clone()), &pods, size).unwrap();
            assert_eq!(found, Expected { pods: all, healthy }, "{budget}");
        }
        let unknown = expected(&spec(json!({"maxUnavailable": 1})), &pods, |_| None);
        assert_eq!(unknown.unwrap_err(), "found no controllers for pod \"a\"");
    }

    #[test]
    fn who_counts_as_healthy() {
        let pods = [
            pod("a", "True", json!({})),
            pod("b", "True", json!({})),
            pod("c", "False", json!({})),
            pod(
                "d",
                "True",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
        ];
        let wanted = Expected {
            pods: 4,
            healthy: 1,
        };
        let status = decide(
            &PodDisruptionBudgetStatus::default(),
            &pods,
            wanted,
            at(1000),
        );
        assert_eq!(
            (status.current_healthy, status.disruptions_allowed),
            (Some(2), Some(1))
        );
        assert_eq!(
            status.conditions.as_ref().unwrap()[0].reason,
            "SufficientPods"
        );
        // An eviction that was granted counts until the pod shows it, or two minutes.
        let granted = PodDisruptionBudgetStatus {
            disrupted_pods: Some(
                [
                    ("a".to_owned(), Time(at(990))),
                    ("gone".to_owned(), Time(at(990))),
                ]
                .into(),
            ),
            ..status
        };
        let soon = decide(&granted, &pods, wanted, at(1000));
        assert_eq!(
            (soon.current_healthy, soon.disruptions_allowed),
            (Some(1), Some(0))
        );
        assert_eq!(soon.disrupted_pods.as_ref().unwrap().len(), 1);
        assert_eq!(
            soon.conditions.as_ref().unwrap()[0].reason,
            "InsufficientPods"
        );
        let late = decide(&granted, &pods, wanted, at(1200));
        assert_eq!((late.current_healthy, late.disrupted_pods), (Some(2), None));
        let failed = failed(&granted, "why", at(1000));
        assert_eq!(
            (
                failed.disruptions_allowed,
                failed.conditions.unwrap()[0].reason.clone()
            ),
            (Some(0), "SyncFailed".to_owned())
        );
    }
}
