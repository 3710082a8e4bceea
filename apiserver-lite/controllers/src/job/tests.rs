//! Jobs, step by step, without a cluster.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::{Leave, Step, TRACKING, condition, is_finished, step};
use super::{backoff, new_pod};
use crate::testing::{at, object};

const GO: Leave = Leave {
    may_manage: true,
    not_before: None,
};

fn job(spec: Value) -> Job {
    let base = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "j"}, "spec": {
        "parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
        "selector": {}, "podReplacementPolicy": "TerminatingOrFailed",
        "template": {"metadata": {"labels": {"job-name": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}}});
    object(rkube_api::patch::merge(base, json!({ "spec": spec })).unwrap())
}

fn pod(name: &str, phase: &str, extra: Value) -> Arc<Pod> {
    let base = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "finalizers": [TRACKING]},
        "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase}});
    Arc::new(object(rkube_api::patch::merge(base, extra).unwrap()))
}

fn free(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    pod.metadata.finalizers = None;
    Arc::new(pod)
}

fn with(job: &Job, status: JobStatus) -> Job {
    Job {
        status: Some(status),
        ..job.clone()
    }
}

fn run(job: &Job, pods: &[Arc<Pod>], seconds: i64) -> Step {
    step(job, pods, GO, at(seconds))
}

fn reason(status: &JobStatus, kind: &str) -> Option<String> {
    condition(status, kind).and_then(|c| c.reason.clone())
}

#[test]
fn each_pod_is_counted_once_whatever_crashes() {
    let j = job(json!({}));
    let first = run(&j, &[], 100);
    assert_eq!(first.create, [None]);
    assert_eq!(first.status.active, Some(1));
    assert_eq!(first.status.start_time.as_ref().unwrap().0, at(100));
    // It ends: noted, not counted.
    let ended = pod("p", "Succeeded", json!({}));
    let noted = run(&with(&j, first.status), &[Arc::clone(&ended)], 110);
    assert_eq!(
        noted
            .status
            .uncounted_terminated_pods
            .as_ref()
            .unwrap()
            .succeeded,
        Some(vec!["p".into()])
    );
    assert_eq!((noted.status.succeeded, noted.release.len()), (None, 1));
    assert!(!is_finished(&noted.status) && noted.create.is_empty());
    assert_eq!(
        reason(&noted.status, "SuccessCriteriaMet").as_deref(),
        Some("CompletionsReached")
    );
    // The finalizer could not be removed: the same again, still not counted.
    let same = run(&with(&j, noted.status.clone()), &[Arc::clone(&ended)], 111);
    assert_eq!((same.status.succeeded, same.release.len()), (None, 1));
    // It is removed: counted, complete.
    let done = run(&with(&j, noted.status), &[free(&ended)], 112);
    assert_eq!(done.status.succeeded, Some(1));
    assert!(is_finished(&done.status));
    assert_eq!(done.status.completion_time.as_ref().unwrap().0, at(112));
    assert_eq!(done.events[0].1, "Completed");
    // A finished Job only frees what is left.
    let after = run(
        &with(&j, done.status.clone()),
        &[pod("q", "Failed", json!({}))],
        120,
    );
    assert_eq!((after.status, after.release.len()), (done.status, 1));
}

#[test]
fn parallelism_and_completions() {
    let j = job(json!({"parallelism": 3, "completions": 5}));
    assert_eq!(run(&j, &[], 0).create.len(), 3);
    let running = |names: &[&str]| {
        names
            .iter()
            .map(|n| pod(n, "Running", json!({})))
            .collect::<Vec<_>>()
    };
    let counted = JobStatus {
        succeeded: Some(4),
        ..JobStatus::default()
    };
    assert!(
        run(&with(&j, counted.clone()), &running(&["a"]), 0)
            .create
            .is_empty()
    );
    assert_eq!(
        run(&with(&j, counted), &running(&["a", "b", "c"]), 0)
            .surplus
            .len(),
        2
    );
    // A work queue: after the first success no more are made.
    let queue = job(json!({"parallelism": 3, "completions": null}));
    let some = JobStatus {
        succeeded: Some(1),
        ..JobStatus::default()
    };
    let rest = run(&with(&queue, some.clone()), &running(&["a"]), 0);
    assert!(rest.create.is_empty() && rest.surplus.is_empty());
    assert!(is_finished(&run(&with(&queue, some), &[], 0).status));
}

