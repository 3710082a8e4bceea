use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;
use crate::machine::{Ending, Hook, ProbeKind, Refusal, Report, Stage, Termination, fold, step};
use crate::pod::tests::pod as pod_of;

fn node() -> NodeFacts {
    NodeFacts {
        single_process_oom_kill: false,
        name: "n".into(),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        cpu_millis: 2000,
        memory_bytes: 4 << 30,
        cluster_dns: vec![],
        cluster_domain: "cluster.local".into(),
    }
}

struct Case {
    desired: Desired,
    state: PodState,
    now: SystemTime,
    previous: Option<PodStatus>,
}

impl Case {
    fn new(spec: Value) -> Self {
        let pod = pod_of(spec);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Self {
            state: PodState::new(&pod, now),
            desired: Desired {
                pod,
                deletion: None,
            },
            now,
            previous: None,
        }
    }

    fn step(&mut self) {
        step(&self.desired, &mut self.state, self.now);
    }

    fn fold(&mut self, report: Report) {
        fold(
            &self.desired,
            &mut self.state,
            &mut Default::default(),
            report,
            self.now,
        );
        self.step();
    }

    fn up(&mut self) {
        self.step();
        self.fold(Report::VolumesMade(Ok(())));
        self.fold(Report::SandboxMade(Ok(vec!["10.0.0.2".parse().unwrap()])));
    }

    fn started(&mut self, name: &str, attempt: u32) {
        let started_at = self.now;
        self.fold(Report::Started {
            name: name.into(),
            attempt,
            started_at,
            image_id: "sha256:1".into(),
        });
    }

    fn exited(&mut self, name: &str, attempt: u32, code: i32) {
        let end = Termination {
            attempt,
            exit_code: code,
            signal: None,
            message: None,
            started_at: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            finished_at: self.now,
        };
        self.fold(Report::Exited {
            name: name.into(),
            end,
        });
    }

    fn status(&mut self) -> Value {
        let status = pod_status(
            &self.desired,
            &self.state,
            &node(),
            self.previous.as_ref(),
            self.now,
        );
        let value = serde_json::to_value(&status).unwrap();
        self.previous = Some(status);
        value
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let list = status["conditions"].as_array().unwrap();
    list.iter().find(|c| c["type"] == kind).unwrap()
}

#[test]
fn a_pod_comes_up_and_conditions_keep_their_times() {
    let mut case = Case::new(
        json!({"containers": [{"name": "a", "image": "x", "readinessProbe": {"exec": {}}}]}),
    );
    let status = case.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
    assert_eq!(status["hostIP"], "192.0.2.7");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["startTime"], "2023-11-14T22:13:20Z");
    case.up();
    case.started("a", 0);
    case.now += Duration::from_secs(60);
    let status = case.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIPs"], json!([{"ip": "10.0.0.2"}]));
    assert_eq!(
        condition(&status, "PodReadyToStartContainers")["status"],
        "True"
    );
    assert_eq!(condition(&status, "Ready")["reason"], "ContainersNotReady");
    assert_eq!(
        condition(&status, "Ready")["lastTransitionTime"],
        "2023-11-14T22:13:20Z"
    );
    assert_eq!(condition(&status, "Initialized")["status"], "True");
    case.fold(Report::Probed {
        name: "a".into(),
        attempt: 0,
        probe: ProbeKind::Readiness,
        success: true,
        message: String::new(),
    });
    let status = case.status();
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(
        condition(&status, "Ready")["lastTransitionTime"],
        "2023-11-14T22:14:20Z"
    );
    assert_eq!(
        status["containerStatuses"][0]["containerID"],
        "rkube://u-1/a/0"
    );
    assert_eq!(status["containerStatuses"][0]["ready"], true);
}

