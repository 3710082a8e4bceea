//! A pod's status out of what is wanted and what is known
//! (node reference 1.2).

mod container;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};

use crate::machine::{
    Desired, EndingCause, PodState, Running, Sandbox, Stage, Volumes, initialized,
};
use crate::node::NodeFacts;
use crate::pod::{self, Kind, RestartPolicy};
use crate::time::api_time;
use crate::translate::qos;

pub use container::container_id;

/// The full status. `previous` is the last one, from which conditions that
/// did not change keep their transition time.
#[must_use]
pub fn pod_status(
    desired: &Desired,
    state: &PodState,
    node: &NodeFacts,
    previous: Option<&PodStatus>,
    now: SystemTime,
) -> PodStatus {
    let pod = &desired.pod;
    let phase = phase(desired, state);
    let (reason, message) = reason(state);
    let statuses = |kind: fn(Kind) -> bool| {
        let list: Vec<_> = pod::containers(pod)
            .filter(|(k, _)| kind(*k))
            .map(|(k, c)| container::status(desired, state, k, c, phase, now))
            .collect();
        Some(list).filter(|l| !l.is_empty())
    };
    let addresses = pod_addresses(pod, state, node);
    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        reason,
        message,
        conditions: Some(conditions(desired, state, phase, previous, now)),
        container_statuses: statuses(|k| k == Kind::Main),
        init_container_statuses: statuses(|k| k != Kind::Main),
        host_ip: node.addresses.first().map(ToString::to_string),
        host_ips: Some(
            node.addresses
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect::<Vec<_>>(),
        )
        .filter(|l| !l.is_empty()),
        pod_ip: addresses.first().cloned(),
        pod_ips: Some(
            addresses
                .into_iter()
                .map(|ip| PodIP { ip })
                .collect::<Vec<_>>(),
        )
        .filter(|l| !l.is_empty()),
        qos_class: Some(qos::class(pod).as_str().to_owned()),
        start_time: Some(api_time(state.accepted_at)),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// The pod's addresses: its sandbox's, or the host's.
#[must_use]
pub fn pod_addresses(pod: &Pod, state: &PodState, node: &NodeFacts) -> Vec<String> {
    let Sandbox::Ready { addresses } = &state.sandbox else {
        return Vec::new();
    };
    let list = if pod::host_network(pod) {
        &node.addresses
    } else {
        addresses
    };
    list.iter().map(ToString::to_string).collect()
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers were started yet.
    Pending,
    /// At least one runs or is between two runs.
    Running,
    /// All ended with exit code 0 and none runs again.
    Succeeded,
    /// All ended, at least one with another code.
    Failed,
}

impl Phase {
    /// The name in `status.phase`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// The pod's phase. Exit codes of sidecars do not count, and a pod is not
/// over while one of them still runs.
#[must_use]
pub fn phase(desired: &Desired, state: &PodState) -> Phase {
    let pod = &desired.pod;
    let mains = || {
        pod::containers(pod)
            .filter(|(kind, _)| *kind == Kind::Main)
            .map(|(_, c)| state.container(&c.name))
    };
    let succeeded = mains().all(|m| m.exited().is_some_and(|e| e.exit_code == 0));
    let deadline = state
        .ending
        .is_some_and(|e| e.cause == EndingCause::Deadline);
    if deadline {
        // Upstream reports the failure as soon as the deadline has passed.
        return Phase::Failed;
    }
    if state.finished {
        return if succeeded {
            Phase::Succeeded
        } else {
            Phase::Failed
        };
    }
    let never = pod::restart_policy(pod) == RestartPolicy::Never;
    let init_failed = pod::containers(pod).any(|(kind, c)| {
        kind == Kind::Init
            && state
                .container(&c.name)
                .exited()
                .is_some_and(|e| e.exit_code != 0 && !pod::restarts(pod, kind, c, e.exit_code))
    });
    let alive = state.containers.values().any(|m| m.active());
    if init_failed && never && !alive {
        return Phase::Failed;
    }
    if !initialized(pod, state) && !mains().any(|m| m.attempts > 0) {
        return Phase::Pending;
    }
    // A main container that never ran is waiting; one between two runs is not,
    // unless it begins anew.
    if mains().any(|m| m.attempts == 0 || m.stage == Stage::Idle && m.again) {
        return Phase::Pending;
    }
    Phase::Running
}

fn reason(state: &PodState) -> (Option<String>, Option<String>) {
    if state
        .ending
        .is_some_and(|e| e.cause == EndingCause::Deadline)
    {
        return (
            Some("DeadlineExceeded".to_owned()),
            Some("the pod was active for longer than activeDeadlineSeconds".to_owned()),
        );
    }
    match (&state.sandbox, &state.volumes) {
        (_, Volumes::Failed(t)) | (Sandbox::Failed(t) | Sandbox::Stuck(t), _) => {
            (Some(t.reason.clone()), Some(t.message.clone()))
        }
        _ => (None, None),
    }
}

struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// Whether a pod that is over had been initialized: its sandbox is gone, and
/// with it what tells a new one's init containers from the last one's.
fn was_initialized(pod: &Pod, state: &PodState, phase: Phase) -> bool {
    let begun = || {
        pod::containers(pod)
            .any(|(kind, c)| kind == Kind::Main && state.container(&c.name).attempts > 0)
    };
    match phase {
        Phase::Succeeded => true,
        Phase::Failed => begun(),
        Phase::Pending | Phase::Running => false,
    }
}

fn conditions(
    desired: &Desired,
    state: &PodState,
    phase: Phase,
    previous: Option<&PodStatus>,
    now: SystemTime,
) -> Vec<PodCondition> {
    let pod = &desired.pod;
    let sandbox = matches!(state.sandbox, Sandbox::Ready { .. });
    let over = match phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        Phase::Pending | Phase::Running => None,
    };
    let initialized = initialized(pod, state) || was_initialized(pod, state, phase);
    let unfinished = names(pod, |kind, c| {
        let memory = state.container(c);
        match kind {
            Kind::Main => false,
            Kind::Init => memory.exited().is_none_or(|e| e.exit_code != 0) || !memory.fresh,
            Kind::Sidecar => !memory.running().is_some_and(Running::started),
        }
    });
    let unready = names(pod, |kind, c| {
        kind != Kind::Init && !container::ready(state, c)
    });
    let containers_ready = over.is_none() && unready.is_empty();
    let gates = pod
        .spec
        .as_ref()
        .and_then(|s| s.readiness_gates.as_deref())
        .unwrap_or_default();
    let given = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let closed: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match given.iter().find(|c| c.type_ == *kind) {
                Some(c) if c.status == "True" => None,
                Some(c) => Some(format!(
                    "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                    c.status
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate {kind:?} does not exist."
                )),
            }
        })
        .collect();
    let unready_text = (!containers_ready && over.is_none())
        .then(|| format!("containers with unready status: [{}]", unready.join(" ")));
    let not_ready_reason = over.or(Some("ContainersNotReady"));
    let verdicts = [
        Verdict {
            kind: "PodReadyToStartContainers",
            holds: sandbox,
            reason: None,
            message: None,
        },
        Verdict {
            kind: "Initialized",
            holds: initialized,
            reason: if initialized {
                over.filter(|_| phase == Phase::Succeeded)
            } else {
                Some("ContainersNotInitialized")
            },
            message: (!initialized).then(|| {
                format!(
                    "containers with incomplete status: [{}]",
                    unfinished.join(" ")
                )
            }),
        },
        Verdict {
            kind: "Ready",
            holds: containers_ready && closed.is_empty(),
            reason: match closed.is_empty() {
                _ if !containers_ready => not_ready_reason,
                false => Some("ReadinessGatesNotReady"),
                true => None,
            },
            message: unready_text
                .clone()
                .or_else(|| (containers_ready && !closed.is_empty()).then(|| closed.join(", "))),
        },
        Verdict {
            kind: "ContainersReady",
            holds: containers_ready,
            reason: if containers_ready {
                None
            } else {
                not_ready_reason
            },
            message: unready_text,
        },
        Verdict {
            kind: "PodScheduled",
            holds: true,
            reason: None,
            message: None,
        },
    ];
    verdicts
        .into_iter()
        .map(|v| condition(v, pod, state, previous, now))
        .collect()
}

fn condition(
    verdict: Verdict,
    pod: &Pod,
    state: &PodState,
    previous: Option<&PodStatus>,
    now: SystemTime,
) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = previous
        .and_then(|p| p.conditions.as_deref())
        .unwrap_or_default()
        .iter()
        .find(|c| c.type_ == verdict.kind && c.status == status);
    let first = if verdict.kind == "PodScheduled" {
        state.accepted_at
    } else {
        now
    };
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message.filter(|m| !m.is_empty()),
        last_transition_time: before
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(api_time(first))),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

fn names(pod: &Pod, wanted: impl Fn(Kind, &str) -> bool) -> Vec<String> {
    pod::containers(pod)
        .filter(|(kind, c)| wanted(*kind, &c.name))
        .map(|(_, c)| c.name.clone())
        .collect()
}
