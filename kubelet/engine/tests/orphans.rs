//! An engine that is the subreaper of its keepers. A program of its own: no
//! other test's children may come to this process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests fail by panic"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Host, LIMIT};
use rkube_engine::api::{ContainerRuntime, NamespaceMode};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    kill_process(pid, Signal::KILL).expect("kill");
}

fn keeper(host: &Host, id: &str) -> u32 {
    host.status(id).keeper_pid.expect("keeper")
}

/// Children of this process that have ended, as `pid (name) Z ...`.
fn zombies() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks");
    let lists = tasks.flatten().map(|t| t.path().join("children"));
    let lists: Vec<String> = lists.flat_map(std::fs::read_to_string).collect();
    let pids = lists.iter().flat_map(|l| l.split_whitespace());
    let stats = pids.flat_map(|p| std::fs::read_to_string(format!("/proc/{p}/stat")));
    stats.filter(|s| s.contains(") Z ")).collect()
}

/// Waits for what SIGCHLD tells a writer of.
fn until(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn exit_codes_are_known_after_a_keepers_death_on_any_kernel() {
    let host = Host::new();
    host.engine().adopt_orphans().expect("subreaper");
    let mut config = host.sandbox("o");
    config.pid = NamespaceMode::Host;
    host.engine().run_sandbox(&config).expect("sandbox");
    // Its end comes while the next keeper holds it.
    let later = host.container("o", "later", &["run", "sleep 2; echo last; exit 7"]);
    // Its end comes while there is none.
    let soon = host.container("o", "soon", &["run", "sleep inf"]);
    for one in [&later, &soon] {
        host.start(one);
    }
    // Processes that are nobody's: of a container in the host's namespace.
    let stray = host.container(
        "o",
        "stray",
        &["fork-bomb", "--max", "2", "--seconds", "inf"],
    );
    host.start(&stray);
    until("two children", || host.log(&stray.id) == ["started 2"]);
    host.engine().signal(&stray.id, 9, false).expect("kill");
    assert_eq!(host.exited(&stray.id).code, 137);
    let pid = host.status("o").containers.iter().find_map(|c| {
        let own = c.id == soon.id;
        c.pid.filter(|_| own)
    });
    let old = keeper(&host, "o");
    kill(old);
    kill(pid.expect("pid"));
    let (mut codes, mut ends) = ([None, None], 0);
    while codes.contains(&None) {
        if let rkube_engine::api::Event::Exited { id, exit } =
            host.events.recv_timeout(LIMIT).expect("an end")
        {
            let exit = exit.unwrap_or_else(|| panic!("unknown end of {id}"));
            codes[usize::from(id == soon.id)] = Some(exit.code);
            ends += 1;
        }
    }
    assert_eq!((codes, ends), ([Some(7), Some(137)], 2));
    assert_eq!(host.log(&later.id).last().expect("line"), "last");
    assert_ne!(keeper(&host, "o"), old);
    until("all are reaped", || {
        host.engine().reap_orphans();
        zombies().is_empty()
    });
    host.end();
}
