//! Removing a container from its record.

use std::os::fd::AsFd;
use std::time::Duration;

use rkube_cgroup::{Cgroup, CgroupPath};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::record::{Container, Status, Store};
use super::{KILL_WAIT, hook};
use crate::draft::HookKind;
use crate::error::{Context, Error, Result};

const SIGKILL: i32 = 9;

/// Deletes a stopped container or, with `force`, one in any state; also one
/// whose create was killed, and one that is half deleted. Without a container
/// of that id, `force` finds nothing to do; a record that cannot be read it
/// removes, and touches nothing else. Returns hooks that failed.
///
/// # Errors
/// [`Error::NotFound`], [`Error::State`], or what could not be removed: the
/// record stays then.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<Vec<String>> {
    let container = match store.load(id) {
        Err(Error::NotFound { .. }) if force => {
            store.sweep(id)?;
            return Ok(Vec::new());
        }
        Err(error @ Error::Parse { .. }) if force => {
            store.sweep(id)?;
            let left = "processes and cgroups, if it had any, were left alone";
            return Ok(vec![format!("{}; {left}", error.chain())]);
        }
        other => other?,
    };
    let status = container.status();
    let stopped = matches!(status, Ok(Status::Stopped));
    if !stopped && !force {
        return Err(Error::State {
            operation: "delete",
            id: id.to_owned(),
            status: status?.name(),
        });
    }
    remove(&container)
}

fn remove(container: &Container) -> Result<Vec<String>> {
    let record = &container.record;
    kill_first(container)?;
    let path = CgroupPath::new(&record.cgroup)?;
    let hierarchies = super::hierarchies()?;
    let group = Cgroup::open(&hierarchies, &path)?;
    if record.is_of_this_boot()? {
        if group.exists() {
            group.kill_all(KILL_WAIT)?;
        }
        super::remove_group(&hierarchies, record)?;
    } else if group.exists() && group.pids()?.is_empty() {
        // Of an earlier boot nothing runs: who is in it is another's.
        super::remove_group(&hierarchies, record)?;
    }
    // Their failure is told and does not keep the container (runtime-spec,
    // runtime.md, Lifecycle, step 13).
    let hooks = container.spec().and_then(|spec| {
        let kind = HookKind::Poststop;
        hook::run(&spec, kind, &record.id, &record.bundle, "stopped", 0)
    });
    container.forget()?;
    Ok(hooks.err().iter().map(Error::chain).collect())
}

/// Kills the first process and waits for its end; a pid that names another
/// process by now is left alone.
fn kill_first(container: &Container) -> Result<()> {
    let Some(pidfd) = container.pidfd() else {
        return Ok(());
    };
    match rkube_sys::signal::pidfd_signal(pidfd.as_fd(), SIGKILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno).on("kill", container.record.pid.to_string()),
    }
    // A frozen one dies when it is thawed, which killing its cgroup does.
    let group = super::open_group(&container.record)?;
    if group.exists() && group.is_frozen()? {
        group.thaw()?;
    }
    let limit = Timespec::try_from(KILL_WAIT.max(Duration::from_secs(1))).ok();
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(Errno::TIMEDOUT).on("wait for the end of", "first process"),
            other => return other.map(drop).on("wait for", "first process"),
        }
    }
}
