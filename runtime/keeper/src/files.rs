//! Device nodes, symbolic links and kernel parameters of a container.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, makedev, mknodat, openat2,
    statat, symlinkat,
};
use rustix::io::Errno;

use crate::error::{Context, Result, failure, refusal};
use crate::inroot::{EMPTY, NOFOLLOW, Root};
use crate::mounts::{new_filesystem, show};

/// A device node, as the plan describes it.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// File type and permission bits.
    pub mode: u32,
    /// Device number.
    pub device: (u32, u32),
    /// User and group.
    pub owner: (u32, u32),
}

/// Makes a device node or FIFO; one of the same type and number may be there.
pub fn make_node(root: &Root, path: &CStr, node: Node) -> Result<()> {
    let (parent, name) = root
        .ensure_parent(path.to_bytes())
        .on("make parent directory of", show(path))?;
    let kind = FileType::from_raw_mode(node.mode);
    let device = makedev(node.device.0, node.device.1);
    // A stage has no file mode creation mask: the node gets exactly these
    // bits. One that is there keeps its own.
    let mode = Mode::from_raw_mode(node.mode & 0o7777);
    match mknodat(&parent, name, kind, mode, device) {
        Err(Errno::EXIST) => {
            let stat = statat(&parent, name, NOFOLLOW).on("stat", show(path))?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind
                && (kind == FileType::Fifo || stat.st_rdev == device);
            if same {
                return Ok(());
            }
            let hint = "something else is in its place";
            Err(refusal("make device", show(path), hint))
        }
        Err(errno) => {
            let what = format!("{} {}:{}", show(path), node.device.0, node.device.1);
            Err(failure("make device", what, errno))
        }
        Ok(()) if node.owner == (0, 0) => Ok(()),
        Ok(()) => {
            let owner = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            chownat(&parent, name, Some(owner.0), Some(owner.1), NOFOLLOW)
                .on("change owner of", show(path))
        }
    }
}

/// Makes a symbolic link, unless something is there.
pub fn make_symlink(root: &Root, path: &CStr, target: &CStr) -> Result<()> {
    let (parent, name) = root
        .ensure_parent(path.to_bytes())
        .on("make parent directory of", show(path))?;
    match symlinkat(target, &parent, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failure("make symbolic link", show(path), errno)),
    }
}

/// A procfs instance that is attached nowhere: what is written through it
/// cannot be led elsewhere by anything in the container.
#[derive(Debug)]
pub struct PrivateProc(OwnedFd);

impl PrivateProc {
    /// Makes one for the process namespace of the caller.
    pub fn new() -> Result<Self> {
        new_filesystem(c"proc", c"proc", &[], 0).map(Self)
    }

    /// Opens a file below it, without leaving it.
    pub fn open(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        openat2(
            self.0.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
        .on("open", format!("/proc/{}", show(path)))
    }

    /// Writes a value with one write(2).
    pub fn write(&self, path: &CStr, value: &[u8]) -> Result<()> {
        let file = self.open(path, OFlags::WRONLY)?;
        let n = rustix::io::write(&file, value).on(
            "write",
            format!("{} to /proc/{}", String::from_utf8_lossy(value), show(path)),
        )?;
        if n == value.len() {
            Ok(())
        } else {
            Err(failure("write", format!("/proc/{}", show(path)), Errno::IO))
        }
    }
}

/// Reads at most `buffer.len()` bytes of a small file, from its start.
pub fn read_start(fd: &OwnedFd, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
    rustix::io::pread(fd, buffer, 0)
}

/// Whether the descriptor is on a file system of this type (statfs(2)).
pub fn has_magic(fd: &OwnedFd, magic: i64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type == magic)
}

/// Changes the owner of what a descriptor is on.
pub fn own(fd: &OwnedFd, uid: u32, gid: u32) -> std::result::Result<(), Errno> {
    chownat(
        fd,
        EMPTY,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::EMPTY_PATH,
    )
}
