//! Joins a pod's record with what the engine found alive.
//!
//! The engine knows best what it made: attempts that it has are believed
//! over the record, and the record fills in what the engine no longer has
//! (containers of a removed sandbox, programs that never executed). Nothing
//! that was under way when the last writer died is assumed done: it is
//! either found in the engine or asked for again.

use std::time::SystemTime;

use rkube_engine::api;

use super::fold::fresh_running;
use super::state::{
    ContainerMemory, Desired, Hook, PodState, Sandbox, Stage, Termination, Volumes,
};

/// Brings `state`, as it was last written, up to what `sandbox` says.
pub fn recover(
    desired: &Desired,
    state: &mut PodState,
    sandbox: Option<&api::SandboxStatus>,
    now: SystemTime,
) {
    let expected = matches!(state.sandbox, Sandbox::Ready { .. } | Sandbox::Lost { .. });
    state.sandbox = match sandbox {
        Some(found) if found.ready => Sandbox::Ready {
            addresses: found.addresses.clone(),
        },
        Some(_) => Sandbox::Lost { since: now },
        None if expected => Sandbox::Lost { since: now },
        None => Sandbox::Absent,
    };
    if sandbox.is_some() && state.sandboxes == 0 {
        state.sandboxes = 1;
    }
    // Making and removing volumes are idempotent.
    state.volumes = match &state.volumes {
        Volumes::Making | Volumes::Failed(_) => Volumes::Absent,
        Volumes::Removing => Volumes::Ready,
        other => other.clone(),
    };
    for (name, memory) in &mut state.containers {
        let latest = sandbox
            .map(|s| s.containers.as_slice())
            .unwrap_or_default()
            .iter()
            .filter(|c| c.id.name == *name)
            .max_by_key(|c| c.id.attempt);
        let earlier = sandbox
            .map(|s| s.containers.as_slice())
            .unwrap_or_default()
            .iter()
            .filter(|c| c.id.name == *name)
            .filter(|c| latest.is_some_and(|l| c.id.attempt + 1 == l.id.attempt))
            .max_by_key(|c| c.id.attempt);
        restore(desired, name, memory, latest, earlier, now);
    }
}

fn restore(
    desired: &Desired,
    name: &str,
    memory: &mut ContainerMemory,
    latest: Option<&api::ContainerStatus>,
    earlier: Option<&api::ContainerStatus>,
    now: SystemTime,
) {
    let Some(found) = latest.filter(|l| l.id.attempt + 1 >= memory.attempts) else {
        // The engine has nothing newer than the record.
        match &memory.stage {
            Stage::Starting { .. } | Stage::Blocked(_) => {
                memory.stage = memory.last.clone().map_or(Stage::Idle, Stage::Exited);
            }
            Stage::Running(running) => {
                let mut end = Termination::unknown(memory.attempts.saturating_sub(1), now);
                end.started_at = Some(running.started_at);
                memory.stage = Stage::Exited(end);
            }
            Stage::Idle | Stage::Exited(_) => {}
        }
        return;
    };
    let known = memory.attempts == found.id.attempt + 1;
    if !known && let Some(end) = earlier.and_then(termination) {
        let newer = memory.last.as_ref().is_none_or(|l| l.attempt < end.attempt);
        if newer {
            memory.last = Some(end);
        }
    }
    memory.attempts = found.id.attempt + 1;
    // The attempt that was asked for is there.
    memory.again &= known;
    memory.fresh = true;
    memory.image_id.clone_from(&found.image_id);
    match &found.state {
        api::ContainerState::Running | api::ContainerState::Created => {
            let mut running = match std::mem::take(&mut memory.stage) {
                Stage::Running(running) if known => running,
                _ => fresh_running(desired, name, found.started_at.unwrap_or(now)),
            };
            // Hooks run at least once: one that was under way runs again.
            if running.post_start == Hook::Working {
                running.post_start = Hook::Due;
            }
            if let Some(stopping) = &mut running.stopping
                && stopping.pre_stop == Hook::Working
            {
                stopping.pre_stop = Hook::Due;
            }
            memory.stage = Stage::Running(running);
        }
        api::ContainerState::Exited(_) | api::ContainerState::Unknown { .. } => {
            if known && matches!(memory.stage, Stage::Exited(_)) {
                return;
            }
            if let Some(end) = termination(found) {
                memory.stage = Stage::Exited(end);
            }
        }
    }
}

/// How an ended container of the engine ended.
#[must_use]
pub fn termination(status: &api::ContainerStatus) -> Option<Termination> {
    let attempt = status.id.attempt;
    let mut end = match &status.state {
        api::ContainerState::Exited(exit) => Termination::of_exit(attempt, exit),
        api::ContainerState::Unknown { finished_at } => Termination::unknown(attempt, *finished_at),
        api::ContainerState::Created | api::ContainerState::Running => return None,
    };
    end.started_at = status.started_at;
    Some(end)
}
