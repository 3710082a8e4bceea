//! The OCI command line while system calls kill it or fail (strace's
//! injection): nothing is left behind, and nothing is silently different.
//!
//! A sample of all points, seeded by the program under test (another build
//! looks at others); `RKUBE_EVERY_CALL=1` takes them all, as `make soak` does.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::oci::bundle;
use crate::case::Case;
use crate::host::TestHost;
use crate::layout::Layout;
use crate::wait::{WAIT_SECS, until};

/// Points of a sample.
const SAMPLE: usize = 18;
/// The long forms take hours in a VM.
const LONG_SECS: u64 = 6 * 3600;
/// System calls of the longest command, in any of its processes, at most.
const MOST_CALLS: u64 = 420;

pub(super) fn cases() -> Vec<Case> {
    const PLACES: &[Layout] = &[Layout::V2, Layout::Hybrid];
    vec![
        Case::new("oci::a_kill_at_any_call", a_kill_at_any_call)
            .alone()
            .on(PLACES)
            .within_secs(LONG_SECS),
        Case::new("oci::a_refused_call_is_told", a_refused_call_is_told)
            .on(PLACES)
            .within_secs(LONG_SECS),
    ]
}

/// A part of all points, another one for another build.
fn sample<T>(host: &TestHost, all: Vec<T>) -> anyhow::Result<Vec<T>> {
    if let Ok(wanted) = std::env::var("RKUBE_EVERY_CALL") {
        // All of them, or part K of N.
        let Some((part, parts)) = wanted.split_once('/') else {
            return Ok(all);
        };
        let (part, parts): (usize, usize) = (part.parse()?, parts.parse()?);
        ensure!((1..=parts).contains(&part), "RKUBE_EVERY_CALL={wanted:?}");
        return Ok(all.into_iter().skip(part - 1).step_by(parts).collect());
    }
    let seed = std::fs::metadata(host.program()?)?.len();
    let step = (all.len() / SAMPLE).max(1);
    let skip = usize::try_from(seed % 1_000_003)? % step;
    Ok(all.into_iter().skip(skip).step_by(step).collect())
}

/// One container of one bundle, and how it is driven.
struct Driven<'a> {
    host: &'a TestHost,
    bundle: String,
    root: PathBuf,
    id: String,
}

impl Driven<'_> {
    fn command(&self, before: &[String], args: &[&str]) -> anyhow::Result<Command> {
        let program = self.host.program()?.display().to_string();
        let root = self.root.display().to_string();
        let mut words: Vec<String> = before.to_vec();
        words.extend([program, "oci".into(), "--root".into(), root]);
        words.extend(args.iter().map(|a| (*a).to_owned()));
        let mut command = Command::new(&words[0]);
        // A container keeps its streams: files and null, no pipes.
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<()> {
        let said = self.host.files().join("said");
        let file = std::fs::File::create(&said)?;
        let status = self.command(&[], args)?.stderr(file).status()?;
        let said = std::fs::read_to_string(said)?;
        ensure!(status.success(), "{args:?}: {status}: {said}");
        Ok(())
    }

    /// Runs a command whose processes are each killed at their call number
    /// `nth`, until the command itself has ended: a container that waits for
    /// its start would be traced for ever.
    fn killed(&self, nth: u64, args: &[&str]) -> anyhow::Result<()> {
        let trace = self.host.files().join("trace");
        std::fs::write(&trace, "")?;
        let path = trace.display().to_string();
        let inject = format!("inject=all:signal=SIGKILL:when={nth}");
        let strace: Vec<String> = ["strace", "-f", "-o", &path, "-e", &inject]
            .map(str::to_owned)
            .to_vec();
        let mut tracer = self.command(&strace, args)?.stderr(Stdio::null()).spawn()?;
        let ended = until(
            "a traced command to end",
            Duration::from_secs(WAIT_SECS),
            || {
                let text = std::fs::read_to_string(&trace)?;
                let end = text
                    .split_once(' ')
                    .map(|(pid, _)| format!("\n{pid} +++ "))
                    .is_some_and(|end| text.contains(&end));
                Ok((end || tracer.try_wait()?.is_some()).then_some(()))
            },
        );
        let _ = tracer.kill();
        tracer.wait()?;
        ended.with_context(|| {
            let text = std::fs::read_to_string(&trace).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(12).collect();
            format!("{args:?}, killed at call {nth}; the last calls, backwards: {last:#?}")
        })
    }

    /// What is left of the container.
    fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let top = std::path::Path::new("/sys/fs/cgroup");
        let mut tops = vec![top.to_owned()];
        tops.extend(std::fs::read_dir(top)?.flatten().map(|e| e.path()));
        tops.push(self.root.clone());
        left.extend(
            tops.iter()
                .map(|dir| dir.join(&self.id))
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        // Whoever has the container's root mounted.
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo"));
            if mounts.is_ok_and(|text| text.contains(&self.bundle)) {
                left.push(entry.path().display().to_string());
            }
        }
        Ok(left)
    }

    fn nothing_is_left(&self, after: &str) -> anyhow::Result<()> {
        let gone = until("nothing to be left", Duration::from_secs(WAIT_SECS), || {
            Ok(self.left()?.is_empty().then_some(()))
        });
        gone.with_context(|| format!("{after}: {:?} is left", self.left()))
    }
}

