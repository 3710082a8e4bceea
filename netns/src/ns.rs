//! Work inside another network namespace.
//!
//! A socket belongs to the namespace its maker was in. The caller's thread is
//! never moved: it may be a pool's worker, and a failed way back would leave
//! it, and whatever runs on it next, in a pod's network.

use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// Runs `work` on a thread of its own inside the network namespace `netns`
/// and waits for it. The thread ends with the work.
///
/// # Errors
/// [`Error::Thread`], [`Error::EnterNamespace`], [`Error::Panicked`]; else
/// what `work` returns.
pub fn in_netns<T, F>(netns: BorrowedFd<'_>, work: F) -> Result<T, Error>
where
    T: Send,
    F: FnOnce() -> Result<T, Error> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, move || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(|source| Error::EnterNamespace { source })?;
                work()
            })
            .map_err(|source| Error::Thread { source })?;
        thread.join().unwrap_or(Err(Error::Panicked))
    })
}
