//! Which cgroup file systems the host has, and which controller lives where.

use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::file::{Dir, read_all};
use crate::layout::{Layout, MountedHierarchy};

/// `CGROUP_SUPER_MAGIC`, include/uapi/linux/magic.h.
const CGROUP_SUPER_MAGIC: u64 = 0x27_e0eb;
/// `CGROUP2_SUPER_MAGIC`, include/uapi/linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// How a host mounts its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Only cgroup v2.
    Unified,
    /// v1 hierarchies and a v2 one, which may have some controllers.
    Hybrid,
    /// Only cgroup v1.
    Legacy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Unified => "cgroup v2",
            Mode::Hybrid => "hybrid cgroup v1/v2",
            Mode::Legacy => "cgroup v1",
        })
    }
}

/// Interface version of one hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// cgroup v1.
    V1,
    /// cgroup v2.
    V2,
}

/// A resource controller. `Io` is v1's `blkio`. Devices, freezer and cpuacct
/// are controllers on v1 only; v2 has them built in (or as a BPF hook).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of the kernel")]
pub enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Devices,
    Freezer,
    Io,
    Pids,
    Hugetlb,
    NetCls,
    NetPrio,
    PerfEvent,
    Rdma,
    Misc,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 14] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Devices,
        Controller::Freezer,
        Controller::Io,
        Controller::Pids,
        Controller::Hugetlb,
        Controller::NetCls,
        Controller::NetPrio,
        Controller::PerfEvent,
        Controller::Rdma,
        Controller::Misc,
    ];

    /// The kernel's name in one version.
    #[must_use]
    pub fn name(self, version: Version) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
            Controller::Io => match version {
                Version::V1 => "blkio",
                Version::V2 => "io",
            },
            Controller::Pids => "pids",
            Controller::Hugetlb => "hugetlb",
            Controller::NetCls => "net_cls",
            Controller::NetPrio => "net_prio",
            Controller::PerfEvent => "perf_event",
            Controller::Rdma => "rdma",
            Controller::Misc => "misc",
        }
    }

    /// The controller of that name in one version, if it is one of ours.
    #[must_use]
    pub fn from_name(name: &str, version: Version) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|controller| controller.name(version) == name)
    }

    /// Its place in a bit set.
    pub(crate) fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Controller::Io => "io (blkio)",
            other => other.name(Version::V2),
        })
    }
}

/// One hierarchy with its mount point open.
#[derive(Debug)]
pub struct Hierarchy {
    version: Version,
    controllers: Vec<Controller>,
    name: Option<String>,
    pub(crate) root: Dir,
}

impl Hierarchy {
    /// Interface version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// What it controls.
    #[must_use]
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// The name of a named v1 hierarchy.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Where it is mounted, for people.
    #[must_use]
    pub fn mount_point(&self) -> &std::path::Path {
        self.root.path()
    }

    /// True if it controls that.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }
}

/// All hierarchies of the host, open. Made once per process and shared.
#[derive(Debug)]
pub struct Hierarchies {
    mode: Mode,
    list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Looks at `/proc/self/mountinfo` and opens every hierarchy. A mount
    /// point hidden under another mount, or that is not the file system the
    /// table names, is passed over for the next one of the same hierarchy.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`], or the file that could not be read.
    pub fn detect() -> Result<Arc<Self>> {
        let layout = Layout::parse(&read_proc("/proc/self/mountinfo")?, "");
        Self::open(layout, true)
    }

    /// Opens the hierarchies of a layout as they are, without looking
    /// whether they are cgroup file systems: for mounts the caller has made
    /// and for tests on plain directories. `cgroup.controllers` of the v2
    /// root is read where the layout names no v2 controllers.
    ///
    /// # Errors
    /// As [`Hierarchies::detect`].
    pub fn from_layout(layout: Layout) -> Result<Arc<Self>> {
        Self::open(layout, false)
    }

