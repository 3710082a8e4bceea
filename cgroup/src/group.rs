//! One group of processes across all hierarchies: making, joining, listing
//! and removing it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::file::{Dir, flat_value, write_once};
use crate::hierarchy::{Controller, Hierarchies, Version};
use crate::needs::Select;
use crate::path::CgroupPath;
use crate::tree::{SHOWN_PIDS, collect_pids, open_error, remove_in, tree_pids};

mod make;

/// What a new process writes to each of [`AttachFds::tasks`] to move itself.
pub const JOIN_SELF: &[u8] = b"0";

/// A group with its directory in each hierarchy it was made or found in.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Arc<Hierarchies>,
    path: CgroupPath,
    members: Vec<Member>,
}

/// The group's directory in one hierarchy.
#[derive(Debug)]
struct Member {
    hierarchy: usize,
    dir: Dir,
}

/// Descriptors with which a new process joins a group. All close on exec.
#[derive(Debug)]
pub struct AttachFds {
    /// The v2 directory, for `clone3` with `CLONE_INTO_CGROUP` (Linux 5.7):
    /// the process starts there, at no cost.
    pub clone_into: Option<OwnedFd>,
    /// The v1 `tasks` files, open for writing, in any order. The new process
    /// writes [`JOIN_SELF`] to each *while it is single-threaded*: the kernel
    /// then skips the RCU wait (see the crate's documentation). It may have
    /// changed its user namespace before (the rights are those of whoever
    /// opened the file, Linux 5.16), but not its cgroup namespace, whose
    /// root is the group at the moment it is made: unshare that one after
    /// joining, and never in the same `clone3`, where the root would be the
    /// parent's group even with `CLONE_INTO_CGROUP`.
    pub tasks: Vec<OwnedFd>,
}

impl Cgroup {
    /// Makes a new group for processes. Groups above it are made as needed
    /// and kept.
    ///
    /// An existing group of that name is taken for the remains of a crash:
    /// without processes it is removed and made anew (no old limit, freeze or
    /// event count survives), otherwise the call is refused. Where a step fails,
    /// the directories this call has made are removed again.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::Frozen`] (here or above),
    /// [`Error::MissingController`], [`Error::InternalProcess`], or the
    /// directory or file that the kernel refused.
    pub fn create(
        hierarchies: &Arc<Hierarchies>,
        path: &CgroupPath,
        select: Select,
    ) -> Result<Self> {
        Self::make(hierarchies, path, select, true)
    }

    /// Makes a group that holds other groups, or opens it where it exists;
    /// nothing in it is changed then, except that v2 controllers are enabled
    /// above it.
    ///
    /// # Errors
    /// As [`Cgroup::create`], without the first two.
    pub fn ensure(
        hierarchies: &Arc<Hierarchies>,
        path: &CgroupPath,
        select: Select,
    ) -> Result<Self> {
        Self::make(hierarchies, path, select, false)
    }

    fn make(
        hierarchies: &Arc<Hierarchies>,
        path: &CgroupPath,
        select: Select,
        fresh: bool,
    ) -> Result<Self> {
        for controller in Controller::ALL {
            if select.needs().contains(controller) && !hierarchies.missing(&[controller]).is_empty()
            {
                return Err(hierarchies.missing_error(controller, &format!("cgroup {path}")));
            }
        }
        let mut group = Self {
            hierarchies: Arc::clone(hierarchies),
            path: path.clone(),
            members: Vec::new(),
        };
        let mut made = Vec::new();
        for (index, hierarchy) in hierarchies.list().iter().enumerate() {
            if !select.takes(hierarchy, hierarchies.mode()) {
                continue;
            }
            match group.make_in(hierarchy, select, fresh, &mut made) {
                Ok(dir) => group.members.push(Member {
                    hierarchy: index,
                    dir,
                }),
                Err(error) => {
                    for parent in &made {
                        let parent: &Dir = parent;
                        // Best effort: the first error is the one to tell,
                        // and the next create clears what is left.
                        let _ = parent.rmdir(path.name());
                    }
                    return Err(error);
                }
            }
        }
        Ok(group)
    }

