//! One command, timed: wall, processor time, and what it printed.
//!
//! Processor time is that of the command and of every descendant that was
//! waited for (getrusage(2), RUSAGE_CHILDREN); a daemon that it leaves behind
//! is not in it. Commands of one section run one after the other, so that the
//! difference of two looks is that of one command.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use rkube_tests::wait::child_ended;
use rustix::time::{ClockId, clock_gettime};

/// A command that takes longer is killed, and an error.
const COMMAND_MAX: Duration = Duration::from_secs(300);

/// What one command took and said.
#[derive(Debug, Clone)]
pub struct Timed {
    /// CLOCK_MONOTONIC just before the command was started, in nanoseconds.
    pub began_ns: i64,
    /// From there until it had ended.
    pub wall: Duration,
    /// User and system time of it and of what it waited for.
    pub cpu: Duration,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of the toolbox's `stamp`.
pub fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn cpu_of_children() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage(RUSAGE_CHILDREN)")?;
    let micros = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec() * 1_000_000 + t.tv_usec()).context("time used is negative")
    };
    Ok(Duration::from_micros(
        micros(usage.user_time())? + micros(usage.system_time())?,
    ))
}

/// A span between two readings of [`monotonic_ns`]; zero if they are swapped.
pub fn between(from_ns: i64, to_ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to_ns - from_ns).unwrap_or(0))
}

/// Runs a command to its end. Its output goes to files, so that a daemon which
/// keeps it open delays nothing.
///
/// # Errors
/// It cannot be started or does not end; a bad status is none.
pub fn timed(mut command: Command) -> anyhow::Result<Timed> {
    let shown = format!("{command:?}");
    let mut out = tempfile::tempfile().context("make a file for stdout")?;
    let mut err = tempfile::tempfile().context("make a file for stderr")?;
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?);
    let cpu_before = cpu_of_children()?;
    let began_ns = monotonic_ns();
    let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
    if !child_ended(child.id(), COMMAND_MAX)? {
        child.kill().with_context(|| format!("kill {shown}"))?;
    }
    let status = child.wait().with_context(|| format!("wait for {shown}"))?;
    let wall = between(began_ns, monotonic_ns());
    let cpu = cpu_of_children()?.saturating_sub(cpu_before);
    Ok(Timed {
        began_ns,
        wall,
        cpu,
        status,
        stdout: read_back(&mut out)?,
        stderr: read_back(&mut err)?,
    })
}

/// As [`timed`], for a command that has to succeed.
///
/// # Errors
/// As [`timed`], or another status than 0; the message has its output.
pub fn succeeds(command: Command) -> anyhow::Result<Timed> {
    let shown = format!("{command:?}");
    let done = timed(command)?;
    ensure!(
        done.status.success(),
        "{shown}: {}\n{}{}",
        done.status,
        done.stdout,
        done.stderr
    );
    Ok(done)
}

fn read_back(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `stamp` printed in a log: `monotonic_ns=N ...` on some line.
pub fn stamp_in(log: &str) -> Option<i64> {
    let (_, after) = log.split_once("monotonic_ns=")?;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_timed_and_its_output_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 0.02; echo out; echo err >&2; exit 4"]);
        let done = timed(command).unwrap();
        assert!(done.wall >= Duration::from_millis(20), "{done:?}");
        assert!(done.cpu < done.wall, "{done:?}");
        assert_eq!(done.status.code(), Some(4));
        assert_eq!((&*done.stdout, &*done.stderr), ("out\n", "err\n"));
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 1"]);
        assert!(succeeds(command).unwrap_err().to_string().contains("why"));
    }

    #[test]
    fn stamps_are_found_in_cri_and_plain_logs() {
        let cri = "2026-01-02T03:04:05.6Z stdout F monotonic_ns=12 realtime_ns=34\n";
        assert_eq!(stamp_in(cri), Some(12));
        assert_eq!(stamp_in("monotonic_ns=7\n"), Some(7));
        assert_eq!(stamp_in("nothing"), None);
    }
}
