//! Containers from bundles of a static busybox, made, driven and removed on
//! this machine. They need root, a static /bin/busybox and cgroups.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use rkube_runtime::Error;
use rkube_runtime::lifecycle::{self, CreateOptions, Signal, Status};
use serde_json::{Value, json};

use bundle::{Bundle, exec, wait};

#[test]
fn a_life_from_create_to_delete() {
    let bundle = Bundle::shell("read x; echo $x; exit 3");
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (input, typed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let pid_file = bundle.dir.path().join("pid");
    let made = bundle
        .create_with(CreateOptions {
            stdio: [Some(input), Some(write), None],
            pid_file: Some(pid_file.clone()),
            ..CreateOptions::default()
        })
        .unwrap();
    assert_eq!(made.warnings, Vec::<String>::new());
    let container = bundle.load();
    assert_eq!(container.record.pid, made.container.record.pid);
    assert_eq!(container.status().unwrap(), Status::Created);
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert_eq!(pid, container.record.pid.to_string());
    // A second one of this id, and deleting what is not stopped, is refused.
    assert!(matches!(bundle.create(), Err(Error::Exists { .. })));
    let refused = lifecycle::delete(&bundle.store(), &bundle.id, false);
    assert!(matches!(
        refused,
        Err(Error::State {
            status: "created",
            ..
        })
    ));

    container.start().unwrap();
    assert_eq!(container.status().unwrap(), Status::Running);
    assert!(matches!(container.start(), Err(Error::State { .. })));
    rustix::io::write(&typed, b"hello\n").unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    // A zombie has stopped.
    let deadline = Instant::now() + Duration::from_secs(5);
    while container.status().unwrap() != Status::Stopped {
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(
        container.kill(Signal(9), false),
        Err(Error::NotRunning)
    ));
    assert_eq!(wait(&made.pidfd), 3);
    lifecycle::delete(&bundle.store(), &bundle.id, false).unwrap();
    bundle.nothing_is_left();
    let again = lifecycle::delete(&bundle.store(), &bundle.id, false);
    assert!(matches!(again, Err(Error::NotFound { .. })));
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
}

#[test]
fn what_the_program_sees() {
    let mut bundle = Bundle::shell(
        "id; hostname; echo HOME=$HOME; umask; grep -E 'Cap|NoNewPrivs' /proc/self/status; \
         cat /proc/self/cgroup | cut -d: -f3 | sort -u; (echo x > /x) 2>&1; \
         (echo x > /proc/sys/kernel/domainname) 2>&1; cat /proc/keys | wc -c; \
         ls /sys/firmware | wc -l; stat -c '%t:%T' /dev/null; readlink /dev/ptmx; \
         cat /proc/sys/net/ipv4/ip_forward; ls /sys/class/net; pwd; ls -d /proc/[0-9]*; \
         cat /proc/self/oom_score_adj; cat /data/file; (echo x > /data/file) 2>&1",
    );
    for applet in ["grep", "cut", "sort", "wc"] {
        let link = bundle.dir.path().join("rootfs/bin").join(applet);
        std::os::unix::fs::symlink("busybox", link).unwrap();
    }
    let data = bundle.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "bound\n").unwrap();
    bundle.spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9],
        "umask": 0o27});
    bundle.spec["process"]["cwd"] = "/made/here".into();
    bundle.spec["process"]["oomScoreAdj"] = 500.into();
    bundle.spec["root"]["readonly"] = true.into();
    std::fs::create_dir_all(bundle.dir.path().join("rootfs/made/here")).unwrap();
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "source": "data", "options": ["rbind", "rro"]}));
    let (code, text) = bundle.run();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(code, 1, "{text}");
    for wanted in [
        "uid=7(user) gid=8 groups=9",
        "rkube",
        "HOME=/home/user",
        "0027",
        "CapInh:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000020000420",
        "NoNewPrivs:\t1",
        "/",
        "1:3",
        "pts/ptmx",
        "/made/here",
        "500",
        "bound",
        "lo",
    ] {
        assert!(lines.contains(&wanted), "{wanted:?} is missing in\n{text}");
    }
    let count = |what: &str| lines.iter().filter(|l| l.contains(what)).count();
    assert_eq!(count("Read-only file system"), 3, "{text}");
    assert!(lines.contains(&"/proc/1"), "{text}");
    bundle.nothing_is_left();
}

