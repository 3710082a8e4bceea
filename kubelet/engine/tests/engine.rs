//! Pods as their workers drive them, with everything alive.

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Host, LIMIT};
use rkube_engine::api::{ContainerRuntime, ContainerState, Event, ExecConfig, Stdio};
use rkube_engine::chain;

#[test]
fn a_pod_of_two_containers() {
    let host = Host::new();
    let sandbox = host.sandbox("a");
    let status = host
        .engine()
        .run_sandbox(&sandbox)
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(status.ready && !status.addresses.is_empty(), "{status:?}");
    let web = host.container("a", "web", &["httpd", "-p", "8080"]);
    host.start(&web);
    let probe = host.container(
        "a",
        "probe",
        &[
            "run",
            "hostname; get http://127.0.0.1:8080/; caps; mounts; exit 3",
        ],
    );
    host.start(&probe);
    let exit = host.exited(&probe.id);
    let log = host.log(&probe.id);
    assert_eq!(exit.code, 3, "{log:?}");
    assert_eq!(log[0], "host-a");
    assert!(
        log.iter()
            .any(|l| l.contains("host-a") || l.contains("hello")),
        "{log:?}"
    );
    assert!(
        log.iter().any(|l| l.contains("Seccomp") && l.contains('2')),
        "{log:?}"
    );
    assert!(log.iter().any(|l| l.contains("/dev/shm")), "{log:?}");
    let stats = host.engine().stats();
    assert_eq!(stats.len(), 1);
    assert!(
        stats[0]
            .stats
            .memory
            .as_ref()
            .is_some_and(|m| m.usage_bytes > 0),
        "{stats:?}"
    );
    let namespaces = host.engine().namespaces();
    let inode = |process: &str, kind: &str| {
        namespaces
            .iter()
            .find(|n| n.process == process && n.kind == kind)
            .map(|n| n.inode)
    };
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(inode("pause", kind), inode("web", kind), "{kind}");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(inode("pause", kind), inode("web", kind), "{kind}");
    }
    host.end();
}

#[test]
fn exec_in_a_container() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("e"))
        .expect("sandbox");
    let main = host.container("e", "main", &["sleep", "inf"]);
    host.start(&main);
    for (argv, code) in [
        (vec!["/toolbox", "env"], 0),
        (vec!["/toolbox", "exit", "9"], 9),
    ] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        let config = ExecConfig {
            argv: argv.into_iter().map(str::to_owned).collect(),
            ..ExecConfig::default()
        };
        let stdio = Stdio {
            stdout: Some(writer.into()),
            ..Stdio::default()
        };
        let handle = host.engine().exec(&main.id, &config, stdio);
        let handle = handle.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(
            host.engine().exec_wait(&main.id, &handle).expect("wait"),
            code
        );
        let text = std::io::read_to_string(reader).expect("output");
        assert!(code != 0 || text.contains("GREETING=hello"), "{text}");
    }
    let missing = ExecConfig {
        argv: vec!["/not-there".into()],
        ..ExecConfig::default()
    };
    let error = host
        .engine()
        .exec(&main.id, &missing, Stdio::default())
        .expect_err("missing");
    assert!(chain(&error).contains("/not-there"), "{}", chain(&error));
    host.end();
}

