//! What is known of sandboxes and containers, on disk.
//!
//! `<state>/<sandbox>/sandbox.json` is written before the first side effect
//! of a sandbox, `<state>/<sandbox>/<container>.<attempt>.json` before that
//! of a container, both by rename. Whatever is found on the host and has no
//! record is nobody's; whatever has a record can be taken down from it.
//!
//! Records hold environments, and so secrets: they are root's alone.
//!
//! Nothing is flushed to the disk. A crash of any process leaves the page
//! cache, so within one boot a record is whole or absent. A power cut may tear
//! records or undo renames, but it also ends all that they speak of; records
//! of an earlier boot that cannot be read are cleared away. The file
//! `<state>/.boot` tells whether that is so: it holds the boot id under which
//! records were last taken over. A flush would cost each start of a container
//! 0.25 ms on a virtual disk with ext4 (measured), more on others, and gain
//! nothing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rkube_keeper::protocol::ProcessStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{ContainerConfig, ContainerId, Exit, SandboxConfig};
use crate::error::{Error, OnFile, Result};
use crate::ids::Ids;

/// Longest id of a sandbox, in bytes: it becomes part of cgroup, file and
/// socket names.
pub const MAX_SANDBOX_ID_BYTES: usize = 63;
/// Longest name of a container, in bytes (RFC 1123 label).
pub const MAX_CONTAINER_NAME_BYTES: usize = 63;
/// Modes of directories and files of records.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Largest record that is read, in bytes.
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// A process of a keeper, as JSON (the keeper's own record is binary).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// On the host.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_ticks: u64,
    /// ns since 1970.
    pub started_ns: u64,
}

impl From<&ProcessStatus> for ProcessRecord {
    fn from(s: &ProcessStatus) -> Self {
        Self {
            pid: s.pid,
            start_ticks: s.start_ticks,
            started_ns: s.started_ns,
        }
    }
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// As it was asked for.
    pub config: SandboxConfig,
    /// Boot id of the kernel under which it was made
    /// (/proc/sys/kernel/random/boot_id): another one means that all its
    /// processes are gone.
    pub boot_id: String,
    /// When.
    pub created_at: SystemTime,
    /// Counts the sandboxes of this id; names its network attachment.
    pub generation: u32,
    /// Its pause process, once it runs.
    pub pause: Option<ProcessRecord>,
    /// Its keeper's pid, once it runs.
    pub keeper_pid: Option<u32>,
    /// Its network, once attached.
    pub network: Option<rkube_netns::Attachment>,
    /// Its ids on the host, where it has a user namespace.
    #[serde(default)]
    pub ids: Option<Ids>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// As it was asked for.
    pub config: ContainerConfig,
    /// Digest of the image that it was made from.
    pub image_id: String,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
    /// Its environment and user, for exec: the OCI process as JSON. Set
    /// before its keeper is asked to start it.
    pub process: Option<oci_spec::runtime::Process>,
    /// When that was about to happen.
    #[serde(default)]
    pub launched_at: Option<SystemTime>,
    /// Its first process. The keeper's own record has it first; here it is
    /// written with the next thing that is.
    pub running: Option<ProcessRecord>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// When it was found gone without an exit code.
    pub lost_at: Option<SystemTime>,
}

/// What is recorded of a sandbox.
#[derive(Debug)]
pub struct Recorded {
    /// The sandbox.
    pub sandbox: SandboxRecord,
    /// Its containers, by id.
    pub containers: Vec<ContainerRecord>,
    /// Records of containers that cannot be read, and why.
    pub unreadable: Vec<(PathBuf, Error)>,
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// In a directory, which is made if missing.
    ///
    /// # Errors
    /// When it cannot be made, or not be closed to others.
    pub fn open(dir: PathBuf) -> Result<Self> {
        make_private_dir(&dir)?;
        // It may be older than this rule.
        let mode = std::fs::Permissions::from_mode(DIR_MODE);
        std::fs::set_permissions(&dir, mode).on("set mode of", &dir)?;
        Ok(Self(dir))
    }

    /// Whether records were taken over in this boot already.
    #[must_use]
    pub fn seen(&self, boot_id: &str) -> bool {
        std::fs::read(self.boot_path()).is_ok_and(|known| known == boot_id.as_bytes())
    }

