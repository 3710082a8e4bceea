//! One-way pipes with a bound, between a protocol and what it serves.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Bytes that wait in one pipe before its writer has to wait. The pipe of a
/// kernel holds as much (pipe(7)).
pub const PIPE_BYTES: usize = 64 << 10;

/// The reading end. End of file: the writer was dropped or shut down.
#[derive(Debug)]
pub struct Reader(DuplexStream);

/// The writing end. Dropping it ends the pipe; writing after the reader was
/// dropped is `BrokenPipe`.
#[derive(Debug)]
pub struct Writer(DuplexStream);

/// A pipe that holds at most [`PIPE_BYTES`].
#[must_use]
pub fn pipe() -> (Writer, Reader) {
    let (writer, reader) = tokio::io::duplex(PIPE_BYTES);
    (Writer(writer), Reader(reader))
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bounded_and_one_way() {
        let (mut writer, mut reader) = pipe();
        let full = vec![7; PIPE_BYTES];
        writer.write_all(&full).await.unwrap();
        // Full: one more byte waits until something is read.
        let mut more = Box::pin(writer.write_all(b"x"));
        tokio::select! {
            biased;
            _ = &mut more => panic!("the pipe took more than its bound"),
            () = std::future::ready(()) => {}
        }
        let mut got = [0; 10];
        reader.read_exact(&mut got).await.unwrap();
        more.await.unwrap();
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), PIPE_BYTES - 10 + 1);
    }

    #[tokio::test]
    async fn a_dropped_reader_breaks_the_pipe() {
        let (mut writer, reader) = pipe();
        drop(reader);
        let error = writer.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
