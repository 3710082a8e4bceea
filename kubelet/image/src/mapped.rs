//! Images for user namespaces: the owners of an image's files, which are ids
//! from 0 on, are seen as those of a range that a container has.
//!
//! Where the file system allows it, the layers under the overlay are
//! id-mapped mounts (ext4 since Linux 5.12, XFS and Btrfs 5.15, tmpfs 6.3;
//! overlayfs takes such layers since 5.19), and nothing of them is written.
//! Elsewhere owners are
//! changed one by one in the overlay, whose upper directory then holds the
//! metadata of every file (no content).
//!
//! An overlay of older kernels takes layers of the caller's mount namespace
//! only, so a thread makes one for the purpose, attaches the mapped layers in
//! it and leaves; the overlay holds them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rkube_sys::mount::set_idmap;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Context, Result};
use crate::fsutil;
use crate::overlay::{MountOptions, OverlayMethod, UpperDirs, fail, leave_namespace, mount_here};
use crate::snapshot::Snapshot;
use crate::store::Image;

/// Deepest directory whose content gets other owners; images hold none deeper
/// than a path can name (PATH_MAX / 2).
const MAX_DEPTH: usize = 2048;
/// Set-user-id and set-group-id bits, which a change of owner takes away
/// (chown(2)).
const SET_ID_BITS: u32 = 0o6000;
/// File capabilities (capabilities(7)): 20 bytes in version 2, 24 with the
/// root of a user namespace in version 3 (`linux/capability.h`).
const CAPS: &str = "security.capability";
const CAPS_V2_BYTES: usize = 20;
const CAPS_V3: u8 = 3;

/// A range of ids of the host and the user namespace that maps it from 0.
#[derive(Debug, Clone, Copy)]
pub struct IdMap<'a> {
    /// The user namespace.
    pub namespace: BorrowedFd<'a>,
    /// 0 of the namespace on the host.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Snapshot {
    /// Mounts the image with this container's upper directory for a user
    /// namespace; the mount is detached. The flag tells that owners had to be
    /// changed one by one.
    ///
    /// # Errors
    /// [`Error::Mount`](crate::Error::Mount), or what could not be given its owner.
    pub fn mount_mapped(
        &self,
        image: &Image,
        opts: MountOptions,
        map: IdMap<'_>,
    ) -> Result<(OwnedFd, bool)> {
        let method = opts.method.unwrap_or_else(OverlayMethod::probed);
        let mapped = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("rkube-mount".into())
                .spawn_scoped(scope, || self.mapped_layers(image, opts, map))
                .map_err(|source| fail(method, "start a thread", source))?
                .join()
                .unwrap_or_else(|_| {
                    Err(fail(method, "thread", std::io::Error::other("it panicked")))
                })
        })?;
        if let Some(mount) = mapped {
            return Ok((mount, false));
        }
        let opts = MountOptions {
            metacopy: true,
            ..opts
        };
        let mount = self.mount(image, opts)?;
        shift_owners(mount.as_fd(), map.first, map.count)?;
        Ok((mount, true))
    }

    /// `None` where a file system has no id-mapped mounts.
    fn mapped_layers(
        &self,
        image: &Image,
        opts: MountOptions,
        map: IdMap<'_>,
    ) -> Result<Option<OwnedFd>> {
        let method = opts.method.unwrap_or_else(OverlayMethod::probed);
        let on = |step: &str, path: &Path| {
            let step = format!("{step} {}", path.display());
            move |e: Errno| fail(method, step, e)
        };
        let Some(top) = image.layers.last() else {
            return Err(fail(method, "look for layers", Errno::NOENT));
        };
        let stage_path = top.path.parent().unwrap_or(&top.path).join("empty");
        // The uppermost first.
        let sources: Vec<&Path> = image
            .layers
            .iter()
            .rev()
            .map(|l| l.path.as_path())
            .collect();
        let mut copies = Vec::with_capacity(sources.len());
        for path in &sources {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let copy = open_tree(CWD, *path, flags).map_err(on("copy the mount of", path))?;
            match set_idmap(copy.as_fd(), map.namespace, false) {
                Err(Errno::INVAL) => return Ok(None),
                other => other.map_err(on("map owners of", path))?,
            }
            copies.push(copy);
        }
        leave_namespace(method)?;
        let stage = staging(&stage_path).map_err(on("attach layers to", &stage_path))?;
        let mut paths: Vec<PathBuf> = Vec::with_capacity(copies.len());
        for (n, copy) in copies.iter().enumerate() {
            let path = stage_path.join(n.to_string());
            let name = n.to_string();
            rustix::fs::mkdirat(&stage, name.as_str(), Mode::from_raw_mode(0o700))
                .and_then(|()| {
                    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    move_mount(copy, "", &stage, name.as_str(), flags)
                })
                .map_err(on("attach a layer to", &path))?;
            paths.push(path);
        }
        rustix::fs::mkdirat(&stage, "merged", Mode::from_raw_mode(0o700))
            .map_err(on("make a directory below", &stage_path))?;
        let lower: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        // The upper directory cannot be mapped too: overlayfs works in it as
        // the host's root, who has no id in the map. So it holds the ids of
        // the range, its root's to begin with.
        let upper_fd = fsutil::open_dir(&self.upper)?;
        let shift = Shift {
            first: map.first,
            count: map.count,
        };
        shift.file(&upper_fd, &self.upper)?;
        let upper = UpperDirs {
            upper: &self.upper,
            work: &self.work,
        };
        mount_here(&lower, (&stage_path, "merged"), upper, opts).map(Some)
    }
}

