//! How containers stop: preStop hook, stop signal, SIGKILL.
//!
//! The grace period counts from the beginning of the stop and the hook runs
//! inside it. Whatever the hook used up, two seconds pass between the signal
//! and SIGKILL; only a forced stop skips hook and signal. Hooks of sidecars
//! run with those of the main containers, their signals wait until these and
//! the sidecars after them have ended (node reference 1.3, 1.4).

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Container;

use super::state::{Action, Desired, Hook, PodState, Running, Stage, Step, Stopping};
use crate::pod::{self, Kind};

/// The least time between the stop signal and SIGKILL.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);
/// SIGKILL is sent again after this time to a container that did not end.
pub const KILL_AGAIN: Duration = Duration::from_secs(10);

/// What holds a stop back, or hurries it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    may_signal: bool,
    /// A grace period that was asked for later and may only shorten.
    shorten_seconds: Option<u64>,
}

impl Gate {
    pub(super) fn open(shorten_seconds: Option<u64>) -> Self {
        Self {
            may_signal: true,
            shorten_seconds,
        }
    }
}

/// A stop that begins now.
pub(super) fn begin(since: SystemTime, grace_seconds: u64, force: bool) -> Stopping {
    Stopping {
        since,
        grace_seconds,
        force,
        trouble: None,
        pre_stop: Hook::Due,
        signalled_at: None,
        killed_at: None,
    }
}

/// What all containers of a pod are to stop by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) since: SystemTime,
    /// The pod's own grace period, if none.
    pub(super) grace_seconds: Option<u64>,
}

/// Stops every container of an ending pod.
pub(super) fn drive_all(desired: &Desired, state: &mut PodState, now: SystemTime, out: &mut Step) {
    let Some(ending) = state.ending else { return };
    let order = Order {
        since: ending.since,
        grace_seconds: desired.deletion.and_then(|d| d.grace_seconds),
    };
    drive_each(desired, state, order, now, out);
}

/// Stops every container of a pod.
pub(super) fn drive_each(
    desired: &Desired,
    state: &mut PodState,
    order: Order,
    now: SystemTime,
    out: &mut Step,
) {
    let asked = order.grace_seconds;
    let grace = asked.unwrap_or_else(|| pod::grace_seconds(&desired.pod));
    let force = asked == Some(0);
    // From the last container to the first: a sidecar is signalled when all
    // after it have ended.
    let mut later_active = false;
    for (kind, container) in pod::containers(&desired.pod).rev() {
        let Some(memory) = state.containers.get_mut(&container.name) else {
            continue;
        };
        let active = memory.active();
        let attempt = memory.attempt().unwrap_or(0);
        if let Stage::Running(running) = &mut memory.stage {
            running
                .stopping
                .get_or_insert_with(|| begin(order.since.max(running.started_at), grace, force));
            let gate = Gate {
                may_signal: kind != Kind::Sidecar || !later_active,
                shorten_seconds: asked,
            };
            drive(container, attempt, running, gate, now, out);
        }
        later_active |= active;
    }
}

/// Takes one stop a step further.
pub(super) fn drive(
    container: &Container,
    attempt: u32,
    running: &mut Running,
    gate: Gate,
    now: SystemTime,
    out: &mut Step,
) {
    let Some(stopping) = &mut running.stopping else {
        return;
    };
    if let Some(seconds) = gate.shorten_seconds {
        stopping.force |= seconds == 0;
        stopping.grace_seconds = stopping.grace_seconds.min(seconds);
    }
    let name = || container.name.clone();
    let grace = Duration::from_secs(stopping.grace_seconds);
    let hard = stopping.since.checked_add(grace).unwrap_or(now);
    if let Some(killed_at) = stopping.killed_at {
        let again = killed_at + KILL_AGAIN;
        if now < again {
            return out.wake(again);
        }
    } else if !stopping.force {
        if stopping.pre_stop == Hook::Due {
            let hook = container
                .lifecycle
                .as_ref()
                .and_then(|l| l.pre_stop.as_ref());
            if hook.is_some() && now < hard {
                stopping.pre_stop = Hook::Working;
                let grace_seconds = hard
                    .duration_since(now)
                    .unwrap_or_default()
                    .as_secs()
                    .max(1);
                out.act(Action::PreStop {
                    name: name(),
                    attempt,
                    grace_seconds,
                });
            } else {
                stopping.pre_stop = Hook::Done;
            }
        }
        if stopping.pre_stop == Hook::Working && now < hard {
            return out.wake(hard);
        }
        if !gate.may_signal {
            return;
        }
        let Some(signalled_at) = stopping.signalled_at else {
            stopping.signalled_at = Some(now);
            out.act(Action::Signal {
                name: name(),
                attempt,
                kill: false,
            });
            return out.wake(hard.max(now + MINIMUM_GRACE));
        };
        let kill_at = hard.max(signalled_at + MINIMUM_GRACE);
        if now < kill_at {
            return out.wake(kill_at);
        }
    }
    stopping.killed_at = Some(now);
    out.act(Action::Signal {
        name: name(),
        attempt,
        kill: true,
    });
    out.wake(now + KILL_AGAIN);
}
