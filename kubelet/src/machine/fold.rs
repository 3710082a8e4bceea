//! Takes news into a pod's memory.
//!
//! News may be late: every report of a container names its attempt, and one
//! about an attempt that is not the present one changes nothing.

use std::time::{Duration, SystemTime};

use super::again;
use super::backoff::{Backoff, LONGEST_DELAY, retry_delay};
use super::state::{
    ContainerMemory, Desired, Hook, PodState, ProbeKind, Refusal, Report, Running, Sandbox, Stage,
    Termination, Trouble, Volumes,
};
use super::stop;
use crate::pod;

/// First delay before volumes or a sandbox are tried again; it doubles.
pub const SYNC_RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest such delay (node reference 1.3: sync-error back-off).
pub const SYNC_RETRY_LONGEST: Duration = Duration::from_secs(10);
/// First delay before an image is looked for again; it doubles up to the
/// longest delay of restarts.
pub const IMAGE_RETRY_FIRST: Duration = Duration::from_secs(10);

/// Reasons that come from images; they are retried on the slow curve.
const IMAGE_REASONS: [&str; 5] = [
    "ErrImagePull",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ImageInspectError",
];

/// The reason of what is missing or wrong in a container's configuration.
const CONFIG_REASON: &str = "CreateContainerConfigError";

/// Takes one report in. `failures` of things tried again are counted by
/// `failures`, which the caller keeps per subject.
pub fn fold(
    desired: &Desired,
    state: &mut PodState,
    failures: &mut Failures,
    report: Report,
    now: SystemTime,
) {
    match report {
        Report::VolumesMade(Ok(())) => {
            failures.volumes = 0;
            if state.volumes == Volumes::Making {
                state.volumes = Volumes::Ready;
            }
        }
        Report::VolumesMade(Err(refusal)) => {
            state.volumes = Volumes::Failed(sync_trouble(&mut failures.volumes, refusal, now));
        }
        Report::VolumesRemoved => state.volumes = Volumes::Absent,
        Report::SandboxMade(Ok(addresses)) => {
            failures.sandbox = 0;
            state.sandboxes = state.sandboxes.saturating_add(1);
            state.sandbox = Sandbox::Ready { addresses };
        }
        Report::SandboxMade(Err(refusal)) => {
            state.sandbox = Sandbox::Failed(sync_trouble(&mut failures.sandbox, refusal, now));
        }
        Report::SandboxRemoved(Ok(())) => {
            failures.sandbox = 0;
            sandbox_gone(state, now);
        }
        Report::SandboxRemoved(Err(refusal)) => {
            state.sandbox = Sandbox::Stuck(sync_trouble(&mut failures.sandbox, refusal, now));
        }
        Report::SandboxLost => {
            if matches!(state.sandbox, Sandbox::Ready { .. }) {
                state.sandbox = Sandbox::Lost { since: now };
            }
        }
        Report::ImagesChanged => images_changed(state, failures, now),
        Report::ObjectsChanged => objects_changed(state, failures, now),
        Report::ContainerChanged { name } => {
            container_changed(desired, state, failures, &name, now)
        }
        Report::VolumesRefreshed(_) => {}
        Report::RestartPod { grace_seconds } => {
            failures.containers.clear();
            again::restart_pod(state, grace_seconds, now);
        }
        Report::RestartContainer {
            name,
            grace_seconds,
        } => {
            failures.containers.remove(&name);
            let grace = grace_seconds.unwrap_or_else(|| pod::grace_seconds(&desired.pod));
            if let Some(memory) = state.containers.get_mut(&name) {
                again::restart_container(memory, grace, now);
            }
        }
        Report::Started {
            name,
            attempt,
            started_at,
            image_id,
        } => {
            let running = fresh_running(desired, &name, started_at);
            if let Some(memory) = state.containers.get_mut(&name) {
                failures.containers.remove(&name);
                started(memory, attempt, image_id, running);
            }
        }
        Report::Blocked { name, refusal } => {
            let count = failures.containers.entry(name.clone()).or_insert(0);
            let trouble = container_trouble(count, refusal, now);
            if let Some(memory) = state.containers.get_mut(&name) {
                memory.stage = Stage::Blocked(trouble);
            }
        }
        Report::StartFailed {
            name,
            attempt,
            message,
        } => {
            failures.containers.remove(&name);
            if let Some(memory) = state.containers.get_mut(&name) {
                memory.attempts = attempt.saturating_add(1);
                memory.again = false;
                memory.stage = Stage::Exited(Termination::start_error(attempt, message, now));
            }
        }
        Report::Exited { name, end } => {
            if let Some(memory) = state.containers.get_mut(&name) {
                exited(memory, end);
            }
        }
        Report::PostStarted {
            name,
            attempt,
            result,
        } => {
            if let Some(running) = running_mut(state, &name, attempt) {
                running.post_start = Hook::Done;
                if let Err(message) = result {
                    let grace = pod::grace_seconds(&desired.pod);
                    fail(running, "PostStartHookError", message, grace, now);
                }
            }
        }
        Report::PreStopped { name, attempt } => {
            if let Some(running) = running_mut(state, &name, attempt)
                && let Some(stopping) = &mut running.stopping
            {
                stopping.pre_stop = Hook::Done;
            }
        }
        Report::Probed {
            name,
            attempt,
            probe,
            success,
            message,
        } => {
            let grace = probe_grace(desired, &name, probe);
            if let Some(running) = running_mut(state, &name, attempt) {
                probed(running, probe, success, message, grace, now);
            }
        }
    }
}

