//! Pods lived through on virtual time.

use std::collections::BTreeMap;

use serde_json::json;

use super::world::*;
use super::*;

#[test]
fn init_containers_one_at_a_time_then_main_containers_in_order() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "i1"}, {"name": "i2"}],
               "containers": [{"name": "a", "lifecycle": {"postStart": {"exec": {}}}}, {"name": "b"}]}),
        &[("i1", &[ends(3, 1), ends(2, 0)]), ("i2", &[ends(1, 0)])],
    );
    world.hook_seconds = 5;
    world.until(100);
    assert_eq!(
        world.log(),
        [
            "0 sandbox",
            "0 start i1/0",
            "3 start i1/1",
            "5 start i2/0",
            "6 start a/0",
            "6 postStart a",
            "11 start b/0"
        ]
    );
    assert!(initialized(&world.desired.pod, &world.state));
}

#[test]
fn crash_loops_follow_the_curve_from_the_end_of_the_container() {
    let runs = [ends(1, 1); 6];
    let mut world = World::new(json!({"containers": [{"name": "a"}]}), &[("a", &runs)]);
    world.until(200);
    assert_eq!(
        world.log(),
        [
            "0 sandbox",
            "0 start a/0",
            "1 start a/1",
            "12 start a/2",
            "33 start a/3",
            "74 start a/4",
            "155 start a/5"
        ]
    );
    let (kind, c) = pod::container(&world.desired.pod, "a").unwrap();
    let (_, delay) = crash_loop(&world.desired, &world.state, kind, c, world.now).unwrap();
    assert_eq!(delay, Duration::from_secs(160));
    assert_eq!(world.state.containers["a"].restart_count(), 5);
}

#[test]
fn policies_decide_the_end() {
    for (policy, code, starts) in [
        ("Never", 1, 1),
        ("Never", 0, 1),
        ("OnFailure", 0, 1),
        ("OnFailure", 1, 2),
    ] {
        let mut world = World::new(
            json!({"restartPolicy": policy, "containers": [{"name": "a"}]}),
            &[("a", &[ends(2, code), ends(2, 0)])],
        );
        let log = world.until(60).log();
        assert_eq!(
            log.iter().filter(|l| l.contains("start a")).count(),
            starts,
            "{policy} {code}"
        );
        assert!(world.state.finished, "{policy} {code}: {log:?}");
        assert_eq!(
            &log[log.len() - 2..]
                .iter()
                .map(|l| &l[2..])
                .collect::<Vec<_>>()[..],
            ["remove sandbox", "remove volumes"]
        );
    }
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut world = World::new(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
        &[("i", &[ends(2, 3)])],
    );
    world.until(60);
    assert!(world.state.finished);
    assert_eq!(world.state.containers["a"].attempts, 0);
}

#[test]
fn sidecars_start_in_order_restart_always_and_stop_last_in_reverse() {
    let mut world = World::new(
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
               "initContainers": [
                   {"name": "s1", "restartPolicy": "Always", "startupProbe": {"exec": {}}},
                   {"name": "s2", "restartPolicy": "Always"}],
               "containers": [{"name": "a"}]}),
        &[
            ("s1", &[FOREVER]),
            ("s2", &[ends(5, 0), STUBBORN]),
            ("a", &[ends(30, 0)]),
        ],
    );
    world.until(4);
    assert_eq!(
        world.log(),
        ["0 sandbox", "0 start s1/0"],
        "the startup probe holds the rest"
    );
    world.later(
        0,
        Report::Probed {
            name: "s1".into(),
            attempt: 0,
            probe: ProbeKind::Startup,
            success: true,
            message: String::new(),
        },
    );
    let (_, news) = world.news.pop().unwrap();
    fold(
        &world.desired,
        &mut world.state,
        &mut world.failures,
        news,
        world.now,
    );
    world.until(100);
    assert_eq!(
        world.log(),
        [
            "4 start s2/0",
            "4 start a/0",
            "9 start s2/1",
            "34 term s2",
            "54 kill s2",
            "54 term s1",
            "54 remove sandbox",
            "54 remove volumes"
        ]
    );
}

#[test]
fn deletion_runs_the_hook_inside_the_grace_period_then_leaves_two_seconds() {
    let spec = json!({"terminationGracePeriodSeconds": 10,
        "containers": [{"name": "a", "lifecycle": {"preStop": {"exec": {}}}}]});
    for (hook, expect) in [
        (3, vec!["5 preStop a 10", "8 term a", "15 kill a"]),
        (9, vec!["5 preStop a 10", "14 term a", "16 kill a"]),
        (60, vec!["5 preStop a 10", "15 term a", "17 kill a"]),
    ] {
        let mut world = World::new(spec.clone(), &[("a", &[STUBBORN])]);
        world.hook_seconds = hook;
        world.until(5).log();
        world.delete(None).until(100);
        let log = world.log();
        assert_eq!(log[..3], expect[..], "hook of {hook} s");
        assert!(world.forgotten);
    }
}

