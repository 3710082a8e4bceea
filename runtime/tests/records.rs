//! What the records of containers allow, and what they do not: nobody but the
//! container itself is killed. They need root, a static /bin/busybox and
//! cgroups.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::time::Duration;

use rkube_runtime::Error;
use rkube_runtime::lifecycle::{self, Record, Signal, Status};

use bundle::{Bundle, wait};

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    text.trim().to_owned()
}

#[test]
fn a_killed_create_is_deleted_from_its_record() {
    let bundle = Bundle::new(&["true"]);
    let text = serde_json::to_vec(&bundle.spec).unwrap();
    let record = Record {
        scope: None,
        id: bundle.id.clone(),
        oci_version: "1.2.0".into(),
        bundle: bundle.dir.path().to_owned(),
        rootfs: bundle.dir.path().join("rootfs"),
        created: String::new(),
        boot_id: boot_id(),
        cgroup: bundle.id.clone(),
        cgroup_above: None,
        pid: 0,
        start_ticks: 0,
        made: false,
        has_process: true,
        namespaces: 0,
        annotations: Default::default(),
    };
    let container = bundle.store().reserve(record, &text).unwrap();
    // As far as it came: a cgroup, and a process in it that nobody recorded.
    let host = rkube_cgroup::Hierarchies::detect().unwrap();
    let path = rkube_cgroup::CgroupPath::new(&bundle.id).unwrap();
    let needs = rkube_cgroup::Select::All(rkube_cgroup::Needs::none());
    let group = rkube_cgroup::Cgroup::create(&host, &path, needs).unwrap();
    let mut orphan = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    group.attach(orphan.id()).unwrap();
    assert_eq!(container.status().unwrap(), Status::Creating);
    let refused = lifecycle::delete(&bundle.store(), &bundle.id, false);
    assert!(matches!(refused, Err(Error::State { .. })));
    let reaper = std::thread::spawn(move || orphan.wait().unwrap());
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    assert!(!reaper.join().unwrap().success());
    bundle.nothing_is_left();
}

#[test]
fn a_recycled_pid_is_left_alone() {
    let bundle = Bundle::new(&["true"]);
    let mut other = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    // Start times count in hundredths of a second (USER_HZ).
    std::thread::sleep(Duration::from_millis(30));
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    wait(&made.pidfd);
    let mut container = bundle.load();
    container.record.pid = i32::try_from(other.id()).unwrap();
    container.save().unwrap();
    assert_eq!(container.status().unwrap(), Status::Stopped);
    assert!(matches!(
        container.kill(Signal(9), false),
        Err(Error::NotRunning)
    ));
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    assert!(
        other.try_wait().unwrap().is_none(),
        "a foreign process was killed"
    );
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Two containers cannot share a group: the second leaves no record, whose
/// deletion would kill the first.
#[test]
fn a_group_in_use_is_refused_before_anything_is_recorded() {
    let first = Bundle::new(&["sleep", "1000"]);
    let (made, _output) = first.create().unwrap();
    let mut second = Bundle::new(&["true"]);
    second.spec["linux"]["cgroupsPath"] = format!("/{}", first.id).into();
    // Not even while it is being made.
    let root = second.dir.path().join("state");
    std::fs::create_dir(&root).unwrap();
    let seen = rustix::fs::inotify::init(
        rustix::fs::inotify::CreateFlags::CLOEXEC | rustix::fs::inotify::CreateFlags::NONBLOCK,
    )
    .unwrap();
    rustix::fs::inotify::add_watch(&seen, &root, rustix::fs::inotify::WatchFlags::CREATE).unwrap();
    let error = second.create().map(drop).unwrap_err().chain();
    assert!(error.contains(&first.id), "{error}");
    let mut buffer = [0_u8; 512];
    let event = rustix::io::read(&seen, &mut buffer);
    assert_eq!(event, Err(rustix::io::Errno::AGAIN), "a record was made");
    lifecycle::delete(&second.store(), &second.id, true).unwrap();
    assert_eq!(first.load().status().unwrap(), Status::Created);
    lifecycle::delete(&first.store(), &first.id, true).unwrap();
    wait(&made.pidfd);
}

/// Of an earlier boot nothing runs: who is in the group now is another's.
#[test]
fn a_record_of_another_boot_kills_nobody() {
    let stale = Bundle::new(&["true"]);
    let (made, _output) = stale.create().unwrap();
    made.container.kill(Signal(9), false).unwrap();
    wait(&made.pidfd);
    let mut container = stale.load();
    container.record.boot_id = "00000000-0000-4000-8000-000000000000".to_owned();
    container.save().unwrap();
    assert_eq!(container.status().unwrap(), Status::Stopped);
    let mut other = Bundle::new(&["sleep", "1000"]);
    other.spec["linux"]["cgroupsPath"] = format!("/{}", stale.id).into();
    let (alive, _output) = other.create().unwrap();
    let refused = stale.load().kill(Signal(9), true);
    assert!(matches!(refused, Err(Error::NotRunning)));
    lifecycle::delete(&stale.store(), &stale.id, true).unwrap();
    assert!(!stale.dir.path().join("state").join(&stale.id).exists());
    assert_eq!(other.load().status().unwrap(), Status::Created);
    lifecycle::delete(&other.store(), &other.id, true).unwrap();
    wait(&alive.pidfd);
    stale.nothing_is_left();
}

/// One damaged record hides no other container, and can be deleted.
#[test]
fn a_damaged_record_is_told_and_removed() {
    let bundle = Bundle::new(&["true"]);
    let (made, _output) = bundle.create().unwrap();
    let bad = bundle.dir.path().join("state/bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("state.json"), "{\"id\": ").unwrap();
    let found = bundle.store().list().unwrap();
    let ids: Vec<_> = found.containers.iter().map(|(c, _)| &c.record.id).collect();
    assert_eq!(ids, [&bundle.id]);
    assert_eq!(found.unreadable.len(), 1);
    let told = found.unreadable[0].chain();
    assert!(told.contains("bad/state.json"), "{told}");
    let refused = lifecycle::delete(&bundle.store(), "bad", false);
    assert!(matches!(refused, Err(Error::Parse { .. })));
    let warnings = lifecycle::delete(&bundle.store(), "bad", true).unwrap();
    assert!(warnings[0].contains("bad/state.json"), "{warnings:?}");
    assert!(!bad.exists());
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
}
