//! What happens to a container by itself.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rkube_cgroup::OomWatch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Waits for at most `limit`: whether the process has ended, and whether the
/// kernel killed for want of memory meanwhile.
///
/// # Errors
/// poll(2)'s, or the counter that could not be read.
pub fn wait_events(pidfd: &OwnedFd, watch: &OomWatch, limit: Duration) -> Result<(bool, bool)> {
    let before = watch.take()?.kills;
    let start = Instant::now();
    loop {
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).ok();
        let mut fds = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN),
        ];
        let count = match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => continue,
            other => other.on("wait for", "events")?,
        };
        let ended = !fds[0].revents().is_empty();
        // With the process its group may be gone.
        let kills = match watch.take() {
            Err(_) if ended => before,
            other => other?.kills,
        };
        if count == 0 || ended || kills > before {
            return Ok((ended, kills > before));
        }
    }
}
