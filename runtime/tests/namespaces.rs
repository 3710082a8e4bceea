//! User and time namespaces, maps of owners, and whoever is asked about
//! system calls.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use bundle::{Bundle, exec, wait};
use rkube_runtime::lifecycle::{self, Signal};
use serde_json::{Value, json};

/// First id on the host of the containers here.
const BASE: u32 = 700_000_000;

fn namespaces(spec: &mut Value) -> &mut Vec<Value> {
    spec["linux"]["namespaces"].as_array_mut().unwrap()
}

/// Gives a container a user namespace of its own, and its root file system to
/// that namespace's root.
fn in_user_namespace(bundle: &mut Bundle) {
    namespaces(&mut bundle.spec).push(json!({"type": "user"}));
    map(&mut bundle.spec);
    own(&bundle.dir.path().join("rootfs"), BASE);
}

fn map(spec: &mut Value) {
    let range = json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
    spec["linux"]["uidMappings"] = range.clone();
    spec["linux"]["gidMappings"] = range;
}

fn own(dir: &Path, base: u32) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            own(&path, base);
        } else {
            std::os::unix::fs::lchown(path, Some(base), Some(base)).unwrap();
        }
    }
    std::os::unix::fs::chown(dir, Some(base), Some(base)).unwrap();
    // The tests' own directory is closed to others.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn open_up(bundle: &Bundle) {
    let mode = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(bundle.dir.path(), mode).unwrap();
}

#[test]
fn a_user_namespace_of_its_own() {
    let mut bundle = Bundle::shell(
        "id -u; cat /proc/self/uid_map; echo x > /made && stat -c %u:%g /made /dev/null /proc; \
         cat /proc/self/oom_score_adj; cat /dev/null && echo readable; hostname inside && hostname",
    );
    in_user_namespace(&mut bundle);
    bundle.spec["root"]["readonly"] = false.into();
    bundle.spec["process"]["oomScoreAdj"] = 500.into();
    let caps = json!(["CAP_SYS_ADMIN", "CAP_CHOWN"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.spec["process"]["capabilities"][set] = caps.clone();
    }
    let (code, text) = bundle.run();
    let map = format!("0 {BASE} 65536");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..4].join(" "), format!("0 {map}"), "{text}");
    // A device of the host's, and what the kernel owns, belong to nobody here.
    let rest = "0:0 65534:65534 65534:65534 500 readable inside";
    assert_eq!(words[4..].join(" "), rest, "{text}");
    assert_eq!(code, 0);
    let made = bundle.dir.path().join("rootfs/made");
    assert_eq!(std::fs::metadata(made).unwrap().uid(), BASE);
    bundle.nothing_is_left();
}

#[test]
fn execs_get_into_the_user_namespace() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    in_user_namespace(&mut bundle);
    namespaces(&mut bundle.spec).push(json!({"type": "time"}));
    let (made, _output) = bundle.create().unwrap();
    // Into one that waits for its start, and into one that runs.
    for started in [false, true] {
        if started {
            made.container.start().unwrap();
        }
        let script = "for n in user mnt pid net ipc uts cgroup time; do \
             readlink /proc/self/ns/$n; done; id -u; id -G; echo > /dev/stdout; \
             cat /proc/self/cgroup | grep -v ':/$' | grep -c .";
        let (code, text) = exec(&made.container, |process| {
            process["args"] = json!(["sh", "-c", script]);
            process["user"] = json!({"uid": 7, "gid": 7});
        })
        .unwrap();
        let pid = made.container.record.pid;
        let mut wanted: Vec<String> = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"]
            .iter()
            .map(|n| {
                let link = std::fs::read_link(format!("/proc/{pid}/ns/{n}")).unwrap();
                link.to_str().unwrap().to_owned()
            })
            .collect();
        wanted.extend([
            "7".to_owned(),
            "7".to_owned(),
            String::new(),
            "0".to_owned(),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, wanted, "{code}");
    }
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
    bundle.nothing_is_left();
}

