//! Signals by number, masks, and waiting for them.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Highest signal number of Linux (signal(7)).
pub const MAX_SIGNAL: i32 = 64;

/// Sends any signal, real-time ones included, through a pidfd; 0 only tests.
///
/// # Errors
/// pidfd_send_signal(2)'s: `ESRCH` when the process has ended.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo lets the kernel fill it in as kill(2) does.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    crate::check(ret).map(drop)
}

/// Sets every signal to its default action and unblocks all: what a program
/// expects that is started next.
pub fn reset_all() {
    for signal in 1..=MAX_SIGNAL {
        // SAFETY: SIG_DFL is valid for every signal; those that cannot be
        // changed answer EINVAL, which changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is made valid by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores SIGPIPE, so that a closed peer is an error code.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is valid for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Restores SIGPIPE's default action: a command line tool whose reader has
/// gone ends quietly.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is valid for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Blocks the given signals in the calling thread.
pub fn block(signals: &[i32]) {
    // SAFETY: the set is initialised by sigemptyset; unknown numbers are
    // refused by sigaddset without effect.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Waits for one of the given signals, which must be blocked; returns its
/// number. Interruptions are waited through.
#[must_use]
pub fn wait(signals: &[i32]) -> i32 {
    loop {
        // SAFETY: as in `block`; a null siginfo is allowed.
        let got = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::sigwaitinfo(&raw const set, std::ptr::null_mut())
        };
        if got > 0 {
            return got;
        }
    }
}

/// Names of the classic signals on x86 and ARM, by number (signal(7)).
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// First and last real-time signal that the C library leaves to programs.
const REAL_TIME: (i32, i32) = (34, 64);

/// A signal by number, by name with or without `SIG`, or as `RTMIN+n` and
/// `RTMAX-n`; `None` for what is no signal.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=MAX_SIGNAL).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.get(1..)?.parse().ok()
        }
    };
    let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
        (rest.is_empty() || rest.starts_with('+'))
            .then(|| offset(rest))?
            .map(|n: i32| REAL_TIME.0 + n)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (rest.is_empty() || rest.starts_with('-'))
            .then(|| offset(rest))?
            .map(|n: i32| REAL_TIME.1 - n)
    } else {
        None
    };
    if let Some(number) = real_time {
        return (REAL_TIME.0..=REAL_TIME.1)
            .contains(&number)
            .then_some(number);
    }
    NAMES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("9", Some(9)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX", Some(64)),
            ("RTMAX-30", Some(34)),
            ("RTMAX-31", None),
            ("0", None),
            ("65", None),
            ("SIGRTMIN-1", None),
            ("", None),
            ("SIG", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
