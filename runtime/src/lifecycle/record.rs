//! What is known of a container, on disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rkube_cgroup::systemd::Scope;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::open_group;
use crate::error::{Context, Error, Result};
use crate::program::Program;
use crate::spec::{MAX_SPEC_BYTES, NAMESPACE_FILES, namespace_flag, read_bounded};

/// Longest container id in bytes (NAME_MAX, limits.h).
const MAX_ID_BYTES: usize = 255;
/// Largest record in bytes.
const MAX_RECORD_BYTES: u64 = 1 << 20;

const RECORD: &str = "state.json";
const SPEC: &str = "config.json";
const START: &str = "start.sock";
/// Compiled seccomp filters, beside the containers: no id has an `@`.
const FILTERS: &str = "@filters";

/// A container as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Version of its spec.
    pub oci_version: String,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its root file system on the host.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The boot in which it was made; in another one its process is gone.
    pub boot_id: String,
    /// Its cgroup below the mount points.
    pub cgroup: String,
    /// The highest group above it that create has to make, if there is one.
    #[serde(default)]
    pub cgroup_above: Option<String>,
    /// The systemd unit that its cgroup is, where systemd made it.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Its first process, or 0 while there is none.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot.
    pub start_ticks: u64,
    /// Create has come to its end.
    pub made: bool,
    /// Its spec has a process to start.
    pub has_process: bool,
    /// `CLONE_NEW*` of the namespaces that it has of its own.
    pub namespaces: u64,
    /// From the spec.
    pub annotations: BTreeMap<String, String>,
}

impl Record {
    /// Whether its container was made since the host started.
    ///
    /// # Errors
    /// /proc that cannot be read.
    pub(super) fn is_of_this_boot(&self) -> Result<bool> {
        Ok(boot_id()? == self.boot_id)
    }
}

/// All containers below one directory, with their owners, and the records that
/// could not be read.
#[derive(Debug, Default)]
pub struct Listed {
    /// By id; with the user id of the record's owner.
    pub containers: Vec<(Container, u32)>,
    /// Why not, with the file.
    pub unreadable: Vec<Error>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Create is at work, or was killed.
    Creating,
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// As the runtime-spec names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// All containers below one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// Checks an id: it names directories and cgroups.
///
/// # Errors
/// The rule that it breaks.
pub fn check_id(id: &str) -> Result<()> {
    let fail = |reason| Error::Id {
        id: id.chars().take(64).collect(),
        reason,
    };
    if id.is_empty() {
        return Err(fail("it is empty"));
    }
    if id.len() > MAX_ID_BYTES {
        return Err(fail("it is longer than 255 bytes"));
    }
    if id == "." || id == ".." {
        return Err(fail("it is a directory's own name"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if !id.chars().all(plain) {
        return Err(fail("only letters, digits, _, +, - and . may be in it"));
    }
    Ok(())
}

/// The id of this boot (random(4)), read once.
pub(super) fn boot_id() -> Result<&'static str> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let text = std::fs::read_to_string(PATH).on("read", PATH)?;
    Ok(ID.get_or_init(|| text.trim().to_owned()))
}

impl Store {
    /// Uses a directory, which is made when it is needed.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Refuses an id that a container has; [`Store::reserve`] has the last word.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub(super) fn refuse_taken(&self, id: &str) -> Result<()> {
        if self.dir(id).exists() {
            return Err(Error::Exists { id: id.to_owned() });
        }
        Ok(())
    }

    /// Records that a container is about to be made.
    ///
    /// # Errors
    /// [`Error::Exists`], or the file that could not be written.
    pub fn reserve(&self, record: Record, spec: &[u8]) -> Result<Container> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .on("make", self.root.display().to_string())?;
        let dir = self.dir(&record.id);
        match std::fs::DirBuilder::new().mode(0o711).create(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: record.id });
            }
            other => other.on("make", dir.display().to_string())?,
        }
        let container = Container { dir, record };
        let written = container.write(SPEC, spec).and_then(|()| container.save());
        if let Err(error) = written {
            // Nothing but this directory exists yet.
            let _ = container.forget();
            return Err(error);
        }
        Ok(container)
    }

    /// Looks a container up.
    ///
    /// # Errors
    /// [`Error::NotFound`], or a record that cannot be read.
    pub fn load(&self, id: &str) -> Result<Container> {
        check_id(id)?;
        let dir = self.dir(id);
        let path = dir.join(RECORD);
        let text = match read_bounded(&path, MAX_RECORD_BYTES) {
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound { id: id.to_owned() });
            }
            other => other?,
        };
        let record = serde_json::from_slice(&text).map_err(|source| Error::Parse {
            what: path.display().to_string(),
            source,
        })?;
        Ok(Container { dir, record })
    }

    /// Removes what a create left that was killed before its record was
    /// written: a directory without one stands for no side effect.
    ///
    /// # Errors
    /// The directory that could not be removed.
    pub(super) fn sweep(&self, id: &str) -> Result<()> {
        remove_directory(&self.dir(id))
    }

    /// All containers with a record, by id. One that cannot be read hides none
    /// of the others.
    ///
    /// # Errors
    /// The directory that could not be read.
    pub fn list(&self) -> Result<Listed> {
        let shown = || self.root.display().to_string();
        let entries = match std::fs::read_dir(&self.root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Listed::default()),
            other => other.on("read", shown())?,
        };
        let mut out = Listed::default();
        for entry in entries {
            let entry = entry.on("read", shown())?;
            let name = entry.file_name();
            let Some(id) = name.to_str().filter(|id| check_id(id).is_ok()) else {
                continue;
            };
            match self.load(id) {
                Ok(container) => {
                    let owner = entry.metadata().map(|m| m.uid()).unwrap_or_default();
                    out.containers.push((container, owner));
                }
                // Deleted meanwhile, or not made yet.
                Err(Error::NotFound { .. }) => {}
                Err(error) => out.unreadable.push(error),
            }
        }
        out.containers
            .sort_unstable_by(|(a, _), (b, _)| a.record.id.cmp(&b.record.id));
        Ok(out)
    }
}