#[test]
fn every_namespace_by_path() {
    let mut holder = Bundle::new(&["sleep", "1000"]);
    in_user_namespace(&mut holder);
    namespaces(&mut holder.spec).push(json!({"type": "time"}));
    let (made, _output) = holder.create().unwrap();
    let pid = made.container.record.pid;
    let kinds = [
        ("user", "user"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
        ("time", "time"),
    ];
    let mut guest = Bundle::shell(
        "for n in user net ipc uts pid time mnt; do readlink /proc/self/ns/$n; done; id -u",
    );
    own(&guest.dir.path().join("rootfs"), BASE);
    map(&mut guest.spec);
    let list = namespaces(&mut guest.spec);
    list.retain(|n| matches!(n["type"].as_str(), Some("mount" | "cgroup")));
    for (kind, file) in kinds {
        list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    }
    guest.spec.as_object_mut().unwrap().remove("hostname");
    let (code, text) = guest.run();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(code, 0, "{text}");
    for (n, (_, file)) in kinds.iter().enumerate() {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
        assert_eq!(lines[n], link.to_str().unwrap());
    }
    let mount = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_ne!(lines[6], mount.to_str().unwrap(), "its mounts are its own");
    assert_eq!(lines[7], "0");
    made.container.kill(Signal(9), false).unwrap();
    wait(&made.pidfd);
}

#[test]
fn clocks_of_a_time_namespace() {
    let mut bundle = Bundle::shell("cat /proc/uptime; readlink /proc/self/ns/time");
    namespaces(&mut bundle.spec).push(json!({"type": "time"}));
    bundle.spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 5}, "monotonic": {"secs": 7}});
    let (code, text) = bundle.run();
    assert_eq!(code, 0, "{text}");
    let uptime: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000_000.0, "{text}");
    let own = std::fs::read_link("/proc/self/ns/time").unwrap();
    assert!(!text.contains(own.to_str().unwrap()), "{text}");
    for (offsets, wanted) in [
        (json!({"realtime": {"secs": 1}}), "realtime"),
        (
            json!({"monotonic": {"nanosecs": 1_000_000_000_u32}}),
            "nanosecs",
        ),
    ] {
        bundle.spec["linux"]["timeOffsets"] = offsets;
        let error = bundle.create().map(drop).unwrap_err().chain();
        assert!(error.contains(wanted), "{error}");
    }
    namespaces(&mut bundle.spec).pop();
    let error = bundle.create().map(drop).unwrap_err().chain();
    assert!(error.contains("linux.timeOffsets"), "{error}");
    bundle.nothing_is_left();
}

/// Owners in a bind mount: by maps of its own, and by the container's.
#[test]
fn owners_are_mapped() {
    let mut bundle = Bundle::shell(
        "stat -c %u:%g /own/file /container/file /plain/file; echo x > /container/made",
    );
    in_user_namespace(&mut bundle);
    let source = bundle.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "x").unwrap();
    std::os::unix::fs::chown(source.join("file"), Some(3), Some(4)).unwrap();
    open_up(&bundle);
    let mut add = |target: &str, options: Value, extra: Value| {
        let mut mount = json!({"destination": target, "type": "bind", "source": source,
            "options": options});
        for (key, value) in extra.as_object().unwrap() {
            mount[key] = value.clone();
        }
        bundle.spec["mounts"].as_array_mut().unwrap().push(mount);
    };
    // On the file system 3 is seen as the host's BASE + 40.
    let uids = json!([{"containerID": 0, "hostID": BASE, "size": 3},
        {"containerID": 3, "hostID": BASE + 40, "size": 1}]);
    let gids = json!([{"containerID": 0, "hostID": BASE + 50, "size": 100}]);
    add(
        "/own",
        json!(["rbind"]),
        json!({"uidMappings": uids, "gidMappings": gids}),
    );
    add("/container", json!(["rbind", "ridmap"]), json!({}));
    add("/plain", json!(["rbind"]), json!({}));
    let (code, text) = bundle.run();
    assert_eq!(text, "40:54\n3:4\n65534:65534\n", "exit code {code}");
    let made = std::fs::metadata(source.join("made")).unwrap();
    assert_eq!(
        (made.uid(), made.gid()),
        (0, 0),
        "as the file system has it"
    );
    bundle.nothing_is_left();
}