    fn open(layout: Layout, check: bool) -> Result<Arc<Self>> {
        let mut list = Vec::with_capacity(layout.hierarchies.len());
        for mounted in layout.hierarchies {
            let Some(root) = open_root(&mounted, check)? else {
                continue;
            };
            let mut controllers = mounted.controllers;
            if mounted.version == Version::V2 && controllers.is_empty() {
                let text = root.read_optional("cgroup.controllers")?;
                controllers = text
                    .unwrap_or_default()
                    .split_ascii_whitespace()
                    .filter_map(|name| Controller::from_name(name, Version::V2))
                    .collect();
            }
            list.push(Hierarchy {
                version: mounted.version,
                controllers,
                name: mounted.name,
                root,
            });
        }
        let has = |version| list.iter().any(|h: &Hierarchy| h.version == version);
        let mode = match (has(Version::V1), has(Version::V2)) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::Legacy,
            (false, true) => Mode::Unified,
            (false, false) => return Err(Error::NoHierarchy),
        };
        Ok(Arc::new(Self { mode, list }))
    }

    /// How the host mounts its cgroups.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The hierarchies in the order of the mount table.
    #[must_use]
    pub fn list(&self) -> &[Hierarchy] {
        &self.list
    }

    /// Where a controller lives.
    #[must_use]
    pub fn of(&self, controller: Controller) -> Option<&Hierarchy> {
        self.list.iter().find(|h| h.has(controller))
    }

    /// The v2 hierarchy, with or without controllers.
    #[must_use]
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.list.iter().find(|h| h.version == Version::V2)
    }

    /// The controllers of the host, for messages and `rkube check`.
    #[must_use]
    pub fn available(&self) -> String {
        let mut names: Vec<&str> = self
            .list
            .iter()
            .flat_map(|h| h.controllers.iter().map(|c| c.name(h.version)))
            .collect();
        names.sort_unstable();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// Of `wanted`, the controllers that the host lacks (those that v2 has
    /// built in are never missing where v2 is mounted).
    #[must_use]
    pub fn missing(&self, wanted: &[Controller]) -> Vec<Controller> {
        let built_in = [
            Controller::Devices,
            Controller::Freezer,
            Controller::Cpuacct,
        ];
        wanted
            .iter()
            .copied()
            .filter(|c| self.of(*c).is_none())
            .filter(|c| !(self.v2().is_some() && built_in.contains(c)))
            .collect()
    }

    /// The error for a setting whose controller the host lacks.
    pub(crate) fn missing_error(&self, controller: Controller, setting: &str) -> Error {
        Error::MissingController {
            controller,
            mode: self.mode,
            setting: setting.to_owned(),
            available: self.available(),
        }
    }

    /// The groups this process is in, from `/proc/self/cgroup`
    /// (cgroups(7)): the path in the hierarchy of `controller`, or in the v2
    /// one for `None`. Absolute, as the kernel shows it to this process.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn own_path(&self, controller: Option<Controller>) -> Result<Option<String>> {
        Ok(find_own(
            &read_proc("/proc/self/cgroup")?,
            controller.filter(|c| self.of(*c).is_some_and(|h| h.version == Version::V1)),
        ))
    }
}

/// The path of one hierarchy in the text of `/proc/<pid>/cgroup`.
fn find_own(text: &str, controller: Option<Controller>) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let hit = match controller {
            None => id == "0" && names.is_empty(),
            Some(controller) => names
                .split(',')
                .any(|name| name == controller.name(Version::V1)),
        };
        hit.then(|| path.to_owned())
    })
}

/// Opens the first usable mount point; `None` if the hierarchy cannot be
/// seen from here.
fn open_root(mounted: &MountedHierarchy, check: bool) -> Result<Option<Dir>> {
    let mut refused = None;
    for point in &mounted.points {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::open(point, flags, FileMode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(source) => {
                refused = Some(Error::Open {
                    path: point.clone(),
                    source,
                });
                continue;
            }
        };
        if check && !is_the_mount(&fd, mounted, point)? {
            continue;
        }
        return Ok(Some(Dir::new(fd, point.clone())));
    }
    match refused {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// True if the directory is on the file system that the mount table names.
fn is_the_mount(
    fd: impl AsFd,
    mounted: &MountedHierarchy,
    point: &std::path::Path,
) -> Result<bool> {
    let fail = |source| Error::Open {
        path: point.to_owned(),
        source,
    };
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    let device = format!(
        "{}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev)
    );
    let magic = rustix::fs::fstatfs(&fd).map_err(fail)?.f_type;
    let wanted = match mounted.version {
        Version::V1 => CGROUP_SUPER_MAGIC,
        Version::V2 => CGROUP2_SUPER_MAGIC,
    };
    Ok(device == mounted.device && u64::try_from(magic).is_ok_and(|magic| magic == wanted))
}

/// Reads a file of proc.
fn read_proc(path: &str) -> Result<String> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty())
        .and_then(|fd| read_all(fd.as_fd()))
        .map_err(|source| Error::Table {
            path: PathBuf::from(path),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups() {
        let text = "3:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/d\n";
        assert_eq!(find_own(text, Some(Controller::Cpuacct)).unwrap(), "/a");
        assert_eq!(find_own(text, None).unwrap(), "/d");
        assert_eq!(find_own(text, Some(Controller::Io)), None);
    }

    #[test]
    fn this_host() {
        let host = Hierarchies::detect().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(Layout::parse(&mounts, "").mode(), Some(host.mode()));
        for hierarchy in host.list() {
            assert!(hierarchy.mount_point().join("cgroup.procs").exists());
        }
        let missing = host.missing(&Controller::ALL);
        let error = host
            .missing_error(Controller::Rdma, "rdma.mlx5")
            .to_string();
        assert!(error.contains(&host.available()), "{error}");
        assert!(!missing.contains(&Controller::Memory));
        assert!(host.own_path(None).unwrap().is_some() || host.v2().is_none());
    }
}