    /// Opens a group in every hierarchy in which it exists. Finding none is
    /// no error ([`Cgroup::exists`] tells).
    ///
    /// # Errors
    /// The directory that could not be opened though it exists.
    pub fn open(hierarchies: &Arc<Hierarchies>, path: &CgroupPath) -> Result<Self> {
        let mut members = Vec::new();
        for (index, hierarchy) in hierarchies.list().iter().enumerate() {
            match hierarchy.root.open_dir(path.as_str()) {
                Ok(dir) => members.push(Member {
                    hierarchy: index,
                    dir,
                }),
                Err(Errno::NOENT) => {}
                Err(source) => return Err(open_error(&hierarchy.root, path.as_str(), source)),
            }
        }
        Ok(Self {
            hierarchies: Arc::clone(hierarchies),
            path: path.clone(),
            members,
        })
    }

    /// Refuses a group with processes in it or below.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], or the directory that could not be read.
    pub fn refuse_populated(&self) -> Result<()> {
        for member in &self.members {
            refuse_populated(&member.dir)?;
        }
        Ok(())
    }

    /// True if it was found or made in at least one hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.members.is_empty()
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The hierarchies it lives in.
    #[must_use]
    pub fn hierarchies(&self) -> &Arc<Hierarchies> {
        &self.hierarchies
    }

    /// Its directory for a controller and the version of the files in it.
    pub(crate) fn dir(&self, controller: Controller) -> Option<(Version, &Dir)> {
        self.members.iter().find_map(|member| {
            let hierarchy = self.hierarchies.list().get(member.hierarchy)?;
            hierarchy
                .has(controller)
                .then_some((hierarchy.version(), &member.dir))
        })
    }

    /// As [`Cgroup::dir`], or the error that names what `setting` lacks.
    pub(crate) fn require(&self, controller: Controller, setting: &str) -> Result<(Version, &Dir)> {
        self.dir(controller).ok_or_else(|| {
            if self.hierarchies.of(controller).is_some() {
                Error::NotJoined {
                    controller,
                    path: self.path.to_string(),
                    setting: setting.to_owned(),
                }
            } else {
                self.hierarchies.missing_error(controller, setting)
            }
        })
    }

    /// Its directory in the v2 hierarchy, whatever that controls.
    pub(crate) fn v2(&self) -> Option<&Dir> {
        self.members.iter().find_map(|member| {
            let hierarchy = self.hierarchies.list().get(member.hierarchy)?;
            (hierarchy.version() == Version::V2).then_some(&member.dir)
        })
    }

    /// The v1 hierarchies' directories.
    fn v1(&self) -> impl Iterator<Item = &Dir> {
        self.members.iter().filter_map(|member| {
            let hierarchy = self.hierarchies.list().get(member.hierarchy)?;
            (hierarchy.version() == Version::V1).then_some(&member.dir)
        })
    }

    /// A directory to name in errors: the v2 one, or the first.
    pub(crate) fn shown(&self) -> &Path {
        self.v2()
            .or_else(|| self.members.first().map(|member| &member.dir))
            .map_or(Path::new(self.path.as_str()), Dir::path)
    }

    /// Opens what a new process needs to join; see [`AttachFds`].
    ///
    /// # Errors
    /// The file that could not be opened.
    pub fn attach_fds(&self) -> Result<AttachFds> {
        let mut tasks = Vec::with_capacity(self.members.len());
        for dir in self.v1() {
            let fd = dir
                .open_file("tasks", OFlags::WRONLY)
                .map_err(|source| Error::Open {
                    path: dir.path().join("tasks"),
                    source,
                })?;
            tasks.push(fd);
        }
        let clone_into = self.v2().map(Dir::reopen).transpose()?;
        Ok(AttachFds { clone_into, tasks })
    }

