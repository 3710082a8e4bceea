//! Freezing and killing whole groups.

use super::*;

#[test]
fn frozen_processes_stand_still() {
    let group = Group::new("freeze");
    let mut child = group.run("while :; do :; done");
    let usage = || group.cgroup.stats().unwrap().cpu.usage_usec.unwrap();
    until("runs", || usage() > 10_000);
    group.cgroup.freeze(WAIT).unwrap();
    assert!(group.cgroup.is_frozen().unwrap());
    let before = usage();
    std::thread::sleep(Duration::from_millis(100));
    assert!(usage() - before < 1_000);
    // A group that is frozen takes no new container, nor one below it.
    let below = group.cgroup.path().join("below").unwrap();
    let error = Cgroup::create(&host(), &below, Select::All(Needs::none())).unwrap_err();
    let refused = matches!(error, Error::Frozen { .. } | Error::InternalProcess { .. });
    assert!(refused, "{error}");
    group.cgroup.thaw().unwrap();
    assert!(!group.cgroup.is_frozen().unwrap());
    let before = usage();
    until("runs again", || usage() > before + 10_000);
    // The dead leave a frozen group too.
    group.cgroup.freeze(WAIT).unwrap();
    group.cgroup.kill_all(WAIT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn v1_freezer_alone() {
    let host = host();
    if host.of(Controller::Freezer).is_none() {
        println!("SKIP: no v1 freezer on this {} host", host.mode());
        return;
    }
    // Someone else froze it with v1's freezer: a kill must get through.
    let group = Group::new("v1freeze");
    let mut child = group.run("while :; do /bin/true; done");
    let (_, dir) = group.dir(Controller::Freezer).unwrap();
    std::fs::write(dir.join("freezer.state"), "FROZEN").unwrap();
    until("frozen", || {
        std::fs::read_to_string(dir.join("freezer.state"))
            .unwrap()
            .trim()
            == "FROZEN"
    });
    assert!(group.cgroup.is_frozen().unwrap());
    group.cgroup.kill_all(WAIT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn nothing_survives_kill_all() {
    let group = Group::new("kill");
    if has(Controller::Pids) {
        group.apply(r#"{"pids": {"limit": 500}}"#);
    }
    // Loops that fork all the time, one more every few milliseconds.
    let mut child =
        group.run("while :; do (while :; do /bin/true; done) & setsid sleep 60 & sleep 0.01; done");
    until("a tree", || group.cgroup.pids().unwrap().len() > 20);
    group.cgroup.kill_all(WAIT).unwrap();
    assert!(group.cgroup.pids().unwrap().is_empty());
    assert!(!group.cgroup.is_populated().unwrap());
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    // Again, with nobody there.
    group.cgroup.kill_all(WAIT).unwrap();
}

#[test]
fn nothing_survives_kill_all_without_v2() {
    let host = host();
    if host.mode() == Mode::Unified {
        println!("SKIP: no v1 hierarchies on this {} host", host.mode());
        return;
    }
    // The v1 hierarchies alone, as on a legacy host.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v1: String = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup "))
        .map(|line| format!("{line}\n"))
        .collect();
    let legacy = Hierarchies::from_layout(rkube_cgroup::Layout::parse(&v1, "")).unwrap();
    assert_eq!(legacy.mode(), Mode::Legacy);
    let top = CgroupPath::new(&format!("rkube-test-{}-legacy", std::process::id())).unwrap();
    let cgroup = Cgroup::create(
        &legacy,
        &top,
        Select::Only(Needs::these(&[Controller::Pids])),
    )
    .unwrap();
    let group = Group { cgroup, top };
    assert!(group.cgroup.populated_watch().is_err());
    let mut child =
        group.run("while :; do (while :; do /bin/true; done) & setsid sleep 60 & sleep 0.01; done");
    until("a tree", || group.cgroup.pids().unwrap().len() > 20);
    group.cgroup.freeze(WAIT).unwrap();
    assert!(group.cgroup.is_frozen().unwrap());
    group.cgroup.thaw().unwrap();
    group.cgroup.kill_all(WAIT).unwrap();
    assert!(group.cgroup.pids().unwrap().is_empty());
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

/// Controllers of threads (cpu, pids) could be enabled below a group with
/// processes, and would make it the root of a threaded subtree.
#[test]
fn a_group_with_processes_stays_a_domain() {
    let host = host();
    let v2 = |c| host.of(c).is_some_and(|h| h.version() == Version::V2);
    if !v2(Controller::Cpu) || !v2(Controller::Memory) {
        println!(
            "SKIP: no controllers of cgroup v2 on this {} host",
            host.mode()
        );
        return;
    }
    let group = Group::new("domain");
    let mut child = group.run("sleep 100");
    let below = group.cgroup.path().join("below").unwrap();
    let needs = Needs::none().and(&[Controller::Cpu, Controller::Memory]);
    let error = Cgroup::create(&host, &below, Select::All(needs)).unwrap_err();
    assert!(matches!(error, Error::InternalProcess { .. }), "{error}");
    let file = format!("/sys/fs/cgroup/{}/cgroup.type", group.cgroup.path());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "domain\n");
    group.cgroup.kill_all(WAIT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}
