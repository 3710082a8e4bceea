//! Everything on the cgroups of the host the tests run on, whatever its
//! mode: real limits, real processes. Needs root. Each test has groups of
//! its own and removes them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests fail by panic"
)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rkube_cgroup::{
    Access, Cgroup, CgroupPath, Controller, DeviceKind, DeviceRule, DeviceRules, Error, Extras,
    Hierarchies, JOIN_SELF, Mode, Needs, Select, Version,
};
use rustix::event::{PollFd, PollFlags, Timespec};

mod devices;
mod stop;

/// Long enough for emulated machines.
const WAIT: Duration = Duration::from_secs(30);

/// A group that is emptied and removed at the end, also of a failed test.
struct Group {
    cgroup: Cgroup,
    top: CgroupPath,
}

impl Group {
    fn new(name: &str) -> Self {
        Self::with(name, Select::All(Needs::none()))
    }

    fn with(name: &str, select: Select) -> Self {
        let top = CgroupPath::new(&format!("rkube-test-{}-{name}", std::process::id())).unwrap();
        let path = top.join("leaf").unwrap();
        let cgroup = Cgroup::create(&host(), &path, select).unwrap();
        Self { cgroup, top }
    }

    fn apply(&self, json: &str) {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let warnings = self.cgroup.apply(&resources, &Extras::default()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    /// A shell in the group that runs `script` once it is inside.
    fn run(&self, script: &str) -> Child {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.cgroup.attach(child.id()).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child
    }

    /// The directory in the hierarchy of a controller.
    fn dir(&self, controller: Controller) -> Option<(Version, PathBuf)> {
        let host = host();
        let hierarchy = host.of(controller)?;
        let dir = hierarchy.mount_point().join(self.cgroup.path().as_str());
        Some((hierarchy.version(), dir))
    }

    /// A file's content by its names in v1 and v2.
    fn file(&self, controller: Controller, v1: &str, v2: &str) -> String {
        let (version, dir) = self.dir(controller).unwrap();
        let name = match version {
            Version::V1 => v1,
            Version::V2 => v2,
        };
        std::fs::read_to_string(dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(group) = Cgroup::open(&host(), &self.top) {
            let _ = group.kill_all(WAIT);
        }
        let removed = Cgroup::remove(&host(), &self.top, WAIT);
        if !std::thread::panicking() {
            removed.unwrap();
            assert!(!Cgroup::open(&host(), &self.top).unwrap().exists());
        }
    }
}

fn host() -> Arc<Hierarchies> {
    Hierarchies::detect().unwrap()
}

/// True if the host has the controller; says so if not.
fn has(controller: Controller) -> bool {
    let has = host().of(controller).is_some();
    if !has {
        println!(
            "SKIP: no {controller} controller on this {} host",
            host().mode()
        );
    }
    has
}

fn readable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap(),
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
}

/// Waits until something is true.
fn until(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn limits_are_what_was_asked_for() {
    if ![Controller::Memory, Controller::Cpu, Controller::Pids]
        .into_iter()
        .all(has)
    {
        return;
    }
    let group = Group::new("limits");
    group.apply(
        r#"{"memory": {"limit": 33554432, "swap": 33554432, "reservation": 16777216},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000},
            "pids": {"limit": 77}}"#,
    );
    let memory = |v1, v2| group.file(Controller::Memory, v1, v2);
    let cpu = |v1, v2| group.file(Controller::Cpu, v1, v2);
    assert_eq!(memory("memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(
        memory("memory.soft_limit_in_bytes", "memory.low"),
        "16777216"
    );
    assert_eq!(group.file(Controller::Pids, "pids.max", "pids.max"), "77");
    match group.dir(Controller::Cpu).unwrap().0 {
        Version::V1 => {
            assert_eq!(cpu("cpu.shares", ""), "512");
            assert_eq!(cpu("cpu.cfs_quota_us", ""), "50000");
        }
        Version::V2 => {
            assert_eq!(cpu("", "cpu.weight"), "59");
            assert_eq!(cpu("", "cpu.max"), "50000 100000");
        }
    }
    let stats = group.cgroup.stats().unwrap();
    let limits = stats.memory.unwrap();
    assert_eq!(limits.limit_bytes, Some(33_554_432));
    assert!(limits.swap_limit_bytes.is_none_or(|swap| swap == 0));
    assert_eq!(stats.pids.unwrap().limit, Some(77));
    // Up (the sum must go first), down (the limit must), and away.
    for json in [
        r#"{"memory": {"limit": 67108864, "swap": 134217728}}"#,
        r#"{"memory": {"limit": 33554432, "swap": 50331648}}"#,
        r#"{"memory": {"limit": -1}}"#,
        r#"{"memory": {"limit": 33554432, "swap": -1}}"#,
    ] {
        group.apply(json);
    }
    assert_eq!(memory("memory.limit_in_bytes", "memory.max"), "33554432");
}

#[test]
fn quota_and_period_change_together_below_a_parent() {
    if !has(Controller::Cpu) {
        return;
    }
    let group = Group::new("ratio");
    let parent = Cgroup::open(&host(), &group.top).unwrap();
    let set = |cgroup: &Cgroup, json: &str| {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        cgroup.apply(&resources, &Extras::default())
    };
    // Half a CPU for the parent: v1 checks the ratio of the child against it
    // at every single write, so 5/10 -> 50/100 -> 5/10 needs both orders.
    set(&parent, r#"{"cpu": {"quota": 50000, "period": 100000}}"#).unwrap();
    for (quota, period) in [
        (5_000, 10_000),
        (50_000, 100_000),
        (5_000, 10_000),
        (400_000, 1_000_000),
    ] {
        set(
            &group.cgroup,
            &format!(r#"{{"cpu": {{"quota": {quota}, "period": {period}}}}}"#),
        )
        .unwrap();
    }
    match group.dir(Controller::Cpu).unwrap().0 {
        Version::V1 => {
            assert_eq!(
                group.file(Controller::Cpu, "cpu.cfs_quota_us", ""),
                "400000"
            );
            let error = set(&group.cgroup, r#"{"cpu": {"quota": 900000}}"#).unwrap_err();
            assert!(error.to_string().contains("cpu.cfs_quota_us"), "{error}");
        }
        Version::V2 => assert_eq!(group.file(Controller::Cpu, "", "cpu.max"), "400000 1000000"),
    }
    // Burst is bounded by the quota, whichever comes first.
    set(
        &group.cgroup,
        r#"{"cpu": {"quota": 10000, "period": 100000, "burst": 10000}}"#,
    )
    .unwrap();
    set(&group.cgroup, r#"{"cpu": {"quota": 5000, "burst": 1000}}"#).unwrap();
    set(
        &group.cgroup,
        r#"{"cpu": {"quota": 20000, "burst": 20000}}"#,
    )
    .unwrap();
    set(&group.cgroup, r#"{"cpu": {"idle": 1}}"#).unwrap();
    set(&group.cgroup, r#"{"cpu": {"idle": 0, "shares": 100}}"#).unwrap();
}

#[test]
fn a_new_process_joins_by_itself() {
    let group = Group::new("join");
    let fds = group.cgroup.attach_fds().unwrap();
    assert_eq!(fds.clone_into.is_some(), host().mode() != Mode::Legacy);
    assert_eq!(JOIN_SELF, b"0");
    let numbers: Vec<String> = fds
        .tasks
        .iter()
        .map(|fd| fd.as_raw_fd().to_string())
        .collect();
    let script = format!(
        "for f in {}; do echo 0 > /proc/$PPID/fd/$f || exit 9; done; cat /proc/self/cgroup",
        numbers.join(" ")
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let wanted = format!("/{}", group.cgroup.path());
    let inside = text.lines().filter(|line| line.ends_with(&wanted)).count();
    assert_eq!(inside, fds.tasks.len(), "{text}");
}

#[test]
fn attach_reaches_every_hierarchy() {
    let group = Group::new("attach");
    let mut child = group.run("exec sleep 60");
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let wanted = format!("/{}", group.cgroup.path());
    for line in text.lines() {
        assert!(line.ends_with(&wanted), "{text}");
    }
    assert_eq!(group.cgroup.pids().unwrap(), [child.id()]);
    assert!(group.cgroup.is_populated().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(group.cgroup.wait_empty(WAIT).unwrap());
    let error = group.cgroup.attach(child.id()).unwrap_err();
    assert!(matches!(error, Error::Attach { .. }), "{error}");
}

#[test]
fn out_of_memory_is_told_and_counted() {
    if !has(Controller::Memory) {
        return;
    }
    let group = Group::new("oom");
    group.apply(r#"{"memory": {"limit": 16777216, "swap": 16777216}}"#);
    let watch = group.cgroup.oom_watch().unwrap();
    let counter = group.cgroup.oom_counter_fd().unwrap();
    assert!(!readable(watch.as_fd(), Duration::from_millis(20)));
    assert_eq!(watch.take().unwrap().kills, 0);
    // tail keeps what may be the last line: all of it.
    let mut child = group.run("exec tail /dev/zero");
    assert!(readable(watch.as_fd(), WAIT));
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9));
    assert_eq!(watch.take().unwrap().kills, 1);
    let mut text = [0_u8; 512];
    let read = rustix::io::pread(&counter, &mut text, 0).unwrap();
    let text = std::str::from_utf8(&text[..read]).unwrap();
    assert_eq!(rkube_cgroup::parse_oom_count(text).kills, 1);
    assert_eq!(group.cgroup.oom_count().unwrap().kills, 1);
    let memory = group.cgroup.stats().unwrap().memory.unwrap();
    assert_eq!(memory.oom_kills, Some(1));
    // v1 on Linux 6.18 has the file but counts nothing in it.
    if group.dir(Controller::Memory).unwrap().0 == Version::V2 {
        assert!(memory.fail_count.unwrap() > 0);
    }
    assert!(memory.peak_bytes.unwrap() > 8 << 20);
    // Nothing new is told. A wake-up without news is none: the kernel defers
    // notifications that come within 10 ms of another (cgroup_file_notify).
    until("taken events are gone", || {
        assert_eq!(watch.take().unwrap().kills, 1);
        !readable(watch.as_fd(), Duration::from_millis(20))
    });
}

#[test]
fn a_limit_below_the_use_is_refused() {
    if !has(Controller::Memory) {
        return;
    }
    let group = Group::new("below");
    group.apply(r#"{"memory": {"limit": 134217728, "swap": 134217728}}"#);
    let mut child = group.run("head -c 30000000 /dev/zero | tail -c 30000000 | sleep 60");
    let usage = || group.cgroup.stats().unwrap().memory.unwrap().usage_bytes;
    until("memory in use", || usage() > 25_000_000);
    let json = r#"{"memory": {"limit": 8388608, "checkBeforeUpdate": true}}"#;
    let resources: LinuxResources = serde_json::from_str(json).unwrap();
    let error = group
        .cgroup
        .apply(&resources, &Extras::default())
        .unwrap_err();
    assert!(matches!(error, Error::MemoryInUse { .. }), "{error}");
    if group.dir(Controller::Memory).unwrap().0 == Version::V1 {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"memory": {"limit": 8388608}}"#).unwrap();
        let error = group
            .cgroup
            .apply(&resources, &Extras::default())
            .unwrap_err();
        assert!(matches!(error, Error::MemoryInUse { .. }), "{error}");
    }
    assert_eq!(
        group.file(Controller::Memory, "memory.limit_in_bytes", "memory.max"),
        "134217728"
    );
    group.cgroup.kill_all(WAIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn throttling_is_counted() {
    if !has(Controller::Cpu) {
        return;
    }
    let group = Group::new("quota");
    group.apply(r#"{"cpu": {"quota": 2000, "period": 20000}}"#);
    let mut child = group.run("while :; do :; done");
    until("throttled", || {
        group.cgroup.stats().unwrap().cpu.throttled_periods.unwrap() >= 3
    });
    let cpu = group.cgroup.stats().unwrap().cpu;
    assert!(cpu.throttled_usec.unwrap() > 0);
    assert!(cpu.periods.unwrap() >= cpu.throttled_periods.unwrap());
    assert!(cpu.usage_usec.unwrap() > 0);
    group.cgroup.kill_all(WAIT).unwrap();
    child.wait().unwrap();
}

#[test]
fn the_process_limit_holds() {
    if !has(Controller::Pids) {
        return;
    }
    let group = Group::new("pids");
    group.apply(r#"{"pids": {"limit": 1}}"#);
    let output = group
        .run("/bin/true & wait $!; echo forked")
        .wait_with_output()
        .unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    group.apply(r#"{"pids": {"limit": 2}}"#);
    let output = group
        .run("/bin/true & wait $!; echo forked")
        .wait_with_output()
        .unwrap();
    assert_eq!(output.stdout, b"forked\n");
}

#[test]
fn new_cpusets_are_usable() {
    if !has(Controller::Cpuset) {
        return;
    }
    let group = Group::new("cpuset");
    let deep = group.top.join("a/b/c").unwrap();
    let cgroup = Cgroup::create(&host(), &deep, Select::All(Needs::none())).unwrap();
    let root = host()
        .of(Controller::Cpuset)
        .unwrap()
        .mount_point()
        .to_owned();
    let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    cgroup.attach(child.id()).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(status.contains("Cpus_allowed_list:"));
    if group.dir(Controller::Cpuset).unwrap().0 == Version::V1 {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = std::fs::read_to_string(root.join(deep.as_str()).join(file)).unwrap();
            assert_eq!(own, std::fs::read_to_string(root.join(file)).unwrap());
        }
    }
    let resources: LinuxResources =
        serde_json::from_str(r#"{"cpu": {"cpus": "0", "mems": "0"}}"#).unwrap();
    cgroup.apply(&resources, &Extras::default()).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn emptiness_is_told() {
    if host().mode() == Mode::Legacy {
        println!("SKIP: no v2 hierarchy on this host");
        return;
    }
    let group = Group::new("populated");
    let watch = group.cgroup.populated_watch().unwrap();
    assert!(!readable(watch.as_fd(), Duration::ZERO));
    let mut child = group.run("exec sleep 60");
    assert!(readable(watch.as_fd(), WAIT));
    assert!(watch.take().unwrap());
    assert!(!readable(watch.as_fd(), Duration::ZERO));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(readable(watch.as_fd(), WAIT));
    assert!(!watch.take().unwrap());
}

#[test]
fn a_used_group_is_not_taken_over() {
    let group = Group::new("taken");
    let path = group.cgroup.path().clone();
    let select = Select::All(Needs::none());
    let mut child = group.run("exec sleep 60");
    let error = Cgroup::create(&host(), &path, select).unwrap_err();
    assert!(
        matches!(&error, Error::NotEmpty { pids, .. } if *pids == [child.id()]),
        "{error}"
    );
    // The refusal changed nothing, and an inner group may be in use.
    assert_eq!(group.cgroup.pids().unwrap(), [child.id()]);
    Cgroup::ensure(&host(), &group.top, select).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("empty", || !group.cgroup.is_populated().unwrap());
    // The remains of a crash are: with limits gone and nothing below.
    if has(Controller::Pids) {
        group.apply(r#"{"pids": {"limit": 5}}"#);
    }
    let (_, dir) = group.dir(Controller::Pids).unwrap();
    std::fs::create_dir_all(dir.join("x/y")).unwrap();
    let fresh = Cgroup::create(&host(), &path, select).unwrap();
    assert_eq!(fresh.stats().unwrap().pids.unwrap().limit, None);
    assert!(!dir.join("x").exists());
}

#[test]
fn removal_after_a_crash() {
    let group = Group::new("remove");
    let host = host();
    for hierarchy in host.list() {
        let dir = hierarchy.mount_point().join(group.cgroup.path().as_str());
        std::fs::create_dir_all(dir.join("deep/deeper/deepest")).unwrap();
        std::fs::create_dir_all(dir.join("other")).unwrap();
    }
    // A process inside is not killed, and the wait has an end.
    let mut child = group.run("exec sleep 60");
    let start = Instant::now();
    let error = Cgroup::remove(&host, &group.top, Duration::from_millis(100)).unwrap_err();
    assert!(
        error.to_string().contains(&child.id().to_string()),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(child.try_wait().unwrap().is_none());
    // One that ends meanwhile is waited for, no longer than it takes.
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    });
    let start = Instant::now();
    Cgroup::remove(&host, &group.top, WAIT).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    killer.join().unwrap();
    child.wait().unwrap();
    assert!(!Cgroup::open(&host, &group.top).unwrap().exists());
    // Once more is no error, nor is one that never was.
    Cgroup::remove(&host, &group.top, Duration::ZERO).unwrap();
    let never = CgroupPath::new("rkube-test-never/was").unwrap();
    Cgroup::remove(&host, &never, Duration::ZERO).unwrap();
}

#[test]
fn throttles_of_block_devices() {
    if !has(Controller::Io) {
        return;
    }
    let device = std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .find_map(|entry| std::fs::read_to_string(entry.path().join("dev")).ok());
    let Some(device) = device else {
        println!("SKIP: no block device on this host");
        return;
    };
    let device = device.trim();
    let (major, minor) = device.split_once(':').unwrap();
    let group = Group::new("io");
    group.apply(&format!(
        r#"{{"blockIO": {{"throttleReadBpsDevice": [{{"major": {major}, "minor": {minor}, "rate": 1048576}}]}}}}"#
    ));
    let line = group.file(Controller::Io, "blkio.throttle.read_bps_device", "io.max");
    assert!(
        line.starts_with(device) && line.contains("1048576"),
        "{line}"
    );
}

#[test]
fn what_is_missing_is_named() {
    let host = host();
    let lacking = host.missing(&[Controller::Rdma, Controller::NetCls, Controller::Memory]);
    if lacking.is_empty() {
        println!("SKIP: this host lacks nothing");
        return;
    }
    let path = CgroupPath::new(&format!("rkube-test-{}-missing", std::process::id())).unwrap();
    let error = Cgroup::create(&host, &path, Select::Only(Needs::these(&lacking))).unwrap_err();
    assert!(matches!(error, Error::MissingController { .. }), "{error}");
    assert!(!Cgroup::open(&host, &path).unwrap().exists());
    // Left out by the caller is another thing than missing on the host.
    if host.mode() == Mode::Hybrid {
        let group = Group::with("notjoined", Select::Only(Needs::none()));
        let resources: LinuxResources =
            serde_json::from_str(r#"{"memory": {"limit": 16777216}}"#).unwrap();
        let error = group
            .cgroup
            .apply(&resources, &Extras::default())
            .unwrap_err();
        assert!(matches!(error, Error::NotJoined { .. }), "{error}");
    }
}