/// The kernel shows the policy of each mapping (numa_maps, proc(5)).
#[test]
fn a_memory_policy_holds() {
    let mut bundle = Bundle::shell("head -n 1 /proc/self/numa_maps");
    let link = bundle.dir.path().join("rootfs/bin/head");
    std::os::unix::fs::symlink("busybox", link).unwrap();
    bundle.spec["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let (code, text) = bundle.run();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("bind=static:0"), "{text}");
    // A node that is not there.
    bundle.spec["linux"]["memoryPolicy"]["nodes"] = "1000".into();
    let error = bundle.create().expect_err("refused");
    let text = error.chain();
    assert!(text.contains("linux.memoryPolicy"), "{text}");
    bundle.nothing_is_left();
}

#[test]
fn execs_join_the_container() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.spec["process"]["noNewPrivileges"] = false.into();
    let (made, _output) = bundle.create().unwrap();
    let container = bundle.load();
    container.start().unwrap();
    let script = |text: &'static str| move |p: &mut Value| p["args"] = json!(["sh", "-c", text]);
    let (code, text) = exec(
        &container,
        script("hostname; readlink /proc/self/ns/pid; cat /proc/self/cgroup; exit 5"),
    )
    .unwrap();
    assert_eq!(code, 5);
    let own = std::fs::read_link(format!("/proc/{}/ns/pid", container.record.pid)).unwrap();
    assert!(text.starts_with("rkube\n"), "{text}");
    assert!(text.contains(own.to_str().unwrap()), "{text}");
    assert!(
        !text.contains("rkube-test"),
        "the cgroup is not the root: {text}"
    );
    let (_, text) = exec(&container, |p| {
        p["args"] = json!(["sh", "-c", "id -u; echo $HOME; pwd"]);
        p["user"]["uid"] = 7.into();
        p["cwd"] = "/etc".into();
    })
    .unwrap();
    assert_eq!(text, "7\n/home/user\n/etc\n");
    let missing = exec(&container, |p| p["args"] = json!(["nothing-like-this"]));
    let error = missing.unwrap_err().chain();
    assert!(error.contains("nothing-like-this"), "{error}");

    assert_eq!(container.pids().unwrap().len(), 1);
    container.pause().unwrap();
    assert_eq!(container.status().unwrap(), Status::Paused);
    assert!(matches!(exec(&container, |_| ()), Err(Error::State { .. })));
    container.resume().unwrap();
    assert_eq!(container.status().unwrap(), Status::Running);
    container.kill("SIGKILL".parse().unwrap(), false).unwrap();
    assert_eq!(wait(&made.pidfd), 128 + 9);
    assert!(matches!(exec(&container, |_| ()), Err(Error::NotRunning)));
}

#[test]
fn a_program_that_is_not_there_is_told() {
    let bundle = Bundle::new(&["/no/such/program"]);
    let error = bundle.create().map(drop).unwrap_err().chain();
    assert!(error.contains("/no/such/program"), "{error}");
    assert!(error.contains("No such file"), "{error}");
    bundle.nothing_is_left();

    // One that cannot be executed is only found out by the kernel.
    let bundle = Bundle::new(&["/bin/bad"]);
    let bad = bundle.dir.path().join("rootfs/bin/bad");
    std::fs::write(&bad, "\u{7f}ELF nonsense").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&bad, executable).unwrap();
    let (made, _output) = bundle.create().unwrap();
    let error = made.container.start().unwrap_err().chain();
    assert!(
        error.contains("/bin/bad") && error.contains("Exec format"),
        "{error}"
    );
    wait(&made.pidfd);
    assert_eq!(made.container.status().unwrap(), Status::Stopped);
}

#[test]
fn namespaces_by_path() {
    let holder = Bundle::new(&["sleep", "1000"]);
    let (made, _output) = holder.create().unwrap();
    let pid = made.container.record.pid;
    let net = format!("/proc/{pid}/ns/net");
    let mut guest = Bundle::shell("readlink /proc/self/ns/net");
    let set = |spec: &mut Value, path: &str| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        let entry = list.iter_mut().find(|n| n["type"] == "network").unwrap();
        entry["path"] = path.into();
    };
    set(&mut guest.spec, &net);
    let (_, text) = guest.run();
    let wanted = std::fs::read_link(&net).unwrap();
    assert_eq!(text.trim(), wanted.to_str().unwrap());
    for wrong in [format!("/proc/{pid}/ns/uts"), "/dev/null".to_owned()] {
        set(&mut guest.spec, &wrong);
        let error = guest.create().map(drop).unwrap_err().chain();
        assert!(error.contains("linux.namespaces"), "{error}");
        guest.nothing_is_left();
    }
    made.container.kill(Signal(9), false).unwrap();
    wait(&made.pidfd);
}

