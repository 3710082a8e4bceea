//! What a Deployment's status says: pure functions.
//!
//! Rules and words: upstream's `progress.go`, `sync.go` and
//! `util/deployment_util.go`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::jiff::Timestamp;
use rkube_client::clock;

use super::{Sets, sizes, status_of};
use crate::owner;
use crate::status::some;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// The reason of a rollout that is complete.
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|c| c.type_ == kind)
}

fn reason(condition: Option<&DeploymentCondition>) -> &str {
    condition
        .and_then(|c| c.reason.as_deref())
        .unwrap_or_default()
}

fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    let now = Some(clock::time(now));
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Sets a condition; one with the same status and reason stays as it is.
fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = condition(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

/// Seconds without progress after which a rollout counts as stuck. The
/// largest number means none.
fn deadline(deployment: &Deployment) -> Option<i32> {
    let spec = deployment.spec.as_ref()?;
    spec.progress_deadline_seconds.filter(|s| *s != i32::MAX)
}

/// The status with `Progressing` set, or `None` where that would change
/// nothing.
fn with_progress(
    deployment: &Deployment,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Option<DeploymentStatus> {
    if !has_deadline(deployment) {
        return None;
    }
    let old = status_of(deployment);
    let mut new = old.clone();
    set(
        &mut new,
        new_condition(PROGRESSING, status, reason, message, now),
    );
    (new != old).then_some(new)
}

/// The new set was there already, and nothing was said of progress yet.
pub(super) fn found(
    deployment: &Deployment,
    set: &str,
    now: Timestamp,
) -> Option<DeploymentStatus> {
    if condition(&status_of(deployment), PROGRESSING).is_some() {
        return None;
    }
    let message = format!("Found new replica set {set:?}");
    with_progress(deployment, "True", "FoundNewReplicaSet", message, now)
}

/// The new set was made.
pub(super) fn created(
    deployment: &Deployment,
    set: &str,
    now: Timestamp,
) -> Option<DeploymentStatus> {
    let message = format!("Created new replica set {set:?}");
    with_progress(deployment, "True", "NewReplicaSetCreated", message, now)
}

/// The new set could not be made.
pub(super) fn failed(deployment: &Deployment, message: &str, now: Timestamp) -> DeploymentStatus {
    let mut new = status_of(deployment);
    let condition = new_condition(
        PROGRESSING,
        "False",
        "ReplicaSetCreateError",
        message.to_owned(),
        now,
    );
    set(&mut new, condition);
    new
}

/// Says that a Deployment was paused or resumed, where it does not yet.
pub(super) fn paused(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    if !has_deadline(deployment) {
        return None;
    }
    let status = status_of(deployment);
    let reason = reason(condition(&status, PROGRESSING));
    let (reason, message) = match (sizes::is_paused(deployment), reason) {
        (_, TIMED_OUT) | (true, PAUSED) => return None,
        (true, _) => (PAUSED, "Deployment is paused"),
        (false, PAUSED) => ("DeploymentResumed", "Deployment is resumed"),
        (false, _) => return None,
    };
    with_progress(deployment, "Unknown", reason, message.to_owned(), now)
}

/// Counts and availability.
pub(super) fn status(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let old = status_of(deployment);
    let all = sets.all();
    let sum = |of: fn(&ReplicaSet) -> i32, sets: &[Arc<ReplicaSet>]| {
        sets.iter().map(|s| of(s)).fold(0, i32::saturating_add)
    };
    let actual = |s: &ReplicaSet| s.status.as_ref().map_or(0, |s| s.replicas);
    let available = sum(
        |s| {
            s.status
                .as_ref()
                .and_then(|s| s.available_replicas)
                .unwrap_or(0)
        },
        &all,
    );
    let ready = sum(
        |s| {
            s.status
                .as_ref()
                .and_then(|s| s.ready_replicas)
                .unwrap_or(0)
        },
        &all,
    );
    let terminating = sum(
        |s| {
            s.status
                .as_ref()
                .and_then(|s| s.terminating_replicas)
                .unwrap_or(0)
        },
        &all,
    );
    let wanted = sum(sizes::replicas, &all);
    let mut new = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(actual, &all)),
        updated_replicas: some(sets.new.as_ref().map_or(0, |s| actual(s))),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((wanted - available).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let least = sizes::desired(deployment) - sizes::max_unavailable(deployment);
    let (state, reason, message) = if available >= least {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    let condition = new_condition(AVAILABLE, state, reason, message.to_owned(), now);
    set(&mut new, condition);
    new
}

/// Whether a status shows a rollout that is done.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let all = sizes::desired(deployment);
    status.updated_replicas.unwrap_or(0) == all
        && status.replicas.unwrap_or(0) == all
        && status.available_replicas.unwrap_or(0) == all
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Whether a rollout has moved on since the last status.
fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |n: Option<i32>| n.unwrap_or(0);
    let old_pods =
        |s: &DeploymentStatus| number(s.replicas).saturating_sub(number(s.updated_replicas));
    number(new.updated_replicas) > number(old.updated_replicas)
        || old_pods(new) < old_pods(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

/// When the deadline of a rollout runs out, in seconds since 1970.
fn runs_out(deployment: &Deployment, status: &DeploymentStatus) -> Option<i64> {
    let condition = condition(status, PROGRESSING)?;
    let from = condition.last_update_time.as_ref()?.0.as_second();
    Some(from.saturating_add(deadline(deployment)?.into()))
}

fn is_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    match reason(condition(status, PROGRESSING)) {
        TIMED_OUT => true,
        NEW_SET_AVAILABLE => false,
        _ => runs_out(deployment, status).is_some_and(|at| at < now.as_second()),
    }
}

/// Counts, availability and progress.
pub(super) fn rollout(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let old = status_of(deployment);
    let mut new = status(deployment, sets, now);
    if !has_deadline(deployment) {
        remove(&mut new, PROGRESSING);
    }
    let current = condition(&old, PROGRESSING).cloned();
    let done =
        new.replicas == new.updated_replicas && reason(current.as_ref()) == NEW_SET_AVAILABLE;
    if has_deadline(deployment) && !done {
        let subject = sets.new.as_ref().map_or_else(
            || format!("Deployment {:?}", owner::name(deployment)),
            |set| format!("ReplicaSet {:?}", owner::name(&**set)),
        );
        if is_complete(deployment, &new) {
            let message = format!("{subject} has successfully progressed.");
            let condition = new_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now);
            set(&mut new, condition);
        } else if is_progressing(&old, &new) {
            let message = format!("{subject} is progressing.");
            let mut condition =
                new_condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|c| c.status == "True") {
                condition.last_transition_time = current.last_transition_time;
            }
            // Each step moves the deadline, so this one always takes its place.
            remove(&mut new, PROGRESSING);
            set(&mut new, condition);
        } else if is_timed_out(deployment, &new, now) {
            let message = format!("{subject} has timed out progressing.");
            let condition = new_condition(PROGRESSING, "False", TIMED_OUT, message, now);
            set(&mut new, condition);
        }
    }
    remove(&mut new, REPLICA_FAILURE);
    if let Some(failure) = failure(sets) {
        let mut condition = new_condition(
            REPLICA_FAILURE,
            &failure.status,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.clone().unwrap_or_default(),
            now,
        );
        condition.last_update_time = failure.last_transition_time.clone();
        condition.last_transition_time = failure.last_transition_time;
        set(&mut new, condition);
    }
    new
}

/// What a set says of pods that could not be made: the new one's word counts
/// first.
fn failure(sets: &Sets) -> Option<ReplicaSetCondition> {
    let of = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|c| c.type_ == REPLICA_FAILURE)
            .cloned()
    };
    sets.all().iter().find_map(|set| of(set))
}

/// After how many seconds the deadline has to be looked at again.
pub(super) fn deadline_in(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<u64> {
    let reason = reason(condition(status, PROGRESSING));
    if is_complete(deployment, status) || reason == TIMED_OUT || reason == NEW_SET_AVAILABLE {
        return None;
    }
    let at = runs_out(deployment, status)?;
    let wait = at.saturating_sub(now.as_second()).saturating_add(1);
    Some(u64::try_from(wait).unwrap_or(1).max(1))
}