/// Root of a user namespace with every capability is nobody on the host.
#[test]
fn root_of_a_user_namespace_gets_nothing_of_the_hosts() {
    let mut bundle = Bundle::shell(
        "cat /v/secret; echo x > /v/open; chown 0:0 /v/open; chmod 777 /v/open; mknod /d c 1 3; \
         mount -t tmpfs none /v && echo mounted; echo 1 > /proc/sys/kernel/panic; \
         echo 0 > /proc/sysrq-trigger; echo end",
    );
    for name in ["chown", "chmod", "mknod", "mount"] {
        let at = bundle.dir.path().join("rootfs/bin").join(name);
        std::os::unix::fs::symlink("busybox", at).unwrap();
    }
    in_user_namespace(&mut bundle);
    bundle.spec["root"]["readonly"] = false.into();
    bundle.spec["linux"]["readonlyPaths"] = json!([]);
    bundle.spec["linux"]["maskedPaths"] = json!([]);
    let all = rkube_runtime::capability::names(rkube_runtime::capability::all());
    for set in ["bounding", "effective", "permitted"] {
        bundle.spec["process"]["capabilities"][set] = json!(all);
    }
    let source = bundle.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    for (name, mode) in [("secret", 0o600), ("open", 0o644)] {
        std::fs::write(source.join(name), "host").unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(source.join(name), mode).unwrap();
    }
    open_up(&bundle);
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/v", "type": "bind", "source": source, "options": ["rbind"]}));
    let panic = std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    let (_, text) = bundle.run();
    assert!(
        text.ends_with("end\n") && !text.contains("host\n"),
        "{text}"
    );
    for name in ["secret", "open"] {
        let meta = std::fs::metadata(source.join(name)).unwrap();
        assert_eq!(std::fs::read_to_string(source.join(name)).unwrap(), "host");
        assert_eq!(meta.uid(), 0);
    }
    let mode = std::fs::metadata(source.join("open"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(
        !bundle.dir.path().join("rootfs/d").exists(),
        "no device is made"
    );
    let now = std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    assert_eq!(now, panic);
    bundle.nothing_is_left();
}

#[test]
fn maps_that_cannot_be_are_refused() {
    let mut bundle = Bundle::new(&["true"]);
    let source = bundle.dir.path().display().to_string();
    bundle.spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/v", "type": "bind", "source": source, "options": ["bind", "idmap"]}));
    let last = bundle.spec["mounts"].as_array().unwrap().len() - 1;
    let refused = |bundle: &Bundle, wanted: &str| {
        let error = bundle.create().map(drop).unwrap_err().chain();
        assert!(error.contains(wanted), "{error}");
        bundle.nothing_is_left();
    };
    refused(&bundle, "idmap needs maps");
    bundle.spec["mounts"][last]["uidMappings"] =
        json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    refused(&bundle, "belong together");
    bundle.spec["mounts"][last]["gidMappings"] =
        json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    // A file system that has no owners to map.
    bundle.spec["mounts"][last]["source"] = "/proc/self".into();
    refused(&bundle, "map owners of mount /v");
    bundle.spec["mounts"][last]["type"] = "tmpfs".into();
    bundle.spec["mounts"][last]["options"] = json!([]);
    refused(&bundle, "bind mount");
}

#[test]
fn what_is_mounted_is_remounted() {
    let mut bundle = Bundle::shell("echo x > /v/file || echo refused; cat /v/there");
    let source = bundle.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("there"), "there\n").unwrap();
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/v", "type": "bind", "source": source,
        "options": ["bind"]}),
    );
    mounts.push(json!({"destination": "/v", "options": ["remount", "bind", "ro"]}));
    let (_, text) = bundle.run();
    assert!(text.ends_with("refused\nthere\n"), "{text}");
    assert!(!source.join("file").exists());
}