#[test]
fn limits_are_in_force_and_change() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bundle.spec["linux"]["resources"]["pids"] = json!({"limit": 17});
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    let stats = made.container.stats().unwrap();
    assert_eq!(stats.pids.unwrap().limit, Some(17));
    assert_eq!(stats.memory.unwrap().limit_bytes, Some(64 << 20));
    let change = serde_json::from_value(json!({"pids": {"limit": 23}})).unwrap();
    lifecycle::update(&made.container, &change).unwrap();
    let stats = made.container.stats().unwrap();
    assert_eq!(stats.pids.unwrap().limit, Some(23));
    assert_eq!(stats.memory.unwrap().limit_bytes, Some(64 << 20));
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    assert_eq!(wait(&made.pidfd), 128 + 9);
    bundle.nothing_is_left();
}

/// What a container may use anyway is added by create; an update knows of
/// none of it.
#[test]
fn an_update_leaves_devices_alone() {
    let bundle = Bundle::shell("read x; echo seen > /dev/null && echo usable");
    let (input, typed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let made = bundle
        .create_with(CreateOptions {
            stdio: [Some(input), Some(write), None],
            ..CreateOptions::default()
        })
        .unwrap();
    made.container.start().unwrap();
    let change = serde_json::from_value(json!({"pids": {"limit": 20},
        "devices": [{"allow": false, "access": "rwm"}]}))
    .unwrap();
    lifecycle::update(&made.container, &change).unwrap();
    rustix::io::write(&typed, b"go\n").unwrap();
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "usable\n");
    wait(&made.pidfd);
}

/// It is for execs alone (config.md, process): the container's own process is
/// not bound by it.
#[test]
fn an_exec_runs_on_the_processors_that_it_is_given() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    std::os::unix::fs::symlink("busybox", bundle.dir.path().join("rootfs/bin/grep")).unwrap();
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    let cpus = |text: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with("Cpus_allowed_list:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let status = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let own = cpus(&std::fs::read_to_string("/proc/thread-self/status").unwrap());
    assert_eq!(cpus(&status(made.container.record.pid)), own);
    for affinity in [
        json!({"initial": "0"}),
        json!({"final": "0"}),
        json!({"initial": "1", "final": "0"}),
    ] {
        let result = exec(&made.container, |p| {
            p["args"] = json!(["grep", "Cpus_allowed_list", "/proc/self/status"]);
            p["execCPUAffinity"] = affinity.clone();
        });
        let (code, text) = result.unwrap();
        assert_eq!((code, cpus(&text).as_str()), (0, "0"), "{affinity}");
    }
    // The caller is where it was.
    let now = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_eq!(cpus(&now), own);
    let refused = exec(&made.container, |p| {
        p["execCPUAffinity"] = json!({"final": "900"});
    });
    let error = refused.unwrap_err().chain();
    assert!(error.contains("process.execCPUAffinity"), "{error}");
    made.container.kill(Signal(9), false).unwrap();
    wait(&made.pidfd);
}

/// The v2 hierarchy's directory of a container.
fn unified(bundle: &Bundle) -> std::path::PathBuf {
    let found = bundle.cgroups();
    let v2 = found
        .into_iter()
        .find(|p| p.join("cgroup.controllers").exists());
    v2.expect("this host mounts cgroup2")
}

/// As systemd does in a container: its processes live in a group below, so
/// that controllers can be handed on.
#[test]
fn an_exec_follows_a_container_into_a_group_below() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    // Some controller of v2 that a group can hand on.
    bundle.spec["linux"]["resources"]["hugepageLimits"] =
        json!([{"pageSize": "2MB", "limit": 2 << 20}]);
    let (made, _output) = bundle.create().unwrap();
    let container = bundle.load();
    container.start().unwrap();
    let group = unified(&bundle);
    let below = group.join("init.scope");
    std::fs::create_dir(&below).unwrap();
    let pid = container.record.pid.to_string();
    std::fs::write(below.join("cgroup.procs"), &pid).unwrap();
    let controllers = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap();
    let first = controllers.split_whitespace().next().expect("a controller");
    std::fs::write(group.join("cgroup.subtree_control"), format!("+{first}")).unwrap();
    let seen = exec(&container, |p| {
        p["args"] = json!(["sh", "-c", "cat /proc/self/cgroup"]);
    });
    let (code, text) = seen.unwrap();
    assert_eq!(code, 0);
    assert!(text.contains("0::/init.scope\n"), "{text}");
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
    bundle.nothing_is_left();
}