#[test]
fn crash_loops_wait_with_the_last_end() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.up();
    case.started("a", 0);
    case.exited("a", 0, 1);
    case.started("a", 1);
    case.exited("a", 1, 3);
    let status = case.status();
    let a = &status["containerStatuses"][0];
    assert_eq!(status["phase"], "Running");
    assert_eq!(a["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(a["restartCount"], 1);
}

#[test]
fn init_containers_hold_the_phase() {
    let mut case = Case::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    case.up();
    case.started("i", 0);
    let status = case.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    let initialized = condition(&status, "Initialized");
    assert_eq!(
        initialized["message"],
        "containers with incomplete status: [i]"
    );
    assert_eq!(
        condition(&status, "Ready")["message"],
        "containers with unready status: [a]"
    );
    case.exited("i", 0, 9);
    assert_eq!(case.status()["phase"], "Failed");
    assert_eq!(condition(&case.status(), "Initialized")["status"], "False");
}

#[test]
fn init_containers_of_a_pod_that_is_over_stay_done() {
    for (code, phase) in [(0, "Succeeded"), (1, "Failed")] {
        let mut case = Case::new(json!({"restartPolicy": "Never",
            "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        case.up();
        case.started("i", 0);
        case.exited("i", 0, 0);
        case.started("a", 0);
        case.exited("a", 0, code);
        case.fold(Report::SandboxRemoved(Ok(())));
        case.fold(Report::VolumesRemoved);
        let status = case.status();
        assert_eq!(status["phase"], phase);
        assert_eq!(status["initContainerStatuses"][0]["ready"], true, "{phase}");
        assert_eq!(
            condition(&status, "Initialized")["status"],
            "True",
            "{phase}"
        );
    }
}

#[test]
fn ends_by_exit_codes() {
    for (codes, phase, reason) in [
        ([0, 0], "Succeeded", "PodCompleted"),
        ([0, 1], "Failed", "PodFailed"),
    ] {
        let mut case = Case::new(
            json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}),
        );
        case.up();
        case.started("a", 0);
        case.started("b", 0);
        case.exited("a", 0, codes[0]);
        assert_eq!(case.status()["phase"], "Running");
        case.exited("b", 0, codes[1]);
        case.fold(Report::SandboxRemoved(Ok(())));
        case.fold(Report::VolumesRemoved);
        let status = case.status();
        assert_eq!(status["phase"], phase);
        assert_eq!(condition(&status, "Ready")["reason"], reason);
        assert_eq!(
            status["containerStatuses"][0]["state"]["terminated"]["reason"],
            "Completed"
        );
    }
}

#[test]
fn a_missed_deadline_is_told_at_once() {
    let mut case = Case::new(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}));
    case.up();
    case.started("a", 0);
    case.now += Duration::from_secs(5);
    case.step();
    let status = case.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("DeadlineExceeded"))
    );
}

#[test]
fn images_and_configuration_that_are_missing() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.up();
    let refusal = Refusal {
        reason: "ErrImagePull".into(),
        message: "not here".into(),
    };
    let mut failures = Default::default();
    for reason in ["ErrImagePull", "ImagePullBackOff"] {
        let report = Report::Blocked {
            name: "a".into(),
            refusal: refusal.clone(),
        };
        fold(
            &case.desired,
            &mut case.state,
            &mut failures,
            report,
            case.now,
        );
        let status = case.status();
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"]["reason"],
            reason
        );
        assert_eq!(status["phase"], "Pending");
    }
}

#[test]
fn a_pod_with_a_running_sidecar_is_not_over() {
    let mut case = Case::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}));
    case.up();
    case.started("s", 0);
    case.started("a", 0);
    case.exited("a", 0, 0);
    assert!(matches!(case.state.ending, Some(Ending { .. })));
    assert_eq!(case.status()["phase"], "Running");
    case.exited("s", 0, 137);
    case.fold(Report::SandboxRemoved(Ok(())));
    case.fold(Report::VolumesRemoved);
    assert_eq!(case.status()["phase"], "Succeeded");
}

#[test]
fn readiness_gates_hold_only_the_pod() {
    let mut case = Case::new(
        json!({"readinessGates": [{"conditionType": "x/y"}], "containers": [{"name": "a"}]}),
    );
    case.up();
    case.started("a", 0);
    assert!(
        matches!(&case.state.containers["a"].stage, Stage::Running(r) if r.post_start == Hook::Done)
    );
    let status = case.status();
    assert_eq!(condition(&status, "ContainersReady")["status"], "True");
    assert_eq!(
        condition(&status, "Ready")["reason"],
        "ReadinessGatesNotReady"
    );
}
