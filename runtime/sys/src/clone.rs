//! `clone3(2)` in the manner of `fork`: the child has a copy of the memory.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// New time namespace (`linux/sched.h`, 5.6).
pub const CLONE_NEWTIME: u64 = 0x0000_0080;
/// New mount namespace (`linux/sched.h`).
pub const CLONE_NEWNS: u64 = 0x0002_0000;
/// New cgroup namespace (`linux/sched.h`, 4.6).
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;
/// New UTS namespace (`linux/sched.h`).
pub const CLONE_NEWUTS: u64 = 0x0400_0000;
/// New IPC namespace (`linux/sched.h`).
pub const CLONE_NEWIPC: u64 = 0x0800_0000;
/// New user namespace (`linux/sched.h`).
pub const CLONE_NEWUSER: u64 = 0x1000_0000;
/// New process namespace (`linux/sched.h`).
pub const CLONE_NEWPID: u64 = 0x2000_0000;
/// New network namespace (`linux/sched.h`).
pub const CLONE_NEWNET: u64 = 0x4000_0000;
/// The child's parent is the caller's parent (`linux/sched.h`).
pub const CLONE_PARENT: u64 = 0x0000_8000;
/// Hands out a pidfd (`linux/sched.h`, 5.2).
const CLONE_PIDFD: u64 = 0x0000_1000;
/// The child starts in the cgroup of `clone_args.cgroup` (`linux/sched.h`,
/// 5.7). The libc crate's constant of this name is 0, since its type is too
/// narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `linux/sched.h` (size 88 since 5.7).
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

/// What the two sides of a clone see.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent {
        /// The child, in the caller's process namespace.
        pid: i32,
        /// Names the child for as long as it is held.
        pidfd: OwnedFd,
    },
}

/// Makes a child process with a copy of the caller's memory, with `flags` out
/// of `CLONE_NEW*` and [`CLONE_PARENT`], in `cgroup` (a cgroup v2 directory)
/// where one is given. The parent gets SIGCHLD when the child ends.
///
/// # Errors
/// clone3(2)'s; `EINVAL` and `ENOSYS` where the kernel lacks it.
///
/// # Safety
/// The calling process must be single-threaded: in the child only the calling
/// thread goes on, and a lock that another one held would stay locked.
pub unsafe fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the exit signal is the parent's own (EINVAL
        // otherwise since 5.10).
        exit_signal: if flags & CLONE_PARENT == 0 {
            libc::SIGCHLD as u64
        } else {
            0
        },
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)?;
    }
    // SAFETY: `args` is a valid clone_args of the given size, `pidfd` outlives
    // the call, no stack is given, so that the child goes on on a copy of this
    // one as after fork; the caller vouches for being single-threaded.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match crate::check(ret)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?,
            // SAFETY: the kernel has stored a new descriptor that nobody else
            // owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}
