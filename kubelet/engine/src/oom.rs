//! The kernel's OOM killer: watches of containers, and who was killed.
//!
//! A watch tells a condition, not a kill (`rkube_cgroup::OomWatch`), so only a
//! count that has grown is an event. On v2 the count comes with the kill. On
//! v1 the watch fires *before* it: the count is looked at again a little
//! later, and at the exit of the container, when it is final.
//!
//! The kernel's log names the victim; it is long, and is searched by a thread
//! that lives while there is something to tell.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rkube_cgroup::{Cgroup, OomWatch, Version};
use rkube_keeper::protocol::ProcessStatus;
use rustix::fs::{Mode, OFlags, SeekFrom};

use crate::api::{ContainerId, Event};
use crate::engine::Inner;
use crate::link::lock;

/// Kills that wait to be told; one more is told at once, without its victim.
const MAX_PENDING: usize = 64;
/// How long after a v1 event the count is looked at again: the kernel has
/// picked its victim within a millisecond, but for a host that swaps.
const V1_DELAY: Duration = Duration::from_millis(50);
/// Longest record of /dev/kmsg, in bytes (`CONSOLE_EXT_LOG_MAX` of the
/// kernel's `printk` is 8192).
const RECORD_BYTES: usize = 8192;
/// Records that are searched, newest boot messages last: the log buffer of
/// usual hosts holds fewer.
const MAX_RECORDS: usize = 20_000;

/// Watches, and what is to be told.
#[derive(Debug, Default)]
pub(crate) struct Ooms {
    watches: Mutex<HashMap<u64, Watched>>,
    desk: Mutex<Desk>,
}

#[derive(Debug)]
struct Watched {
    id: ContainerId,
    watch: OomWatch,
    /// Kills that were told.
    told: u64,
}

/// What the searching thread is to do.
#[derive(Debug, Default)]
struct Desk {
    jobs: VecDeque<Job>,
    /// The thread runs.
    staffed: bool,
}

#[derive(Debug, PartialEq)]
enum Job {
    /// Look at the count of a watch again.
    Recount(u64),
    /// Tell of kills.
    Tell {
        id: ContainerId,
        kills: u64,
        limit_bytes: Option<i64>,
    },
}

impl Inner {
    /// Watches for OOM kills; a host where that is not possible still reads
    /// the counter at exit. Kills so far were told by an earlier writer.
    pub(crate) fn watch_oom(&self, id: &ContainerId, group: &Cgroup) -> Option<u64> {
        let watch = group.oom_watch().ok()?;
        let told = watch.take().ok()?.kills;
        let mut watches = lock(&self.ooms.watches);
        // The reader may tell of it at once, and then waits for this guard.
        let number = self.reader().ok()?.watch(watch.as_fd()).ok()?;
        let id = id.clone();
        watches.insert(number, Watched { id, watch, told });
        Some(number)
    }

    pub(crate) fn unwatch(&self, number: u64) {
        // The guard is gone before the reader's own lock is taken.
        let removed = lock(&self.ooms.watches).remove(&number);
        if let Some(removed) = removed
            && let Ok(reader) = self.reader()
        {
            reader.unwatch(number, removed.watch.as_fd());
        }
    }

    /// The reader's thread: a watch has fired.
    pub(crate) fn on_oom_watch(self: &Arc<Self>, number: u64) {
        let grown = self.recount(number);
        if !grown && self.memory_version() == Some(Version::V1) {
            self.queue(Job::Recount(number));
        }
    }

    /// Tells of kills that a watch has counted since; whether there are any.
    fn recount(self: &Arc<Self>, number: u64) -> bool {
        let (id, kills) = {
            let mut watches = lock(&self.ooms.watches);
            let Some(watched) = watches.get_mut(&number) else {
                // Removed meanwhile: nothing is to be looked at again.
                return true;
            };
            match watched.watch.take() {
                Ok(count) if count.kills > watched.told => {
                    watched.told = count.kills;
                    (watched.id.clone(), count.kills)
                }
                Ok(_) => return false,
                // The group is being removed.
                Err(_) => {
                    drop(watches);
                    self.unwatch(number);
                    return true;
                }
            }
        };
        self.tell(id, kills);
        true
    }

    /// A container has ended: its final count, where its watch did not tell.
    pub(crate) fn oom_at_exit(self: &Arc<Self>, id: &ContainerId, status: &ProcessStatus) {
        let Some(exit) = &status.exit else { return };
        let kills = rkube_cgroup::parse_oom_count(&exit.oom).kills;
        let grown = {
            let mut watches = lock(&self.ooms.watches);
            match watches.values_mut().find(|w| w.id == *id) {
                Some(watched) if kills <= watched.told => false,
                Some(watched) => {
                    watched.told = kills;
                    true
                }
                None => kills > 0,
            }
        };
        if grown {
            self.tell(id.clone(), kills);
        }
    }