    /// What a further process needs to join a group whose first one is `first`.
    /// Where the group hands controllers on, that one has moved to a group
    /// below, and no process may be beside the groups there (cgroup-v2.rst,
    /// No Internal Process Constraint): on v2 the new process then goes to
    /// where the first one is.
    ///
    /// # Errors
    /// As [`Cgroup::attach_fds`].
    pub fn attach_fds_beside(&self, first: u32) -> Result<AttachFds> {
        let mut fds = self.attach_fds()?;
        let Some(dir) = self.v2() else {
            return Ok(fds);
        };
        if dir.read("cgroup.subtree_control")?.trim().is_empty() {
            return Ok(fds);
        }
        let path = format!("/proc/{first}/cgroup");
        // One that has ended is in no group; the join tells that.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let below = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .and_then(|at| at.strip_prefix(self.path.as_str()))
            .and_then(|at| at.strip_prefix('/'));
        if let Some(below) = below {
            let fd = dir.open_dir(below);
            let fd = fd.map_err(|source| open_error(dir, below, source))?;
            fds.clone_into = Some(fd.reopen()?);
        }
        Ok(fds)
    }

    /// Moves a running process (all its threads) into the group, v2 first,
    /// then all v1 hierarchies back to back: the first write waits for an
    /// RCU grace period (5 to 15 ms when nothing else moved lately), those
    /// after it find it over (10 to 50 µs each). A new process is better
    /// started with [`Cgroup::attach_fds`].
    ///
    /// # Errors
    /// [`Error::Attach`]; the process may then be in some of the hierarchies.
    pub fn attach(&self, pid: u32) -> Result<()> {
        let value = pid.to_string();
        let mut files = Vec::with_capacity(self.members.len());
        for dir in self.v2().into_iter().chain(self.v1()) {
            let fd = dir
                .open_file("cgroup.procs", OFlags::WRONLY)
                .map_err(|source| Error::Open {
                    path: dir.path().join("cgroup.procs"),
                    source,
                })?;
            files.push((dir, fd));
        }
        for (dir, fd) in files {
            use std::os::fd::AsFd;
            write_once(fd.as_fd(), value.as_bytes()).map_err(|source| Error::Attach {
                pid,
                path: dir.path().join("cgroup.procs"),
                source,
            })?;
        }
        Ok(())
    }

    /// The processes in the group and below, in any of its hierarchies;
    /// sorted, each once. Those outside this process's PID namespace are not
    /// seen.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for member in &self.members {
            collect_pids(&member.dir, 0, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// True if a process is in the group or below: one read where v2 is
    /// mounted and says yes, a walk otherwise.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn is_populated(&self) -> Result<bool> {
        if let Some(dir) = self.v2() {
            let text = dir.read_optional("cgroup.events")?.unwrap_or_default();
            if flat_value(&text, "populated") == Some(1) {
                return Ok(true);
            }
            if self.v1().next().is_none() {
                return Ok(false);
            }
        }
        Ok(!self.pids()?.is_empty())
    }

    /// Removes the group wherever nothing is in it or below it; elsewhere it
    /// stays.
    ///
    /// # Errors
    /// [`Error::Remove`] for anything but that.
    pub fn remove_empty(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<()> {
        let parent = path.parent();
        let above = parent.as_ref().map_or(".", CgroupPath::as_str);
        for hierarchy in hierarchies.list() {
            let root = &hierarchy.root;
            let gone = root.open_dir(above).and_then(|dir| dir.rmdir(path.name()));
            match gone {
                Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(source) => {
                    let path = root.path().join(path.as_str());
                    return Err(Error::Remove { path, source });
                }
            }
        }
        Ok(())
    }

    /// Removes the group and all groups below it from every hierarchy. Kills
    /// nothing; processes that are about to end are waited for (on their
    /// pidfds) until `wait` is over. A group that does not exist is removed
    /// already. Every hierarchy is tried even if one fails.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Remove`], or [`Error::Several`] of them.
    pub fn remove(hierarchies: &Hierarchies, path: &CgroupPath, wait: Duration) -> Result<()> {
        let start = Instant::now();
        let mut errors = Vec::new();
        for hierarchy in hierarchies.list() {
            if let Err(error) = remove_in(&hierarchy.root, path, start, wait) {
                errors.push(error);
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several {
                operation: "remove cgroup",
                errors,
            }),
        }
    }
}

/// [`Error::NotEmpty`] for a directory with processes in it or below.
fn refuse_populated(dir: &Dir) -> Result<()> {
    let pids = tree_pids(dir)?;
    if pids.is_empty() {
        return Ok(());
    }
    Err(Error::NotEmpty {
        path: dir.path().to_owned(),
        pids: pids.into_iter().take(SHOWN_PIDS).collect(),
    })
}