#[test]
fn an_oom_kill_is_an_event_and_a_reason() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("o"))
        .expect("sandbox");
    let mut hog = host.container("o", "hog", &["hog-memory", "256Mi"]);
    hog.resources.memory_limit_bytes = Some(32 << 20);
    hog.resources.memory_swap_bytes = Some(32 << 20);
    host.start(&hog);
    let mut oom = None;
    let exit = loop {
        match host.events.recv_timeout(LIMIT).expect("an event") {
            Event::Oom {
                kills, limit_bytes, ..
            } => oom = Some((kills, limit_bytes)),
            Event::Exited { exit, .. } => break exit.expect("known"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    if let Some((kills, limit)) = oom {
        assert_eq!((kills, limit), (1, Some(32 << 20)));
    }
    host.end();
}

#[test]
fn a_writer_dies_and_the_next_one_sees_the_truth() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("r"))
        .expect("sandbox");
    let long = host.container("r", "long", &["run", "write /tmp-up x; sleep inf"]);
    let short = host.container(
        "r",
        "short",
        &["run", "echo one; sleep 0.3; echo two; exit 5"],
    );
    host.start(&long);
    host.start(&short);
    let before = host
        .engine()
        .sandbox(&"r".to_owned())
        .expect("status")
        .expect("there");
    host.crash();
    let exit = loop {
        let status = host
            .engine()
            .sandbox(&"r".to_owned())
            .expect("status")
            .expect("there");
        let short = status
            .containers
            .iter()
            .find(|c| c.id.name == "short")
            .expect("short");
        match &short.state {
            ContainerState::Exited(exit) => break exit.clone(),
            ContainerState::Running => drop(host.events.recv_timeout(LIMIT)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(exit.code, 5);
    assert_eq!(host.log(&short.id), ["one", "two"]);
    let after = host
        .engine()
        .sandbox(&"r".to_owned())
        .expect("status")
        .expect("there");
    assert!(after.ready);
    assert_eq!(before.addresses, after.addresses);
    assert_eq!(before.pause_pid, after.pause_pid);
    let pid = |s: &rkube_engine::api::SandboxStatus| {
        s.containers
            .iter()
            .find(|c| c.id.name == "long")
            .and_then(|c| c.pid)
    };
    assert_eq!(pid(&before), pid(&after));
    host.end();
}

#[test]
fn a_writer_that_says_goodbye_leaves_the_keepers() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("g"))
        .expect("sandbox");
    let main = host.container("g", "main", &["sleep", "inf"]);
    host.start(&main);
    let before = host.status("g");
    host.engine().close();
    // A keeper that is taken for dead would be replaced within this time.
    std::thread::sleep(Duration::from_millis(300));
    host.crash();
    let after = host.status("g");
    assert!(after.ready);
    assert_eq!(before.keeper_pid, after.keeper_pid);
    assert_eq!(before.containers, after.containers);
    host.end();
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries.map(|e| e.path()).find_map(|path| {
        if path.file_name().is_some_and(|n| n == name) {
            return Some(path);
        }
        path.is_dir().then(|| find(&path, name)).flatten()
    })
}

#[test]
fn a_keeper_of_an_older_rkube_is_replaced() {
    use rkube_keeper::protocol::Reply;
    use rkube_keeper::{socket, wire};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("o"))
        .expect("sandbox");
    let main = host.container("o", "main", &["sleep", "inf"]);
    host.start(&main);
    let before = host.status("o");
    host.engine().close();
    // In the keeper's place answers one that speaks an older protocol.
    let path = find(&host.root.join("run"), "keeper.sock").expect("socket");
    std::fs::remove_file(&path).expect("remove");
    let listener =
        rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("make socket");
    let address = SocketAddrUnix::new(&path).expect("address");
    rustix::net::bind(&listener, &address).expect("bind");
    rustix::net::listen(&listener, 1).expect("listen");
    let old = std::thread::spawn(move || {
        let caller = rustix::net::accept(&listener).expect("accept");
        socket::receive(caller.as_fd()).expect("hear");
        let hello = Reply::Hello {
            version: wire::PROTOCOL_VERSION - 1,
            pid: 1,
            processes: Vec::new(),
        };
        socket::send(caller.as_fd(), &wire::encode(&hello), &[]).expect("say");
    });
    host.crash();
    old.join().expect("the old keeper");
    let after = host.status("o");
    assert!(after.ready);
    assert_ne!(before.keeper_pid, after.keeper_pid);
    assert_eq!(before.containers, after.containers);
    host.end();
}

/// Whether a log has every line in order, with at most one step back: what a
/// killed keeper had written and not yet taken from its FIFO is written again.
fn is_whole(log: &[String], lines: &[&str]) -> bool {
    (0..=lines.len()).any(|read| {
        let told = |taken: usize| lines[..read].iter().chain(&lines[taken..]).copied();
        (0..=read).any(|taken| log.iter().map(String::as_str).eq(told(taken)))
    })
}

