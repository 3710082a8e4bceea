//! Staying with a process until it ends: signals are passed on, a terminal is
//! served.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::error::{Context, Error, Result};

/// Bytes that are copied at one time between a terminal and the streams.
const COPY_BYTES: usize = 16 << 10;

/// Signals that are caught while a process is waited for. Made before the
/// process, so that none is missed.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
}

/// Puts a terminal back as it was.
struct RawMode(Option<Termios>);

impl RawMode {
    fn new() -> Self {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return Self(None);
        }
        let Ok(old) = tcgetattr(stdin) else {
            return Self(None);
        };
        let mut raw = old.clone();
        raw.make_raw();
        let set = tcsetattr(stdin, OptionalActions::Now, &raw);
        Self(set.ok().map(|()| old))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, old);
        }
    }
}

impl Foreground {
    /// Blocks all signals but those that tell of a fault of this process
    /// itself, and opens them as a descriptor.
    ///
    /// # Errors
    /// signalfd(2)'s.
    pub fn new() -> Result<Self> {
        let mut set = SigSet::all();
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGABRT,
            Signal::SIGTRAP,
            Signal::SIGSYS,
            Signal::SIGPIPE,
        ] {
            set.remove(own);
        }
        let errno = |e: nix::errno::Errno| {
            // nix and rustix number errors alike: as the kernel does.
            Errno::from_raw_os_error(e as i32)
        };
        set.thread_block().map_err(errno).on("block", "signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags)
            .map_err(errno)
            .on("open", "signals")?;
        Ok(Self { signals })
    }

    /// Serves a child until it ends: its exit code, or 128 + signal.
    ///
    /// # Errors
    /// What could not be waited for.
    pub fn wait(&self, pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32> {
        let raw = terminal.as_ref().map(|_| RawMode::new());
        let mut copy = terminal.map(Copier::new);
        if let Some(copy) = &copy {
            copy.resize();
        }
        loop {
            let mut fds = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(pidfd, PollFlags::IN),
            ];
            if let Some(copy) = &copy {
                copy.watch(&mut fds);
            }
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => drop(other.on("wait for", "process")?),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if let Some(copy) = &mut copy {
                copy.run(&ready)?;
            }
            if ready.first().is_some_and(|r| !r.is_empty()) {
                self.forward(pidfd, copy.as_ref())?;
            }
            if ready.get(1).is_some_and(|r| !r.is_empty()) {
                break;
            }
        }
        if let Some(copy) = &mut copy {
            copy.drain()?;
        }
        drop(raw);
        exit_code(pidfd)
    }

    fn forward(&self, pidfd: &OwnedFd, copy: Option<&Copier>) -> Result<()> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD | Signal::SIGURG) => {}
                Ok(Signal::SIGWINCH) if copy.is_some() => {
                    if let Some(copy) = copy {
                        copy.resize();
                    }
                }
                _ => match rkube_sys::signal::pidfd_signal(pidfd.as_fd(), number) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => return Err(errno).on("pass on signal", number.to_string()),
                },
            }
        }
        Ok(())
    }
}

/// Reaps a child that has ended.
fn exit_code(pidfd: &OwnedFd) -> Result<i32> {
    let id = WaitId::PidFd(pidfd.as_fd());
    let status = loop {
        match waitid(id.clone(), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            other => break other.on("wait for", "process")?,
        }
    };
    let status = status.ok_or_else(|| Error::Stage("the process has no status".into()))?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    })
}

/// Copies between a terminal's master and the standard streams.
struct Copier {
    master: OwnedFd,
    input_open: bool,
    output_open: bool,
    /// Typed, not taken by the terminal yet.
    pending: Vec<u8>,
}

impl Copier {
    fn new(master: OwnedFd) -> Self {
        let _ = rustix::io::ioctl_fionbio(&master, true);
        Self {
            master,
            input_open: true,
            output_open: true,
            pending: Vec::new(),
        }
    }

    /// Gives the terminal the size of ours.
    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
            && size.ws_row != 0
        {
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let mut flags = PollFlags::empty();
        if self.output_open {
            flags |= PollFlags::IN;
        }
        if !self.pending.is_empty() {
            flags |= PollFlags::OUT;
        }
        // An ended session's hang-up would be told again and again.
        if self.output_open {
            fds.push(PollFd::new(&self.master, flags));
        }
        if self.input_open && self.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(
                rustix::stdio::stdin(),
                PollFlags::IN,
            ));
        }
    }

    fn run(&mut self, ready: &[PollFlags]) -> Result<()> {
        let mut rest = ready.iter().skip(2);
        let master = if self.output_open { rest.next() } else { None };
        let input = rest.next();
        if master.is_some_and(|r| !r.is_empty()) {
            self.output()?;
            self.type_pending();
        }
        if input.is_some_and(|r| !r.is_empty()) {
            let mut buffer = vec![0_u8; COPY_BYTES];
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) | Err(Errno::IO) => self.input_open = false,
                Ok(n) => {
                    buffer.truncate(n);
                    self.pending = buffer;
                    self.type_pending();
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno).on("read", "standard input"),
            }
        }
        Ok(())
    }

    fn type_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match rustix::io::write(&self.master, &self.pending) {
            Ok(n) => drop(self.pending.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody reads any more.
            Err(_) => self.pending.clear(),
        }
    }

    /// Shows what the program has written.
    fn output(&mut self) -> Result<()> {
        let mut buffer = vec![0_u8; COPY_BYTES];
        match rustix::io::read(&self.master, &mut buffer) {
            // EIO: the last slave has been closed.
            Ok(0) | Err(Errno::IO) => self.output_open = false,
            Ok(n) => write_all(rustix::stdio::stdout(), buffer.get(..n).unwrap_or_default())?,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno).on("read", "terminal"),
        }
        Ok(())
    }

    /// What was written before the end.
    fn drain(&mut self) -> Result<()> {
        let mut buffer = vec![0_u8; COPY_BYTES];
        loop {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(0) | Err(Errno::IO | Errno::AGAIN) => return Ok(()),
                Ok(n) => {
                    let shown = buffer.get(..n).unwrap_or_default();
                    write_all(rustix::stdio::stdout(), shown)?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).on("read", "terminal"),
            }
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                poll(&mut fds, None).on("wait for", "standard output")?;
            }
            Err(errno) => return Err(errno).on("write", "standard output"),
        }
    }
    Ok(())
}
