//! One rkube on a host: its directories and the names that derive from it.
//!
//! Every global name (cgroup parent, nftables table, links, addresses) comes
//! from the instance id, so that two roots on one host never meet.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rkube_cgroup::systemd::Scope;

use crate::error::{Error, OnFile, Result};

/// The directories and names of one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The root, canonical.
    pub root: PathBuf,
    /// Eight lower-case hexadecimal digits.
    pub iid: String,
    /// The cgroup that systemd has delegated, where it has.
    pub scope: Option<Scope>,
}

/// 64-bit FNV-1a: spreads names over ids; nothing relies on it being hard to
/// invert.
fn fnv(bytes: &[u8], seed: u64) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

impl Instance {
    /// The instance of a root; its id is made at the first call and kept in
    /// `var/lib/rkube/instance`.
    ///
    /// # Errors
    /// When the root or the file cannot be made or read.
    pub fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).on("create root", root)?;
        let root = root.canonicalize().on("resolve root", root)?;
        let mut instance = Self {
            root,
            iid: String::new(),
            scope: None,
        };
        let dir = instance.state_dir();
        std::fs::create_dir_all(&dir).on("create directory", &dir)?;
        let path = dir.join("instance");
        loop {
            if let Some(iid) = Self::read(&path)? {
                instance.iid = iid;
                instance.scope = instance.recorded_scope()?;
                return Ok(instance);
            }
            instance.make(&path)?;
        }
    }

    /// The instance of a root that has been used before.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn find(root: &Path) -> Result<Option<Self>> {
        let Ok(root) = root.canonicalize() else {
            return Ok(None);
        };
        let mut instance = Self {
            root,
            iid: String::new(),
            scope: None,
        };
        match Self::read(&instance.state_dir().join("instance"))? {
            Some(iid) => {
                instance.iid = iid;
                instance.scope = instance.recorded_scope()?;
                Ok(Some(instance))
            }
            None => Ok(None),
        }
    }

    fn read(path: &Path) -> Result<Option<String>> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.on("read", path)?,
        };
        let iid = text.trim();
        let fits = iid.len() == 8 && iid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fits {
            Ok(Some(iid.to_owned()))
        } else {
            let what = format!("{} holds no instance id", path.display());
            Err(Error::Invalid {
                object: "instance".into(),
                what,
            })
        }
    }

    /// Several commands may come here at once: the first link(2) wins.
    fn make(&self, path: &Path) -> Result<()> {
        let mut seed = [0_u8; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .on("draw instance id for", path)?;
        let hash = fnv(self.root.as_os_str().as_bytes(), u64::from_ne_bytes(seed));
        let iid = format!("{:08x}\n", (hash >> 32) ^ (hash & 0xffff_ffff));
        let new = path.with_extension(format!("{:016x}.new", u64::from_ne_bytes(seed)));
        let mut file = std::fs::File::create(&new).on("write", &new)?;
        file.write_all(iid.as_bytes()).on("write", &new)?;
        file.sync_all().on("sync", &new)?;
        let linked = std::fs::hard_link(&new, path);
        std::fs::remove_file(&new).on("remove", &new)?;
        match linked {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.on("make", path),
        }
    }

    /// What does not outlive a reboot: sockets, FIFOs, records of processes.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run/rkube")
    }

    /// What does: records, images, volumes.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/rkube")
    }

    /// Logs of containers.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.root.join("var/log/pods")
    }

    /// The cgroup that all of this instance's lie in.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        let scope = self.scope.as_ref().and_then(|s| s.path().ok());
        scope.map_or_else(|| self.suffixed("rkube"), |path| path.to_string())
    }

    /// The scope that systemd is asked to delegate.
    ///
    /// # Errors
    /// A name that systemd would not take.
    pub fn wanted_scope(&self) -> Result<Scope> {
        let unit = format!("{}.scope", self.suffixed("rkube"));
        Scope::new("rkube.slice", &unit).map_err(|source| Error::Cgroup {
            object: unit,
            source,
        })
    }

    fn scope_path(&self) -> PathBuf {
        self.state_dir().join("scope")
    }

    /// The scope that was delegated. It is part of the name of every cgroup
    /// in the records, so it is kept as long as they are.
    fn recorded_scope(&self) -> Result<Option<Scope>> {
        let path = self.scope_path();
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => {
                let unit = other.on("read", &path)?;
                Ok((unit.trim() == self.wanted_scope()?.unit())
                    .then(|| self.wanted_scope())
                    .transpose()?)
            }
        }
    }

    /// From now on, cgroups lie in the scope that systemd has delegated.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn use_scope(&mut self, scope: Scope) -> Result<()> {
        let path = self.scope_path();
        std::fs::write(&path, scope.unit()).on("write", &path)?;
        self.scope = Some(scope);
        Ok(())
    }

    /// The nftables table.
    #[must_use]
    pub fn table(&self) -> String {
        self.suffixed("rkube")
    }

    fn suffixed(&self, name: &str) -> String {
        if self.root == Path::new("/") {
            name.to_owned()
        } else {
            format!("{name}-{}", self.iid)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_id_and_two_roots_differ() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(Instance::find(&a).expect("find"), None);
        let first = Instance::open(&a).expect("open");
        assert_eq!(Instance::open(&a).expect("again"), first);
        assert_eq!(Instance::find(&a).expect("find"), Some(first.clone()));
        let other = Instance::open(&b).expect("open");
        assert_ne!(first.iid, other.iid);
        assert_ne!(first.cgroup_parent(), other.cgroup_parent());
        std::fs::write(a.join("var/lib/rkube/instance"), "../x").expect("write");
        assert!(Instance::open(&a).is_err());
    }

    #[test]
    fn eight_commands_at_once_agree() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().join("r");
        let ids: Vec<_> = (0..8)
            .map(|_| {
                let root = root.clone();
                std::thread::spawn(move || Instance::open(&root).expect("open").iid)
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|t| t.join().expect("thread"))
            .collect();
        assert!(ids.iter().all(|i| *i == ids[0]), "{ids:?}");
    }
}
