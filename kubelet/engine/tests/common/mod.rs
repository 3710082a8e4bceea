//! A host of a test's own: real namespaces, cgroups, network and images, in a
//! network namespace that goes with the test.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rkube_engine::api::{
    ContainerConfig, ContainerId, ContainerRuntime, Event, NamespaceMode, Resources, SandboxConfig,
    SandboxStatus, SecurityConfig,
};
use rkube_engine::{Engine, EngineConfig, Instance, chain};
use rkube_image::{BuiltinContent, BuiltinFile, RootfsConfig};

const IMAGE: &str = "rkube.local/toolbox";
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    pub(crate) root: PathBuf,
    engine: Option<Engine>,
    pub(crate) events: Receiver<Event>,
}

pub(crate) fn config(root: &Path) -> EngineConfig {
    EngineConfig {
        instance: Instance::open(root).expect("instance"),
        writer: Vec::new(),
        pod_ranges: None,
        cluster_ranges: Vec::new(),
    }
}

pub(crate) fn open(root: &Path) -> (Engine, Receiver<Event>) {
    let (sender, events) = channel();
    let sink = Box::new(move |event| drop(sender.send(event)));
    let engine = Engine::open(config(root), sink).unwrap_or_else(|e| panic!("{}", chain(&e)));
    (engine, events)
}

impl Host {
    pub(crate) fn new() -> Self {
        rkube_sys::netlink::unshare_network().expect("network namespace");
        let root = tempfile::tempdir().expect("temp dir").keep();
        let (engine, events) = open(&root);
        let toolbox = rkube_toolbox::elf().expect("toolbox");
        let file = BuiltinFile {
            path: "toolbox",
            mode: 0o755,
            content: BuiltinContent::File(&toolbox),
        };
        let image = RootfsConfig {
            entrypoint: vec!["/toolbox".into()],
            ..RootfsConfig::default()
        };
        engine
            .images()
            .ensure_builtin(IMAGE, None, &[file], &image)
            .expect("image");
        Self {
            root,
            engine: Some(engine),
            events,
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open")
    }

    /// As if the process had been killed: nothing is said to anybody, the
    /// kernel closes its descriptors.
    pub(crate) fn crash(&mut self) {
        self.crash_and(|_| {});
    }

    /// Something happens while no engine runs.
    pub(crate) fn crash_and(&mut self, meanwhile: impl FnOnce(&Path)) {
        drop(self.engine.take());
        meanwhile(&self.root);
        let (engine, events) = open(&self.root);
        self.engine = Some(engine);
        self.events = events;
    }

    pub(crate) fn sandbox(&self, id: &str) -> SandboxConfig {
        SandboxConfig {
            id: id.into(),
            display_name: format!("test/{id}"),
            hostname: format!("host-{id}"),
            domainname: None,
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            user_namespace: false,
            ports: Vec::new(),
            sysctls: BTreeMap::new(),
            cgroup: format!("kubepods/pod{id}"),
            resources: Resources::default(),
            parent_resources: BTreeMap::new(),
            log_dir: self.root.join("var/log/pods").join(id),
            shm_bytes: 64 << 20,
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn container(&self, sandbox: &str, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            id: ContainerId {
                sandbox: sandbox.into(),
                name: name.into(),
                attempt: 0,
            },
            image: IMAGE.into(),
            command: None,
            args: Some(args.iter().map(|a| (*a).to_owned()).collect()),
            env: vec![("GREETING".into(), "hello".into())],
            working_dir: None,
            mounts: Vec::new(),
            security: SecurityConfig {
                no_new_privileges: true,
                ..SecurityConfig::default()
            },
            resources: Resources {
                memory_limit_bytes: Some(64 << 20),
                cpu_shares: Some(102),
                ..Resources::default()
            },
            oom_score_adj: 100,
            tty: false,
            stdin: false,
            stdin_once: false,
            stop_signal: None,
            pressure_alarms: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn start(&self, config: &ContainerConfig) {
        let started = self.engine().start_container(config);
        started.unwrap_or_else(|e| panic!("start {}: {}", config.id, chain(&e)));
    }

    pub(crate) fn status(&self, sandbox: &str) -> SandboxStatus {
        let status = self.engine().sandbox(&sandbox.to_owned()).expect("status");
        status.expect("there")
    }

    pub(crate) fn exited(&self, id: &ContainerId) -> rkube_engine::api::Exit {
        loop {
            match self.events.recv_timeout(LIMIT).expect("an end") {
                Event::Exited { id: other, exit } if other == *id => return exit.expect("known"),
                _ => {}
            }
        }
    }

    pub(crate) fn log(&self, id: &ContainerId) -> Vec<String> {
        let path = self.root.join(format!(
            "var/log/pods/{}/{}/{}.log",
            id.sandbox, id.name, id.attempt
        ));
        let text = std::fs::read_to_string(path).expect("log");
        text.lines()
            .map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned())
            .collect()
    }

    pub(crate) fn end(self) {
        self.reset(|_| {});
    }

    /// Takes everything down; what is left is looked at before it goes.
    pub(crate) fn reset(mut self, look: impl FnOnce(&Path)) {
        let iid = Instance::open(&self.root).expect("instance").iid;
        drop(self.engine.take());
        let reset = Engine::reset(config(&self.root), &[]);
        reset.unwrap_or_else(|e| panic!("reset: {}", chain(&e)));
        look(&self.root);
        let left = std::process::Command::new("find")
            .args(["/sys/fs/cgroup", "-name", &format!("*{iid}*")])
            .output()
            .expect("find");
        assert_eq!(String::from_utf8_lossy(&left.stdout), "");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(&*self.root.to_string_lossy()), "{mounts}");
        std::fs::remove_dir_all(&self.root).expect("clean up");
    }
}

/// A process of this host, held so that its pid means no other.
pub(crate) fn hold(pid: Option<u32>) -> std::os::fd::OwnedFd {
    let pid = i32::try_from(pid.expect("it has a pid")).expect("pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("pid");
    let flags = rustix::process::PidfdFlags::empty();
    rustix::process::pidfd_open(pid, flags).expect("it lives")
}

/// Whether a held process ends within a limit.
pub(crate) fn ends(pidfd: &std::os::fd::OwnedFd, limit: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(limit).expect("a limit");
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).expect("poll") > 0
}

/// Kills a held process and waits for its end.
pub(crate) fn kill(pidfd: &std::os::fd::OwnedFd) {
    let signal = rustix::process::Signal::KILL;
    rustix::process::pidfd_send_signal(pidfd, signal).expect("kill");
    assert!(ends(pidfd, LIMIT));
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LIMIT;
    while !so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
