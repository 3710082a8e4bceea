//! A pod's status in few words, and what a pod's end means for exit codes.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use rkube_kubelet::pod::{self, Kind};
use rkube_kubelet::time::system_time;

/// Whether nothing of the pod runs or will run.
pub(crate) fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// `status.phase`; `Pending` before there is one.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// Init containers' statuses.
fn inits(pod: &Pod) -> &[ContainerStatus] {
    pod.status
        .as_ref()
        .and_then(|s| s.init_container_statuses.as_deref())
        .unwrap_or_default()
}

/// Main containers' statuses.
pub(crate) fn mains(pod: &Pod) -> &[ContainerStatus] {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default()
}

/// All containers' statuses, in the order of their start.
pub(crate) fn statuses(pod: &Pod) -> impl Iterator<Item = (Kind, &ContainerStatus)> {
    let kind = |name: &str| pod::container(pod, name).map_or(Kind::Main, |(kind, _)| kind);
    inits(pod)
        .iter()
        .chain(mains(pod))
        .map(move |s| (kind(&s.name), s))
}

/// How a container's latest run ended, if it has.
pub(crate) fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn waiting_reason(state: Option<&ContainerState>) -> Option<&str> {
    state?.waiting.as_ref()?.reason.as_deref()
}

/// `ready/all` of the containers that should be ready: main ones and sidecars.
pub(crate) fn readiness(pod: &Pod) -> String {
    let counted = |kind: &Kind| *kind != Kind::Init;
    let all = pod::containers(pod).filter(|(k, _)| counted(k)).count();
    let ready = statuses(pod).filter(|(k, s)| counted(k) && s.ready).count();
    format!("{ready}/{all}")
}

/// Restarts of all its containers.
pub(crate) fn restarts(pod: &Pod) -> i64 {
    statuses(pod).map(|(_, s)| i64::from(s.restart_count)).sum()
}

/// The state in one or two words.
pub(crate) fn summary(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() && !finished(pod) {
        return "Terminating".to_owned();
    }
    let reason = pod.status.as_ref().and_then(|s| s.reason.clone());
    if let Some(init) = init_summary(pod)
        && !matches!(phase(pod), "Succeeded")
    {
        return init;
    }
    if let Some(reason) = reason {
        return reason;
    }
    let waits = mains(pod).iter().find_map(|s| {
        waiting_reason(s.state.as_ref())
            .filter(|r| !matches!(*r, "ContainerCreating" | "PodInitializing"))
            .map(str::to_owned)
    });
    let ends = || mains(pod).iter().filter_map(terminated);
    let failed = || ends().find(|end| end.exit_code != 0);
    let troubled = waits.or_else(|| failed().or_else(|| ends().next()).map(end_word));
    match (phase(pod), troubled) {
        ("Succeeded", _) => "Completed".to_owned(),
        ("Running", Some(_)) if mains(pod).iter().any(|s| s.ready) && mains(pod).len() == 1 => {
            "Running".to_owned()
        }
        (_, Some(word)) => word,
        ("Running", None) => "Running".to_owned(),
        ("Failed", None) => "Error".to_owned(),
        ("Pending", None) => {
            let creating = mains(pod)
                .iter()
                .find_map(|s| waiting_reason(s.state.as_ref()));
            creating.unwrap_or("Pending").to_owned()
        }
        (other, None) => other.to_owned(),
    }
}

/// The first init container in the way: `Init:1/2`, `Init:Error`.
fn init_summary(pod: &Pod) -> Option<String> {
    let total = inits(pod).len();
    for (done, (kind, status)) in statuses(pod).take(total).enumerate() {
        let passed = match (kind, terminated(status)) {
            (Kind::Sidecar, _) => {
                status.started == Some(true)
                    || terminated(status).is_some_and(|_| !mains_waiting(pod))
            }
            (_, Some(end)) if end.exit_code == 0 => true,
            (_, Some(end)) => return Some(format!("Init:{}", end_word(end))),
            (_, None) => false,
        };
        if passed {
            continue;
        }
        return match waiting_reason(status.state.as_ref()) {
            Some(reason) if !matches!(reason, "PodInitializing" | "ContainerCreating") => {
                Some(format!("Init:{reason}"))
            }
            _ => Some(format!("Init:{done}/{total}")),
        };
    }
    None
}

fn mains_waiting(pod: &Pod) -> bool {
    mains(pod)
        .iter()
        .all(|s| s.state.as_ref().is_none_or(|s| s.waiting.is_some()) && s.last_state.is_none())
}

