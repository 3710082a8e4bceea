//! Every call of a set-up refused, once each and with each errno.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use nix::libc;
use serde_json::json;

use super::{Driven, sample, where_cgroup2_is_alone};
use crate::host::TestHost;
use crate::tracer::{Act, Call, End};

/// Points of a sample, for each kind of container.
const SAMPLE: usize = 18;

/// Calls that set a container up, by name. What fails in the program's own
/// life (memory, time, polls), or can never fail, is not among them.
const SETUP: [(&str, i64); 57] = [
    ("accept4", libc::SYS_accept4),
    ("bind", libc::SYS_bind),
    ("bpf", libc::SYS_bpf),
    ("capset", libc::SYS_capset),
    ("chdir", libc::SYS_chdir),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("close_range", libc::SYS_close_range),
    ("connect", libc::SYS_connect),
    ("dup2", libc::SYS_dup2),
    ("dup3", libc::SYS_dup3),
    ("execve", libc::SYS_execve),
    ("fchdir", libc::SYS_fchdir),
    ("fchmod", libc::SYS_fchmod),
    ("fchown", libc::SYS_fchown),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("ioctl", libc::SYS_ioctl),
    ("ioprio_set", libc::SYS_ioprio_set),
    ("keyctl", libc::SYS_keyctl),
    ("listen", libc::SYS_listen),
    ("memfd_create", libc::SYS_memfd_create),
    ("mkdir", libc::SYS_mkdir),
    ("mkdirat", libc::SYS_mkdirat),
    ("mknodat", libc::SYS_mknodat),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("open", libc::SYS_open),
    ("open_tree", libc::SYS_open_tree),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("personality", libc::SYS_personality),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("prctl", libc::SYS_prctl),
    ("prlimit64", libc::SYS_prlimit64),
    ("read", libc::SYS_read),
    ("recvmsg", libc::SYS_recvmsg),
    ("rename", libc::SYS_rename),
    ("sched_setattr", libc::SYS_sched_setattr),
    ("seccomp", libc::SYS_seccomp),
    ("sendmsg", libc::SYS_sendmsg),
    ("set_mempolicy", libc::SYS_set_mempolicy),
    ("setdomainname", libc::SYS_setdomainname),
    ("setgroups", libc::SYS_setgroups),
    ("sethostname", libc::SYS_sethostname),
    ("setns", libc::SYS_setns),
    ("setresgid", libc::SYS_setresgid),
    ("setresuid", libc::SYS_setresuid),
    ("setsid", libc::SYS_setsid),
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("symlinkat", libc::SYS_symlinkat),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("write", libc::SYS_write),
];

/// What a host without CAP_SYS_RESOURCE gets: less than it asked for, with a
/// warning (LIMITS.md). A refused write looks like such a host.
const CLAMPED: [&str; 1] = ["oom_score_adj stays at 0 instead of 300"];

/// What the kernel answers, in numbers and in words.
const ERRORS: [(i32, &str); 5] = [
    (libc::EPERM, "Operation not permitted"),
    (libc::ENOSYS, "Function not implemented"),
    (libc::EINVAL, "Invalid argument"),
    (libc::ELOOP, "Too many levels of symbolic links"),
    (libc::ENOMEM, "Cannot allocate memory"),
];