/// How often things have failed in a row; not kept in records, since a new
/// writer may try at once.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    volumes: u32,
    sandbox: u32,
    containers: std::collections::BTreeMap<String, u32>,
}

fn running_mut<'a>(state: &'a mut PodState, name: &str, attempt: u32) -> Option<&'a mut Running> {
    let memory = state.containers.get_mut(name)?;
    let current = memory.attempt() == Some(attempt);
    match &mut memory.stage {
        Stage::Running(running) if current => Some(running),
        _ => None,
    }
}

/// A container whose program was just executed, before any probe or hook.
#[must_use]
pub fn fresh_running(desired: &Desired, name: &str, started_at: SystemTime) -> Running {
    let container = pod::container(&desired.pod, name).map(|(_, c)| c);
    let hook = container
        .and_then(|c| c.lifecycle.as_ref())
        .and_then(|l| l.post_start.as_ref());
    Running {
        started_at,
        post_start: if hook.is_some() {
            Hook::Due
        } else {
            Hook::Done
        },
        startup: container.is_none_or(|c| c.startup_probe.is_none()),
        ready: container.is_none_or(|c| c.readiness_probe.is_none()),
        stopping: None,
    }
}

fn started(memory: &mut ContainerMemory, attempt: u32, image_id: String, running: Running) {
    let Stage::Starting { ended } = &memory.stage else {
        return;
    };
    memory.attempts = attempt.saturating_add(1);
    memory.again = false;
    memory.image_id = image_id;
    memory.stage = match ended.clone() {
        Some(mut end) => {
            end.started_at = Some(running.started_at);
            Stage::Exited(end)
        }
        None => Stage::Running(running),
    };
}

fn exited(memory: &mut ContainerMemory, mut end: Termination) {
    match &mut memory.stage {
        Stage::Starting { ended } if end.attempt == memory.attempts => *ended = Some(end),
        Stage::Running(running) if memory.attempts == end.attempt.saturating_add(1) => {
            end.started_at = Some(running.started_at);
            if let Some((reason, message)) =
                running.stopping.as_ref().and_then(|s| s.trouble.clone())
                && end.message.is_none()
            {
                end.message = Some(format!("{reason}: {message}"));
            }
            memory.stage = Stage::Exited(end);
        }
        _ => {}
    }
}

/// The sandbox and all in it are gone; what was thought to run has ended
/// unseen.
fn sandbox_gone(state: &mut PodState, now: SystemTime) {
    state.sandbox = Sandbox::Absent;
    for memory in state.containers.values_mut() {
        memory.fresh = false;
        match &memory.stage {
            Stage::Running(running) => {
                let attempt = memory.attempts.saturating_sub(1);
                let mut end = Termination::unknown(attempt, now);
                end.started_at = Some(running.started_at);
                memory.stage = Stage::Exited(end);
            }
            Stage::Blocked(_) => {
                memory.stage = memory.last.clone().map_or(Stage::Idle, Stage::Exited);
            }
            Stage::Idle | Stage::Starting { .. } | Stage::Exited(_) => {}
        }
    }
}

