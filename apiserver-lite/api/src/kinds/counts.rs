//! Rules for the counts in a status (`ValidateDeploymentStatus`, `ValidateReplicaSetStatus`,
//! `ValidateJobStatus`, ... of upstream).

use serde_json::Value;

use super::workload::not_negative;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::view::At;

const OF_ALL: &str = "cannot be greater than status.replicas";
const OF_READY: &str = "cannot be greater than readyReplicas";

/// The status of a ReplicaSet or ReplicationController.
pub(super) fn replicas(new: &Value, old: &Value) -> Vec<FieldError> {
    const COUNTS: [&str; 5] = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
    ];
    status(new, old, &COUNTS, &COUNTS[1..4])
}

/// The status of a Deployment.
pub(super) fn deployment(new: &Value, old: &Value) -> Vec<FieldError> {
    const COUNTS: [&str; 7] = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ];
    let mut found = status(new, old, &COUNTS, &COUNTS[2..5]);
    let root = At::root(new);
    let at = root.get("status");
    let collisions = at.get("collisionCount");
    let before = old["status"]["collisionCount"].as_i64().unwrap_or(0);
    let now = collisions.int().unwrap_or(0);
    if now < before {
        let mut errors = Errors::default();
        let rule = "cannot be decremented";
        collisions.error_value(&mut errors, ErrorKind::Invalid, now.to_string(), rule);
        found.extend(errors.into_vec());
    }
    found
}

/// The status of a Job.
pub(super) fn job(new: &Value, old: &Value) -> Vec<FieldError> {
    status(new, old, &["active", "succeeded", "failed"], &[])
}

/// The status of a PodDisruptionBudget.
pub(super) fn budget(new: &Value, old: &Value) -> Vec<FieldError> {
    const COUNTS: [&str; 4] = [
        "disruptionsAllowed",
        "currentHealthy",
        "desiredHealthy",
        "expectedPods",
    ];
    status(new, old, &COUNTS, &[])
}

/// None of `counts` is negative, none of `parts` is more than the whole.
fn status(new: &Value, old: &Value, counts: &[&str], parts: &[&str]) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let at = root.get("status");
    if *at.value() == old["status"] {
        return Vec::new();
    }
    for name in counts {
        not_negative(&mut errors, &at.get(name));
    }
    let number = |name: &str| at.get(name).int().unwrap_or(0);
    for name in parts {
        let count = number(name);
        if count > number("replicas") {
            let part = at.get(name);
            part.error_value(&mut errors, ErrorKind::Invalid, count.to_string(), OF_ALL);
        }
    }
    let available = at.get("availableReplicas");
    if !parts.is_empty() && number("availableReplicas") > number("readyReplicas") {
        available.invalid(&mut errors, OF_READY);
    }
    errors.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_no_more_than_the_whole() {
        let old = json!({"status": {"collisionCount": 2}});
        let told = |status: Value| {
            let new = json!({"status": status});
            let found = deployment(&new, &old);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(told(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 2})).is_empty());
        assert_eq!(
            told(json!({"replicas": -1, "collisionCount": 2})),
            ["status.replicas: Invalid value: -1: must be greater than or equal to 0"; 1]
                .into_iter()
                .chain([
                    "status.updatedReplicas: Invalid value: 0: cannot be greater than status.replicas",
                    "status.readyReplicas: Invalid value: 0: cannot be greater than status.replicas",
                    "status.availableReplicas: Invalid value: 0: cannot be greater than status.replicas",
                ])
                .map(str::to_owned)
                .collect::<Vec<_>>()
        );
        assert_eq!(
            told(json!({"collisionCount": 1})),
            ["status.collisionCount: Invalid value: 1: cannot be decremented"]
        );
        assert!(
            deployment(&old, &old).is_empty(),
            "what did not change is not looked at"
        );
    }
}
