//! A real keeper with real namespaces: pause, containers, logs, records,
//! exec, a controller that goes and one that comes, a keeper that dies.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rkube_keeper::plan::{CgroupEntry, Join, Plan, Program, Step};
use rkube_keeper::protocol::{Kind, LogTarget, ProcessStatus, Reply, Request, StartRequest};
use rkube_keeper::socket;
use rkube_keeper::wire::{self, PROTOCOL_VERSION};
use rkube_sys::clone::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS};
use rkube_sys::mount::MS_SLAVE;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

struct Pod {
    dir: PathBuf,
    child: Child,
    control: OwnedFd,
    token: u64,
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

fn new_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("rkube-keeper-{}-{n}", std::process::id()));
    std::fs::create_dir(&dir).expect("temp dir");
    let root = dir.join("root");
    for sub in ["bin", "proc", "dev"] {
        std::fs::create_dir_all(root.join(sub)).expect("root");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is needed");
    dir
}

fn spawn(dir: &Path) -> (Child, OwnedFd, Vec<ProcessStatus>) {
    let (ours, theirs) = socket::pair().expect("pair");
    let child = Command::new(env!("CARGO_BIN_EXE_rkube-keeper"))
        .arg("keeper")
        .stdin(Stdio::from(theirs))
        .spawn()
        .expect("spawn");
    let path = dir.join("keeper.sock");
    let _ = std::fs::remove_file(&path);
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
    let listener = listener.expect("socket");
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).expect("address")).expect("bind");
    rustix::net::listen(&listener, 4).expect("listen");
    let run = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let fds = [listener, run.expect("open")];
    let configure = Request::Configure {
        version: PROTOCOL_VERSION,
        pod: "test".into(),
        writer: vec![
            c("/bin/busybox"),
            c("touch"),
            c(&format!("{}/writer", dir.display())),
        ],
    };
    socket::send(
        ours.as_fd(),
        &wire::encode(&configure),
        &socket::borrow(&fds),
    )
    .expect("send");
    let processes = hello(&ours);
    (child, ours, processes)
}

/// A test that fails leaves no keeper behind.
impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hello(control: &OwnedFd) -> Vec<ProcessStatus> {
    let packet = socket::receive(control.as_fd()).expect("receive");
    match wire::decode(&packet.bytes).expect("decode") {
        Reply::Hello { processes, .. } => processes,
        other => panic!("{other:?}"),
    }
}

impl Pod {
    fn new() -> Self {
        let dir = new_dir();
        let (child, control, processes) = spawn(&dir);
        assert!(processes.is_empty());
        Self {
            dir,
            child,
            control,
            token: 0,
        }
    }

    fn reply(&self) -> (Reply, Vec<OwnedFd>) {
        let packet = socket::receive(self.control.as_fd()).expect("receive");
        (wire::decode(&packet.bytes).expect("decode"), packet.fds)
    }

