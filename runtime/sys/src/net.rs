//! The one network call that a stage makes itself: bringing up `lo`.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Sets the loopback interface of the network namespace in which `socket` was
/// made up (netdevice(7), SIOCSIFFLAGS).
///
/// # Errors
/// ioctl(2)'s: `EPERM` without CAP_NET_ADMIN over the namespace.
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    req.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::INVAL)?;
    // SAFETY: `req` is an ifreq with a NUL-terminated name, as SIOCSIFFLAGS
    // takes it.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const req) };
    crate::check(ret.into()).map(drop)
}
