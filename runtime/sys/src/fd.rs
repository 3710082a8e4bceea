//! File descriptors: whole ranges, and those that a process was started with.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Set close-on-exec instead of closing (`linux/close_range.h`, 5.11).
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// close_range(2)'s; `EINVAL` before 5.11.
pub fn cloexec_from(first: RawFd) -> Result<(), Errno> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::BADF)?;
    // SAFETY: only flags of descriptors change; none is closed.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    crate::check(ret).map(drop)
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// `EBADF` when it is not open.
///
/// # Safety
/// Nobody else in this process may own the descriptor.
pub unsafe fn inherited(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_GETFD has no memory effects.
    let ret = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    crate::check(ret.into())?;
    // SAFETY: open by the check above, and the caller vouches for ownership.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `to` a copy of `from`, without close-on-exec.
///
/// # Errors
/// dup2(2)'s.
fn dup_over(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    let ret = if from.as_raw_fd() == to {
        // dup2 onto itself keeps close-on-exec: clear it.
        // SAFETY: F_SETFD has no memory effects.
        unsafe { libc::fcntl(to, libc::F_SETFD, 0) }
    } else {
        // SAFETY: no memory is passed; what becomes of `to` is the callers'
        // business.
        unsafe { libc::dup2(from.as_raw_fd(), to) }
    };
    crate::check(ret.into()).map(drop)
}

/// Makes `to` (0, 1 or 2) a copy of `from`, without close-on-exec.
///
/// # Errors
/// dup2(2)'s; `EINVAL` for another `to`.
pub fn dup_to_stdio(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    if !(0..=2).contains(&to) {
        return Err(Errno::INVAL);
    }
    dup_over(from, to)
}

/// Makes `to` a copy of `from`, without close-on-exec, whatever `to` was.
///
/// # Errors
/// dup2(2)'s.
///
/// # Safety
/// Nothing in this process may go on using the descriptor that `to` was: for
/// the moment before an exec.
pub unsafe fn dup_to_number(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    dup_over(from, to)
}

/// Closes every descriptor from `first` on: for a process that goes on
/// without any of them.
///
/// # Errors
/// close_range(2)'s; `ENOSYS` before 5.9.
///
/// # Safety
/// No owned descriptor of this process from `first` on may be used or closed
/// afterwards: the caller must never run their destructors.
pub unsafe fn close_from(first: RawFd) -> Result<(), Errno> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::BADF)?;
    // SAFETY: the caller vouches that none of them is used any more.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    crate::check(ret).map(drop)
}

/// Closes every descriptor from 3 on that is not in `keep`.
///
/// # Errors
/// close_range(2)'s.
///
/// # Safety
/// None of the others may be used or closed afterwards by this process: the
/// caller must never run the destructors of their owners.
pub unsafe fn close_others(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut numbers: Vec<libc::c_uint> = keep
        .iter()
        .filter_map(|fd| libc::c_uint::try_from(fd.as_raw_fd()).ok())
        .filter(|n| *n >= 3)
        .collect();
    numbers.sort_unstable();
    let mut first: libc::c_uint = 3;
    for number in numbers.into_iter().map(Some).chain([None]) {
        let last = number.map_or(libc::c_uint::MAX, |n| n.saturating_sub(1));
        if first <= last && number != Some(first) {
            // SAFETY: the caller vouches that none of them is used any more.
            let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            crate::check(ret)?;
        }
        first = number.map_or(first, |n| n.saturating_add(1));
    }
    Ok(())
}
