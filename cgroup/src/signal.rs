//! Stopping, continuing and ending all processes of a group.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::{Error, Result};
use crate::file::{Dir, flat_value, read_all};
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};

/// Descriptors of processes held at one time.
pub(crate) const MAX_PIDFDS: usize = 256;

/// First pause between two looks at a v1 freezer, which has no event.
const V1_FREEZE_FIRST: Duration = Duration::from_micros(500);
/// Longest such pause.
const V1_FREEZE_MAX: Duration = Duration::from_millis(10);
/// Looks after which a v1 group that hangs in FREEZING is thawed for a
/// moment: a task that waits uninterruptibly for one that is frozen already
/// (a vfork parent) cannot freeze otherwise.
const V1_FREEZE_LOOKS: u32 = 16;
/// Longest wait for the exit of one process before the list is read again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a kill waits for a v1 freeze before it goes on without.
const KILL_FREEZE_WAIT: Duration = Duration::from_millis(100);

impl Cgroup {
    /// Stops every process of the group and below, and returns when all have
    /// stopped. Uses v2 where the host has it (also hybrid ones: such
    /// processes can still be killed), else v1's freezer.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `wait`; the group is thawed again then.
    pub fn freeze(&self, wait: Duration) -> Result<()> {
        let start = Instant::now();
        let done = if let Some(dir) = self.v2() {
            dir.write("cgroup.freeze", "1")?;
            wait_event(dir, "frozen", 1, wait)?
        } else {
            let (_, dir) = self.require(Controller::Freezer, "freeze")?;
            freeze_v1(dir, start, wait)?
        };
        if done {
            return Ok(());
        }
        self.thaw()?;
        Err(Error::Timeout {
            operation: "freeze",
            path: self.shown().to_owned(),
            waited: wait,
            detail: String::new(),
        })
    }

    /// Lets the processes of a frozen group run again, whoever froze it and
    /// in whichever hierarchy. A group above that is frozen keeps them
    /// stopped.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn thaw(&self) -> Result<()> {
        if let Some(dir) = self.v2() {
            dir.write("cgroup.freeze", "0")?;
        }
        if let Some((Version::V1, dir)) = self.dir(Controller::Freezer)
            && dir.read("freezer.state")?.trim() != "THAWED"
        {
            dir.write("freezer.state", "THAWED")?;
        }
        Ok(())
    }

    /// True if all processes are stopped, or are being stopped, by this
    /// group or one above.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn is_frozen(&self) -> Result<bool> {
        if let Some(dir) = self.v2() {
            let events = dir.read("cgroup.events")?;
            if flat_value(&events, "frozen") == Some(1)
                || dir.read_number_optional("cgroup.freeze")? == Some(1)
            {
                return Ok(true);
            }
        }
        if let Some((Version::V1, dir)) = self.dir(Controller::Freezer) {
            return Ok(dir.read("freezer.state")?.trim() != "THAWED");
        }
        Ok(false)
    }

    /// Sends SIGKILL to every process of the group and below, forks of the
    /// meantime included, and waits until the group is empty. Frozen
    /// processes die too.
    ///
    /// v2: one write to `cgroup.kill` (Linux 5.14). v1: freeze, signal each
    /// process through a pidfd that was opened before its membership was
    /// confirmed (no id can be recycled in between), thaw; repeated until
    /// none is left. On hybrid hosts the first, then the second for what
    /// is only in v1 hierarchies.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `wait` (processes in uninterruptible sleep),
    /// or the operation that the kernel refused.
    pub fn kill_all(&self, wait: Duration) -> Result<()> {
        let start = Instant::now();
        if let Some(dir) = self.v2() {
            match dir.write_raw("cgroup.kill", "1") {
                Ok(()) => {
                    // A v1 freezer holds even those that must die.
                    self.thaw()?;
                    wait_event(dir, "populated", 0, wait)?;
                }
                // Older than 5.14, or threaded: one by one, below.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(source) => return Err(dir.write_error("cgroup.kill", "1", source)),
            }
        }
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout {
                    operation: "kill",
                    path: self.shown().to_owned(),
                    waited: wait,
                    detail: format!(
                        ", {} processes are left: {:?}",
                        pids.len(),
                        &pids[..pids.len().min(16)]
                    ),
                });
            }
            self.kill_round(left)?;
        }
    }

    /// One round of freeze, kill, thaw and wait.
    fn kill_round(&self, left: Duration) -> Result<()> {
        // Freezing only narrows the round; without it forks are met by the
        // next one.
        let frozen = match self.dir(Controller::Freezer) {
            Some((Version::V1, dir)) => {
                freeze_v1(dir, Instant::now(), left.min(KILL_FREEZE_WAIT))?;
                true
            }
            _ => false,
        };
        let killed = self.kill_listed();
        if frozen {
            self.thaw()?;
        }
        poll_all(&killed?, left, self.shown())
    }

    /// Signals each listed process; returns their descriptors.
    fn kill_listed(&self) -> Result<Vec<OwnedFd>> {
        let mut held = Vec::new();
        let pids = self.pids()?;
        for chunk in pids.chunks(MAX_PIDFDS) {
            let opened: Vec<_> = chunk
                .iter()
                .filter_map(|pid| Some((*pid, open_pidfd(*pid)?)))
                .collect();
            // A process that ended and whose id now names another one: the
            // pidfd refers to the ended one and is harmless; one that joined
            // another group meanwhile is not ours any more.
            let still = self.pids()?;
            held.clear();
            for (pid, fd) in opened {
                if still.binary_search(&pid).is_err() {
                    continue;
                }
                match rustix::process::pidfd_send_signal(&fd, Signal::KILL) {
                    Ok(()) => held.push(fd),
                    Err(Errno::SRCH) => {}
                    Err(source) => {
                        return Err(Error::Kill {
                            pid,
                            path: self.shown().to_owned(),
                            source,
                        });
                    }
                }
            }
        }
        Ok(held)
    }

    /// Waits until no process is in the group or below; true if that came to
    /// pass within `wait`.
    ///
    /// # Errors
    /// The file that could not be read or watched.
    pub fn wait_empty(&self, wait: Duration) -> Result<bool> {
        let start = Instant::now();
        if let Some(dir) = self.v2()
            && !wait_event(dir, "populated", 0, wait)?
        {
            return Ok(false);
        }
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(true);
            }
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            wait_for_exit(&pids[..pids.len().min(MAX_PIDFDS)], left, self.shown())?;
        }
    }
}