/// Receives one message with its descriptors.
fn receive(listener: &UnixListener) -> (Value, Vec<OwnedFd>) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0_u8; 64 << 10];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let got = recvmsg(&stream, &mut parts, &mut control, RecvFlags::empty()).unwrap();
    let fds = control
        .drain()
        .filter_map(|m| match m {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    (serde_json::from_slice(&bytes[..got.bytes]).unwrap(), fds)
}

#[test]
fn an_agent_is_asked() {
    let mut bundle = Bundle::shell("echo before; stat /made 2>&1 | grep -c such; mkdir /made");
    std::os::unix::fs::symlink("busybox", bundle.dir.path().join("rootfs/bin/mkdir")).unwrap();
    std::os::unix::fs::symlink("busybox", bundle.dir.path().join("rootfs/bin/grep")).unwrap();
    let socket = bundle.dir.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "listenerMetadata": "who",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let (made, mut output) = bundle.create().unwrap();
    let agent = std::thread::spawn(move || {
        let (state, fds) = receive(&listener);
        (state, refuse_one(&fds[0]))
    });
    made.container.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    wait(&made.pidfd);
    let (state, asked_by) = agent.join().unwrap();
    assert_eq!(state["pid"], made.container.record.pid);
    assert_eq!(state["state"]["pid"], made.container.record.pid);
    assert_eq!(state["state"]["id"], bundle.id);
    assert_eq!(state["metadata"], "who");
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert!(asked_by > 0);
    // EXDEV is the agent's answer, and nobody else's.
    assert!(
        text.starts_with("before\n") && text.contains("cross-device"),
        "{text}"
    );
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();

    for (path, calls, wanted) in [
        (Value::Null, json!(["mkdir"]), "listenerPath"),
        (json!("/nowhere/agent"), json!(["mkdir"]), "/nowhere/agent"),
        (json!("/nowhere/agent"), json!(["sendmsg"]), "sendmsg"),
    ] {
        bundle.spec["linux"]["seccomp"]["listenerPath"] = path;
        bundle.spec["linux"]["seccomp"]["syscalls"][0]["names"] = calls;
        let error = bundle.create().map(drop).unwrap_err().chain();
        assert!(error.contains(wanted), "{error}");
        bundle.nothing_is_left();
    }
}

/// Without no_new_privs the filter is in force before the last capabilities
/// go: what they are set with may be asked about, for the agent is there.
#[test]
fn an_agent_is_asked_about_what_comes_before_the_program() {
    let mut bundle = Bundle::shell("echo runs");
    let socket = bundle.dir.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.spec["process"]["noNewPrivileges"] = false.into();
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "syscalls": [{"names": ["capset"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let (made, mut output) = bundle.create().unwrap();
    let (done, answered) = std::sync::mpsc::channel();
    let agent = std::thread::spawn(move || {
        let (_, fds) = receive(&listener);
        let asked = rkube_sys::seccomp::receive(fds[0].as_fd()).unwrap();
        rkube_sys::seccomp::answer(fds[0].as_fd(), asked.id, 0).unwrap();
        done.send(()).unwrap();
    });
    let container = bundle.load();
    let starter = std::thread::spawn(move || container.start());
    let answered = answered.recv_timeout(std::time::Duration::from_secs(20));
    lifecycle_kill_unless(answered.is_ok(), &made);
    assert!(answered.is_ok(), "nobody asked the agent");
    starter.join().unwrap().unwrap();
    agent.join().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "runs\n");
    wait(&made.pidfd);
}

/// Ends a container that would wait for ever.
fn lifecycle_kill_unless(fine: bool, made: &rkube_runtime::lifecycle::Made) {
    if !fine {
        let _ = rkube_sys::signal::pidfd_signal(made.pidfd.as_fd(), 9);
    }
}

/// Answers the first question with EXDEV (seccomp_unotify(2)); the pid that
/// asked.
fn refuse_one(listener: &OwnedFd) -> u32 {
    let asked = rkube_sys::seccomp::receive(listener.as_fd()).unwrap();
    rkube_sys::seccomp::answer(listener.as_fd(), asked.id, -18).unwrap();
    asked.pid
}
