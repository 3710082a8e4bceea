//! The mounts of a container: new file systems, attached trees, masks.
//!
//! Everything is attached by descriptor (`move_mount` from a detached mount
//! to an O_PATH descriptor); no path string reaches mount(2).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rkube_sys::mount::{
    AttrChange, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_SLAVE, set_attributes,
};
use rustix::fs::{AtFlags, FileType, OFlags, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree, unmount,
};

use crate::error::{Context, Result, failure, refusal};
use crate::inroot::{EMPTY, Root};

/// Mounts that were made and are not attached yet, and what masks paths.
#[derive(Debug, Default)]
pub struct Mounts {
    slots: BTreeMap<u16, OwnedFd>,
    /// Where an empty directory has been attached before: a further mask is a
    /// clone of it.
    empty_directory: Option<OwnedFd>,
    /// The same for files.
    empty_file: Option<OwnedFd>,
}

/// Lossy text of a path for messages.
pub fn show(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

/// Makes a new instance of a file system and returns it detached.
pub fn new_filesystem(
    kind: &CStr,
    source: &CStr,
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> Result<OwnedFd> {
    let name = || format!("file system {}", show(kind));
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).on("open", name())?;
    if !source.is_empty() {
        fsconfig_set_string(context.as_fd(), c"source", source).on("set source of", name())?;
    }
    for (key, value) in options {
        let set = match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str()),
            None => fsconfig_set_flag(context.as_fd(), key.as_c_str()),
        };
        set.on("set option", format!("{} of {}", show(key), name()))?;
    }
    fsconfig_create(context.as_fd()).map_err(|errno| with_log(&context, "make", name(), errno))?;
    let attributes =
        u32::try_from(attributes).map_err(|_| failure("mount", name(), Errno::INVAL))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes),
    )
    .on("mount", name())
}

/// Adds what the kernel logged into the file system context (fsopen(2)).
fn with_log(context: &OwnedFd, what: &str, object: String, errno: Errno) -> crate::plan::Failure {
    let mut failed = failure(what, object, errno);
    let mut buffer = [0_u8; 512];
    if let Ok(n) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        failed.hint = text.trim().trim_start_matches("e ").to_owned();
    }
    failed
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, EMPTY, target, EMPTY, flags)
}

/// A detached copy of the mount (or of a part of it) that `fd` is on.
fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, EMPTY, flags)
}

/// Changes the propagation of everything that was copied into this mount
/// namespace.
pub fn set_root_propagation(flag: u64, recursive: bool) -> Result<()> {
    let root = Root::of_process().on("open", "/")?;
    let change = AttrChange {
        propagation: flag,
        ..AttrChange::default()
    };
    set_attributes(root.fd(), change, recursive).on("set propagation of", "/")
}

/// Makes a detached mount the root of this mount namespace.
///
/// The new root is attached over `/`, so that no directory of the host has to
/// be made or named for it. `pivot_root(".", ".")` then stacks the old root on
/// the new one, and it is unmounted from there (pivot_root(2), NOTES).
pub fn pivot(new_root: BorrowedFd<'_>, no_pivot: bool) -> Result<()> {
    let old = Root::of_process().on("open", "/")?;
    // A copy of a shared mount is shared itself, and pivot_root(2) refuses
    // that; as a slave it still gets what the host mounts there.
    let slave = AttrChange {
        propagation: MS_SLAVE,
        ..AttrChange::default()
    };
    set_attributes(new_root, slave, false).on("set propagation of", "root file system")?;
    attach(new_root, old.fd()).on("attach root file system to", "/")?;
    rustix::process::fchdir(new_root).on("change directory to", "root file system")?;
    if no_pivot {
        // The old root stays below, unreachable by path; on the initial ramfs
        // there is no other way (Documentation/filesystems/ramfs-rootfs-initramfs.rst).
        rustix::process::chroot(c".").on("chroot to", "root file system")?;
        return rustix::process::chdir(c"/").on("change directory to", "/");
    }
    rustix::process::pivot_root(c".", c".").map_err(|errno| {
        let mut failed = failure("pivot_root to", "root file system", errno);
        if errno == Errno::INVAL {
            failed.hint =
                "the host's root may be the initial ramfs; --no-pivot avoids pivot_root".to_owned();
        }
        failed
    })?;
    // The old root lies on the new one now. As a slave, its unmounting
    // reaches no peer of it.
    rustix::process::fchdir(old.fd()).on("change directory to", "old root")?;
    set_attributes(old.fd(), slave, true).on("set propagation of", "old root")?;
    unmount(c".", UnmountFlags::DETACH).on("unmount", "old root")?;
    rustix::process::chdir(c"/").on("change directory to", "/")
}

impl Mounts {
    /// Keeps a file system until it is attached.
    pub fn keep(&mut self, slot: u16, mount: OwnedFd) {
        self.slots.insert(slot, mount);
    }