/// Freezes a v1 group; false if it did not come to rest in time.
fn freeze_v1(dir: &Dir, start: Instant, wait: Duration) -> Result<bool> {
    const FILE: &str = "freezer.state";
    dir.write(FILE, "FROZEN")?;
    let (mut looks, mut pause) = (0_u32, V1_FREEZE_FIRST);
    loop {
        // Reading the state is what makes the kernel update it.
        if dir.read(FILE)?.trim() == "FROZEN" {
            return Ok(true);
        }
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        looks += 1;
        if looks.is_multiple_of(V1_FREEZE_LOOKS) {
            dir.write(FILE, "THAWED")?;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(V1_FREEZE_MAX);
        // A task that was forked or moved in meanwhile is caught by this.
        dir.write(FILE, "FROZEN")?;
    }
}

/// Waits until `cgroup.events` has `key value`; false at the end of `wait`.
/// The kernel raises POLLPRI on the file at every change (cgroup-v2.rst).
pub(crate) fn wait_event(dir: &Dir, key: &str, value: u64, wait: Duration) -> Result<bool> {
    const FILE: &str = "cgroup.events";
    let start = Instant::now();
    let fd = dir.open_read(FILE)?;
    loop {
        let text = read_all(fd.as_fd()).map_err(|source| Error::Read {
            path: dir.path().join(FILE),
            source,
        })?;
        if flat_value(&text, key) == Some(value) {
            return Ok(true);
        }
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        poll_one(fd.as_fd(), PollFlags::PRI, left, &dir.path().join(FILE))?;
    }
}

/// Waits until one of the processes has ended, or `left` is over.
pub(crate) fn wait_for_exit(pids: &[u32], left: Duration, shown: &Path) -> Result<()> {
    let fds: Vec<OwnedFd> = pids.iter().filter_map(|pid| open_pidfd(*pid)).collect();
    let Some(first) = fds.first() else {
        // All gone already; give the last one a moment to leave the list.
        std::thread::sleep(V1_FREEZE_FIRST.min(left));
        return Ok(());
    };
    // A process may also leave by being moved: look again now and then.
    poll_one(first.as_fd(), PollFlags::IN, left.min(LOOK_AGAIN), shown)
}

/// Waits until all of the processes have ended, or `left` is over.
fn poll_all(fds: &[OwnedFd], left: Duration, shown: &Path) -> Result<()> {
    let start = Instant::now();
    for fd in fds {
        let left = left.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        poll_one(fd.as_fd(), PollFlags::IN, left, shown)?;
    }
    Ok(())
}

/// `poll(2)` on one descriptor; the caller looks again afterwards.
fn poll_one(fd: BorrowedFd<'_>, events: PollFlags, left: Duration, shown: &Path) -> Result<()> {
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(source) => Err(Error::Watch {
            call: "poll",
            path: shown.to_owned(),
            source,
        }),
    }
}

/// A descriptor of a process, `None` if it is gone.
fn open_pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}