#[test]
fn a_stopped_pod_ends_and_is_forgotten_only_when_deleted() {
    let mut world = World::new(
        json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}),
        &[],
    );
    world.until(5).log();
    world.delete(Some(0));
    world.desired.deletion = world
        .desired
        .deletion
        .map(|d| super::Deletion { keep: true, ..d });
    world.until(100);
    assert!(world.state.finished && !world.forgotten);
    world.delete(Some(0)).until(101);
    assert!(world.forgotten);
}

#[test]
fn force_kills_at_once_and_a_later_shorter_grace_counts() {
    let mut world = World::new(
        json!({"containers": [{"name": "a"}]}),
        &[("a", &[STUBBORN])],
    );
    world.until(5).log();
    world.delete(Some(0)).until(6);
    assert_eq!(world.log()[0], "5 kill a");
    assert!(world.forgotten);

    let mut world = World::new(
        json!({"containers": [{"name": "a"}]}),
        &[("a", &[STUBBORN])],
    );
    world.until(5).log();
    world.delete(None).until(8);
    assert_eq!(world.log(), ["5 term a"]);
    world.delete(Some(4)).until(20);
    assert_eq!(world.log()[0], "9 kill a");
}

#[test]
fn main_containers_stop_together_and_sidecars_wait_for_them() {
    let mut world = World::new(
        json!({"terminationGracePeriodSeconds": 10,
               "initContainers": [{"name": "s", "restartPolicy": "Always", "lifecycle": {"preStop": {"exec": {}}}}],
               "containers": [{"name": "a"}, {"name": "b"}]}),
        &[
            (
                "a",
                &[Run {
                    after: None,
                    code: 0,
                    obeys: Some(4),
                }],
            ),
            ("b", &[FOREVER]),
        ],
    );
    world.until(5).log();
    world.delete(None).until(100);
    assert_eq!(
        world.log(),
        [
            "5 term b",
            "5 term a",
            "5 preStop s 10",
            "9 term s",
            "9 remove sandbox",
            "9 remove volumes"
        ]
    );
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut world = World::new(
        json!({"activeDeadlineSeconds": 7, "terminationGracePeriodSeconds": 3, "containers": [{"name": "a"}]}),
        &[("a", &[STUBBORN])],
    );
    world.until(100);
    assert_eq!(
        world.log(),
        [
            "0 sandbox",
            "0 start a/0",
            "7 term a",
            "10 kill a",
            "10 remove sandbox",
            "10 remove volumes"
        ]
    );
    assert_eq!(world.state.ending.unwrap().cause, EndingCause::Deadline);
}

#[test]
fn a_lost_sandbox_is_made_anew_and_everything_runs_again() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]}),
        &[("i", &[ends(1, 0), ends(1, 0)])],
    );
    world.until(20).log();
    fold(
        &world.desired,
        &mut world.state,
        &mut world.failures,
        Report::SandboxLost,
        world.now,
    );
    world.until(100);
    assert_eq!(
        world.log(),
        [
            "20 kill a",
            "20 kill b",
            "20 remove sandbox",
            "20 sandbox",
            "20 start i/1",
            "21 start a/1",
            "21 start b/1"
        ]
    );
    assert_eq!(
        world.state.containers["a"].last.as_ref().unwrap().exit_code,
        137
    );
}

#[test]
fn a_pod_that_never_restarts_ends_with_its_sandbox() {
    let mut world = World::new(
        json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}),
        &[],
    );
    world.until(20).log();
    fold(
        &world.desired,
        &mut world.state,
        &mut world.failures,
        Report::SandboxLost,
        world.now,
    );
    world.until(100);
    assert_eq!(
        world.log(),
        ["20 kill a", "20 remove sandbox", "20 remove volumes"]
    );
    assert!(world.state.finished);
}

