//! System calls beside one quiet pod: none, if nobody polls.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::{Bench, peer, pod};
use crate::kernel::Process;
use crate::peers;
use crate::podman::Podman;
use crate::report::Row;
use crate::rkube::Rkube;

const WHAT: &str = "system calls in 60 s beside one quiet pod";
const WATCHED: Duration = Duration::from_secs(60);
/// After a start, what is lazily closed or freed is done.
const SETTLING: Duration = Duration::from_secs(5);

/// Counts the system calls of some processes and names the most frequent.
fn count(processes: &[Process], dir: &std::path::Path) -> anyhow::Result<(f64, String)> {
    let strace = peers::need("strace")?;
    let trace = dir.join("trace");
    let mut command = Command::new(strace);
    command.arg("-f").arg("-o").arg(&trace);
    for process in processes {
        command.arg("-p").arg(process.pid.to_string());
    }
    let mut tracer = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start strace")?;
    std::thread::sleep(WATCHED);
    let pid = i32::try_from(tracer.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("strace's pid")?, Signal::INT).context("end strace")?;
    tracer.wait().context("wait for strace")?;
    let text =
        std::fs::read_to_string(&trace).with_context(|| format!("read {}", trace.display()))?;
    Ok(calls(&text))
}

/// A line for each call that ended in the time; a call in which a process
/// slept when the tracer came and still sleeps when it goes has no end.
fn calls(trace: &str) -> (f64, String) {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let open = call.ends_with("<unfinished ...>") || call.ends_with("<detached ...>");
        if open || call.starts_with("---") || call.starts_with("+++") {
            continue;
        }
        let name = match call.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next(),
            None => call.split('(').next(),
        };
        *counts.entry(name.unwrap_or(call)).or_default() += 1;
    }
    let total: u32 = counts.values().sum();
    let mut most: Vec<(&str, u32)> = counts.into_iter().collect();
    most.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let told: Vec<String> = most
        .iter()
        .take(4)
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    (f64::from(total), told.join(", "))
}

fn row(who: &str, processes: &[Process], dir: &std::path::Path) -> anyhow::Result<Row> {
    anyhow::ensure!(!processes.is_empty(), "no process of {who} was found");
    std::thread::sleep(SETTLING);
    // The scheduler's count needs no tracer: a process that got no turn made
    // no call. It covers the time before the tracer comes.
    let before: Vec<u64> = processes.iter().filter_map(|p| p.turns().ok()).collect();
    std::thread::sleep(SETTLING);
    let after: Vec<u64> = processes.iter().filter_map(|p| p.turns().ok()).collect();
    let turns: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
    let (calls, most) = count(processes, dir)?;
    let mut names: Vec<&str> = processes.iter().map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    let mut note = names.join(", ");
    if !most.is_empty() {
        note = format!("{note}: {most}");
    }
    if turns > 0 {
        note = format!("{note}; {turns} turns in {} s untraced", SETTLING.as_secs());
    }
    Ok(Row::one(WHAT, who, "calls", calls).note(note))
}

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir().context("make a directory")?;
    let rkube = Rkube::open(&bench.program)?;
    let file = rkube.manifest("quiet", &pod("quiet", crate::rkube::IMAGE))?;
    rkube.start(&file)?;
    let ours = row("rkube", &rkube.processes()?, dir.path());
    rkube.close()?;
    let ours = ours?.target("0");
    let mut rows = vec![ours.clone()];
    let theirs = podman(bench, dir.path()).map(|row| row.beside(&ours));
    peer(&mut rows, WHAT, "podman", theirs);
    Ok(rows)
}

fn podman(bench: &Bench, dir: &std::path::Path) -> anyhow::Result<Row> {
    let podman = Podman::open(&bench.toolbox)?;
    let file = podman.manifest("quiet", &pod("quiet", crate::podman::IMAGE))?;
    podman.start(&file)?;
    let theirs = row("podman", &podman.processes()?, dir);
    podman.close()?;
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_ended_are_counted() {
        let trace = "10 epoll_wait(3,  <unfinished ...>\n\
                     11 read(4, \"x\", 1) = 1\n\
                     10 <... epoll_wait resumed>[], 8, 5) = 0\n\
                     10 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
                     11 read(4, \"\", 1) = 0\n\
                     10 epoll_wait(3,  <detached ...>\n";
        assert_eq!(calls(trace), (3.0, "read 2, epoll_wait 1".to_owned()));
        assert_eq!(calls(""), (0.0, String::new()));
    }
}