    /// Attaches the file system of a slot.
    pub fn attach(
        &mut self,
        root: &Root,
        slot: u16,
        target: &CStr,
        propagation: u64,
    ) -> Result<()> {
        let mount = self
            .slots
            .remove(&slot)
            .ok_or_else(|| refusal("attach", show(target), "the plan has no such file system"))?;
        let at = root
            .ensure_directory(target.to_bytes())
            .on("make mount point", show(target))?;
        attach(mount.as_fd(), at.as_fd()).on("attach file system to", show(target))?;
        if propagation != 0 {
            let change = AttrChange {
                propagation,
                ..AttrChange::default()
            };
            set_attributes(mount.as_fd(), change, false).on("set propagation of", show(target))?;
        }
        Ok(())
    }

    /// Copies what is at a path into the file system of a slot.
    pub fn copy_up(&self, root: &Root, slot: u16, target: &CStr, itself: bool) -> Result<()> {
        let mount = self
            .slots
            .get(&slot)
            .ok_or_else(|| refusal("fill", show(target), "the plan has no such file system"))?;
        match root.open(target.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => Ok(()),
            other => other
                .and_then(|from| crate::copyup::copy(&from, mount.as_fd(), itself))
                .on("copy into file system for", show(target)),
        }
    }

    /// Hides a path: nothing where it does not exist.
    pub fn mask(&mut self, root: &Root, path: &CStr, null: Option<BorrowedFd<'_>>) -> Result<()> {
        let at = match root.open(path.to_bytes(), OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other.on("open", show(path))?,
        };
        let stat = statat(&at, EMPTY, AtFlags::EMPTY_PATH).on("stat", show(path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.mask_directory(&at, path)
        } else {
            self.mask_file(&at, path, null)
        }
    }

    fn mask_directory(&mut self, at: &OwnedFd, path: &CStr) -> Result<()> {
        let (cover, first) = match &self.empty_directory {
            Some(first) => (
                clone_tree(first.as_fd(), false).on("clone mask for", show(path))?,
                false,
            ),
            None => {
                // One page is all that an empty directory needs.
                let options = [(c"size".to_owned(), Some(c"4k".to_owned()))];
                (
                    new_filesystem(c"tmpfs", c"tmpfs", &options, MOUNT_ATTR_RDONLY)?,
                    true,
                )
            }
        };
        attach(cover.as_fd(), at.as_fd()).on("mask", show(path))?;
        if first {
            self.empty_directory = Some(cover);
        }
        Ok(())
    }

    fn mask_file(&mut self, at: &OwnedFd, path: &CStr, null: Option<BorrowedFd<'_>>) -> Result<()> {
        if let Some(first) = &self.empty_file {
            let cover = clone_tree(first.as_fd(), false).on("clone mask for", show(path))?;
            return attach(cover.as_fd(), at.as_fd()).on("mask", show(path));
        }
        let null =
            null.ok_or_else(|| refusal("mask", show(path), "the plan came without /dev/null"))?;
        // Read-only for the inode, which is the host's: the container's root may
        // not change its owner or mode. Reads and writes of the device go on.
        let change = AttrChange {
            set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            ..AttrChange::default()
        };
        set_attributes(null, change, false).on("make read-only", "/dev/null for masks")?;
        attach(null, at.as_fd()).on("mask", show(path))?;
        self.empty_file = Some(null.try_clone_to_owned().on("duplicate", "/dev/null")?);
        Ok(())
    }
}

/// Attaches a detached mount that came with the plan.
pub fn attach_fd(root: &Root, mount: BorrowedFd<'_>, target: &CStr, directory: bool) -> Result<()> {
    let at = if directory {
        root.ensure_directory(target.to_bytes())
    } else {
        root.ensure_file(target.to_bytes())
    };
    let at = at.on("make mount point", show(target))?;
    attach(mount, at.as_fd()).on("attach mount to", show(target))
}

/// Makes a path read-only with everything below: nothing where it is missing.
pub fn read_only(root: &Root, path: &CStr) -> Result<()> {
    let at = match root.open(path.to_bytes(), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.on("open", show(path))?,
    };
    let copy = clone_tree(at.as_fd(), true).on("clone mount of", show(path))?;
    let change = AttrChange {
        set: MOUNT_ATTR_RDONLY,
        ..AttrChange::default()
    };
    set_attributes(copy.as_fd(), change, true).on("make read-only", show(path))?;
    attach(copy.as_fd(), at.as_fd()).on("attach read-only copy to", show(path))
}

/// Changes what is mounted at a path.
pub fn remount(root: &Root, target: &CStr, change: AttrChange, recursive: bool) -> Result<()> {
    let at = root
        .open(target.to_bytes(), OFlags::PATH)
        .on("open", show(target))?;
    set_attributes(at.as_fd(), change, recursive).on("set mount attributes of", show(target))
}
