//! The heart of a pod worker: what is wanted and what is known give what to
//! do next.
//!
//! [`step`] decides, [`fold`](fold::fold) takes news in; neither does I/O,
//! asks for the time or chooses at random, so that a test can live through a
//! pod's years in microseconds. `step` marks in the state what it has asked
//! for (`Making`, `Starting`, `Working` …), and news of its end clear the
//! mark; so calling it twice asks for nothing twice.
//!
//! Order of a pod's life (node reference 1.3):
//!
//! 1. volumes and sandbox, at the same time;
//! 2. init containers one after the other, a sidecar among them only until
//!    it has started;
//! 3. main containers in order, each after the postStart hook of the one
//!    before;
//! 4. restarts by policy, with back-off;
//! 5. the end: main containers at once, then sidecars in reverse order, then
//!    the sandbox, then the volumes.

pub mod again;
pub mod backoff;
pub mod fold;
pub mod recover;
pub mod state;
pub mod stop;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Container;

use crate::pod::{self, Kind, RestartPolicy};
pub use fold::{Failures, fold};
pub use recover::recover;
pub use state::{
    Action, ContainerMemory, Deletion, Desired, Ending, EndingCause, Hook, PodState, ProbeKind,
    Refusal, Report, Restarting, Running, Sandbox, Stage, Step, Stopping, Termination, Trouble,
    Volumes, initialized,
};

/// A lost sandbox whose containers do not end after SIGKILL is removed after
/// this time all the same.
pub const LOST_SANDBOX_PATIENCE: Duration = Duration::from_secs(10);

/// Decides what to do now. The state changes only in that the actions given
/// out are marked as under way, and that the pod's end is noted.
pub fn step(desired: &Desired, state: &mut PodState, now: SystemTime) -> Step {
    let mut out = Step::default();
    note_ending(desired, state, now, &mut out);
    if state.ending.is_none() && !again::drive(desired, state, now, &mut out) {
        run(desired, state, now, &mut out);
    }
    // `run` may have found the pod complete.
    if state.ending.is_some() {
        end(desired, state, now, &mut out);
    }
    out
}

fn note_ending(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    if state.ending.is_some() {
        return;
    }
    if let Some(deletion) = desired.deletion {
        state.ending = Some(Ending {
            since: deletion.at,
            cause: EndingCause::Deleted,
        });
    } else if let Some(deadline) = pod::active_deadline(&desired.pod) {
        let at = state.accepted_at + deadline;
        if now >= at {
            state.ending = Some(Ending {
                since: now,
                cause: EndingCause::Deadline,
            });
        } else {
            out.wake(at);
        }
    }
}

fn run(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    drive_running(desired, state, now, out);
    let volumes_due = match &state.volumes {
        Volumes::Absent => true,
        Volumes::Failed(trouble) => {
            if now < trouble.retry_at {
                out.wake(trouble.retry_at);
            }
            now >= trouble.retry_at
        }
        Volumes::Making | Volumes::Ready | Volumes::Removing => false,
    };
    if volumes_due {
        state.volumes = Volumes::Making;
        out.act(Action::MakeVolumes);
    }
    match state.sandbox.clone() {
        Sandbox::Absent => {
            if !wants_sandbox(desired, state) {
                complete(state, now);
                return;
            }
            state.sandbox = Sandbox::Making;
            out.act(Action::MakeSandbox);
        }
        Sandbox::Failed(trouble) if now >= trouble.retry_at => {
            state.sandbox = Sandbox::Making;
            out.act(Action::MakeSandbox);
        }
        Sandbox::Failed(trouble) => out.wake(trouble.retry_at),
        Sandbox::Lost { since } => leave_sandbox(state, since, now, out),
        Sandbox::Stuck(trouble) => retry_removal(state, &trouble, now, out),
        Sandbox::Making | Sandbox::Removing | Sandbox::Ready { .. } => {}
    }
    if state.volumes == Volumes::Ready && matches!(state.sandbox, Sandbox::Ready { .. }) {
        run_containers(desired, state, now, out);
    }
}

