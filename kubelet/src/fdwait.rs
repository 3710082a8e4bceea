//! Waiting for a descriptor without a thread.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime.
///
/// # Errors
/// What epoll_ctl(2) answered.
#[expect(
    deprecated,
    reason = "the newer constructor is unsafe because other types may swap their descriptor; an OwnedFd cannot"
)]
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}
