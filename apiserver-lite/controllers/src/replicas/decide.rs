//! What to do about a set's pods, and what its status says: pure functions.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use rkube_client::clock;

use crate::owner::{Labels, Selector};
use crate::pods;
use crate::status::{count, some};

/// Most pods that are made or removed at once (`BurstReplicas`).
const BURST_COUNT: usize = 500;

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// So many pods are to be made.
    pub(crate) create: usize,
    /// These pods are to be removed.
    pub(crate) delete: Vec<Arc<Pod>>,
}

/// Compares what is wanted with what there is.
pub(crate) fn step(
    desired: i32,
    active: &[Arc<Pod>],
    ranks: &HashMap<String, usize>,
    now: Timestamp,
) -> Step {
    let desired = usize::try_from(desired).unwrap_or(0);
    if active.len() < desired {
        return Step {
            create: (desired - active.len()).min(BURST_COUNT),
            delete: Vec::new(),
        };
    }
    let surplus = (active.len() - desired).min(BURST_COUNT);
    let mut delete = active.to_vec();
    if desired > 0 && surplus > 0 {
        pods::sort_for_removal(&mut delete, ranks, now);
    }
    delete.truncate(surplus);
    Step { create: 0, delete }
}

/// What the status is made from besides the pods.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) generation: Option<i64>,
    pub(crate) template_labels: Labels,
    pub(crate) min_ready_seconds: i32,
    /// `None`: this kind does not tell.
    pub(crate) terminating: Option<usize>,
}

/// The status. `failure` is a reason and a message.
pub(crate) fn status(
    old: &ReplicaSetStatus,
    active: &[Arc<Pod>],
    facts: &Facts,
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let labels = Selector::of_labels(&facts.template_labels);
    let number = |holds: &dyn Fn(&Pod) -> bool| count(active.iter().filter(|p| holds(p)).count());
    let ready = number(&pods::is_ready);
    let available = number(&|p| pods::is_available(p, facts.min_ready_seconds, now));
    let labelled = number(&|p| labels.matches(p.metadata.labels.as_ref()));
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let told = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some((reason, message)) if !told => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(clock::time(now)),
            reason: Some(reason.to_owned()),
            message: Some(message),
        }),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(labelled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: facts.terminating.map(count),
        observed_generation: facts.generation.or(old.observed_generation),
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object};
    use serde_json::json;

    fn pod(name: &str, ready: &str) -> Arc<Pod> {
        Arc::new(object(
            json!({"metadata": {"name": name, "uid": name, "labels": {"app": "a", "x": "y"}},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:01:40Z"}]}}),
        ))
    }

    #[test]
    fn pods_are_made_and_removed_in_bursts() {
        let ranks = HashMap::new();
        let pods = [pod("a", "True"), pod("b", "False"), pod("c", "True")];
        assert_eq!(step(5, &pods, &ranks, at(0)).create, 2);
        let same = step(3, &pods, &ranks, at(0));
        assert!(same.create == 0 && same.delete.is_empty());
        let fewer = step(2, &pods, &ranks, at(200));
        assert_eq!(fewer.delete[0].metadata.name.as_deref(), Some("b"));
        assert_eq!(fewer.delete.len(), 1);
        assert_eq!(step(0, &pods, &ranks, at(0)).delete.len(), 3);
        assert_eq!(step(10_000, &[], &ranks, at(0)).create, BURST_COUNT);
    }

    #[test]
    fn status_counts_and_conditions() {
        let facts = Facts {
            generation: Some(4),
            template_labels: [("app".to_owned(), "a".to_owned())].into(),
            min_ready_seconds: 10,
            terminating: Some(1),
        };
        let pods = [pod("a", "True"), pod("b", "False")];
        let old = ReplicaSetStatus::default();
        let early = status(&old, &pods, &facts, None, at(105));
        assert_eq!(
            (
                early.replicas,
                early.ready_replicas,
                early.available_replicas
            ),
            (2, Some(1), None)
        );
        assert_eq!(
            (early.fully_labeled_replicas, early.terminating_replicas),
            (Some(2), Some(1))
        );
        assert_eq!(early.observed_generation, Some(4));
        let failure = Some(("FailedCreate", "no quota".to_owned()));
        let late = status(&early, &pods, &facts, failure, at(110));
        assert_eq!(late.available_replicas, Some(1));
        assert_eq!(
            late.conditions.as_ref().unwrap()[0].reason.as_deref(),
            Some("FailedCreate")
        );
        assert!(
            status(&late, &pods, &facts, None, at(110))
                .conditions
                .is_none()
        );
    }
}