/// Hooks, stops of single containers, and whatever else concerns what runs.
fn drive_running(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    for (_, container) in pod::containers(&desired.pod) {
        let Some(memory) = state.containers.get_mut(&container.name) else {
            continue;
        };
        let attempt = memory.attempt().unwrap_or(0);
        let Stage::Running(running) = &mut memory.stage else {
            continue;
        };
        if running.stopping.is_some() {
            stop::drive(
                container,
                attempt,
                running,
                stop::Gate::open(None),
                now,
                out,
            );
        } else if running.post_start == Hook::Due {
            running.post_start = Hook::Working;
            out.act(Action::PostStart {
                name: container.name.clone(),
                attempt,
            });
        }
    }
}

/// Whether a pod without a sandbox should get one: something is left to run,
/// and a pod that must not restart has not begun yet.
fn wants_sandbox(desired: &Desired, state: &PodState) -> bool {
    let never = pod::restart_policy(&desired.pod) == RestartPolicy::Never;
    let begun = state.containers.values().any(|m| m.attempts > 0);
    let again = state.containers.values().any(|m| m.again);
    if never && begun && !again && state.sandboxes > 0 {
        return false;
    }
    pod::containers(&desired.pod)
        .any(|(kind, c)| kind == Kind::Main && !done(desired, &state.container(&c.name), kind, c))
}

/// Whether a container has ended and will not run again.
fn done(desired: &Desired, memory: &ContainerMemory, kind: Kind, container: &Container) -> bool {
    let exited = memory.exited().filter(|_| !memory.again);
    exited.is_some_and(|end| !pod::restarts(&desired.pod, kind, container, end.exit_code))
}

fn complete(state: &mut PodState, now: SystemTime) {
    state.ending = Some(Ending {
        since: now,
        cause: EndingCause::Completed,
    });
}

/// Ends what still runs in a sandbox that has lost its pause process or its
/// network, then has it removed.
fn leave_sandbox(state: &mut PodState, since: SystemTime, now: SystemTime, out: &mut Step) {
    let give_up = since + LOST_SANDBOX_PATIENCE;
    let mut left = false;
    for (name, memory) in &mut state.containers {
        left |= memory.active();
        let attempt = memory.attempt().unwrap_or(0);
        if let Stage::Running(running) = &mut memory.stage
            && running
                .stopping
                .as_ref()
                .is_none_or(|s| s.killed_at.is_none())
        {
            let mut stopping = stop::begin(now, 0, true);
            stopping.killed_at = Some(now);
            running.stopping = Some(stopping);
            out.act(Action::Signal {
                name: name.clone(),
                attempt,
                kill: true,
            });
        }
    }
    if left && now < give_up {
        out.wake(give_up);
        return;
    }
    state.sandbox = Sandbox::Removing;
    out.act(Action::RemoveSandbox);
}

fn retry_removal(state: &mut PodState, trouble: &Trouble, now: SystemTime, out: &mut Step) {
    if now < trouble.retry_at {
        out.wake(trouble.retry_at);
        return;
    }
    state.sandbox = Sandbox::Removing;
    out.act(Action::RemoveSandbox);
}

/// What becomes of one container in this step.
enum Verdict {
    /// It needs nothing; the next one may follow.
    Pass,
    /// The ones after it have to wait.
    Wait,
    /// It has failed for good, and with it the pod.
    Fatal,
}

fn run_containers(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    let all: Vec<(Kind, &Container)> = pod::containers(&desired.pod).collect();
    let begun = |state: &PodState, from: usize| {
        all[from..]
            .iter()
            .any(|(_, c)| state.containers.get(&c.name).is_some_and(|m| m.fresh))
    };
    let mains = all
        .iter()
        .position(|(kind, _)| *kind == Kind::Main)
        .unwrap_or(all.len());
    let mains_begun = begun(state, mains);
    for (index, (kind, container)) in all[..mains].iter().enumerate() {
        if mains_begun && *kind == Kind::Init {
            continue;
        }
        let passed = begun(state, index + 1);
        match run_init(desired, state, *kind, container, now, out) {
            Verdict::Fatal => return complete(state, now),
            Verdict::Wait if !passed => return,
            Verdict::Wait | Verdict::Pass => {}
        }
    }
    let mut over = true;
    for (_, container) in &all[mains..] {
        over &= run_main(desired, state, container, now, out);
    }
    if over {
        complete(state, now);
    }
}

