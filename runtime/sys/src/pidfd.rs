//! What a pidfd tells of a process that somebody else has reaped.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR(0xFF, 11, struct pidfd_info)` for the first published size of 64
/// bytes (`linux/pidfd.h`, 6.13).
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
/// Ask for the exit status (`linux/pidfd.h`, 6.15).
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` (`linux/pidfd.h`, PIDFD_INFO_SIZE_VER0).
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}
const _: () = assert!(size_of::<Info>() == 64);

/// The wait status (wait(2)) of a process that has ended and was reaped;
/// `None` while it lives, and on kernels before 6.15.
#[must_use]
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: `info` is a pidfd_info of the size that the request states.
    let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (ret == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
