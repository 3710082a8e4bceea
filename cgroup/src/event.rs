//! Descriptors that become readable when something happens to a group.
//!
//! On v2 the files `memory.events` and `cgroup.events` raise POLLPRI at each
//! change until they are read again. They are put into an epoll instance of
//! their own, which makes that plain readability and, unlike inotify, is not
//! rationed (hosts allow 128 inotify instances per user).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::file::{flat_value, read_all};
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};

/// How often the kernel killed for want of memory in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OomCount {
    /// Processes killed. v2 counts groups below too, v1 does not.
    pub kills: u64,
    /// Times the whole group was killed at once (v2, Linux 5.17).
    pub group_kills: u64,
}

/// Reads the text of [`Cgroup::oom_counter_fd`]: `memory.oom_control` of v1
/// or `memory.events` of v2. Keys that the kernel lacks count as 0.
#[must_use]
pub fn parse_oom_count(text: &str) -> OomCount {
    OomCount {
        kills: flat_value(text, "oom_kill").unwrap_or(0),
        group_kills: flat_value(text, "oom_group_kill").unwrap_or(0),
    }
}

/// A descriptor that becomes readable when a group runs out of memory.
///
/// The event tells a condition, not a kill: on v1 it comes *before* the
/// kernel picks a victim (and once more when the group is removed), on v2 at
/// any change of `memory.events`, such as reaching `memory.high`. The count
/// tells what happened; at the exit of a process it is final.
#[derive(Debug)]
pub struct OomWatch {
    notify: OwnedFd,
    counter: OwnedFd,
    version: Version,
    path: PathBuf,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

impl OomWatch {
    /// Takes the event and returns the count as it is now. Never blocks.
    ///
    /// # Errors
    /// The file that could not be read; `ENODEV` once the group is removed.
    pub fn take(&self) -> Result<OomCount> {
        if self.version == Version::V1 {
            // EAGAIN: nothing new, the count is still worth reading.
            let mut buffer = [0_u8; 8];
            let _ = rustix::io::read(&self.notify, &mut buffer);
        }
        read_all(self.counter.as_fd())
            .map(|text| parse_oom_count(&text))
            .map_err(|source| Error::Read {
                path: self.path.clone(),
                source,
            })
    }
}

/// A descriptor that becomes readable when the first process enters a group
/// (or those below) or the last one leaves.
#[derive(Debug)]
pub struct PopulatedWatch {
    notify: OwnedFd,
    file: OwnedFd,
    path: PathBuf,
}

impl AsFd for PopulatedWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

impl PopulatedWatch {
    /// Takes the event and tells whether a process is inside. Never blocks.
    ///
    /// # Errors
    /// The file that could not be read; `ENODEV` once the group is removed.
    pub fn take(&self) -> Result<bool> {
        let text = read_all(self.file.as_fd()).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(flat_value(&text, "populated") == Some(1))
    }
}

impl Cgroup {
    /// Watches for lack of memory.
    ///
    /// # Errors
    /// [`Error::MissingController`] without the memory controller, or the
    /// call that was refused.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let (version, dir) = self.require(Controller::Memory, "oom watch")?;
        let counter = self.oom_counter_fd()?;
        let file = counter_file(version);
        let path = dir.path().join(file);
        let notify = match version {
            Version::V2 => readable_on_change(&counter, &path)?,
            Version::V1 => {
                let watch = |source| Error::Watch {
                    call: "eventfd",
                    path: path.clone(),
                    source,
                };
                let event =
                    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(watch)?;
                // "<eventfd> <fd of the file>"; the kernel keeps its own
                // references (Documentation/admin-guide/cgroup-v1/memory.rst).
                let value = format!("{} {}", raw(&event), raw(&counter));
                dir.write("cgroup.event_control", &value)?;
                event
            }
        };
        Ok(OomWatch {
            notify,
            counter,
            version,
            path,
        })
    }

    /// A descriptor of the file that counts kills, to be kept, or handed to
    /// another process that reads it (from offset 0, with `pread`) when the
    /// container has ended; its text is for [`parse_oom_count`].
    ///
    /// # Errors
    /// [`Error::MissingController`] without the memory controller, or the
    /// file that could not be opened.
    pub fn oom_counter_fd(&self) -> Result<OwnedFd> {
        let (version, dir) = self.require(Controller::Memory, "oom counter")?;
        dir.open_read(counter_file(version))
    }

    /// The count of kills now.
    ///
    /// # Errors
    /// As [`Cgroup::oom_counter_fd`].
    pub fn oom_count(&self) -> Result<OomCount> {
        let (version, dir) = self.require(Controller::Memory, "oom counter")?;
        Ok(parse_oom_count(&dir.read(counter_file(version))?))
    }

    /// Watches for the group to become empty or not. Needs a v2 hierarchy;
    /// hybrid hosts have one.
    ///
    /// # Errors
    /// [`Error::NotExpressible`] on v1 alone (watch the processes' pidfds
    /// there), or the call that was refused.
    pub fn populated_watch(&self) -> Result<PopulatedWatch> {
        const FILE: &str = "cgroup.events";
        let Some(dir) = self.v2() else {
            return Err(Error::NotExpressible {
                controller: Controller::Freezer,
                file: FILE.to_owned(),
                mode: self.hierarchies().mode(),
                setting: "populated watch".to_owned(),
                reason: "v1 has no such event",
            });
        };
        let file = dir.open_read(FILE)?;
        let path = dir.path().join(FILE);
        let notify = readable_on_change(&file, &path)?;
        Ok(PopulatedWatch { notify, file, path })
    }
}

/// The file that counts kills.
fn counter_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    }
}

/// The number of a descriptor, for the one interface that takes it as text.
fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

/// An epoll instance that is readable while `file` has a change that was not
/// read yet. Reads the file once: a fresh descriptor counts as changed.
fn readable_on_change(file: &OwnedFd, path: &std::path::Path) -> Result<OwnedFd> {
    let watch = |call| {
        let path = path.to_owned();
        move |source: Errno| Error::Watch { call, path, source }
    };
    let notify = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(watch("epoll_create1"))?;
    epoll::add(
        &notify,
        file,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::PRI,
    )
    .map_err(watch("epoll_ctl"))?;
    read_all(file.as_fd()).map_err(watch("read"))?;
    Ok(notify)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        assert_eq!(
            parse_oom_count("oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
            OomCount {
                kills: 2,
                group_kills: 0
            }
        );
        assert_eq!(
            parse_oom_count("low 0\nhigh 4\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n"),
            OomCount {
                kills: 3,
                group_kills: 1
            }
        );
        assert_eq!(parse_oom_count(""), OomCount::default());
    }
}
