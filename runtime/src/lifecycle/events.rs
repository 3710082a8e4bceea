//! What happens to a container by itself.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rkube_cgroup::OomWatch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Waits for at most `limit`: whether the process has ended, and whether the
/// kernel killed for want of memory since the count was `seen`, which becomes
/// what it is now. A kill before the wait is told at once.
///
/// # Errors
/// poll(2)'s, or the counter that could not be read.
pub fn wait_events(
    pidfd: &OwnedFd,
    watch: &OomWatch,
    seen: &mut u64,
    limit: Duration,
) -> Result<(bool, bool)> {
    let start = Instant::now();
    let mut waited = Duration::ZERO;
    loop {
        let left = Timespec::try_from(waited).ok();
        let mut fds = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, left.as_ref()) {
            // What came of it is looked at, and the wait goes on for what is
            // left of it.
            Err(Errno::INTR) => {}
            other => drop(other.on("wait for", "events")?),
        }
        let ended = !fds[0].revents().is_empty();
        // With the process its group may be gone.
        let kills = match watch.take() {
            Err(_) if ended => *seen,
            other => other?.kills,
        };
        let killed = kills > *seen;
        *seen = kills;
        waited = limit.saturating_sub(start.elapsed());
        if ended || killed || waited.is_zero() {
            return Ok((ended, killed));
        }
    }
}