/// Field 22 of /proc/PID/stat and whether the process still runs (a zombie
/// has ended).
pub(super) fn process_stat(pid: i32) -> Option<(u64, bool)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything (proc(5)).
    let after = text.iter().rposition(|b| *b == b')')?;
    let rest = String::from_utf8_lossy(text.get(after + 1..)?).into_owned();
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((start, !matches!(state, "Z" | "X" | "x")))
}

impl Container {
    /// Its state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The filters that containers of this store were given before; `None`
    /// where they cannot be kept, which costs time and nothing else.
    pub(super) fn filters(&self) -> Option<rkube_seccomp::Cache> {
        rkube_seccomp::Cache::open(&self.dir.parent()?.join(FILTERS)).ok()
    }

    /// The small program, kept beside the containers.
    pub(super) fn program(&self) -> Result<Program> {
        let dir = self.dir.parent().unwrap_or(&self.dir);
        Program::kept(dir).map_err(|source| Error::Spawn { source })
    }

    /// Writes a file beside and renames it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let beside = self.dir.join(format!(".{name}.new"));
        let shown = || beside.display().to_string();
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| file.write_all(bytes))
            .on("write", shown())?;
        std::fs::rename(&beside, self.dir.join(name)).on("rename", shown())
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.record).map_err(|source| Error::Parse {
            what: RECORD.to_owned(),
            source,
        })?;
        self.write(RECORD, &text)
    }

    /// Removes the record and everything beside it.
    ///
    /// # Errors
    /// The directory that could not be removed.
    pub(super) fn forget(&self) -> Result<()> {
        // The record first: what is left then is no container any more.
        let _ = std::fs::remove_file(self.dir.join(RECORD));
        remove_directory(&self.dir)
    }

    /// The spec as it was at create.
    ///
    /// # Errors
    /// The file that could not be read.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.dir.join(SPEC);
        let text = read_bounded(&path, MAX_SPEC_BYTES)?;
        crate::spec::decode(&text, "/process").map_err(|source| Error::Parse {
            what: path.display().to_string(),
            source,
        })
    }

    /// True if its first process is the one recorded and has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.record.pid > 0
            && self.record.is_of_this_boot().is_ok_and(|same| same)
            && process_stat(self.record.pid) == Some((self.record.start_ticks, true))
    }

    /// Its first process by a descriptor, if it has not ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.record.pid)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after it was opened: the descriptor names that process.
        self.is_alive().then_some(pidfd)
    }

    /// The namespaces that it has of its own, by descriptors.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or the one that could not be opened.
    pub(super) fn namespaces(&self) -> Result<Vec<(LinuxNamespaceType, OwnedFd)>> {
        let mut out = Vec::new();
        for (kind, name) in NAMESPACE_FILES {
            if self.record.namespaces & namespace_flag(kind) == 0 {
                continue;
            }
            let path = format!("/proc/{}/ns/{name}", self.record.pid);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&path, flags, Mode::empty()).on("open", path)?;
            out.push((kind, fd));
        }
        // They were its own if it still lives.
        if self.is_alive() {
            Ok(out)
        } else {
            Err(Error::NotRunning)
        }
    }

    /// Where it is in its life.
    ///
    /// # Errors
    /// The cgroup that could not be read.
    pub fn status(&self) -> Result<Status> {
        if self.record.pid == 0 {
            return Ok(Status::Creating);
        }
        if !self.is_alive() {
            return Ok(Status::Stopped);
        }
        if !self.record.made {
            return Ok(Status::Creating);
        }
        if open_group(&self.record)?.is_frozen()? {
            return Ok(Status::Paused);
        }
        let waits = !self.record.has_process || self.start_path().exists();
        Ok(if waits {
            Status::Created
        } else {
            Status::Running
        })
    }

    /// The start socket by its own path; too long a root may make it
    /// unusable for bind(2), see [`Container::start_address`].
    pub(super) fn start_path(&self) -> PathBuf {
        self.dir.join(START)
    }

    /// A short path of the start socket, valid while the descriptor is held
    /// (unix(7) allows 108 bytes).
    pub(super) fn start_address(&self) -> Result<(OwnedFd, PathBuf)> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.dir, flags, Mode::empty())
            .on("open", self.dir.display().to_string())?;
        let path = format!("/proc/self/fd/{}/{START}", fd.as_raw_fd());
        Ok((fd, PathBuf::from(path)))
    }
}

fn remove_directory(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", dir.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A.b-c_d+e", "0", "..."] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (start, runs) = process_stat(pid).unwrap();
        assert!(start > 0 && runs);
        assert_eq!(process_stat(i32::MAX), None);
    }
}
