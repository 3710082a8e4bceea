//! `fsGroup`: the group that a pod's volumes belong to.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxFlags, fchmod, fchown, openat, statx,
};
use rustix::io::Errno;

use super::VolumeError;

/// Deepest directory below a volume whose group is changed. What lies deeper
/// than a path can name is the container's own doing and keeps its group.
const MAX_DEPTH: usize = 512;

/// The group and when it is applied.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// `fsGroup`.
    pub id: Option<u32>,
    /// `fsGroupChangePolicy: OnRootMismatch`.
    pub only_on_mismatch: bool,
}

impl Group {
    /// Gives everything below `path` to the group: readable and writable for
    /// it, directories with the set-group-id bit. Symlinks are not followed.
    ///
    /// # Errors
    /// The call that failed.
    pub fn apply(&self, volume: &str, path: &Path) -> Result<(), VolumeError> {
        let Some(group) = self.id else { return Ok(()) };
        let failed = |source: Errno| VolumeError::Call {
            volume: volume.to_owned(),
            call: format!("chown :{group} -R"),
            path: path.to_path_buf(),
            source,
        };
        let root = openat(
            CWD,
            path,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        if self.only_on_mismatch && matches(&root, group).map_err(failed)? {
            return Ok(());
        }
        // The root comes last: it matches only when everything else does.
        walk(&root, group, 0)
            .and_then(|()| own(root.as_fd(), group, true))
            .map_err(failed)
    }
}

/// Whether the root has the group and the bits already.
fn matches(root: &OwnedFd, group: u32) -> Result<bool, Errno> {
    let stat = statx(
        root,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::GID | StatxFlags::MODE,
    )?;
    let wanted = 0o2070;
    Ok(stat.stx_gid == group && u32::from(stat.stx_mode) & wanted == wanted)
}

/// Sets group and bits of an open file or directory.
pub(super) fn own(fd: impl AsFd, group: u32, directory: bool) -> Result<(), Errno> {
    own_with(fd, group, directory, if directory { 0o2770 } else { 0o660 })
}

/// Sets the group and adds `bits` to the mode. chown(2) may clear
/// set-user-id bits, so the mode comes second.
pub(super) fn own_with(fd: impl AsFd, group: u32, directory: bool, bits: u32) -> Result<(), Errno> {
    let stat = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MODE)?;
    let mode = u32::from(stat.stx_mode) & 0o7777 | bits;
    let mode = if directory { mode } else { mode & !0o2000 };
    fchown(&fd, None, Some(Gid::from_raw(group)))?;
    fchmod(&fd, Mode::from_bits_truncate(mode))
}

fn walk(dir: &OwnedFd, group: u32, depth: usize) -> Result<(), Errno> {
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    let mut names: Vec<(CString, FileType)> = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        match kind {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(dir, &name, flags, Mode::empty())?;
                walk(&fd, group, depth + 1)?;
                own(&fd, group, true)?;
            }
            FileType::RegularFile => {
                // O_NONBLOCK: it may have become a FIFO meanwhile.
                let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let fd = openat(dir, &name, flags, Mode::empty())?;
                own(&fd, group, false)?;
            }
            _ => {
                rustix::fs::chownat(
                    dir,
                    &name,
                    None,
                    Some(Gid::from_raw(group)),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
        }
    }
    Ok(())
}
