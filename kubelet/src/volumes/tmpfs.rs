//! Volumes in memory.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::VolumeError;

/// Mounts a tmpfs over the directory unless one is there. Without a size it
/// is the kernel's default, half of memory (tmpfs(5)).
///
/// # Errors
/// The call that failed.
pub fn mount_once(
    volume: &str,
    path: &Path,
    size_bytes: Option<u64>,
    mode: u32,
) -> Result<(), VolumeError> {
    let failed = |call: &str| {
        let call = call.to_owned();
        move |source: Errno| VolumeError::Call {
            volume: volume.to_owned(),
            call: call.clone(),
            path: path.to_path_buf(),
            source,
        }
    };
    if is_mount_root(path).map_err(failed("statx"))? {
        return Ok(());
    }
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen tmpfs for"))?;
    let mode = format!("{mode:o}");
    fsconfig_set_string(&fs, "mode", &mode).map_err(failed("fsconfig tmpfs mode for"))?;
    if let Some(size) = size_bytes {
        fsconfig_set_string(&fs, "size", size.to_string())
            .map_err(failed("fsconfig tmpfs size for"))?;
    }
    fsconfig_create(&fs).map_err(failed("fsconfig create tmpfs for"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("fsmount tmpfs for"))?;
    move_mount(
        &mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed("move_mount tmpfs to"))
}

/// Whether something is mounted there (STATX_ATTR_MOUNT_ROOT, Linux 5.8).
///
/// # Errors
/// What statx(2) answered.
pub fn is_mount_root(path: &Path) -> Result<bool, Errno> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
