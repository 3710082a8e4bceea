//! What crashes leave: of the writer, of keepers, of the power.

mod common;

use std::time::{Duration, Instant};

use common::{Host, LIMIT, ends, hold, kill, until};
use rkube_engine::api::{
    ContainerRuntime, ContainerState, Event, ExecConfig, ExecHandle, SandboxStatus, Stdio,
};
use rkube_engine::chain;

fn exec(host: &Host, id: &rkube_engine::api::ContainerId, argv: &[&str]) -> ExecHandle {
    let config = ExecConfig {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        ..ExecConfig::default()
    };
    let handle = host.engine().exec(id, &config, Stdio::default());
    handle.unwrap_or_else(|e| panic!("{}", chain(&e)))
}

fn pid(status: &SandboxStatus, name: &str) -> Option<u32> {
    let container = status.containers.iter().find(|c| c.id.name == name);
    container.and_then(|c| c.pid)
}

#[test]
fn a_connection_that_is_lost_is_made_again() {
    let host = Host::new();
    let before = host
        .engine()
        .run_sandbox(&host.sandbox("l"))
        .expect("sandbox");
    let main = host.container("l", "main", &["sleep", "inf"]);
    host.start(&main);
    // A keeper has one controller: this one takes the engine's place.
    let path = host.root.join("run/rkube/pods/l/keeper.sock");
    let address = rustix::net::SocketAddrUnix::new(&path).expect("address");
    let kind = rustix::net::SocketType::SEQPACKET;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None);
    let socket = socket.expect("socket");
    rustix::net::connect(&socket, &address).expect("connect");
    // The engine takes it back, from a thread of its own.
    until("the engine is heard again", || {
        let status = host.status("l");
        let config = ExecConfig {
            argv: vec!["/toolbox".into(), "true".into()],
            ..ExecConfig::default()
        };
        let handle = host.engine().exec(&main.id, &config, Stdio::default());
        status.keeper_pid == before.keeper_pid
            && handle.is_ok_and(|h| host.engine().exec_wait(&main.id, &h).ok() == Some(0))
    });
    let after = host.status("l");
    assert!(after.ready);
    assert_eq!(before.keeper_pid, after.keeper_pid);
    assert!(
        matches!(after.containers[0].state, ContainerState::Running),
        "{after:?}"
    );
    host.end();
}

#[test]
fn a_writer_that_dies_between_keeper_and_record_leaks_nothing() {
    let mut host = Host::new();
    let status = host
        .engine()
        .run_sandbox(&host.sandbox("w"))
        .expect("sandbox");
    let (pause, keeper) = (hold(status.pause_pid), hold(status.keeper_pid));
    host.crash_and(|root| {
        let path = root.join("var/lib/rkube/sandboxes/w/sandbox.json");
        let text = std::fs::read(&path).expect("record");
        let mut record: serde_json::Value = serde_json::from_slice(&text).expect("json");
        for field in ["pause", "keeper_pid", "network"] {
            record[field] = serde_json::Value::Null;
        }
        std::fs::write(&path, record.to_string()).expect("write");
    });
    let after = host.status("w");
    assert_eq!(
        (after.pause_pid, after.keeper_pid),
        (status.pause_pid, status.keeper_pid)
    );
    assert!(!after.ready, "its network was never recorded");
    host.engine()
        .remove_sandbox(&"w".to_owned())
        .expect("remove");
    assert!(ends(&pause, LIMIT) && ends(&keeper, LIMIT));
    host.end();
}

#[test]
fn what_was_never_started_is_no_attempt() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("n"))
        .expect("sandbox");
    let main = host.container("n", "main", &["sleep", "inf"]);
    host.start(&main);
    host.crash_and(|root| {
        let dir = root.join("var/lib/rkube/sandboxes/n");
        let text = std::fs::read(dir.join("main.0.json")).expect("record");
        let mut record: serde_json::Value = serde_json::from_slice(&text).expect("json");
        record["config"]["id"]["name"] = "late".into();
        for field in ["process", "launched_at", "running"] {
            record[field] = serde_json::Value::Null;
        }
        std::fs::write(dir.join("late.0.json"), record.to_string()).expect("write");
    });
    let status = host.status("n");
    let names: Vec<_> = status.containers.iter().map(|c| &*c.id.name).collect();
    assert_eq!(names, ["main"]);
    let record = host.root.join("var/lib/rkube/sandboxes/n/late.0.json");
    assert!(!record.exists());
    host.end();
}

#[test]
fn a_container_is_called_lost_only_once_it_is() {
    let mut host = Host::new();
    let status = host
        .engine()
        .run_sandbox(&host.sandbox("z"))
        .expect("sandbox");
    let main = host.container("z", "main", &["sleep", "inf"]);
    host.start(&main);
    let (process, keeper) = (
        hold(pid(&host.status("z"), "main")),
        hold(status.keeper_pid),
    );
    host.crash_and(|root| {
        kill(&keeper);
        // Nothing tells which process it was.
        let run = root.join("run/rkube/pods/z");
        std::fs::remove_file(run.join("main.0.proc")).expect("remove");
    });
    assert!(ends(&process, LIMIT));
    let status = host.status("z");
    assert!(status.ready, "pause lives: {status:?}");
    assert_ne!(status.keeper_pid, None);
    assert_eq!(pid(&status, "main"), None);
    host.end();
}