    fn tell(self: &Arc<Self>, id: ContainerId, kills: u64) {
        let limit_bytes = self.find(&id.sandbox).ok().and_then(|cell| {
            let state = lock(&cell.state);
            let container = state.containers.get(&id)?;
            container.record.config.resources.memory_limit_bytes
        });
        self.queue(Job::Tell {
            id,
            kills,
            limit_bytes,
        });
    }

    fn queue(self: &Arc<Self>, job: Job) {
        let mut desk = lock(&self.ooms.desk);
        if desk.jobs.contains(&job) {
            return;
        }
        if desk.jobs.len() < MAX_PENDING && self.staff(&mut desk) {
            return desk.jobs.push_back(job);
        }
        drop(desk);
        if let Job::Tell { .. } = job {
            self.emit_oom(job, None);
        }
    }

    /// Starts the thread where it does not run; `false` when that fails.
    fn staff(self: &Arc<Self>, desk: &mut Desk) -> bool {
        if desk.staffed {
            return true;
        }
        let weak = Arc::downgrade(self);
        let spawned = std::thread::Builder::new()
            .name("oom".into())
            .stack_size(256 << 10)
            .spawn(move || work(&weak));
        desk.staffed = spawned
            .inspect_err(
                |error| tracing::warn!(%error, "start a thread that looks for OOM victims"),
            )
            .is_ok();
        desk.staffed
    }

    fn next_job(&self) -> Option<Job> {
        let mut desk = lock(&self.ooms.desk);
        let job = desk.jobs.pop_front();
        desk.staffed = job.is_some();
        job
    }

    fn emit_oom(&self, job: Job, culprit: Option<(u32, String)>) {
        if let Job::Tell {
            id,
            kills,
            limit_bytes,
        } = job
        {
            self.emit(Event::Oom {
                id,
                kills,
                limit_bytes,
                culprit,
            });
        }
    }
}

/// Does what is queued, then ends. It keeps no engine alive while it waits
/// or searches.
fn work(engine: &Weak<Inner>) {
    while let Some(job) = engine.upgrade().and_then(|inner| inner.next_job()) {
        match job {
            Job::Recount(number) => {
                std::thread::sleep(V1_DELAY);
                if let Some(inner) = engine.upgrade() {
                    inner.recount(number);
                }
            }
            Job::Tell { ref id, .. } => {
                let culprit = culprit(id);
                if let Some(inner) = engine.upgrade() {
                    inner.emit_oom(job, culprit);
                }
            }
        }
    }
}

/// Pid (on the host) and command of the last process that was killed for the
/// memory limit of a container; `None` where the log cannot be read or does
/// not say (Documentation/ABI/testing/dev-kmsg).
fn culprit(id: &ContainerId) -> Option<(u32, String)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok()?;
    rustix::fs::seek(&log, SeekFrom::Start(0)).ok()?;
    let name = format!("/pod{}/{}.{}", id.sandbox, id.name, id.attempt);
    search(&log, &name)
}

fn search(log: &OwnedFd, cgroup: &str) -> Option<(u32, String)> {
    let mut buffer = vec![0_u8; RECORD_BYTES];
    let mut found = None;
    for _ in 0..MAX_RECORDS {
        match rustix::io::read(log, &mut buffer) {
            Ok(n) => {
                let text = String::from_utf8_lossy(&buffer[..n]);
                found = parse(&text, cgroup).or(found);
            }
            // A record was overwritten meanwhile: go on with the next.
            Err(rustix::io::Errno::PIPE) => {}
            Err(_) => break,
        }
    }
    found
}

/// The summary line of an OOM kill (`mm/oom_kill.c`, `dump_oom_summary`):
/// `oom-kill:constraint=...,task_memcg=/path,task=name,pid=N,uid=M`.
fn parse(record: &str, cgroup: &str) -> Option<(u32, String)> {
    let summary = record.split_once("oom-kill:")?.1;
    let field = |key: &str| {
        let at = summary
            .split(',')
            .find_map(|f| f.strip_prefix(key)?.strip_prefix('='));
        at.map(|v| v.lines().next().unwrap_or_default().to_owned())
    };
    let memcg = field("task_memcg")?;
    if !memcg.ends_with(cgroup) {
        return None;
    }
    Some((field("pid")?.parse().ok()?, field("task")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_the_victim() {
        let line = "6,1234,5678,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),\
            cpuset=x,mems_allowed=0,oom_memcg=/rkube/kubepods/podu1/hog.0,\
            task_memcg=/rkube/kubepods/podu1/hog.0,task=hog-memory,pid=4711,uid=0\n";
        assert_eq!(
            parse(line, "/podu1/hog.0"),
            Some((4711, "hog-memory".into()))
        );
        assert_eq!(parse(line, "/podu1/hog.1"), None);
        assert_eq!(
            parse("6,1,2,-;oom-kill: something else", "/podu1/hog.0"),
            None
        );
    }
}
