//! Removes a tree that untrusted programs wrote.
//!
//! Directories are entered by descriptor and never through a symlink.
//! Anything that is mounted below, by rkube or by a container with
//! bidirectional propagation, is detached instead of emptied. Trees deeper
//! than [`MAX_DEPTH`] are flattened on the way, so that neither stack nor
//! descriptors run out.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags, openat, renameat,
    statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Directories that are open at the same time.
pub const MAX_DEPTH: usize = 64;
/// How often something mounted over the same place is detached.
const MAX_STACKED_MOUNTS: usize = 64;

/// Removes `path` and all below it; what is not there is removed.
///
/// # Errors
/// What the kernel answered.
pub fn path(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(Errno::INVAL);
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Ok(dir) => tree(dir.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes `name` in `dir` and all below it.
///
/// # Errors
/// What the kernel answered.
pub fn tree(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let Some(root) = open_unmounted(dir, &name)? else {
        return remove_file(dir, &name);
    };
    let mut moved = 0u64;
    // Each pass removes all but the directories that it had to flatten.
    loop {
        let before = moved;
        empty(&root, &root, 1, &mut moved)?;
        if before == moved {
            break;
        }
    }
    match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

fn empty(dir: &OwnedFd, root: &OwnedFd, depth: usize, moved: &mut u64) -> Result<(), Errno> {
    let mut names: Vec<(CString, FileType)> = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            remove_file(dir.as_fd(), &name)?;
            continue;
        }
        if depth >= MAX_DEPTH {
            *moved += 1;
            let parked = format!("..rkube-remove-{moved}");
            match renameat(dir, &name, root, &parked) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // A mount cannot be moved: enter it here after all.
                Err(Errno::BUSY | Errno::XDEV) => {}
                Err(e) => return Err(e),
            }
        }
        let Some(child) = open_unmounted(dir.as_fd(), &name)? else {
            remove_file(dir.as_fd(), &name)?;
            continue;
        };
        empty(&child, root, depth + 1, moved)?;
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a directory after detaching what is mounted over it; `None` for
/// what is no directory.
fn open_unmounted(dir: BorrowedFd<'_>, name: &CString) -> Result<Option<OwnedFd>, Errno> {
    for _ in 0..MAX_STACKED_MOUNTS {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        if !detach(&fd)? {
            return Ok(Some(fd));
        }
    }
    Err(Errno::BUSY)
}

/// Detaches the mount whose root `fd` is; whether there was one.
fn detach(fd: &OwnedFd) -> Result<bool, Errno> {
    let stat = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    unmount(
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        UnmountFlags::DETACH,
    )?;
    Ok(true)
}

fn remove_file(dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    for _ in 0..MAX_STACKED_MOUNTS {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Something is bound over the file.
            Err(Errno::BUSY) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(dir, name, flags, Mode::empty())?;
                if !detach(&fd)? {
                    return Err(Errno::BUSY);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::BUSY)
}