#[test]
fn an_unreadable_record_costs_nothing_else() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("u"))
        .expect("sandbox");
    let good = host.container("u", "good", &["sleep", "inf"]);
    let bad = host.container("u", "bad", &["sleep", "inf"]);
    host.start(&good);
    host.start(&bad);
    let process = hold(pid(&host.status("u"), "bad"));
    let layers = |root: &std::path::Path| {
        let entries = std::fs::read_dir(root.join("var/lib/rkube/containers")).expect("list");
        let names = entries.map(|e| e.expect("entry").file_name().into_string().expect("name"));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = layers(&host.root);
    assert!(before.iter().any(|n| n.contains("bad")), "{before:?}");
    host.crash_and(|root| {
        let dir = root.join("var/lib/rkube/sandboxes/u");
        std::fs::write(dir.join("bad.0.json"), "").expect("tear");
    });
    let status = host.status("u");
    assert!(status.ready);
    assert!(pid(&status, "good").is_some());
    assert_eq!(status.containers.len(), 1);
    assert_eq!(layers(&host.root), before);
    assert!(!ends(&process, Duration::ZERO), "it is left alone");
    // The power was cut: nothing of it can be alive, and it is cleared away.
    host.crash_and(|root| {
        std::fs::write(root.join("var/lib/rkube/sandboxes/.boot"), "earlier").expect("write");
    });
    assert!(!layers(&host.root).iter().any(|n| n.contains("bad")));
    assert!(ends(&process, LIMIT));
    assert!(pid(&host.status("u"), "good").is_some());
    host.end();
}

#[test]
fn a_torn_sandbox_of_an_earlier_boot_is_cleared_away() {
    let mut host = Host::new();
    let records = host.root.join("var/lib/rkube/sandboxes");
    let torn = records.join("torn");
    host.crash_and(|_| {
        std::fs::create_dir(&torn).expect("directory");
        std::fs::write(torn.join("sandbox.json"), "{\"conf").expect("write");
    });
    assert!(torn.exists(), "in this boot it is nobody's to clear away");
    host.crash_and(|_| std::fs::write(records.join(".boot"), "earlier").expect("write"));
    assert!(!torn.exists());
    host.end();
}

#[test]
fn execs_outlive_writers() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("x"))
        .expect("sandbox");
    let main = host.container("x", "main", &["sleep", "inf"]);
    host.start(&main);
    let long = exec(&host, &main.id, &["/toolbox", "sleep", "inf"]);
    host.crash();
    // Not under the name of the one that runs.
    let next = exec(&host, &main.id, &["/toolbox", "exit", "4"]);
    assert!(next.token > long.token);
    let code = host.engine().exec_wait(&main.id, &next);
    assert_eq!(code.expect("wait"), 4);
    // And one whose sandbox goes is waited for no longer than it lives.
    std::thread::scope(|scope| {
        let (engine, id) = (host.engine(), &main.id);
        let last = exec(&host, id, &["/toolbox", "sleep", "inf"]);
        let waiter = scope.spawn(move || engine.exec_wait(id, &last).expect("wait"));
        std::thread::sleep(Duration::from_millis(50));
        engine.remove_sandbox(&"x".to_owned()).expect("remove");
        assert!(matches!(waiter.join().expect("thread"), 137 | -1));
    });
    host.end();
}

#[test]
fn an_exec_outlives_its_keeper() {
    let host = Host::new();
    let status = host
        .engine()
        .run_sandbox(&host.sandbox("y"))
        .expect("sandbox");
    let main = host.container("y", "main", &["sleep", "inf"]);
    host.start(&main);
    let handle = exec(&host, &main.id, &["/toolbox", "run", "sleep 0.5; exit 7"]);
    let begun = Instant::now();
    kill(&hold(status.keeper_pid));
    let code = host.engine().exec_wait(&main.id, &handle).expect("wait");
    assert!(matches!(code, 7 | -1), "{code}");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(4),
        "{took:?}"
    );
    host.end();
}

#[test]
fn a_terminal_outlives_its_keeper() {
    let mut host = Host::new();
    let status = host
        .engine()
        .run_sandbox(&host.sandbox("t"))
        .expect("sandbox");
    let script = "echo one; sleep 0.6; echo two; sleep inf";
    let mut main = host.container("t", "main", &["run", script]);
    main.tty = true;
    host.start(&main);
    // The next writer asks for it.
    host.crash();
    kill(&hold(status.keeper_pid));
    until("the output of the new keeper", || {
        host.log(&main.id).iter().any(|l| l.starts_with("two"))
    });
    let after = host.status("t");
    assert_ne!(after.keeper_pid, status.keeper_pid);
    assert!(matches!(after.containers[0].state, ContainerState::Running));
    let told = host
        .events
        .try_iter()
        .any(|e| matches!(e, Event::Exited { .. }));
    assert!(!told);
    host.end();
}