/// The reason of an end, or its signal or exit code.
fn end_word(end: &ContainerStateTerminated) -> String {
    match (&end.reason, end.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.clone(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", end.exit_code),
    }
}

/// The exit code of a foreground run, of pods that are over: that of the
/// first container that failed for good, else 0; 1 for a pod that failed
/// without one (a deadline, a refusal).
pub(crate) fn exit_code(pods: &[Pod]) -> u8 {
    let failed = pods.iter().filter(|p| phase(p) == "Failed");
    let mut ends: Vec<(Option<SystemTime>, i32)> = Vec::new();
    let mut without = false;
    for pod in failed {
        let before = ends.len();
        ends.extend(
            statuses(pod)
                .filter(|(kind, _)| *kind != Kind::Sidecar)
                .filter_map(|(_, s)| {
                    let end = terminated(s)?;
                    (end.exit_code != 0)
                        .then(|| (end.finished_at.as_ref().map(system_time), end.exit_code))
                }),
        );
        without |= ends.len() == before;
    }
    // Equal times keep the order of the containers; unknown ones come last.
    ends.sort_by_key(|(at, _)| (at.is_none(), *at));
    match ends.first() {
        // Codes that do not fit are failures all the same.
        Some((_, code)) => u8::try_from(*code).unwrap_or(crate::error::FAILURE),
        None => u8::from(without),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(crate) fn pod(phase: &str, inits: Value, mains: Value) -> Pod {
        let containers = |list: &Value| -> Value {
            let named = list.as_array().unwrap().iter();
            named
                .map(|s| json!({"name": s["name"], "restartPolicy": s["policy"]}))
                .collect()
        };
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"initContainers": containers(&inits), "containers": containers(&mains)},
            "status": {"phase": phase, "initContainerStatuses": inits, "containerStatuses": mains},
        }))
        .unwrap()
    }

    fn ended(name: &str, code: i32, second: u32) -> Value {
        let reason = if code == 0 { "Completed" } else { "Error" };
        json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated":
            {"exitCode": code, "reason": reason, "finishedAt": format!("2026-01-01T00:00:{second:02}Z")}}})
    }

    fn waiting(name: &str, reason: &str) -> Value {
        json!({"name": name, "ready": false, "restartCount": 2, "image": "", "imageID": "",
            "state": {"waiting": {"reason": reason}}})
    }

    fn running(name: &str) -> Value {
        json!({"name": name, "ready": true, "started": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}})
    }

    fn sidecar(mut status: Value) -> Value {
        status["policy"] = "Always".into();
        status
    }

    #[test]
    fn states_in_few_words() {
        let none = || json!([]);
        let words = |p: Pod| (summary(&p), readiness(&p));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            words(pod("Running", none(), json!([running("a")]))),
            pair("Running", "1/1")
        );
        assert_eq!(
            words(pod(
                "Pending",
                none(),
                json!([waiting("a", "ContainerCreating")])
            )),
            pair("ContainerCreating", "0/1")
        );
        assert_eq!(
            words(pod(
                "Running",
                none(),
                json!([waiting("a", "CrashLoopBackOff"), running("b")])
            )),
            pair("CrashLoopBackOff", "1/2")
        );
        assert_eq!(
            words(pod("Succeeded", none(), json!([ended("a", 0, 1)]))),
            pair("Completed", "0/1")
        );
        assert_eq!(
            words(pod("Failed", none(), json!([ended("a", 3, 1)]))),
            pair("Error", "0/1")
        );
        assert_eq!(
            words(pod(
                "Failed",
                none(),
                json!([ended("a", 0, 1), ended("b", 3, 1)])
            )),
            pair("Error", "0/2")
        );
        let inits = json!([ended("i", 0, 1), waiting("j", "PodInitializing")]);
        assert_eq!(
            words(pod(
                "Pending",
                inits,
                json!([waiting("a", "PodInitializing")])
            )),
            pair("Init:1/2", "0/1")
        );
        let inits = json!([ended("i", 2, 1)]);
        assert_eq!(
            words(pod(
                "Failed",
                inits,
                json!([waiting("a", "PodInitializing")])
            )),
            pair("Init:Error", "0/1")
        );
        let inits = json!([sidecar(running("s"))]);
        assert_eq!(
            words(pod("Running", inits, json!([running("a")]))),
            pair("Running", "2/2")
        );
        let mut going = pod("Running", none(), json!([running("a")]));
        going.metadata.deletion_timestamp = Some(rkube_kubelet::time::api_time(SystemTime::now()));
        assert_eq!(summary(&going), "Terminating");
        assert_eq!(
            restarts(&pod(
                "Running",
                none(),
                json!([waiting("a", "CrashLoopBackOff")])
            )),
            2
        );
    }

    #[test]
    fn the_first_container_that_failed_gives_the_exit_code() {
        let ok = pod("Succeeded", json!([]), json!([ended("a", 0, 1)]));
        assert_eq!(exit_code(std::slice::from_ref(&ok)), 0);
        let two = pod(
            "Failed",
            json!([]),
            json!([ended("a", 4, 9), ended("b", 3, 5), ended("c", 0, 1)]),
        );
        assert_eq!(exit_code(&[ok.clone(), two]), 3);
        let init = pod(
            "Failed",
            json!([ended("i", 7, 1)]),
            json!([waiting("a", "PodInitializing")]),
        );
        assert_eq!(exit_code(&[init]), 7);
        // A sidecar that is killed at the end is no failure of the pod.
        let sidecar = pod(
            "Failed",
            json!([sidecar(ended("s", 137, 1))]),
            json!([ended("a", 5, 2)]),
        );
        assert_eq!(exit_code(&[sidecar]), 5);
        assert_eq!(
            exit_code(&[pod(
                "Failed",
                json!([]),
                json!([waiting("a", "ContainerCreating")])
            )]),
            1
        );
        assert_eq!(
            exit_code(&[pod("Failed", json!([]), json!([ended("a", 256, 1)]))]),
            1
        );
        assert_eq!(exit_code(&[]), 0);
    }
}