#[test]
fn failures_wait_and_then_end_the_job() {
    let j = job(json!({"backoffLimit": 1}));
    let failed = |name: &str| pod(name, "Failed", json!({}));
    let one = run(&j, &[failed("a")], 10);
    assert_eq!(one.new_failures, 1);
    let later = Leave {
        may_manage: true,
        not_before: Some(at(20)),
    };
    let waits = step(
        &with(&j, one.status.clone()),
        &[free(&failed("a"))],
        later,
        at(12),
    );
    assert_eq!((waits.create.len(), waits.again_at), (0, Some(at(20))));
    assert_eq!(waits.status.failed, Some(1));
    let two = run(
        &with(&j, waits.status),
        &[failed("b"), pod("c", "Running", json!({}))],
        30,
    );
    assert_eq!(
        reason(&two.status, "FailureTarget").as_deref(),
        Some("BackoffLimitExceeded")
    );
    assert_eq!(two.end.len(), 1, "what still runs is ended");
    assert!(!is_finished(&two.status));
    let end = run(&with(&j, two.status), &[free(&failed("b"))], 40);
    assert!(is_finished(&end.status));
    assert_eq!(end.status.failed, Some(2));
    assert_eq!(
        end.events[0].2,
        "Job has reached the specified backoff limit"
    );
    assert_eq!([1, 2, 3, 7, 40].map(backoff), [10, 20, 40, 600, 600]);
}

#[test]
fn restarts_in_place_count_too() {
    let j = job(json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}}));
    let restarted = |count: i32| {
        pod(
            "a",
            "Running",
            json!({"status": {"containerStatuses": [
        {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": count}]}}),
        )
    };
    assert!(condition(&run(&j, &[restarted(1)], 0).status, "FailureTarget").is_none());
    assert!(condition(&run(&j, &[restarted(2)], 0).status, "FailureTarget").is_some());
}

#[test]
fn deadlines_and_suspension() {
    let j = job(json!({"activeDeadlineSeconds": 60}));
    let started = run(&j, &[], 100);
    assert_eq!(started.again_at, Some(at(160)));
    let over = run(
        &with(&j, started.status),
        &[pod("a", "Running", json!({}))],
        160,
    );
    assert_eq!(
        reason(&over.status, "FailureTarget").as_deref(),
        Some("DeadlineExceeded")
    );
    let suspended = job(json!({"suspend": true, "activeDeadlineSeconds": 60}));
    let still = run(&suspended, &[pod("a", "Running", json!({}))], 200);
    assert_eq!((still.surplus.len(), still.create.len()), (1, 0));
    assert_eq!(still.status.start_time, None);
    assert_eq!(
        reason(&still.status, "Suspended").as_deref(),
        Some("JobSuspended")
    );
    let resumed = run(&with(&j, still.status), &[], 300);
    assert_eq!(resumed.status.start_time.as_ref().unwrap().0, at(300));
    assert_eq!((resumed.create.len(), resumed.events[0].1), (1, "Resumed"));
}

#[test]
fn indexes_are_done_once_each() {
    let j = job(json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3}));
    assert_eq!(run(&j, &[], 0).create, [Some(0), Some(1), Some(2)]);
    let indexed = |name: &str, phase: &str, index: u32| {
        pod(
            name,
            phase,
            json!({"metadata": {"annotations": {super::INDEX: index.to_string()}}}),
        )
    };
    let pods = [
        indexed("a", "Succeeded", 0),
        indexed("b", "Running", 1),
        indexed("c", "Succeeded", 2),
    ];
    let next = run(&j, &pods, 0);
    assert_eq!(next.create, [Some(3)]);
    assert_eq!(
        (
            next.status.completed_indexes.as_deref(),
            next.status.succeeded
        ),
        (Some("0,2"), Some(2))
    );
    // The same index twice: one goes.
    let twice = [indexed("b", "Running", 1), indexed("d", "Running", 1)];
    assert_eq!(run(&with(&j, next.status), &twice, 0).surplus.len(), 1);
    let body = new_pod(&j, Some(3));
    assert_eq!(body["metadata"]["generateName"], "j-3-");
    assert_eq!(body["spec"]["hostname"], "j-3");
    assert_eq!(
        body["spec"]["containers"][0]["env"][0]["name"],
        "JOB_COMPLETION_INDEX"
    );
    assert_eq!(body["metadata"]["finalizers"], json!([TRACKING]));
}

#[test]
fn nothing_is_made_while_work_is_not_seen() {
    let blind = Leave {
        may_manage: false,
        not_before: None,
    };
    let waits = step(&job(json!({})), &[], blind, Timestamp::UNIX_EPOCH);
    assert!(waits.create.is_empty() && waits.surplus.is_empty());
}
