//! The writable directories of containers, `<containers>/<id>/{upper,work}`,
//! and the pins that keep a container's image in the store.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::overlay::{MountOptions, UpperDirs, mount_overlay};
use crate::store::{Image, Store};

/// Longest container id in bytes; it names a directory and a pin.
pub const MAX_CONTAINER_ID_BYTES: usize = 128;

/// The directory of all containers.
#[derive(Debug)]
pub struct Snapshots {
    path: PathBuf,
    dir: OwnedFd,
}

/// The directories of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Container id.
    pub id: String,
    /// What the container changed.
    pub upper: PathBuf,
    /// overlayfs' own.
    pub work: PathBuf,
}

impl Snapshot {
    /// Mounts the image with this container's upper directory; the mount is
    /// detached.
    ///
    /// # Errors
    /// [`Error::Mount`].
    pub fn mount(&self, image: &Image, opts: MountOptions) -> Result<OwnedFd> {
        mount_overlay(
            &image.layers,
            Some(UpperDirs {
                upper: &self.upper,
                work: &self.work,
            }),
            opts,
        )
    }
}

impl Snapshots {
    /// Opens (makes) `<root>/var/lib/rkube/containers`. It must be on the
    /// file system that can be an overlay's upper.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).ctx("create directory", path)?;
        let dir = fsutil::open_dir(path)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700)).ctx("set the mode of", path)?;
        Ok(Self {
            path: path.canonicalize().ctx("resolve", path)?,
            dir,
        })
    }

    /// Pins the image, then makes the directories of a new container.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the image is gone; [`Error::Io`] with `EEXIST`
    /// if the container has directories already.
    pub fn create(&self, store: &Store, id: &str, image: &Image) -> Result<Snapshot> {
        check_id(id)?;
        let own = fsutil::make_dir(self.dir.as_fd(), id, 0o700)?;
        let snapshot = self.snapshot(id);
        rustix::fs::mkdirat(&own, "work", Mode::from_raw_mode(0o700))
            .ctx("create directory", &snapshot.work)?;
        store.pin(id, &image.manifest_digest)?;
        rustix::fs::mkdirat(&own, "upper", Mode::from_raw_mode(0o755))
            .ctx("create directory", &snapshot.upper)?;
        // The root of the merged tree shows the upper's attributes: give it
        // the image's.
        let (mode, uid, gid) = image.root.unwrap_or((0o755, 0, 0));
        let upper = fsutil::open_beneath(own.as_fd(), b"upper", fsutil::DIR_FLAGS)
            .ctx("open directory", &snapshot.upper)?;
        rustix::fs::fchown(&upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .ctx("set the owner of", &snapshot.upper)?;
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(mode))
            .ctx("set the mode of", &snapshot.upper)?;
        Ok(snapshot)
    }

    /// The directories of a container that [`Snapshots::create`] made.
    ///
    /// # Errors
    /// [`Error::ContainerId`].
    pub fn get(&self, id: &str) -> Result<Snapshot> {
        check_id(id)?;
        Ok(self.snapshot(id))
    }

    fn snapshot(&self, id: &str) -> Snapshot {
        let own = self.path.join(id);
        Snapshot {
            id: id.to_string(),
            upper: own.join("upper"),
            work: own.join("work"),
        }
    }

    /// Removes a container's directories and its pin. Whatever the container
    /// left there is removed by descriptor, without following a link. Other
    /// files in `<containers>/<id>` stay. Repeating it is harmless.
    ///
    /// # Errors
    /// [`Error::Cleanup`] or [`Error::Io`] after everything was tried; the
    /// pin stays then.
    pub fn remove(&self, store: &Store, id: &str) -> Result<()> {
        check_id(id)?;
        match fsutil::open_beneath(self.dir.as_fd(), id.as_bytes(), fsutil::DIR_FLAGS) {
            Ok(own) => {
                let upper = fsutil::remove_tree(own.as_fd(), c"upper");
                let work = fsutil::remove_tree(own.as_fd(), c"work");
                upper.and(work)?;
                match rustix::fs::unlinkat(&self.dir, id, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(e) => return Err(e).ctx("remove directory", self.path.join(id)),
                }
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e).ctx("open directory", self.path.join(id)),
        }
        store.unpin(id)
    }

    /// Ids that have a directory or a pin, sorted: what a crash may have left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self, store: &Store) -> Result<Vec<String>> {
        let dir = fsutil::open_dir(&self.path)?;
        let names = fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", &self.path)?;
        let dirs = names
            .into_iter()
            .filter_map(|(n, _): (CString, _)| n.into_string().ok());
        let mut all: Vec<String> = dirs
            .chain(store.pins()?.into_iter().map(|(id, _)| id))
            .collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

fn check_id(id: &str) -> Result<()> {
    let bad = |reason| {
        Err(Error::ContainerId {
            id: id.chars().take(200).collect(),
            reason,
        })
    };
    match id.as_bytes() {
        [] => bad("it is empty"),
        b if b.len() > MAX_CONTAINER_ID_BYTES => bad("it has more than 128 bytes"),
        [first, ..] if !first.is_ascii_alphanumeric() => bad("it starts with no letter or digit"),
        b if !b
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-')) =>
        {
            bad("it holds something else than letters, digits, _ . -")
        }
        _ => Ok(()),
    }
}
