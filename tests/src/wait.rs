//! Waiting with a deadline: for a condition, and for a process to end.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Deadline of a wait that names none: generous, since it is only reached by a
/// failure, and software emulation is slow.
pub const WAIT_SECS: u64 = 60;

/// First and longest pause between two looks at a condition, in milliseconds.
const LOOK_FIRST_MS: u64 = 5;
const LOOK_LONGEST_MS: u64 = 100;

/// Looks at a condition until it gives a value; for state that announces
/// itself by no event. An error of the condition ends the wait at once.
///
/// # Errors
/// The deadline passed (the message names `what`), or the condition's own.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(LOOK_FIRST_MS);
    loop {
        if let Some(value) = condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        let now = Instant::now();
        if now >= end {
            bail!("waited {} s for {what}", deadline.as_secs());
        }
        std::thread::sleep(pause.min(end - now));
        pause = (pause * 2).min(Duration::from_millis(LOOK_LONGEST_MS));
    }
}

/// Waits for a child to end, without reaping it. Returns whether it did.
///
/// # Errors
/// The process cannot be opened or polled.
pub fn child_ended(pid: u32, deadline: Duration) -> anyhow::Result<bool> {
    let raw = i32::try_from(pid).context("pid out of range")?;
    let pid = Pid::from_raw(raw).context("pid 0")?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("pidfd_open {raw}"))?;
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("deadline out of range")?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("poll a pidfd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_gives_up_and_names_what() {
        let err = until::<()>("a sign", Duration::from_millis(20), || Ok(None)).unwrap_err();
        assert!(err.to_string().contains("a sign"), "{err}");
    }

    #[test]
    fn a_running_child_is_not_ended() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(!child_ended(child.id(), Duration::from_millis(20)).unwrap());
        drop(child.stdin.take());
        assert!(child_ended(child.id(), Duration::from_secs(WAIT_SECS)).unwrap());
        child.wait().unwrap();
    }
}
