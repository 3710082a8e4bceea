//! The status of one container.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus,
};

use super::Phase;
use crate::machine::{
    ContainerMemory, Desired, PodState, Running, Stage, Termination, crash_loop, initialized,
};
use crate::pod::{self, Kind};
use crate::time::api_time;

/// `containerID` of an attempt.
#[must_use]
pub fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("rkube://{uid}/{name}/{attempt}")
}

/// Whether a container counts as ready.
pub(super) fn ready(state: &PodState, name: &str) -> bool {
    state
        .container(name)
        .running()
        .is_some_and(|running| running.started() && running.ready)
}

pub(super) fn status(
    desired: &Desired,
    state: &PodState,
    kind: Kind,
    container: &Container,
    phase: Phase,
    now: SystemTime,
) -> ContainerStatus {
    let memory = state.container(&container.name);
    let uid = pod::uid(&desired.pod);
    let id = |attempt| container_id(uid, &container.name, attempt);
    let terminated = |end: &Termination| ContainerStateTerminated {
        container_id: Some(id(end.attempt)),
        exit_code: end.exit_code,
        signal: end.signal,
        reason: Some(end.reason.clone()),
        message: end.message.clone(),
        started_at: end.started_at.map(api_time),
        finished_at: Some(api_time(end.finished_at)),
    };
    let (now_state, last) = states(desired, state, kind, container, &memory, now);
    let api_state = match now_state {
        Shown::Waiting(reason, message) => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason),
                message,
            }),
            ..ContainerState::default()
        },
        Shown::Running(running) => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(api_time(running.started_at)),
            }),
            ..ContainerState::default()
        },
        Shown::Terminated(end) => ContainerState {
            terminated: Some(terminated(end)),
            ..ContainerState::default()
        },
    };
    let running = memory.running();
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: memory.image_id.clone(),
        container_id: memory.attempt().map(id),
        ready: match kind {
            // A finished init container counts as ready, as upstream has it.
            // A pod that is over runs it in no other sandbox.
            Kind::Init => {
                let over = matches!(phase, Phase::Succeeded | Phase::Failed);
                (over || memory.fresh) && memory.exited().is_some_and(|e| e.exit_code == 0)
            }
            Kind::Sidecar | Kind::Main => ready(state, &container.name),
        },
        started: Some(running.is_some_and(Running::started)),
        restart_count: i32::try_from(memory.restart_count()).unwrap_or(i32::MAX),
        state: Some(api_state),
        last_state: Some(ContainerState {
            terminated: last.map(terminated),
            ..ContainerState::default()
        }),
        resources: container.resources.clone(),
        ..ContainerStatus::default()
    }
}

/// A delay as upstream's messages write it: `10s`, `2m40s`, `5m0s`.
fn duration(delay: std::time::Duration) -> String {
    let seconds = delay.as_secs();
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

enum Shown<'a> {
    Waiting(String, Option<String>),
    Running(&'a Running),
    Terminated(&'a Termination),
}

/// The present state and the last one.
fn states<'a>(
    desired: &Desired,
    state: &PodState,
    kind: Kind,
    container: &Container,
    memory: &'a ContainerMemory,
    now: SystemTime,
) -> (Shown<'a>, Option<&'a Termination>) {
    let waiting = || Shown::Waiting(waiting_reason(desired, state, kind).to_owned(), None);
    match &memory.stage {
        Stage::Idle | Stage::Starting { .. } => (waiting(), memory.last.as_ref()),
        Stage::Blocked(trouble) => {
            // From the second time on, an image is being waited for.
            let (reason, message) = match trouble.reason.as_str() {
                "ErrImagePull" if trouble.failures > 1 => {
                    let image = container.image.as_deref().unwrap_or_default();
                    let why = &trouble.message;
                    let text = format!("Back-off pulling image {image:?}: ErrImagePull: {why}");
                    ("ImagePullBackOff", text)
                }
                reason => (reason, trouble.message.clone()),
            };
            (
                Shown::Waiting(reason.to_owned(), Some(message)),
                memory.last.as_ref(),
            )
        }
        Stage::Running(running) => (Shown::Running(running), memory.last.as_ref()),
        Stage::Exited(end) => {
            if let Some((_, delay)) = crash_loop(desired, state, kind, container, now) {
                let message = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    duration(delay),
                    container.name,
                    pod::name(&desired.pod),
                    pod::namespace(&desired.pod),
                    pod::uid(&desired.pod)
                );
                return (
                    Shown::Waiting("CrashLoopBackOff".to_owned(), Some(message)),
                    Some(end),
                );
            }
            let again = state.ending.is_none()
                && pod::restarts(&desired.pod, kind, container, end.exit_code);
            if !memory.fresh && again {
                return (waiting(), Some(end));
            }
            (Shown::Terminated(end), memory.last.as_ref())
        }
    }
}

/// `PodInitializing` where init containers come first, else
/// `ContainerCreating`.
fn waiting_reason(desired: &Desired, state: &PodState, kind: Kind) -> &'static str {
    let inits = pod::containers(&desired.pod).any(|(k, _)| k != Kind::Main);
    if inits && (kind != Kind::Main || !initialized(&desired.pod, state)) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    }
}
