//! The user's terminal in raw mode, and data between it and a program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

/// How much is copied at a time.
pub(super) const COPY_BYTES: usize = 16 << 10;

/// The settings to restore, if a terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal; it is as before when this goes.
#[derive(Debug)]
pub(super) struct Raw;

impl Raw {
    /// Makes the terminal of standard input raw.
    pub(super) fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let saved = tcgetattr(stdin.as_fd()).context("tcgetattr of standard input")?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        // A panic may abort the process, and no destructor runs then.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &raw)
            .context("tcsetattr of standard input")?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.try_lock().ok().and_then(|mut saved| saved.take());
    if let Some(saved) = saved {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &saved);
    }
}

/// Columns and rows of the user's terminal.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin().as_fd()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Gives the program's terminal the size of the user's.
pub(super) fn copy_size(master: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(io::stdin().as_fd()) {
        // One that has closed needs no size.
        let _ = tcsetwinsize(master, size);
    }
}

/// Carries data between the user and a program's terminal, and the size of
/// the window, until the program's side is closed.
pub(super) async fn carry(master: OwnedFd, with_input: bool) -> anyhow::Result<()> {
    set_nonblocking(&master)?;
    copy_size(master.as_fd());
    let mut resized = signal(SignalKind::window_change()).context("handle SIGWINCH")?;
    let input = if with_input {
        Some(input_thread()?)
    } else {
        None
    };
    let (mut keys, _reader) = match input {
        Some((keys, reader)) => (Some(keys), Some(reader)),
        None => (None, None),
    };
    let master = register(master, Interest::READABLE | Interest::WRITABLE)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        tokio::select! {
            read = read_some(&master, &mut buffer) => match read? {
                0 => return Ok(()),
                n => write_out(&buffer[..n])?,
            },
            _ = resized.recv() => copy_size(master.get_ref().as_fd()),
            Some(bytes) = next(&mut keys) => {
                if write_all(&master, &bytes).await.is_err() {
                    // The program has closed its terminal: read what is left.
                    keys = None;
                }
            }
        }
    }
}

/// What was typed next; `None` at the end of the input.
pub(super) async fn next(
    keys: &mut Option<tokio::sync::mpsc::Receiver<Vec<u8>>>,
) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input on a thread of its own: its description is shared
/// with other processes and must not become non-blocking.
pub(super) fn input_thread() -> anyhow::Result<(
    tokio::sync::mpsc::Receiver<Vec<u8>>,
    std::thread::JoinHandle<()>,
)> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let thread = std::thread::Builder::new()
        .name("input".into())
        .spawn(move || {
            let mut buffer = vec![0; COPY_BYTES];
            loop {
                match rustix::io::read(io::stdin(), &mut buffer) {
                    Err(Errno::INTR) => {}
                    Ok(0) | Err(_) => return,
                    Ok(n) => {
                        if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
    Ok((receiver, thread.context("start thread for standard input")?))
}

/// Writes to standard output at once.
pub(super) fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    use io::Write;
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("write to standard output")
}

/// Makes a descriptor of ours one that never waits.
pub(super) fn set_nonblocking(fd: &OwnedFd) -> anyhow::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd).context("fcntl F_GETFL")?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK).context("fcntl F_SETFL")
}

/// What the terminal has; 0 once its other side is closed (EIO on Linux).
pub(super) async fn read_some(
    master: &AsyncFd<OwnedFd>,
    buffer: &mut [u8],
) -> anyhow::Result<usize> {
    let read = master.async_io(Interest::READABLE, |fd| {
        match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::IO) => Ok(0),
            other => Ok(other?),
        }
    });
    read.await.context("read the program's output")
}

/// Writes all bytes, and waits where there is no room.
pub(super) async fn write_all(master: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = master
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Has the runtime watch a descriptor.
#[expect(
    deprecated,
    reason = "the newer constructor is unsafe because other types may swap their descriptor; an OwnedFd cannot"
)]
pub(super) fn register(fd: OwnedFd, interest: Interest) -> anyhow::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest).context("watch the program's streams")
}