    /// From now on, records are of this boot.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn set_seen(&self, boot_id: &str) -> Result<()> {
        write_bytes(&self.boot_path(), boot_id.as_bytes())
    }

    /// No sandbox has this name (see [`check_name`]).
    fn boot_path(&self) -> PathBuf {
        self.0.join(".boot")
    }

    fn dir(&self, sandbox: &str) -> PathBuf {
        self.0.join(sandbox)
    }

    fn container_path(&self, id: &ContainerId) -> PathBuf {
        self.dir(&id.sandbox)
            .join(format!("{}.{}.json", id.name, id.attempt))
    }

    /// Writes the record of a sandbox.
    pub fn put_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let dir = self.dir(&record.config.id);
        make_private_dir(&dir)?;
        write(&dir.join("sandbox.json"), record)
    }

    /// Writes the record of a container.
    pub fn put_container(&self, record: &ContainerRecord) -> Result<()> {
        write(&self.container_path(&record.config.id), record)
    }

    /// Removes the record of a container.
    pub fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let path = self.container_path(id);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.on("remove record", &path),
        }
    }

    /// Removes all records of a sandbox.
    pub fn remove_sandbox(&self, id: &str) -> Result<()> {
        let path = self.dir(id);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.on("remove records", &path),
        }
    }

    /// The ids of all sandboxes that have a record.
    pub fn sandboxes(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.on("list records", &self.0)?,
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|id| check_name("sandbox", id, MAX_SANDBOX_ID_BYTES).is_ok())
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// What is recorded of a sandbox; `None` where its record was never
    /// written (a crash came first).
    ///
    /// # Errors
    /// When the sandbox' own record cannot be read.
    pub fn load(&self, id: &str) -> Result<Option<Recorded>> {
        let dir = self.dir(id);
        let Some(sandbox) = read(&dir.join("sandbox.json"))? else {
            return Ok(None);
        };
        let mut found = Recorded {
            sandbox,
            containers: Vec::new(),
            unreadable: Vec::new(),
        };
        for entry in std::fs::read_dir(&dir).on("list records", &dir)? {
            let entry = entry.on("list records", &dir)?;
            let name = entry.file_name();
            let is_container = name
                .to_str()
                .is_some_and(|n| n.ends_with(".json") && n != "sandbox.json");
            if !is_container {
                continue;
            }
            match read(&entry.path()) {
                Ok(Some(record)) => found.containers.push(record),
                Ok(None) => {}
                Err(error) => found.unreadable.push((entry.path(), error)),
            }
        }
        found
            .containers
            .sort_unstable_by_key(|c| c.config.id.clone());
        Ok(Some(found))
    }
}

/// Refuses ids that could mean another file, cgroup or process.
pub fn check_name(what: &'static str, name: &str, limit: usize) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= limit
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        && !name.starts_with(['.', '-']);
    if fits {
        Ok(())
    } else {
        Err(Error::Name {
            what,
            name: name.to_owned(),
            limit,
        })
    }
}

/// Makes a directory, and those above it, that only root may look into.
pub(crate) fn make_private_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .on("create directory", dir)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|source| Error::Record {
        path: path.to_owned(),
        source,
    })?;
    write_bytes(path, &bytes)
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut file = options
        .mode(FILE_MODE)
        .open(&new)
        .on("write record", &new)?;
    file.write_all(bytes).on("write record", &new)?;
    std::fs::rename(&new, path).on("rename record", path)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.on("read record", path)?,
    };
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_RECORD_BYTES + 1);
    limited.read_to_end(&mut bytes).on("read record", path)?;
    if bytes.len() as u64 > MAX_RECORD_BYTES {
        return Err(Error::Invalid {
            object: format!("record {}", path.display()),
            what: format!("it is longer than {MAX_RECORD_BYTES} bytes"),
        });
    }
    let value = serde_json::from_slice(&bytes).map_err(|source| Error::Record {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_roots_alone() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("sandboxes");
        // As an earlier version left it.
        std::fs::create_dir(&dir).expect("directory");
        let records = Records::open(dir.clone()).expect("open");
        records.set_seen("boot-1").expect("write");
        make_private_dir(&dir.join("a")).expect("directory");
        let mode = |path: &Path| {
            let mode = std::fs::metadata(path).expect("stat").permissions().mode();
            mode & 0o7777
        };
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("a")), 0o700);
        assert_eq!(mode(&dir.join(".boot")), 0o600);
        assert!(records.seen("boot-1") && !records.seen("boot-2"));
        // The sandbox without a record; `.boot` is none.
        assert_eq!(records.sandboxes().expect("list"), ["a"]);
    }
}
