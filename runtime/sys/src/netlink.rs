//! Socket options of AF_NETLINK that rustix does not name, and the network
//! namespace half of `unshare(2)`.

#![allow(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// A boolean option at level `SOL_NETLINK` (`linux/netlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum NetlinkOption {
    /// `NETLINK_CAP_ACK` (4.2): an error answer does not repeat the request.
    CapAck = libc::NETLINK_CAP_ACK,
    /// `NETLINK_EXT_ACK` (4.12): errors carry a text and the offset of the
    /// offending attribute.
    ExtAck = libc::NETLINK_EXT_ACK,
    /// `NETLINK_GET_STRICT_CHK` (4.20): dump requests are checked and their
    /// filters obeyed.
    GetStrictCheck = libc::NETLINK_GET_STRICT_CHK,
}

/// Turns one netlink socket option on.
///
/// # Errors
/// The errno of `setsockopt(2)`; `ENOPROTOOPT` on kernels without the option.
pub fn enable_netlink_option(socket: BorrowedFd<'_>, option: NetlinkOption) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "c_int is 4 bytes wherever Linux runs"
    )]
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` lives across the call and `len` is its exact size; the
    // kernel only reads it. The descriptor is borrowed, hence open.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option as libc::c_int,
            (&raw const on).cast(),
            len,
        )
    };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Moves the calling thread into a new, empty network namespace
/// (`unshare(CLONE_NEWNET)`). Other threads stay where they are.
///
/// # Errors
/// The errno of `unshare(2)`: `EPERM` without CAP_SYS_ADMIN, `ENOSPC` when
/// `user.max_net_namespaces` is reached.
pub fn unshare_network() -> Result<(), Errno> {
    // SAFETY: CLONE_NEWNET changes only the thread's nsproxy; unlike
    // CLONE_FILES or CLONE_VM it touches no memory or descriptor that safe
    // code relies on.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
