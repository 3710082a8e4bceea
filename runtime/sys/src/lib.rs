//! The system calls that `nix` and `rustix` lack, as safe functions where
//! that is possible.
//!
//! Boundary: file descriptors come in borrowed and go out owned; there is no
//! policy here, and nothing allocates between a clone and an exec. This crate
//! and the keeper are the only ones that may hold `unsafe` code; every module
//! is small, and every constant names its kernel header and version.
#![allow(unsafe_code)]

pub mod bpf;
pub mod bytes;
pub mod clone;
pub mod exec;
pub mod fd;
pub mod memfd;
pub mod mount;
pub mod net;
pub mod netlink;
pub mod pidfd;
pub mod process;
pub mod seccomp;
pub mod signal;

use rustix::io::Errno;

/// Turns the return value of a raw system call into a result.
fn check(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret < 0 { Err(last_errno()) } else { Ok(ret) }
}

/// The calling thread's `errno`.
fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