/// A tmpfs over a directory, in this thread's mount namespace.
fn staging(over: &Path) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mount,
        "",
        CWD,
        over,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(mount)
}

/// Adds `first` to the owner and group of everything in a tree that are below
/// `count`, so that a second time changes nothing. Nothing is followed: each
/// file is held by a descriptor while it is changed.
///
/// # Errors
/// The file that could not be changed.
pub fn shift_owners(root: BorrowedFd<'_>, first: u32, count: u32) -> Result<()> {
    let shift = Shift { first, count };
    let what = Path::new("tree of a user namespace");
    let fd = rustix::fs::openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let fd = match fd {
        // A file that is bound alone.
        Err(Errno::NOTDIR) => root.try_clone_to_owned().map_err(|_| Errno::BADF),
        other => other,
    };
    let fd = fd.ctx("open", what)?;
    shift.file(&fd, what)?;
    if rustix::fs::fstat(&fd).is_ok_and(|s| is_directory(s.st_mode)) {
        shift.below(&fd, what, 0)?;
    }
    Ok(())
}

fn is_directory(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Directory
}

#[derive(Clone, Copy)]
struct Shift {
    first: u32,
    count: u32,
}

impl Shift {
    fn of(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first.saturating_add(id))
    }

    fn below(self, dir: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            return Err(Errno::LOOP).ctx("change owners below", path);
        }
        let readable = rustix::fs::openat(dir, ".", fsutil::DIR_FLAGS, Mode::empty())
            .ctx("open directory", path)?;
        let names = fsutil::list_dir(readable.as_fd(), usize::MAX).ctx("list", path)?;
        for (name, _) in names {
            let shown = path.join(name.to_string_lossy().as_ref());
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(dir, &name, flags, Mode::empty()) {
                // Gone meanwhile: a volume may be in use.
                Err(Errno::NOENT) => continue,
                other => other.ctx("open", &shown)?,
            };
            self.file(&fd, &shown)?;
            if rustix::fs::fstat(&fd).is_ok_and(|s| is_directory(s.st_mode)) {
                self.below(&fd, &shown, depth + 1)?;
            }
        }
        Ok(())
    }

    fn file(self, fd: &OwnedFd, shown: &Path) -> Result<()> {
        let stat = rustix::fs::fstat(fd).ctx("stat", shown)?;
        let (uid, gid) = (self.of(stat.st_uid), self.of(stat.st_gid));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        // This link leads to what is open, whatever has its name by now.
        let itself = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut caps = [0_u8; CAPS_V2_BYTES + 4];
        let has_caps = regular
            && rustix::fs::getxattr(&itself, CAPS, &mut caps).is_ok_and(|n| n == CAPS_V2_BYTES);
        rustix::fs::chownat(
            fd,
            "",
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::EMPTY_PATH,
        )
        .ctx("change the owner of", shown)?;
        if regular && stat.st_mode & SET_ID_BITS != 0 {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmod(&itself, mode).ctx("set the mode of", shown)?;
        }
        if has_caps {
            // Good for the root of this range, instead of the host's.
            caps[3] = CAPS_V3;
            caps[CAPS_V2_BYTES..].copy_from_slice(&self.first.to_le_bytes());
            rustix::fs::setxattr(&itself, CAPS, &caps, XattrFlags::empty())
                .ctx("set the capabilities of", shown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn owners_are_shifted_once_and_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::create_dir_all(at("t/deep")).unwrap();
        std::fs::write(at("t/deep/suid"), "x").unwrap();
        std::fs::hard_link(at("t/deep/suid"), at("t/second")).unwrap();
        std::os::unix::fs::chown(at("t/deep/suid"), Some(5), Some(70_000)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o6755);
        std::fs::set_permissions(at("t/deep/suid"), mode).unwrap();
        // cap_net_raw=ep of version 2 (linux/capability.h).
        let mut caps = [0_u8; 20];
        (caps[0], caps[3], caps[5]) = (1, 2, 0x20);
        rustix::fs::setxattr(at("t/deep/suid"), CAPS, &caps, XattrFlags::empty()).unwrap();
        symlink(outside.path(), at("t/link")).unwrap();
        let root = fsutil::open_dir(&at("t")).unwrap();
        for _ in 0..2 {
            shift_owners(root.as_fd(), 1_000_000, 65536).unwrap();
            let file = std::fs::metadata(at("t/deep/suid")).unwrap();
            assert_eq!((file.uid(), file.gid()), (1_000_005, 70_000));
            assert_eq!(file.mode() & 0o7777, 0o6755);
            for name in ["t", "t/deep", "t/link"] {
                let stat = std::fs::symlink_metadata(at(name)).unwrap();
                assert_eq!((stat.uid(), stat.gid()), (1_000_000, 1_000_000), "{name}");
            }
            assert_eq!(outside.as_file().metadata().unwrap().uid(), 0);
            let mut got = [0_u8; 24];
            let n = rustix::fs::getxattr(at("t/deep/suid"), CAPS, &mut got).unwrap();
            assert_eq!((n, got[3]), (24, 3));
            assert_eq!(got[20..], 1_000_000_u32.to_le_bytes());
        }
    }
}
