//! What dead keepers leave, where the writer is their subreaper.
//!
//! A process whose keeper dies becomes a child of the nearest subreaper above
//! it (prctl(2), PR_SET_CHILD_SUBREAPER): of the writer that started the
//! keeper, while that one lives, and of init otherwise. Init reaps at once,
//! and before Linux 6.15 nobody else learns then how it ended. The writer lets
//! it be a zombie until the next keeper has read its status from /proc, and
//! reaps it afterwards. What else comes to it (processes that containers with
//! the host's process namespace and execs of a dead keeper left) is nobody's
//! and reaped at once.

use std::collections::BTreeSet;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::engine::{Engine, Inner};
use crate::error::{OnFile, Result};
use crate::link::lock;

/// The writer's children.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// Keepers: whoever holds the [`Child`] reaps them.
    keepers: Mutex<BTreeSet<i32>>,
    /// Whether orphans come to this process.
    subreaper: AtomicBool,
}

impl Family {
    /// Makes a keeper's process. None is seen by the reaper before it is
    /// known to be a keeper.
    pub(crate) fn bear(&self, spawn: impl FnOnce() -> Result<Child>) -> Result<Child> {
        let mut keepers = lock(&self.keepers);
        let child = spawn()?;
        keepers.insert(pid_of(&child));
        Ok(child)
    }

    /// Waits for the end of a keeper, which is killed first if it was not
    /// asked to end.
    pub(crate) fn bury(&self, mut child: Child, asked: bool) {
        if !asked {
            // An error means that it has ended.
            let _ = child.kill();
        }
        let _ = child.wait();
        lock(&self.keepers).remove(&pid_of(&child));
    }
}

fn pid_of(child: &Child) -> i32 {
    // A pid is below 2^22 (proc(5), pid_max).
    i32::try_from(child.id()).unwrap_or_default()
}

impl Engine {
    /// Makes this process the subreaper of the keepers that it starts from
    /// now on. It must have no other children than the engine's, and call
    /// [`Engine::reap_orphans`] whenever one has ended (SIGCHLD).
    ///
    /// # Errors
    /// The kernel does not tell a process its children
    /// (CONFIG_PROC_CHILDREN), or refuses.
    pub fn adopt_orphans(&self) -> Result<()> {
        let list = std::path::Path::new("/proc/thread-self/children");
        std::fs::read_to_string(list).on("read", list)?;
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).on("become subreaper for", list)?;
        self.inner.family.subreaper.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reaps children that have ended and that nobody is going to ask about.
    pub fn reap_orphans(&self) {
        self.inner.reap_orphans();
    }
}

impl Inner {
    pub(crate) fn reap_orphans(&self) {
        if !self.family.subreaper.load(Ordering::Relaxed) {
            return;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // Mostly there is nothing to do, and this is all it costs.
        if !matches!(
            waitid(WaitId::All, options | WaitIdOptions::NOWAIT),
            Ok(Some(_))
        ) {
            return;
        }
        // Keepers that are born now wait, so that none is taken for an orphan.
        let keepers = lock(&self.family.keepers);
        let wanted = self.wanted();
        let known = |pid: &i32| keepers.contains(pid) || wanted.contains(pid);
        for pid in children().unwrap_or_default() {
            if let Some(id) = Pid::from_raw(pid).filter(|_| !known(&pid)) {
                // One that lives is left alone, and told of again.
                let _ = waitid(WaitId::Pid(id), options);
            }
        }
    }

    /// Processes whose ends a keeper has yet to tell.
    fn wanted(&self) -> BTreeSet<i32> {
        let mut wanted = BTreeSet::new();
        for cell in self.all() {
            let state = lock(&cell.state);
            wanted.extend(state.pause.as_ref().map(|p| p.pid));
            let running = state.containers.values().filter(|c| c.is_running());
            wanted.extend(running.filter_map(|c| Some(c.record.running.as_ref()?.pid)));
        }
        wanted
    }
}

/// The children of all threads of this process (proc(5), task/TID/children).
fn children() -> std::io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let list = std::fs::read_to_string(task?.path().join("children"));
        match list {
            Ok(list) => all.extend(list.split_whitespace().flat_map(str::parse::<i32>)),
            // The thread has ended: its children are another one's now, and
            // are found there the next time at the latest.
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn gone(error: &std::io::Error) -> bool {
    let raw = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(raw, Some(Errno::NOENT | Errno::SRCH))
}