fn run_init(
    desired: &Desired,
    state: &mut PodState,
    kind: Kind,
    container: &Container,
    now: SystemTime,
    out: &mut Step,
) -> Verdict {
    let memory = state.container(&container.name);
    match &memory.stage {
        // It ended in an earlier sandbox: it runs again in this one.
        Stage::Exited(end) if memory.fresh && !memory.again => {
            if kind == Kind::Init && end.exit_code == 0 {
                return Verdict::Pass;
            }
            if !pod::restarts(&desired.pod, kind, container, end.exit_code) {
                return Verdict::Fatal;
            }
            start(state, container, now, out);
            Verdict::Wait
        }
        Stage::Idle | Stage::Exited(_) | Stage::Blocked(_) => {
            start(state, container, now, out);
            Verdict::Wait
        }
        Stage::Starting { .. } => Verdict::Wait,
        Stage::Running(running) if kind == Kind::Sidecar && running.started() => Verdict::Pass,
        Stage::Running(_) => Verdict::Wait,
    }
}

/// Starts or restarts a main container where that is due; whether it is over.
fn run_main(
    desired: &Desired,
    state: &mut PodState,
    container: &Container,
    now: SystemTime,
    out: &mut Step,
) -> bool {
    let memory = state.container(&container.name);
    if done(desired, &memory, Kind::Main, container) {
        return true;
    }
    if !memory.active() {
        start(state, container, now, out);
    }
    false
}

/// Starts a container unless its back-off or another start is in the way:
/// one container starts at a time, its postStart hook included.
fn start(state: &mut PodState, container: &Container, now: SystemTime, out: &mut Step) {
    let busy = state.containers.iter().any(|(name, memory)| {
        *name != container.name
            && match &memory.stage {
                Stage::Starting { .. } => true,
                Stage::Running(r) => r.post_start != Hook::Done && r.stopping.is_none(),
                _ => false,
            }
    });
    let memory = state.containers.entry(container.name.clone()).or_default();
    let ready_at = match &memory.stage {
        Stage::Blocked(trouble) => trouble.retry_at,
        Stage::Exited(end) if !memory.again => memory.backoff.ready_at(end.finished_at),
        _ => now,
    };
    if now < ready_at {
        out.wake(ready_at);
        return;
    }
    if busy {
        return;
    }
    if let Stage::Exited(end) = &memory.stage {
        if !memory.again {
            memory.backoff.restarted(end.finished_at, now);
        }
        memory.last = Some(end.clone());
    }
    memory.stage = Stage::Starting { ended: None };
    memory.fresh = true;
    out.act(Action::Start {
        name: container.name.clone(),
        attempt: memory.attempts,
    });
}

/// Until when an ended container waits for its restart, if that is all that
/// it waits for.
#[must_use]
pub fn crash_loop(
    desired: &Desired,
    state: &PodState,
    kind: Kind,
    container: &Container,
    now: SystemTime,
) -> Option<(SystemTime, Duration)> {
    let memory = state.containers.get(&container.name)?;
    let end = memory.exited()?;
    if state.ending.is_some()
        || memory.again
        || !pod::restarts(&desired.pod, kind, container, end.exit_code)
    {
        return None;
    }
    let ready_at = memory.backoff.ready_at(end.finished_at);
    (now < ready_at).then(|| (ready_at, memory.backoff.delay(end.finished_at)))
}

/// The pod's end: stops what runs, then takes the pod apart.
fn end(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    stop::drive_all(desired, state, now, out);
    if state.containers.values().any(ContainerMemory::active) {
        return;
    }
    match state.sandbox.clone() {
        Sandbox::Ready { .. } | Sandbox::Lost { .. } => {
            state.sandbox = Sandbox::Removing;
            out.act(Action::RemoveSandbox);
            return;
        }
        Sandbox::Stuck(trouble) => return retry_removal(state, &trouble, now, out),
        Sandbox::Making | Sandbox::Removing => return,
        // A sandbox that was half made is undone too.
        Sandbox::Failed(_) => {
            state.sandbox = Sandbox::Removing;
            out.act(Action::RemoveSandbox);
            return;
        }
        Sandbox::Absent => {}
    }
    match state.volumes {
        Volumes::Ready | Volumes::Failed(_) => {
            state.volumes = Volumes::Removing;
            out.act(Action::RemoveVolumes);
            return;
        }
        Volumes::Making | Volumes::Removing => return,
        Volumes::Absent => {}
    }
    state.finished = true;
    out.forget = desired.deletion.is_some_and(|d| !d.keep);
}
