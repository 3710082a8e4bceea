//! `rkube exec`: pipes, terminals, exit codes, and what it must not leak.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::pods::{pod, tool, with};
use crate::wait::WAIT_SECS;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("exec::streams_and_exit_codes", streams_and_exit_codes),
        Case::new("exec::terminal", terminal),
        Case::new("exec::has_the_containers_rights", has_the_containers_rights),
        Case::new("exec::many_at_once", many_at_once),
        Case::new("exec::of_what_is_not_there", of_what_is_not_there),
    ]
}

fn up(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"]), with(tool("b", &["sleep", "inf"]), "", json!({
        "securityContext": {"runAsUser": 7, "capabilities": {"drop": ["ALL"]}}, "env": [{"name": "OWN", "value": "yes"}]}))])]).map(drop)
}

fn streams_and_exit_codes(host: &TestHost) -> anyhow::Result<()> {
    up(host)?;
    let out = host
        .rkube(["exec", "-i", "p", "--", "cat"])?
        .stdin("through\n")
        .ok()?;
    ensure!(out.stdout == "through\n" && out.stderr.is_empty(), "{out}");
    // Without -i nothing is read.
    let out = host.exec("p", &["cat"])?.stdin("ignored").ok()?;
    ensure!(out.stdout.is_empty(), "{out}");
    let out = host.exec("p", &["cat", "/absent"])?.exits(1)?;
    ensure!(
        out.stdout.is_empty() && out.stderr.contains("/absent"),
        "{out}"
    );
    host.exec("p", &["exit", "42"])?.exits(42)?;
    host.exec("p", &["crash", "KILL"])?.exits(137)?;
    let out = host
        .rkube(["exec", "p", "-c", "b", "-e", "MORE=1", "--", "env"])?
        .ok()?;
    ensure!(
        out.stdout.contains("OWN=yes\n") && out.stdout.contains("MORE=1\n"),
        "{out}"
    );
    // Its own input is no pipe's end that stays open.
    let bytes = vec![b'x'; 60_000];
    let out = host
        .rkube(["exec", "-i", "p", "--", "cat"])?
        .stdin(bytes)
        .ok()?;
    ensure!(out.stdout.len() == 60_000, "{}", out.stdout.len());
    host.rm(&["p"])?;
    Ok(())
}

/// script(1) is the terminal.
fn terminal(host: &TestHost) -> anyhow::Result<()> {
    up(host)?;
    let program = host.program()?.to_string_lossy().into_owned();
    let root = host.root().to_string_lossy().into_owned();
    let line = format!(
        "stty rows 31 cols 97; {program} --root {root} exec -it p -- run 'tty; exit 3'; echo code $?"
    );
    let out = Cmd::new("script", ["-qec", &line, "/dev/null"]).output()?;
    ensure!(
        out.stdout.contains("stdin tty 97x31") && out.stdout.contains("code 3"),
        "{out}"
    );
    // Ctrl-C goes to the program inside.
    let line = format!("{program} --root {root} exec -it p -- trap --code 8; echo code $?");
    let mut run = Cmd::new("script", ["-qec", &line, "/dev/null"]).spawn()?;
    run.line("readiness", Duration::from_secs(WAIT_SECS), |l| {
        l.contains("ready")
    })?;
    run.write(b"\x03")?;
    run.line("its end", Duration::from_secs(WAIT_SECS), |l| {
        l.contains("code 8")
    })?;
    let no_terminal = host.rkube(["exec", "-it", "p", "--", "true"])?.output()?;
    ensure!(
        !no_terminal.status.success() && no_terminal.stderr.contains("terminal"),
        "{no_terminal}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn has_the_containers_rights(host: &TestHost) -> anyhow::Result<()> {
    up(host)?;
    let status = host
        .rkube(["exec", "p", "-c", "b", "--", "caps"])?
        .ok()?
        .stdout;
    ensure!(
        status.contains("CapEff:\t0000000000000000")
            && status.contains("Seccomp:\t2")
            && status.contains("Uid:\t7\t7\t7\t7"),
        "{status}"
    );
    let pid = host.life("p", "a")?.pid;
    let inside = host.tell(
        "p",
        &[
            "readlink",
            "/proc/self/ns/mnt",
            "/proc/self/ns/pid",
            "/proc/self/ns/net",
            "/proc/self/ns/cgroup",
        ],
    )?;
    for (kind, line) in ["mnt", "pid", "net", "cgroup"]
        .into_iter()
        .zip(inside.lines())
    {
        let own = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
        ensure!(own.to_string_lossy() == line, "{kind}: {line}");
    }
    let fds = host.tell("p", &["ls", "/proc/self/fd"])?;
    ensure!(fds.split_whitespace().count() == 4, "{fds}");
    let group = host.tell("p", &["cat", "/proc/self/cgroup"])?;
    ensure!(
        group.lines().all(|l| l.ends_with(":/")),
        "it is in another cgroup: {group}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn many_at_once(host: &TestHost) -> anyhow::Result<()> {
    up(host)?;
    let started: Vec<_> = (0..10)
        .map(|n| {
            host.exec("p", &["run", &format!("echo {n}; exit {n}")])?
                .spawn()
        })
        .collect::<anyhow::Result<_>>()?;
    for (n, run) in started.into_iter().enumerate() {
        let (status, lines) = run.end(Duration::from_secs(WAIT_SECS))?;
        ensure!(
            lines == [n.to_string()] && status.code() == i32::try_from(n).ok(),
            "{n}: {status} {lines:?}"
        );
    }
    // None is left in the pod.
    let ps = host.tell("p", &["ps"])?;
    ensure!(ps.lines().count() == 2, "{ps}");
    host.rm(&["p"])?;
    Ok(())
}

fn of_what_is_not_there(host: &TestHost) -> anyhow::Result<()> {
    up(host)?;
    let out = host.exec("p", &["no-such-program"])?.output()?;
    ensure!(
        matches!(out.status.code(), Some(1 | 126 | 127)) && out.stderr.contains("no-such-program"),
        "{out}"
    );
    let out = host.rkube(["exec", "absent", "--", "true"])?.exits(1)?;
    ensure!(out.stderr.contains("absent"), "{out}");
    let out = host
        .rkube(["exec", "p", "-c", "zzz", "--", "true"])?
        .exits(64)?;
    ensure!(out.stderr.contains("zzz"), "{out}");
    host.rkube(["stop", "p"])?.ok()?;
    let out = host.exec("p", &["true"])?.exits(1)?;
    ensure!(!out.stderr.is_empty(), "{out}");
    host.rm(&["p"])?.stdout.lines().next().context("a name")?;
    Ok(())
}