/// What a container looks like from inside.
const LOOK: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status; \
    hostname; cat /proc/sys/kernel/domainname; while read a b c rest; do echo $rest; done < \
    /proc/self/mountinfo; ls -ln /dev | while read a b c d e f g h i name; do echo $a $c $d $e $name; \
    done; cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup /proc/self/timens_offsets; \
    uname -m; cat /proc/sys/net/ipv4/ip_forward /proc/self/uid_map; ls -n /full /mapped; \
    echo x > /proc/sys/kernel/panic || echo read-only; cat /proc/timer_list; ls /proc/self/fd; \
    cat /sys/fs/cgroup/*/pids.max /sys/fs/cgroup/pids.max; tty; env; cat /dev/shm/hooked; exit 0";

/// One call that is refused, whatever else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    process: usize,
    name: &'static str,
    number: i64,
    nth: usize,
    errno: i32,
    words: &'static str,
}

pub(super) fn are_told(host: &TestHost) -> anyhow::Result<()> {
    // Each says what it found, whatever the other did.
    let both = [plain(host), rich(host)];
    let wrong: Vec<String> = both
        .iter()
        .filter_map(|result| result.as_ref().err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

pub(super) fn on_cgroup2(host: &TestHost) -> anyhow::Result<()> {
    where_cgroup2_is_alone(|| are_told(host))
}

fn plain(host: &TestHost) -> anyhow::Result<()> {
    let driven = Driven::new(host, &["/bin/sh", "-c", LOOK], |spec| {
        spec["process"]["oomScoreAdj"] = 300.into();
        spec["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]});
        spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
        if host.layout() == crate::layout::Layout::Hybrid && !unified() {
            spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        } else {
            spec["linux"]["resources"]["pids"] = json!(null);
        }
    })?;
    each_is_told(&driven, "plain")
}

/// Whether cgroup2 is all that is seen.
fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// User and time namespace, a map of owners, hooks, a kernel parameter, a
/// filled tmpfs, a terminal, a domain name.
fn rich(host: &TestHost) -> anyhow::Result<()> {
    let volume = host.files().join("volume");
    std::fs::create_dir_all(volume.join("own")).context("make a volume")?;
    let driven = Driven::new(host, &["/bin/sh", "-c", LOOK], |spec| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
            list.extend([json!({"type": "user"}), json!({"type": "time"})]);
        }
        spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 100_000, "nanosecs": 0}});
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        spec["domainname"] = "example.org".into();
        spec["process"]["oomScoreAdj"] = 300.into();
        spec["process"]["terminal"] = true.into();
        let note = |text: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin"]}]);
        spec["hooks"] = json!({"createContainer": note("true"), "createRuntime": note("true"),
            "startContainer": note("echo hooked > /dev/shm/hooked")});
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(
                json!({"destination": "/full", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup", "nosuid"]}),
            );
            mounts.push(json!({"destination": "/mapped", "type": "bind",
                "source": volume, "options": ["rbind", "idmap", "ro"]}));
        }
    })?;
    // Its owners are the user namespace's.
    let rootfs = std::path::Path::new(&driven.bundle).join("rootfs");
    give(&rootfs)?;
    each_is_told(&driven, "rich")
}

/// Gives a tree to root of the user namespace.
fn give(path: &std::path::Path) -> anyhow::Result<()> {
    let shown = || format!("give away {}", path.display());
    std::os::unix::fs::lchown(path, Some(100_000), Some(100_000)).with_context(shown)?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).with_context(shown)? {
            give(&entry?.path())?;
        }
    }
    Ok(())
}

fn each_is_told(driven: &Driven<'_>, what: &str) -> anyhow::Result<()> {
    let args = ["run", "--bundle", &driven.bundle, &driven.id];
    let mut calls: Vec<Call> = Vec::new();
    let (end, seen, said) = driven.traced(&args, &mut |call| {
        calls.push(*call);
        Act::Go
    })?;
    ensure!(seen.contains("read-only"), "{what}: {end:?} {said}{seen}");
    let all: Vec<Fault> = calls
        .iter()
        .filter_map(|call| {
            let (name, _) = SETUP.iter().find(|(_, n)| *n == call.number)?;
            Some(ERRORS.map(|(errno, words)| Fault {
                process: call.process,
                name,
                number: call.number,
                nth: call.nth,
                errno,
                words,
            }))
        })
        .flatten()
        .collect();
    let points = sample(driven.host, SAMPLE, all)?;
    println!("{what}: {} of {} faults", points.len(), calls.len());
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for fault in points {
        match judge(driven, &args, fault, &seen) {
            Ok(Some(word)) => *told.entry(word).or_default() += 1,
            Ok(None) => {}
            Err(error) => wrong.push(format!("{fault:?}: {error:#}")),
        }
    }
    println!("{what}: {told:?}");
    ensure!(
        wrong.is_empty(),
        "{what}, {} faults:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(told.contains_key("told"), "{what}: no call was refused");
    Ok(())
}

/// The lines that are in one text alone.
fn difference(seen: &str, now: &str) -> String {
    let mut out = String::new();
    for (mark, of, other) in [('-', seen, now), ('+', now, seen)] {
        for line in of.lines().filter(|line| !other.lines().any(|o| o == *line)) {
            out.push_str(&format!("{mark} {line}\n"));
        }
    }
    out
}

/// What came of a fault.
fn judge(
    driven: &Driven<'_>,
    args: &[&str],
    fault: Fault,
    seen: &str,
) -> anyhow::Result<Option<&'static str>> {
    let mut failed = false;
    let (end, now, said) = driven.traced(args, &mut |call| {
        let it = (call.process, call.number, call.nth);
        if it != (fault.process, fault.number, fault.nth) {
            return Act::Go;
        }
        failed = true;
        Act::Fail(fault.errno)
    })?;
    driven.run(&["delete", "--force", &driven.id])?;
    driven.nothing_is_left(&format!("{fault:?}"))?;
    if !failed {
        // Another number of processes, or of calls, this time.
        return Ok(Some("not made"));
    }
    if now == seen {
        return Ok(Some("equivalent"));
    }
    if CLAMPED.iter().any(|warning| said.contains(warning)) {
        return Ok(Some("clamped"));
    }
    ensure!(
        end != End::Exited(0),
        "another container: {said}{}",
        difference(seen, &now)
    );
    ensure!(
        said.contains(fault.words),
        "the errno is not told: {end:?} {said}"
    );
    // Operation and object stand before the kernel's words.
    let line = said.lines().find(|line| line.contains(fault.words));
    let line = line.unwrap_or_default().trim_start_matches("rkube-oci: ");
    let before = line.split(fault.words).next().unwrap_or_default();
    let words = before.split_whitespace().count();
    ensure!(words >= 2, "no operation and object: {said}");
    Ok(Some("told"))
}