impl Drop for Driven<'_> {
    /// A case that fails leaves no container behind.
    fn drop(&mut self) {
        let _ = self.run(&["delete", "--force", &self.id]);
    }
}

fn a_kill_at_any_call(host: &TestHost) -> anyhow::Result<()> {
    let id = format!("rkube-kill-{}", std::process::id());
    let dir = bundle(host, &["/bin/sleep", "100000"], |spec| {
        spec["linux"]["cgroupsPath"] = format!("/{id}").into();
    })?;
    let driven = Driven {
        host,
        bundle: dir.display().to_string(),
        root: host.root().join("oci"),
        id,
    };
    let (bundle, id) = (driven.bundle.as_str(), driven.id.as_str());
    let create = ["create", "--bundle", bundle, id];
    let commands: [&[&str]; 5] = [
        &create,
        &["start", id],
        &["exec", id, "/bin/true"],
        &["delete", "--force", id],
        &["run", "--detach", "--bundle", bundle, id],
    ];
    let all: Vec<(usize, u64)> = (1..MOST_CALLS)
        .flat_map(|nth| (0..commands.len()).map(move |command| (command, nth)))
        .collect();
    let points = sample(host, all)?;
    ensure!(points.len() >= SAMPLE, "{} points", points.len());
    for (command, nth) in points {
        let args = commands[command];
        if matches!(args[0], "start" | "exec" | "delete") {
            driven.run(&create)?;
        }
        if matches!(args[0], "exec" | "delete") {
            driven.run(&["start", id])?;
        }
        driven.killed(nth, args)?;
        driven.run(&["delete", "--force", id])?;
        driven.nothing_is_left(&format!("{} killed at its call {nth}", args[0]))?;
    }
    Ok(())
}

/// Calls that set a container up. What fails in the program's own life, or can
/// never fail, is not among them.
const SETUP: &str = "clone3 setns unshare mount_setattr move_mount open_tree fsopen fsconfig \
    fsmount pivot_root umount2 mknodat symlinkat mkdirat openat2 setsid sethostname prctl capset \
    setresuid setresgid setgroups prlimit64 seccomp close_range fchdir keyctl memfd_create \
    socketpair sendmsg";

/// What the kernel answers, by name and in words.
const ERRORS: [(&str, &str); 5] = [
    ("EPERM", "Operation not permitted"),
    ("ENOSYS", "Function not implemented"),
    ("EINVAL", "Invalid argument"),
    ("ELOOP", "Too many levels of symbolic links"),
    ("ENOMEM", "Cannot allocate memory"),
];

/// What a container looks like from inside.
const LOOK: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status; \
    hostname; while read a b c rest; do echo $rest; done < /proc/self/mountinfo; ls /dev; \
    cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup; \
    echo x > /proc/sys/kernel/panic || echo read-only; cat /proc/timer_list; ls /proc/self/fd";

fn a_refused_call_is_told(host: &TestHost) -> anyhow::Result<()> {
    let id = format!("rkube-fault-{}", std::process::id());
    let dir = bundle(host, &["/bin/sh", "-c", LOOK], |spec| {
        spec["linux"]["cgroupsPath"] = format!("/{id}").into();
        spec["process"]["oomScoreAdj"] = 300.into();
        spec["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]});
    })?;
    let driven = Driven {
        host,
        bundle: dir.display().to_string(),
        root: host.root().join("oci"),
        id,
    };
    let run = |before: &[String]| -> anyhow::Result<(bool, String, String)> {
        let args = [
            "run",
            "--bundle",
            driven.bundle.as_str(),
            driven.id.as_str(),
        ];
        let (out, err) = (host.files().join("out"), host.files().join("err"));
        let mut command = driven.command(before, &args)?;
        command.stdout(std::fs::File::create(&out)?);
        command.stderr(std::fs::File::create(&err)?);
        let status = command.status()?;
        let text = |path| std::fs::read_to_string(path);
        Ok((status.success(), text(out)?, text(err)?))
    };
    let (ok, seen, said) = run(&[])?;
    ensure!(
        ok && seen.contains("Seccomp:\t2") && seen.contains("read-only"),
        "{said}{seen}"
    );
    let all: Vec<(&str, usize, &str)> = SETUP
        .split_whitespace()
        .flat_map(|call| (0..ERRORS.len()).map(move |error| (call, error)))
        .flat_map(|(call, error)| ["1", "2", "1+"].map(|when| (call, error, when)))
        .collect();
    let mut told = 0;
    for (call, error, when) in sample(host, all)? {
        let (name, words) = ERRORS[error];
        let inject = format!("inject={call}:error={name}:when={when}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject].map(str::to_owned);
        let (ok, now, said) = run(&strace)?;
        driven.run(&["delete", "--force", &driven.id])?;
        if ok {
            // A listed equivalent, or a call that was not made that often.
            ensure!(
                now == seen,
                "{inject}: another container:\n{said}\n{now}\nnot\n{seen}"
            );
        } else {
            ensure!(said.contains(words), "{inject}: {said}");
            told += 1;
        }
        driven.nothing_is_left(&inject)?;
    }
    ensure!(told > 0, "no call was refused");
    Ok(())
}
