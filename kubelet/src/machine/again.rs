//! Pods and containers that somebody wants to run again.
//!
//! A container that is to run again does so whatever its policy says and
//! without a delay; `again` in its memory holds until its program runs. A pod
//! is restarted in place: its containers stop as they do at a pod's end, then
//! all of them, init containers too, run from the beginning in the sandbox and
//! with the volumes that are there.

use std::time::SystemTime;

use super::backoff::Backoff;
use super::state::{ContainerMemory, Desired, PodState, Restarting, Sandbox, Stage, Step, Volumes};
use super::stop::{self, Order};

/// Begins a pod anew that is over; whether it was.
pub fn start(state: &mut PodState, now: SystemTime) -> bool {
    if !state.finished {
        return false;
    }
    state.accepted_at = now;
    state.ending = None;
    state.finished = false;
    state.restarting = None;
    state.sandboxes = 0;
    state.sandbox = Sandbox::Absent;
    state.volumes = Volumes::Absent;
    state.containers.values_mut().for_each(renew);
    true
}

/// Its next attempt is the first of a new life.
fn renew(memory: &mut ContainerMemory) {
    if let Stage::Exited(end) = &memory.stage {
        memory.last = Some(end.clone());
    }
    memory.stage = Stage::Idle;
    memory.fresh = false;
    memory.again = true;
    memory.backoff = Backoff::default();
}

/// Has all containers stop and run again.
pub(super) fn restart_pod(state: &mut PodState, grace_seconds: Option<u64>, now: SystemTime) {
    let since = state.restarting.map_or(now, |r| r.since);
    state.restarting = Some(Restarting {
        since,
        grace_seconds,
    });
}

/// Has one container stop and run again.
pub(super) fn restart_container(memory: &mut ContainerMemory, grace_seconds: u64, now: SystemTime) {
    memory.again = true;
    memory.backoff = Backoff::default();
    match &mut memory.stage {
        Stage::Running(running) => {
            running.ready = false;
            let force = grace_seconds == 0;
            running
                .stopping
                .get_or_insert_with(|| stop::begin(now, grace_seconds, force));
        }
        Stage::Blocked(trouble) => trouble.retry_at = now,
        Stage::Idle | Stage::Starting { .. } | Stage::Exited(_) => {}
    }
}

/// Takes a pod's restart a step further; `true` while something of it has
/// still to stop.
pub(super) fn drive(
    desired: &Desired,
    state: &mut PodState,
    now: SystemTime,
    out: &mut Step,
) -> bool {
    let Some(restarting) = state.restarting else {
        return false;
    };
    let order = Order {
        since: restarting.since,
        grace_seconds: restarting.grace_seconds,
    };
    stop::drive_each(desired, state, order, now, out);
    if state.containers.values().any(ContainerMemory::active) {
        return true;
    }
    state.restarting = None;
    state.containers.values_mut().for_each(renew);
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::world::*;
    use super::super::*;

    #[test]
    fn a_stopped_pod_begins_anew_whatever_its_policy() {
        let mut world = World::new(
            json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}],
                   "containers": [{"name": "a"}]}),
            &[("i", &[ends(1, 0), ends(1, 0)]), ("a", &[ends(5, 3)])],
        );
        world.until(20);
        assert!(world.state.finished);
        world.log();
        world.desired.deletion = None;
        assert!(again::start(&mut world.state, world.now));
        assert!(!again::start(&mut world.state, world.now));
        world.until(40);
        assert_eq!(world.log(), ["20 sandbox", "20 start i/1", "21 start a/1"]);
        let a = &world.state.containers["a"];
        assert!(a.running().is_some() && !a.again && a.restart_count() == 1);
        assert_eq!(a.last.as_ref().map(|l| l.exit_code), Some(3));
    }

    #[test]
    fn a_pod_restarts_in_place_sidecars_last() {
        let mut world = World::new(
            json!({"restartPolicy": "Never", "initContainers": [
                {"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}, {"name": "b"}]}),
            &[
                ("i", &[ends(0, 0), ends(0, 0)]),
                (
                    "a",
                    &[Run {
                        obeys: Some(4),
                        ..FOREVER
                    }],
                ),
            ],
        );
        world.until(10);
        world.log();
        world.later(
            0,
            Report::RestartPod {
                grace_seconds: None,
            },
        );
        world.until(60);
        assert_eq!(
            world.log(),
            [
                "10 term b",
                "10 term a",
                "14 term s",
                "14 start i/1",
                "14 start s/1",
                "14 start a/1",
                "14 start b/1"
            ]
        );
        assert!(world.state.restarting.is_none() && !world.state.finished);
    }

    #[test]
    fn one_container_restarts_without_a_delay() {
        let mut world = World::new(
            json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}),
            &[("a", &[FOREVER, ends(1, 1)])],
        );
        let restart = |name: &str| Report::RestartContainer {
            name: name.to_owned(),
            grace_seconds: None,
        };
        world.until(10);
        world.log();
        world.later(0, restart("a"));
        world.until(20);
        assert_eq!(world.log(), ["10 term a", "10 start a/1"]);
        // It has ended for good by now, and runs once more all the same.
        world.later(0, restart("a"));
        world.until(30);
        assert_eq!(world.log(), ["20 start a/2"]);
        // One that waits for its back-off waits no longer.
        let mut world = World::new(
            json!({"containers": [{"name": "a"}]}),
            &[("a", &[ends(1, 1), ends(1, 1), ends(1, 1)])],
        );
        world.until(5);
        world.log();
        world.later(0, restart("a"));
        world.until(20);
        assert_eq!(world.log(), ["5 start a/2", "6 start a/3"]);
    }

    #[test]
    fn a_restart_is_not_lost_with_its_writer() {
        let mut world = World::new(
            json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}),
            &[("a", &[ends(1, 0)])],
        );
        world.until(5);
        let name = "a".to_owned();
        let report = Report::RestartContainer {
            name,
            grace_seconds: None,
        };
        let failures = &mut world.failures;
        fold(
            &world.desired,
            &mut world.state,
            failures,
            report,
            world.now,
        );
        let asked = step(&world.desired, &mut world.state, world.now);
        assert_eq!(asked.actions.len(), 1);
        // The writer dies before the engine has done anything.
        let state = |name: &str| {
            let mut status = rkube_engine::api::ContainerStatus {
                id: rkube_engine::api::ContainerId {
                    sandbox: "u-1".into(),
                    name: name.into(),
                    attempt: 0,
                },
                state: rkube_engine::api::ContainerState::Running,
                pid: Some(1),
                started_at: None,
                image_id: String::new(),
                log_path: "/l".into(),
                labels: std::collections::BTreeMap::new(),
            };
            if name == "a" {
                status.state = rkube_engine::api::ContainerState::Exited(rkube_engine::api::Exit {
                    code: 0,
                    signal: None,
                    finished_at: world.now,
                    oom_killed: false,
                });
            }
            status
        };
        let sandbox = rkube_engine::api::SandboxStatus {
            id: "u-1".into(),
            ready: true,
            pause_pid: None,
            keeper_pid: None,
            addresses: Vec::new(),
            created_at: world.now,
            containers: vec![state("a"), state("b")],
            labels: std::collections::BTreeMap::new(),
        };
        recover(&world.desired, &mut world.state, Some(&sandbox), world.now);
        world.log();
        world.until(10);
        assert_eq!(world.log(), ["5 start a/1"]);
    }
}
