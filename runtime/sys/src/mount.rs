//! `mount_setattr(2)`: attributes and propagation of whole mount trees.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Read-only (`linux/mount.h`).
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// No set-user-id (`linux/mount.h`).
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// No device nodes (`linux/mount.h`).
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// No program execution (`linux/mount.h`).
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// Mask of the access time modes (`linux/mount.h`).
pub const MOUNT_ATTR_ATIME: u64 = 0x70;
/// Access times relative to changes, the default (`linux/mount.h`).
pub const MOUNT_ATTR_RELATIME: u64 = 0x0;
/// No access times (`linux/mount.h`).
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Every access time (`linux/mount.h`).
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// No access times of directories (`linux/mount.h`).
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// Map owners by a user namespace (`linux/mount.h`, 5.12).
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// Follow no symlinks (`linux/mount.h`, 5.14).
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// Propagation `unbindable` (`MS_UNBINDABLE` of `linux/mount.h`).
pub const MS_UNBINDABLE: u64 = 1 << 17;
/// Propagation `private` (`MS_PRIVATE`).
pub const MS_PRIVATE: u64 = 1 << 18;
/// Propagation `slave` (`MS_SLAVE`).
pub const MS_SLAVE: u64 = 1 << 19;
/// Propagation `shared` (`MS_SHARED`).
pub const MS_SHARED: u64 = 1 << 20;

/// `struct mount_attr` of `linux/mount.h` (MOUNT_ATTR_SIZE_VER0, 32 bytes).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct RawAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}
const _: () = assert!(size_of::<RawAttr>() == 32);

/// A change of mount attributes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AttrChange {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; [`MOUNT_ATTR_ATIME`] whole or not at all.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
}

/// Changes the mount that `fd` is on or, with `recursive`, its whole tree.
///
/// # Errors
/// mount_setattr(2)'s: `EPERM` for locked flags, `ENOSYS` before 5.12.
pub fn set_attributes(
    fd: BorrowedFd<'_>,
    change: AttrChange,
    recursive: bool,
) -> Result<(), Errno> {
    let raw = RawAttr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    setattr(fd, raw, recursive)
}

/// Maps the owners in a detached mount by the user namespace `userns`.
///
/// # Errors
/// mount_setattr(2)'s: `EINVAL` where the file system does not support it.
pub fn set_idmap(fd: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    let raw = RawAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        userns_fd: u64::try_from(userns.as_raw_fd()).map_err(|_| Errno::BADF)?,
        ..RawAttr::default()
    };
    setattr(fd, raw, recursive)
}

fn setattr(fd: BorrowedFd<'_>, raw: RawAttr, recursive: bool) -> Result<(), Errno> {
    const EMPTY: &CStr = c"";
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated constant and `raw` is a valid
    // mount_attr of the given size for the duration of the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const raw,
            size_of::<RawAttr>(),
        )
    };
    crate::check(ret).map(drop)
}