#[test]
fn a_keeper_dies_and_nothing_restarts() {
    let host = Host::new();
    let status = host
        .engine()
        .run_sandbox(&host.sandbox("k"))
        .expect("sandbox");
    let main = host.container(
        "k",
        "main",
        &[
            "run",
            "echo one; sleep 0.5; echo two; sleep 0.5; echo three; sleep inf",
        ],
    );
    host.start(&main);
    let before = host
        .engine()
        .sandbox(&"k".to_owned())
        .expect("status")
        .expect("there");
    let keeper = i32::try_from(status.keeper_pid.expect("keeper")).expect("pid");
    let keeper = rustix::process::Pid::from_raw(keeper).expect("pid");
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("kill");
    let deadline = std::time::Instant::now() + LIMIT;
    while host.log(&main.id).last().map(String::as_str) != Some("three") {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            host.log(&main.id)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = host.log(&main.id);
    assert!(is_whole(&log, &["one", "two", "three"]), "{log:?}");
    let after = host
        .engine()
        .sandbox(&"k".to_owned())
        .expect("status")
        .expect("there");
    assert!(after.ready);
    assert_eq!(before.containers, after.containers);
    assert_ne!(before.keeper_pid, after.keeper_pid);
    host.engine().signal(&main.id, 9, false).expect("kill");
    loop {
        if let Event::Exited { exit, .. } = host.events.recv_timeout(LIMIT).expect("an end") {
            // The kernel tells a non-parent since 6.15.
            assert!(exit.is_none_or(|e| e.code == 137));
            break;
        }
    }
    host.end();
}

#[test]
fn a_container_may_be_called_as_anything() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("c"))
        .expect("sandbox");
    // One filter does for all.
    let filters = host.root.join("run/rkube/filters");
    let filters = || std::fs::read_dir(&filters).expect("list").count();
    assert_eq!(filters(), 0);
    for name in ["exec", "pause", "keeper"] {
        let config = host.container("c", name, &["exit", "6"]);
        host.start(&config);
        assert_eq!(host.exited(&config.id).code, 6, "{name}");
        assert_eq!(filters(), 1);
    }
    assert!(host.status("c").ready);
    host.end();
}

#[test]
fn an_exec_gets_nothing_of_the_host() {
    use std::os::unix::fs::MetadataExt;
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("h"))
        .expect("sandbox");
    let main = host.container("h", "main", &["sleep", "inf"]);
    host.start(&main);
    let config = ExecConfig {
        argv: vec!["/toolbox".into(), "sleep".into(), "inf".into()],
        ..ExecConfig::default()
    };
    let path = host.root.join("script");
    std::fs::write(&path, "text").expect("write");
    let file = std::fs::File::open(&path).expect("open");
    let null = std::fs::File::open("/dev/null").expect("open");
    for given in [file, null] {
        let stdio = Stdio {
            stdin: Some(given.into()),
            ..Stdio::default()
        };
        let refused = host.engine().exec(&main.id, &config, stdio);
        let refused = chain(&refused.expect_err("it has a name"));
        assert!(refused.contains("standard input"), "{refused}");
    }
    let handle = host.engine().exec(&main.id, &config, Stdio::default());
    let handle = handle.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let hosts = std::fs::metadata("/dev/null").expect("stat");
    for n in 0..3 {
        let own = std::fs::metadata(format!("/proc/{}/fd/{n}", handle.pid)).expect("stat");
        assert_eq!(own.rdev(), hosts.rdev(), "a null device");
        assert_ne!(
            (own.dev(), own.ino()),
            (hosts.dev(), hosts.ino()),
            "not the host's"
        );
    }
    host.end();
}

#[test]
fn each_kill_is_told_once() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("m"))
        .expect("sandbox");
    let mut hog = host.container("m", "hog", &["hog-memory", "256Mi"]);
    hog.resources.memory_limit_bytes = Some(32 << 20);
    hog.resources.memory_swap_bytes = Some(32 << 20);
    host.start(&hog);
    // A pause without news, after the end.
    let mut ended = false;
    let mut told = Vec::new();
    loop {
        let limit = if ended && !told.is_empty() {
            Duration::from_millis(500)
        } else {
            LIMIT
        };
        match host.events.recv_timeout(limit) {
            Ok(Event::Oom { id, kills, .. }) => told.push((id, kills)),
            Ok(Event::Exited { .. }) => {
                ended = true;
                // The kernel tells once more when the group goes.
                host.engine().remove_container(&hog.id).expect("remove");
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => break,
        }
    }
    assert!(ended);
    assert_eq!(told, [(hog.id.clone(), 1)]);
    host.end();
}

#[test]
fn a_reset_takes_what_is_its_own() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("q"))
        .expect("sandbox");
    let logs = host.root.join("var/log/pods");
    let (own, other) = (logs.join("q"), logs.join("of-another-kubelet"));
    std::fs::create_dir(&other).expect("directory");
    let main = host.container("q", "main", &["sleep", "inf"]);
    host.start(&main);
    assert!(own.join("main/0.log").exists());
    host.reset(|root| {
        assert!(!own.exists() && other.exists());
        assert!(!root.join("var/lib/rkube").exists());
        assert!(!root.join("run/rkube").exists());
    });
}