/// A kill while nobody waits is told by the next wait.
#[test]
fn no_oom_kill_is_lost_between_two_waits() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    std::os::unix::fs::symlink("busybox", bundle.dir.path().join("rootfs/bin/tail")).unwrap();
    bundle.spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    let watch = made.container.oom_watch().unwrap();
    let mut seen = watch.take().unwrap().kills;
    let wait_now = |seen: &mut u64| {
        lifecycle::wait_events(&made.pidfd, &watch, seen, Duration::from_millis(1)).unwrap()
    };
    assert_eq!(wait_now(&mut seen), (false, false));
    let (code, _) = exec(&made.container, |p| {
        p["args"] = json!(["tail", "/dev/zero"])
    })
    .unwrap();
    assert_eq!(code, 128 + 9);
    assert_eq!(wait_now(&mut seen), (false, true));
    assert_eq!(wait_now(&mut seen), (false, false));
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
}

#[test]
fn a_new_file_system_is_read_only_itself() {
    let mut bundle = Bundle::shell("grep ' /both ' /proc/self/mountinfo");
    std::os::unix::fs::symlink("busybox", bundle.dir.path().join("rootfs/bin/grep")).unwrap();
    let layer = |name: &str| {
        let path = bundle.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let layers = ["lowerdir", "upperdir", "workdir"];
    let options: Vec<String> = layers.iter().map(|l| format!("{l}={}", layer(l))).collect();
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/both", "type": "overlay", "source": "overlay",
        "options": ["ro", options[0], options[1], options[2]]}),
    );
    let (code, text) = bundle.run();
    assert_eq!(code, 0, "{text}");
    // Behind the dash: type, source, and the options of the file system.
    let own = text.split(" - overlay overlay ").nth(1).expect("overlay");
    assert!(own.starts_with("ro,"), "{text}");
}

#[test]
fn without_a_process_nothing_starts() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.spec.as_object_mut().unwrap().remove("process");
    let (made, _output) = bundle.create().unwrap();
    assert_eq!(made.container.status().unwrap(), Status::Created);
    let error = made.container.start().unwrap_err();
    assert!(error.to_string().contains("process"), "{error}");
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
}

#[test]
fn groups_above_go_with_their_last_container() {
    let mut bundle = Bundle::new(&["true"]);
    let top = bundle.id.clone();
    let all = |below: &str| {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let words = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        let groups = words.filter(|w| w[2].starts_with("cgroup"));
        groups
            .map(|w| Path::new(w[1]).join(below))
            .filter(|path| path.exists())
            .count()
    };
    bundle.spec["linux"]["cgroupsPath"] = format!("/{top}/deep/one").into();
    bundle.run();
    assert_eq!(all(&top), 0);
    // One that was there stays.
    let path = rkube_cgroup::CgroupPath::new(&top).unwrap();
    let host = rkube_cgroup::Hierarchies::detect().unwrap();
    let needs = rkube_cgroup::Select::All(rkube_cgroup::Needs::none());
    rkube_cgroup::Cgroup::create(&host, &path, needs).unwrap();
    bundle.run();
    assert!(all(&top) > 0);
    assert_eq!(all(&format!("{top}/deep")), 0);
    rkube_cgroup::Cgroup::remove(&host, &path, Duration::ZERO).unwrap();
}

#[test]
fn a_tmpfs_begins_with_what_it_covers() {
    let mut bundle = Bundle::shell(
        "cd /full; cat file; readlink link; stat -c '%a %u:%g' deep deep/own; stat -c %a .; \
         stat -c %t:%T node; echo x > file && cat file; stat -f -c %T . ",
    );
    let full = bundle.dir.path().join("rootfs/full");
    std::fs::create_dir_all(full.join("deep")).unwrap();
    std::fs::write(full.join("file"), "image\n").unwrap();
    std::fs::write(full.join("deep/own"), "own").unwrap();
    std::os::unix::fs::symlink("/nowhere", full.join("link")).unwrap();
    std::os::unix::fs::chown(full.join("deep/own"), Some(7), Some(8)).unwrap();
    let mode = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    mode(&full.join("deep/own"), 0o4711);
    mode(&full.join("deep"), 0o2750);
    mode(&full, 0o751);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        full.join("node"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup"]}),
    );
    let (_, text) = bundle.run();
    let wanted = "image\n/nowhere\n2750 0:0\n4711 7:8\n751\n1:5\nx\ntmpfs\n";
    assert_eq!(text, wanted);
    let image = std::fs::read_to_string(full.join("file")).unwrap();
    assert_eq!(image, "image\n");
}