#[test]
fn a_failed_liveness_probe_restarts_within_its_own_grace() {
    let mut world = World::new(
        json!({"containers": [{"name": "a", "livenessProbe": {"exec": {}, "terminationGracePeriodSeconds": 4}}]}),
        &[("a", &[STUBBORN, FOREVER])],
    );
    world.until(10).log();
    let report = Report::Probed {
        name: "a".into(),
        attempt: 0,
        probe: ProbeKind::Liveness,
        success: false,
        message: "m".into(),
    };
    fold(
        &world.desired,
        &mut world.state,
        &mut world.failures,
        report.clone(),
        world.now,
    );
    world.until(60);
    assert_eq!(world.log(), ["10 term a", "14 kill a", "14 start a/1"]);
    // Late news about an attempt that is gone changes nothing.
    fold(
        &world.desired,
        &mut world.state,
        &mut world.failures,
        report,
        world.now,
    );
    world.until(100);
    assert_eq!(world.log(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_made_is_tried_again() {
    let mut world = World::new(
        json!({"containers": [{"name": "a"}]}),
        &[("a", &[ends(0, 128), ends(0, 128)])],
    );
    world.sandbox_fails = 3;
    world.until(40);
    assert_eq!(
        world.log(),
        [
            "0 sandbox fails",
            "1 sandbox fails",
            "3 sandbox fails",
            "7 sandbox",
            "7 start a/0",
            "7 start a/1",
            "17 start a/2"
        ]
    );
    assert_eq!(
        world.state.containers["a"].last.as_ref().unwrap().reason,
        "StartError"
    );
}

#[test]
fn a_program_that_ends_before_the_news_of_its_start_is_counted_once() {
    let mut world = World::new(
        json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}),
        &[("a", &[ends(0, 7)])],
    );
    // The exit overtakes the start.
    for _ in 0..3 {
        for action in step(&world.desired, &mut world.state, world.now).actions {
            world.act(action);
        }
        world.news.reverse();
        for (_, report) in std::mem::take(&mut world.news) {
            fold(
                &world.desired,
                &mut world.state,
                &mut world.failures,
                report,
                world.now,
            );
        }
    }
    let end = world.state.containers["a"].exited().unwrap();
    assert_eq!((end.exit_code, end.attempt), (7, 0));
    assert!(end.started_at.is_some());
}

#[test]
fn a_new_writer_believes_the_engine_and_keeps_counts() {
    use rkube_engine::api;
    let mut world = World::new(
        json!({"containers": [{"name": "a"}]}),
        &[("a", &[ends(1, 1), ends(1, 2), FOREVER])],
    );
    world.until(5);
    assert_eq!(world.state.containers["a"].attempts, 2);
    let status = |attempt, state| api::ContainerStatus {
        id: api::ContainerId {
            sandbox: "u-1".into(),
            name: "a".into(),
            attempt,
        },
        state,
        pid: None,
        started_at: Some(world.now),
        image_id: "img".into(),
        log_path: "/l".into(),
        labels: BTreeMap::new(),
    };
    let exit = |code| {
        api::ContainerState::Exited(api::Exit {
            code,
            signal: None,
            finished_at: world.now,
            oom_killed: false,
        })
    };
    let sandbox = |containers| api::SandboxStatus {
        id: "u-1".into(),
        ready: true,
        pause_pid: Some(2),
        keeper_pid: Some(1),
        addresses: vec!["10.0.0.2".parse().unwrap()],
        created_at: world.now,
        containers,
        labels: BTreeMap::new(),
    };
    // The writer died after asking for attempt 2 and before noting it.
    let found = sandbox(vec![
        status(1, exit(2)),
        status(2, api::ContainerState::Running),
    ]);
    let mut state = world.state.clone();
    recover(&world.desired, &mut state, Some(&found), world.now);
    let a = &state.containers["a"];
    assert_eq!(
        (a.restart_count(), a.last.as_ref().unwrap().exit_code),
        (2, 2)
    );
    assert!(a.running().is_some());
    // It died while the container did.
    let found = sandbox(vec![status(
        1,
        api::ContainerState::Unknown {
            finished_at: world.now,
        },
    )]);
    let mut state = world.state.clone();
    state.containers.get_mut("a").unwrap().stage = Stage::Starting { ended: None };
    recover(&world.desired, &mut state, Some(&found), world.now);
    assert_eq!(
        state.containers["a"].exited().unwrap().reason,
        "ContainerStatusUnknown"
    );
    // Nothing was found: the sandbox is made anew and counts go on.
    let mut state = world.state.clone();
    recover(&world.desired, &mut state, None, world.now);
    assert!(matches!(state.sandbox, Sandbox::Lost { .. }));
    assert_eq!(state.containers["a"].attempts, 2);
}

proptest::proptest! {
    /// Whatever the containers do, a deleted pod is forgotten in bounded time
    /// and nothing of it stays.
    #[test]
    fn every_deleted_pod_is_forgotten(
        runs in proptest::collection::vec((0u64..40, 0i32..3, proptest::option::of(0u64..50)), 0..12),
        policy in 0usize..3, sidecar: bool, hook in 0u64..40, delete_at in 0u64..300, grace in proptest::option::of(0u64..40),
        lose_at in 0u64..300,
    ) {
        let mut scripts: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
        for (i, (after, code, obeys)) in runs.iter().enumerate() {
            let run = Run { after: (after % 3 != 0).then_some(*after), code: *code, obeys: *obeys };
            scripts.entry(["i", "s", "a", "b"][i % 4]).or_default().push(run);
        }
        let scripts: Vec<(&str, &[Run])> = scripts.iter().map(|(k, v)| (*k, v.as_slice())).collect();
        let restart = sidecar.then_some("Always");
        let policy_name = ["Always", "OnFailure", "Never"][policy];
        let mut world = World::new(
            json!({"restartPolicy": policy_name,
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": restart,
                    "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}],
                "containers": [{"name": "a", "lifecycle": {"postStart": {"exec": {}}, "preStop": {"exec": {}}}}, {"name": "b"}]}),
            &scripts,
        );
        world.hook_seconds = hook;
        world.until(lose_at.min(delete_at));
        fold(&world.desired, &mut world.state, &mut world.failures, Report::SandboxLost, world.now);
        world.until(delete_at);
        world.delete(grace).until(delete_at + 200);
        proptest::prop_assert!(world.forgotten, "{:?} {:#?}", world.state, world.log);
        proptest::prop_assert_eq!(&world.state.sandbox, &Sandbox::Absent);
        proptest::prop_assert!(world.state.containers.values().all(|m| !m.active()));
    }
}
