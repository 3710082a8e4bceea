//! Loading of seccomp filters.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Hand out a notification descriptor (`linux/seccomp.h`, 5.0).
pub const SECCOMP_FILTER_FLAG_NEW_LISTENER: u64 = 1 << 3;

/// Most instructions of a filter (`BPF_MAXINSNS` of `linux/bpf_common.h`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump when true.
    pub jt: u8,
    /// Jump when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

/// Loads a filter into the calling thread with `SECCOMP_FILTER_FLAG_*` flags;
/// a descriptor comes back with [`SECCOMP_FILTER_FLAG_NEW_LISTENER`].
///
/// # Errors
/// seccomp(2)'s: `EACCES` without no_new_privs or CAP_SYS_ADMIN, `EINVAL` for
/// a bad program or flag.
pub fn load(program: &[Instruction], flags: u64) -> Result<Option<OwnedFd>, Errno> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(Errno::INVAL);
    }
    let fprog = libc::sock_fprog {
        len: libc::c_ushort::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `fprog` points to `len` instructions of sock_filter's layout;
    // the kernel copies them.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const fprog,
        )
    };
    let ret = crate::check(ret)?;
    if flags & SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = RawFd::try_from(ret).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel returns a new descriptor.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// `struct seccomp_notif` of `linux/seccomp.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}
const _: () = assert!(size_of::<Notification>() == 80);

/// `struct seccomp_notif_resp` of `linux/seccomp.h`.
#[repr(C)]
#[derive(Debug)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}
const _: () = assert!(size_of::<Response>() == 24);

/// `SECCOMP_IOCTL_NOTIF_RECV`: _IOWR('!', 0, struct seccomp_notif).
const IOCTL_RECV: u64 = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`: _IOWR('!', 1, struct seccomp_notif_resp).
const IOCTL_SEND: u64 = 0xc018_2101;

/// A system call that waits for its listener's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Names it in the answer.
    pub id: u64,
    /// Who asks, in the listener's process namespace.
    pub pid: u32,
    /// Number of the system call.
    pub call: i32,
}

/// Waits for a question (seccomp_unotify(2)).
///
/// # Errors
/// `ENOENT` when whoever asked was killed meanwhile.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Question, Errno> {
    let mut raw = Notification::default();
    // SAFETY: the kernel writes a seccomp_notif, for which `raw` has the room.
    let ret = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            IOCTL_RECV as libc::Ioctl,
            &raw mut raw,
        )
    };
    crate::check(ret.into())?;
    Ok(Question {
        id: raw.id,
        pid: raw.pid,
        call: raw.nr,
    })
}

/// Answers a question with a negative errno, or with 0 for a result of 0.
///
/// # Errors
/// `ENOENT` when whoever asked was killed meanwhile.
pub fn answer(listener: BorrowedFd<'_>, id: u64, error: i32) -> Result<(), Errno> {
    let mut raw = Response {
        id,
        val: 0,
        error,
        flags: 0,
    };
    // SAFETY: the kernel reads a seccomp_notif_resp.
    let ret = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            IOCTL_SEND as libc::Ioctl,
            &raw mut raw,
        )
    };
    crate::check(ret.into()).map(drop)
}