    fn root(&self) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, self.dir.join("root"), flags).expect("open_tree")
    }

    fn send(&mut self, request: impl FnOnce(u64) -> Request, fds: &[OwnedFd]) -> u64 {
        self.token += 1;
        let bytes = wire::encode(&request(self.token));
        socket::send(self.control.as_fd(), &bytes, &socket::borrow(fds)).expect("send");
        self.token
    }

    fn start(&mut self, key: &str, kind: Kind, plan: &Plan, fds: Vec<OwnedFd>) -> Reply {
        let mut all =
            vec![rkube_sys::memfd::sealed_data(c"plan", &wire::encode(plan)).expect("memfd")];
        all.extend(fds);
        let path = self
            .dir
            .join(format!("{key}.log"))
            .to_string_lossy()
            .into_owned();
        let log = matches!(kind, Kind::Container {}).then_some(LogTarget {
            path,
            max_bytes: 1 << 20,
            max_files: 3,
        });
        let request = StartRequest {
            key: key.into(),
            kind,
            log,
            stdin: false,
            oom_counter: false,
        };
        self.send(|token| Request::Start { token, request }, &all);
        self.reply().0
    }

    fn pause(&mut self) -> ProcessStatus {
        let plan = Plan {
            new_namespaces: CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
            steps: vec![Step::Hostname { name: c("pod-a") }, Step::LoopbackUp {}],
            ..Plan::default()
        };
        match self.start("pause", Kind::Pause {}, &plan, Vec::new()) {
            Reply::Started { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    fn container_plan(&self, pause: &ProcessStatus, script: &str) -> (Plan, Vec<OwnedFd>) {
        let mut fds = vec![self.root()];
        let mut joins = Vec::new();
        for (name, kind) in [
            ("net", CLONE_NEWNET),
            ("ipc", CLONE_NEWIPC),
            ("uts", CLONE_NEWUTS),
        ] {
            let path = format!("/proc/{}/ns/{name}", pause.pid);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            fds.push(rustix::fs::open(path, flags, Mode::empty()).expect("namespace"));
            joins.push(Join {
                kind,
                fd: u16::try_from(fds.len() - 1).expect("few"),
            });
        }
        let node = |path, minor| Step::Device {
            path: c(path),
            mode: 0o020_666,
            major: 1,
            minor,
            uid: 0,
            gid: 0,
        };
        let plan = Plan {
            id: "c".into(),
            new_namespaces: CLONE_NEWNS | CLONE_NEWPID,
            joins,
            cgroup: CgroupEntry {
                namespace: true,
                ..CgroupEntry::default()
            },
            steps: vec![
                Step::Propagation { flag: MS_SLAVE },
                Step::Filesystem {
                    slot: 0,
                    kind: c("proc"),
                    source: c("proc"),
                    options: Vec::new(),
                    attributes: 0,
                },
                Step::Filesystem {
                    slot: 1,
                    kind: c("tmpfs"),
                    source: c("tmpfs"),
                    options: vec![(c("mode"), Some(c("755")))],
                    attributes: 0,
                },
                Step::PivotRoot {
                    fd: 0,
                    no_pivot: false,
                },
                Step::Attach {
                    slot: 0,
                    target: c("/proc"),
                    propagation: 0,
                },
                Step::Attach {
                    slot: 1,
                    target: c("/dev"),
                    propagation: 0,
                },
                node("/dev/null", 3),
                node("/dev/zero", 5),
                Step::Symlink {
                    path: c("/dev/fd"),
                    target: c("/proc/self/fd"),
                },
                Step::Mask {
                    path: c("/proc/acpi"),
                },
                Step::ReadOnly {
                    path: c("/proc/sys"),
                },
                Step::RootReadOnly {},
            ],
            program: Program {
                argv: vec![c("/bin/busybox"), c("sh"), c("-c"), c(script)],
                env: vec![c("PATH=/bin")],
                cwd: c("/"),
                uid: 1000,
                gid: 1000,
                no_new_privileges: true,
                ..Program::default()
            },
            ..Plan::default()
        };
        (plan, fds)
    }

    fn exited(&self) -> ProcessStatus {
        match self.reply().0 {
            Reply::Exited { status } => status,
            other => panic!("{other:?}"),
        }
    }

    fn done(&self, token: u64) {
        match self.reply().0 {
            Reply::Done { token: t } if t == token => {}
            other => panic!("{other:?}"),
        }
    }

    fn log(&self, key: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(format!("{key}.log"))).expect("log");
        text.lines()
            .map(|l| l.split_once(' ').expect("entry").1.to_owned())
            .collect()
    }

    fn end(mut self) {
        let token = self.send(
            |token| Request::Signal {
                token,
                key: "pause".into(),
                signal: 9,
            },
            &[],
        );
        let mut left = 2;
        while left > 0 {
            match self.reply().0 {
                Reply::Done { token: t } => assert_eq!(t, token),
                Reply::Exited { status } => assert_eq!(status.key, "pause"),
                other => panic!("{other:?}"),
            }
            left -= 1;
        }
        let token = self.send(|token| Request::Shutdown { token }, &[]);
        self.done(token);
        assert!(self.child.wait().expect("wait").success());
        std::fs::remove_dir_all(&self.dir).expect("clean up");
    }
}

#[test]
fn a_container_runs_in_the_pods_namespaces() {
    let mut pod = Pod::new();
    let pause = pod.pause();
    let script = "busybox hostname; busybox id -u; echo $$; busybox cat /proc/1/comm; \
        echo oops >&2; busybox touch /x || echo sealed; busybox ls /proc/self/fd | busybox wc -l; \
        busybox grep -c . /proc/self/mounts; exit 7";
    let (plan, fds) = pod.container_plan(&pause, script);
    let started = pod.start("app.0", Kind::Container {}, &plan, fds);
    assert!(matches!(started, Reply::Started { .. }), "{started:?}");
    let status = pod.exited();
    let exit = status.exit.clone().expect("ended");
    assert_eq!((exit.code, exit.signal), (7, 0), "{:?}", pod.log("app.0"));
    let log = pod.log("app.0");
    let out: Vec<_> = log
        .iter()
        .filter_map(|l| l.strip_prefix("stdout F "))
        .collect();
    // ls holds one descriptor of its own beside the standard streams.
    assert_eq!(
        out[..6],
        ["pod-a", "1000", "1", "busybox", "sealed", "4"],
        "{log:?}"
    );
    assert!(log.contains(&"stderr F oops".to_owned()), "{log:?}");
    let record = std::fs::read(pod.dir.join("app.0.proc")).expect("record");
    assert_eq!(wire::decode::<ProcessStatus>(&record), Ok(status));
    let token = pod.send(
        |token| Request::Forget {
            token,
            key: "app.0".into(),
        },
        &[],
    );
    pod.done(token);
    assert!(!pod.dir.join("app.0.proc").exists());
    pod.end();
}

#[test]
fn what_cannot_be_executed_is_told() {
    let mut pod = Pod::new();
    let pause = pod.pause();
    let (mut plan, fds) = pod.container_plan(&pause, "");
    plan.program.argv = vec![c("not-there")];
    match pod.start("app.0", Kind::Container {}, &plan, fds) {
        Reply::Failed { failure, .. } => {
            assert_eq!(failure.operation, "execute");
            assert_eq!(failure.object, "not-there");
            assert_eq!(failure.errno, 2);
        }
        other => panic!("{other:?}"),
    }
    let (mut plan, fds) = pod.container_plan(&pause, "");
    plan.steps.insert(
        5,
        Step::Attach {
            slot: 9,
            target: c("/x"),
            propagation: 0,
        },
    );
    match pod.start("app.0", Kind::Container {}, &plan, fds) {
        Reply::Failed { failure, .. } => assert_eq!(failure.operation, "attach"),
        other => panic!("{other:?}"),
    }
    pod.end();
}

#[test]
fn a_controller_goes_and_another_comes() {
    let mut pod = Pod::new();
    let pause = pod.pause();
    let (plan, fds) = pod.container_plan(&pause, "echo ready; read x < /dev/zero; exit 3");
    let (mut plan, fds) = (plan, fds);
    plan.program.argv[3] = c("echo one; busybox sleep 0.2; echo two; exit 3");
    assert!(matches!(
        pod.start("app.0", Kind::Container {}, &plan, fds),
        Reply::Started { .. }
    ));
    // As a killed controller: the socket closes without a word.
    let (lost, _) = socket::pair().expect("pair");
    drop(std::mem::replace(&mut pod.control, lost));
    // The keeper starts the writer at once, and goes on by itself.
    let ended = || {
        let record = std::fs::read(pod.dir.join("app.0.proc")).expect("record");
        wire::decode::<ProcessStatus>(&record).is_ok_and(|s| s.exit.is_some())
    };
    while !pod.dir.join("writer").exists() || !ended() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let again = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
    let again = again.expect("socket");
    let address = SocketAddrUnix::new(pod.dir.join("keeper.sock")).expect("address");
    rustix::net::connect(&again, &address).expect("connect");
    let processes = hello(&again);
    pod.control = again;
    let app = processes.iter().find(|p| p.key == "app.0").expect("listed");
    assert_eq!(app.exit.as_ref().expect("ended").code, 3);
    assert_eq!(pod.log("app.0"), ["stdout F one", "stdout F two"]);
    pod.end();
}

#[test]
fn a_keeper_dies_and_its_container_is_adopted() {
    let mut pod = Pod::new();
    let pause = pod.pause();
    let script = "echo one; busybox sleep 0.3; echo two; busybox sleep 0.3; echo three; exit 4";
    let (plan, fds) = pod.container_plan(&pause, script);
    let Reply::Started { status, .. } = pod.start("app.0", Kind::Container {}, &plan, fds) else {
        panic!("not started");
    };
    let pidfd = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).expect("pid");
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd")
    };
    let (app, held) = (pidfd(status.pid), pidfd(pause.pid));
    // The orphan comes to this process and stays a zombie until the keeper has
    // looked, as it does below a supervisor.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("subreaper");
    pod.child.kill().expect("kill");
    pod.child.wait().expect("wait");
    let (child, control, processes) = spawn(&pod.dir);
    assert!(processes.is_empty());
    pod.child = child;
    pod.control = control;
    let adopt = |status: &ProcessStatus, kind: Kind, log: Option<LogTarget>| StartRequest {
        key: status.key.clone(),
        kind,
        log,
        stdin: false,
        oom_counter: false,
    };
    let path = pod.dir.join("app.0.log").to_string_lossy().into_owned();
    let log = LogTarget {
        path,
        max_bytes: 1 << 20,
        max_files: 3,
    };
    let request = adopt(&pause, Kind::Pause {}, None);
    let known = pause.clone();
    let token = pod.send(
        |token| Request::Adopt {
            token,
            request,
            status: known,
            terminal: false,
        },
        &[held],
    );
    pod.done(token);
    let request = adopt(&status, Kind::Container {}, Some(log));
    let mut wrong = status.clone();
    wrong.start_ticks += 1;
    let other = app.try_clone().expect("dup");
    let refused = request.clone();
    pod.send(
        |token| Request::Adopt {
            token,
            request: refused,
            status: wrong,
            terminal: false,
        },
        &[other],
    );
    assert!(matches!(pod.reply().0, Reply::Failed { .. }));
    let known = status.clone();
    let token = pod.send(
        |token| Request::Adopt {
            token,
            request,
            status: known,
            terminal: false,
        },
        &[app],
    );
    pod.done(token);
    let status = pod.exited();
    assert_eq!(
        pod.log("app.0"),
        ["stdout F one", "stdout F two", "stdout F three"]
    );
    assert_eq!(status.exit.expect("ended").code, 4);
    pod.end();
}
