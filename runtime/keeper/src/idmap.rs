//! Mounts whose owners are mapped (mount_setattr(2), MOUNT_ATTR_IDMAP).
//!
//! A map is given to the kernel as a user namespace. One that exists comes as
//! a descriptor; for any other map a child process makes a namespace and ends
//! again: the mount holds what it needs.

use std::os::fd::{AsFd, OwnedFd};

use rkube_sys::clone::{CLONE_NEWUSER, Cloned, clone_process};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::bridge::borrowed;
use crate::error::{Context, Result, failure};
use crate::launch::{map_text, write_map};
use crate::mounts::show;
use crate::plan::{FdIndex, IdRange, Plan, Step};

/// Maps the owners in those mounts of a plan that ask for it.
///
/// # Safety
/// The calling process must be single-threaded.
#[allow(unsafe_code)]
pub unsafe fn apply(plan: &Plan, fds: &[OwnedFd]) -> Result<()> {
    let mut made: Vec<(&[IdRange], &[IdRange], OwnedFd)> = Vec::new();
    for mapped in &plan.id_mapped {
        let mount = borrowed(fds, mapped.fd)?;
        let by = match mapped.namespace {
            Some(index) => borrowed(fds, index)?.try_clone_to_owned(),
            None => {
                let same = made
                    .iter()
                    .find(|(u, g, _)| **u == *mapped.uid_map && **g == *mapped.gid_map);
                match same {
                    Some((_, _, fd)) => fd.try_clone(),
                    None => {
                        // SAFETY: as the caller vouches.
                        let fd = unsafe { namespace_of(&mapped.uid_map, &mapped.gid_map) }?;
                        let copy = fd.try_clone();
                        made.push((&mapped.uid_map, &mapped.gid_map, fd));
                        copy
                    }
                }
            }
        };
        let by = by.on("duplicate", "user namespace")?;
        rkube_sys::mount::set_idmap(mount, by.as_fd(), mapped.recursive).map_err(|errno| {
            let mut failed = failure("map owners of mount", target_of(plan, mapped.fd), errno);
            if errno == Errno::INVAL {
                failed.hint = "its file system has no id-mapped mounts on this kernel \
                               (ext4 and FAT since Linux 5.12, XFS and Btrfs 5.15, tmpfs 6.3)"
                    .to_owned();
            }
            failed
        })?;
    }
    Ok(())
}

/// Where a mount is attached, for messages.
fn target_of(plan: &Plan, index: FdIndex) -> String {
    plan.steps
        .iter()
        .find_map(|step| match step {
            Step::AttachFd { fd, target, .. } if *fd == index => Some(show(target)),
            _ => None,
        })
        .unwrap_or_else(|| format!("descriptor {index}"))
}

/// A user namespace with these maps and nobody in it.
///
/// # Safety
/// The calling process must be single-threaded.
#[allow(unsafe_code)]
unsafe fn namespace_of(uids: &[IdRange], gids: &[IdRange]) -> Result<OwnedFd> {
    let (ours, theirs) = crate::socket::pair().on("make", "socket pair")?;
    // SAFETY: as the caller vouches.
    let cloned = unsafe { clone_process(CLONE_NEWUSER, None) };
    match cloned.on("clone", "process with a new user namespace")? {
        Cloned::Child => {
            // Until it is killed, or its parent has gone.
            drop(ours);
            let _ = crate::socket::receive(theirs.as_fd());
            rkube_sys::process::exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            let opened = write_map(pid, "uid_map", &map_text(uids))
                .and_then(|()| write_map(pid, "gid_map", &map_text(gids)))
                .and_then(|()| {
                    let path = format!("/proc/{pid}/ns/user");
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    rustix::fs::open(&path, flags, Mode::empty()).on("open", path.as_str())
                });
            drop(ours);
            let _ = rkube_sys::signal::pidfd_signal(pidfd.as_fd(), 9);
            let id = WaitId::PidFd(pidfd.as_fd());
            while matches!(waitid(id.clone(), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
            opened
        }
    }
}