fn images_changed(state: &mut PodState, failures: &mut Failures, now: SystemTime) {
    for (name, memory) in &mut state.containers {
        if let Stage::Blocked(trouble) = &mut memory.stage
            && IMAGE_REASONS.contains(&trouble.reason.as_str())
        {
            trouble.retry_at = now;
            failures.containers.remove(name);
        }
    }
}

/// A missing ConfigMap may be there now: volumes and containers that could
/// not be made for that are tried at once.
fn objects_changed(state: &mut PodState, failures: &mut Failures, now: SystemTime) {
    if let Volumes::Failed(trouble) = &mut state.volumes {
        trouble.retry_at = now;
        failures.volumes = 0;
    }
    for (name, memory) in &mut state.containers {
        if let Stage::Blocked(trouble) = &mut memory.stage
            && trouble.reason == CONFIG_REASON
        {
            trouble.retry_at = now;
            failures.containers.remove(name);
        }
    }
}

/// The container's image is another: what runs is stopped, and neither old
/// failures nor old delays count for the new one.
fn container_changed(
    desired: &Desired,
    state: &mut PodState,
    failures: &mut Failures,
    name: &str,
    now: SystemTime,
) {
    failures.containers.remove(name);
    let Some(memory) = state.containers.get_mut(name) else {
        return;
    };
    memory.backoff = Backoff::default();
    match &mut memory.stage {
        Stage::Running(running) => {
            running.ready = false;
            running
                .stopping
                .get_or_insert_with(|| stop::begin(now, pod::grace_seconds(&desired.pod), false));
        }
        Stage::Blocked(trouble) => trouble.retry_at = now,
        Stage::Idle | Stage::Starting { .. } | Stage::Exited(_) => {}
    }
}

fn sync_trouble(failures: &mut u32, refusal: Refusal, now: SystemTime) -> Trouble {
    *failures = failures.saturating_add(1);
    let delay = retry_delay(*failures, SYNC_RETRY_FIRST, SYNC_RETRY_LONGEST);
    trouble(*failures, refusal, now + delay)
}

fn container_trouble(failures: &mut u32, refusal: Refusal, now: SystemTime) -> Trouble {
    *failures = failures.saturating_add(1);
    let delay = if IMAGE_REASONS.contains(&refusal.reason.as_str()) {
        retry_delay(*failures, IMAGE_RETRY_FIRST, LONGEST_DELAY)
    } else {
        retry_delay(*failures, SYNC_RETRY_FIRST, SYNC_RETRY_LONGEST)
    };
    trouble(*failures, refusal, now + delay)
}

fn trouble(failures: u32, refusal: Refusal, retry_at: SystemTime) -> Trouble {
    Trouble {
        reason: refusal.reason,
        message: refusal.message,
        failures,
        retry_at,
    }
}

/// Begins to stop a container that has to be restarted.
fn fail(running: &mut Running, reason: &str, message: String, grace_seconds: u64, now: SystemTime) {
    if running.stopping.is_some() {
        return;
    }
    running.ready = false;
    let mut stopping = stop::begin(now, grace_seconds, false);
    stopping.trouble = Some((reason.to_owned(), message));
    running.stopping = Some(stopping);
}

fn probe_grace(desired: &Desired, name: &str, kind: ProbeKind) -> u64 {
    let own = pod::container(&desired.pod, name).and_then(|(_, c)| {
        let probe = match kind {
            ProbeKind::Startup => c.startup_probe.as_ref(),
            ProbeKind::Liveness => c.liveness_probe.as_ref(),
            ProbeKind::Readiness => None,
        };
        probe?.termination_grace_period_seconds
    });
    own.and_then(|s| u64::try_from(s).ok())
        .unwrap_or_else(|| pod::grace_seconds(&desired.pod))
}

fn probed(
    running: &mut Running,
    probe: ProbeKind,
    success: bool,
    message: String,
    grace: u64,
    now: SystemTime,
) {
    match (probe, success) {
        (ProbeKind::Startup, true) => running.startup = true,
        (ProbeKind::Readiness, ready) => running.ready = ready && running.stopping.is_none(),
        (ProbeKind::Liveness, true) => {}
        (ProbeKind::Startup, false) => fail(running, "StartupProbeFailed", message, grace, now),
        (ProbeKind::Liveness, false) => fail(running, "LivenessProbeFailed", message, grace, now),
    }
}
