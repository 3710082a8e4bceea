//! Waiting, ended by time or by a signal.
//!
//! The kernel drops SIGTERM for a container's PID 1 that has no handler, so an
//! applet that merely slept could only be killed after its grace period. Here
//! PID 1 takes the signals from a signalfd; any other process keeps the
//! kernel's default, which ends it.

use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::applets::{End, Outcome};
use crate::error::{During, ToolError};

/// Signals that are blocked in this thread and all that it starts from now on;
/// [`Signals::wait`] takes them.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn block(signals: &[Signal]) -> Result<Self, ToolError> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()
            .during(|| format!("block signals {signals:?}"))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)
            .map(Self)
            .during(|| "signalfd".to_owned())
    }

    /// The next signal, or `None` when `limit` has passed.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Result<Option<Signal>, ToolError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            // A limit beyond 2^63 seconds is as good as none.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e).during(|| "poll signalfd".to_owned()),
            }
            let info = self.0.read_signal().during(|| "read signalfd".to_owned())?;
            if let Some(info) = info {
                let number = i32::try_from(info.ssi_signo).unwrap_or_default();
                return Signal::try_from(number)
                    .map(Some)
                    .during(|| format!("signal {number}"));
            }
        }
    }
}

/// The end of a process whose `signal` came: 128 + its number, as shells say.
pub(crate) fn ended_by(signal: Signal) -> End {
    End::Exit(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
}

/// A wait to come. Made before any thread is started, so that all of them
/// leave the signals to the waiting one.
#[derive(Debug)]
pub(crate) struct Rest(Option<Signals>);

impl Rest {
    pub(crate) fn prepare() -> Result<Self, ToolError> {
        if std::process::id() != 1 {
            return Ok(Self(None));
        }
        Signals::block(&[Signal::SIGTERM, Signal::SIGINT]).map(|signals| Self(Some(signals)))
    }

    /// Waits for `limit` (for ever if `None`), or until PID 1 is told to end.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Outcome {
        if let Some(signals) = &self.0 {
            return Ok(signals.wait(limit)?.map_or(End::Status(0), ended_by));
        }
        match limit {
            Some(limit) => std::thread::sleep(limit),
            None => loop {
                std::thread::park();
            },
        }
        Ok(End::Status(0))
    }
}

/// Waits as [`Rest::wait`] does, in a process with one thread.
pub(crate) fn rest(limit: Option<Duration>) -> Outcome {
    Rest::prepare()?.wait(limit)
}
