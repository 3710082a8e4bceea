//! Processes that are held: by pid and start time, then by pidfd, never by
//! pid alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rkube_keeper::process::start_ticks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{OnFile, Result};

/// SIGKILL (signal(7)).
pub(crate) const SIGKILL: i32 = 9;
/// How long whoever reaps a process may take, once it has ended.
const REAPED_LIMIT: Duration = Duration::from_secs(1);

/// A process and the descriptor that names it: while it lives, its pid means
/// no other.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pid: i32,
    fd: OwnedFd,
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Held {
    /// From whoever made the process.
    pub(crate) fn new(pid: i32, fd: OwnedFd) -> Self {
        Self { pid, fd }
    }

    /// The process that has this pid and start time; `None` when it has
    /// ended.
    pub(crate) fn open(pid: i32, ticks: u64) -> Option<Self> {
        Self::find(pid, ticks).filter(Self::lives)
    }

    /// The same, also where it has ended and was not reaped yet.
    pub(crate) fn find(pid: i32, ticks: u64) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // The descriptor names whoever had the pid when it was opened; the
        // start time, read afterwards, tells whether that was the right one.
        let held = Self { pid, fd };
        (start_ticks(pid).ok()? == ticks).then_some(held)
    }

    /// Whether it has not ended yet.
    pub(crate) fn lives(&self) -> bool {
        !wait(&self.fd, Some(Duration::ZERO))
    }

    /// One of its namespaces, as /proc/PID/ns names them.
    pub(crate) fn namespace(&self, name: &str) -> Result<OwnedFd> {
        self.open_in_proc(&format!("ns/{name}"), "open namespace", OFlags::RDONLY)
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        self.open_in_proc("root", "open root directory", flags)
    }

    /// A file of /proc/PID. It was its own, and not that of a later process
    /// with the pid, if it still lives afterwards.
    fn open_in_proc(&self, name: &str, what: &'static str, flags: OFlags) -> Result<OwnedFd> {
        let path = PathBuf::from(format!("/proc/{}/{name}", self.pid));
        let fd = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()).on(what, &path)?;
        if self.lives() {
            Ok(fd)
        } else {
            Err(Errno::SRCH).on(what, &path)
        }
    }
}

/// Waits until the process has ended, without a limit or up to one; `false`
/// after it.
pub(crate) fn wait(pidfd: &OwnedFd, limit: Option<Duration>) -> bool {
    wait_for(pidfd, PollFlags::IN, limit)
}

/// A limit beyond what a clock holds is none.
fn wait_for(pidfd: &OwnedFd, what: PollFlags, limit: Option<Duration>) -> bool {
    let deadline = limit.and_then(|l| Instant::now().checked_add(l));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let left = left.and_then(|d| Timespec::try_from(d).ok());
        let mut fds = [PollFd::new(pidfd, what)];
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            other => return matches!(other, Ok(n) if n > 0),
        }
    }
}

/// How a process ended that somebody else reaps, as an exit code or 128 +
/// signal. The kernel tells that to whoever holds a pidfd, after the reaping
/// (a hang-up of the pidfd), since Linux 6.15.
pub(crate) fn exit_code(pidfd: &OwnedFd) -> Option<i32> {
    let status = rkube_sys::pidfd::exit_status(pidfd.as_fd()).or_else(|| {
        // Nothing is asked for: poll(2) tells of the hang-up all the same.
        wait_for(pidfd, PollFlags::empty(), Some(REAPED_LIMIT));
        rkube_sys::pidfd::exit_status(pidfd.as_fd())
    });
    status.map(|raw| match raw & 0x7f {
        0 => (raw >> 8) & 0xff,
        signal => 128 + signal,
    })
}

/// Kills a process and waits for its end; nothing where it has ended.
pub(crate) fn kill(pid: i32, ticks: u64, limit: Duration) -> std::result::Result<(), String> {
    match Held::open(pid, ticks) {
        Some(held) => kill_fd(&held.fd, pid, limit),
        None => Ok(()),
    }
}

fn kill_fd(fd: &OwnedFd, pid: i32, limit: Duration) -> std::result::Result<(), String> {
    match rkube_sys::signal::pidfd_signal(fd.as_fd(), SIGKILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(format!("kill process {pid}: {errno}")),
    }
    if wait(fd, Some(limit)) {
        Ok(())
    } else {
        Err(format!(
            "process {pid} was killed and is not gone after {} s",
            limit.as_secs()
        ))
    }
}

/// Kills the keeper that had this pid, if it still is one of this pod: it is
/// the one that has the pod's run directory open.
pub(crate) fn kill_keeper(
    pid: u32,
    dir: &Path,
    limit: Duration,
) -> std::result::Result<(), String> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let Ok(fd) = pidfd_open(raw, PidfdFlags::empty()) else {
        return Ok(());
    };
    let Ok(own) = std::fs::metadata(dir) else {
        return Ok(());
    };
    use std::os::unix::fs::MetadataExt;
    let holds = std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|entries| {
        entries.flatten().any(|e| {
            std::fs::metadata(e.path()).is_ok_and(|m| (m.dev(), m.ino()) == (own.dev(), own.ino()))
        })
    });
    if holds {
        kill_fd(&fd, raw.as_raw_nonzero().get(), limit)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_held_only_with_its_start_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn();
        let child = child.as_mut().expect("sleep");
        let pid = i32::try_from(child.id()).expect("pid");
        let ticks = start_ticks(pid).expect("stat");
        assert!(Held::open(pid, ticks + 1).is_none());
        let held = Held::open(pid, ticks).expect("it lives");
        held.namespace("net").expect("namespace");
        child.kill().expect("kill");
        assert!(wait(&held.fd, Some(Duration::from_secs(10))));
        // A zombie has its pid still, and no part in anything.
        assert!(held.namespace("net").is_err());
        assert!(Held::open(pid, ticks).is_none());
        assert!(Held::find(pid, ticks).is_some());
        child.wait().expect("reap");
        assert!(matches!(exit_code(&held.fd), None | Some(137)));
    }
}
