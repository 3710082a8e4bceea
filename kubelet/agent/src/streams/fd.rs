//! Pipes, FIFOs and terminals as byte streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A descriptor that epoll can watch. Clones are the same descriptor.
#[derive(Debug, Clone)]
pub(super) struct FdStream(Arc<AsyncFd<OwnedFd>>);

impl FdStream {
    /// Makes it non-blocking and watches it.
    ///
    /// # Errors
    /// What fcntl(2) or epoll_ctl(2) answered.
    #[expect(
        deprecated,
        reason = "the newer constructor is unsafe because other types may swap their descriptor; an OwnedFd cannot"
    )]
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(AsyncFd::with_interest(fd, interest)?)))
    }
}

impl FdStream {
    /// Sets a terminal's size; a master's is its terminal's (tty_ioctl(4)).
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| {
                let space = buf.initialize_unfilled();
                rustix::io::read(fd.get_ref(), space).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose last holder has gone (pts(4)): its end.
                Ok(Err(e)) if Errno::from_io_error(&e) == Some(Errno::IO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd.get_ref(), bytes).map_err(io::Error::from))
            {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Waits until a pidfd tells that its process has ended.
///
/// # Errors
/// What epoll answered.
pub(super) async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    let watched = FdStream::new(pidfd, Interest::READABLE)?;
    watched.0.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn pipes_carry_bytes_both_ways() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut writer = FdStream::new(writer, Interest::WRITABLE).unwrap();
        let mut reader = FdStream::new(reader, Interest::READABLE).unwrap();
        let sent = vec![7_u8; 200_000];
        let copy = sent.clone();
        let task = tokio::spawn(async move { writer.write_all(&copy).await });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(got.len(), sent.len());
    }
}
