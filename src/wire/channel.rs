//! Frames over a stream socket: a little-endian `u32` length, then JSON.
//!
//! Descriptors travel with the first byte of the frame that they belong to.
//! Both directions can be waited for in `select!`: nothing read or written is
//! lost when a wait is dropped between frames.

use std::collections::VecDeque;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest frame. Manifests of at most 16 MiB become JSON of about the
/// same size, and lists hold many pods.
pub(crate) const MAX_FRAME_BYTES: usize = 64 << 20;
/// Most descriptors that wait for their frame to be read.
pub(crate) const MAX_PENDING_FDS: usize = 8;
/// Most descriptors with one frame: standard input, output, error.
pub(crate) const MAX_FRAME_FDS: usize = 3;
/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;
/// A buffer that has grown beyond this is given back when it is empty.
const KEEP_BYTES: usize = 64 << 10;

/// Why nothing more can be said on a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// A system call failed.
    #[error("{call} on the writer's socket")]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A frame beyond [`MAX_FRAME_BYTES`].
    #[error("a frame of {bytes} bytes on the writer's socket is longer than {MAX_FRAME_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A frame that is no message of this protocol.
    #[error("a frame on the writer's socket is no message of this protocol")]
    Broken(#[source] serde_json::Error),
    /// Descriptors beyond [`MAX_PENDING_FDS`], or cut off by the kernel.
    #[error("too many descriptors on the writer's socket")]
    TooManyFds,
    /// The other side closed the connection in the middle of something.
    #[error("the other side closed the writer's socket")]
    Closed,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// Speaks over a connected socket.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            fds: VecDeque::new(),
        }
    }

    /// The effective uid of the other side, and its pid.
    pub(crate) fn peer(&self) -> io::Result<(u32, Option<i32>)> {
        let cred = self.stream.peer_cred()?;
        Ok((cred.uid(), cred.pid()))
    }

    /// Sends one frame. A send that is dropped midway leaves the connection
    /// unusable: do not wait for it in `select!`.
    pub(crate) async fn send(
        &mut self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut frame = vec![0; 4];
        serde_json::to_writer(&mut frame, message).map_err(ChannelError::Broken)?;
        let length = frame.len() - 4;
        let header = u32::try_from(length)
            .ok()
            .filter(|_| length <= MAX_FRAME_BYTES);
        let header = header.ok_or(ChannelError::TooLong { bytes: length })?;
        frame[..4].copy_from_slice(&header.to_le_bytes());
        let mut sent = 0;
        while sent < frame.len() {
            let with = if sent == 0 { fds } else { &[] };
            let wait = self.stream.async_io(Interest::WRITABLE, || {
                push(self.stream.as_fd(), &frame[sent..], with)
            });
            sent += wait.await.map_err(|source| ChannelError::Call {
                call: "sendmsg",
                source,
            })?;
        }
        Ok(())
    }

    /// The next frame; `None` when the other side has closed between frames.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ChannelError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer)? {
                return serde_json::from_slice(&frame)
                    .map(Some)
                    .map_err(ChannelError::Broken);
            }
            let (stream, buffer, fds) = (&self.stream, &mut self.buffer, &mut self.fds);
            let wait = stream.async_io(Interest::READABLE, || pull(stream.as_fd(), buffer, fds));
            let read = wait.await.map_err(|source| ChannelError::Call {
                call: "recvmsg",
                source,
            })?;
            match read {
                Pulled::Bytes(0) if self.buffer.is_empty() => return Ok(None),
                Pulled::Bytes(0) => return Err(ChannelError::Closed),
                Pulled::Bytes(_) => {}
                Pulled::TooManyFds => return Err(ChannelError::TooManyFds),
            }
        }
    }

    /// As [`Self::receive`] where the other side owes an answer.
    pub(crate) async fn expect<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        self.receive().await?.ok_or(ChannelError::Closed)
    }

    /// The descriptors that have come so far.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).collect()
    }
}

/// Takes the first frame out of what was read, once it is whole.
fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, ChannelError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(ChannelError::TooLong { bytes: length });
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let frame = buffer[4..4 + length].to_vec();
    buffer.drain(..4 + length);
    if buffer.is_empty() && buffer.capacity() > KEEP_BYTES {
        *buffer = Vec::new();
    }
    Ok(Some(frame))
}

fn push(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

enum Pulled {
    Bytes(usize),
    TooManyFds,
}

fn pull(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<Pulled> {
    let old = buffer.len();
    buffer.resize(old + READ_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PENDING_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer[old..])],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    buffer.truncate(old + got.as_ref().map_or(0, |m| m.bytes));
    let got = got?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_PENDING_FDS {
        return Ok(Pulled::TooManyFds);
    }
    Ok(Pulled::Bytes(got.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Reply, Request};
    use tokio::io::AsyncWriteExt;

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[tokio::test]
    async fn frames_of_any_size_arrive_whole_and_in_order() {
        let (mut a, mut b) = pair();
        let text = "x".repeat(3 << 20);
        let long = Reply::Failed(crate::wire::Failure::new(text));
        let sender = async {
            a.send(&long, &[]).await.unwrap();
            a.send(&Reply::Done, &[]).await.unwrap();
            drop(a);
        };
        let receiver = async {
            assert_eq!(b.receive::<Reply>().await.unwrap(), Some(long.clone()));
            assert_eq!(b.expect::<Reply>().await.unwrap(), Reply::Done);
            assert_eq!(b.receive::<Reply>().await.unwrap(), None);
            assert!(b.buffer.capacity() <= KEEP_BYTES + READ_BYTES);
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_frame() {
        let (mut a, mut b) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        a.send(&Request::List, &[writer.as_fd()]).await.unwrap();
        drop(writer);
        assert_eq!(b.expect::<Request>().await.unwrap(), Request::List);
        let fds = b.take_fds();
        assert_eq!(fds.len(), 1);
        rustix::io::write(&fds[0], b"hi").unwrap();
        drop(fds);
        let mut text = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut text).unwrap(), 2);
        assert_eq!(rustix::io::read(&reader, &mut text).unwrap(), 0);
    }

    #[tokio::test]
    async fn too_many_descriptors_end_the_connection() {
        let (mut a, mut b) = pair();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        for _ in 0..4 {
            let three = [reader.as_fd(), reader.as_fd(), reader.as_fd()];
            push(a.stream.as_fd(), &[1], &three).unwrap();
        }
        a.stream.flush().await.unwrap();
        assert!(matches!(
            b.receive::<Reply>().await,
            Err(ChannelError::TooManyFds)
        ));
    }

    #[tokio::test]
    async fn broken_frames_are_errors() {
        let (mut a, mut b) = pair();
        a.stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(matches!(
            b.receive::<Reply>().await,
            Err(ChannelError::TooLong { .. })
        ));
        let (mut a, mut b) = pair();
        a.stream.write_all(&[2, 0, 0, 0, b'{', b'x']).await.unwrap();
        assert!(matches!(
            b.receive::<Reply>().await,
            Err(ChannelError::Broken(_))
        ));
        let (mut a, mut b) = pair();
        a.stream.write_all(&[9, 0, 0, 0, b'{']).await.unwrap();
        drop(a);
        assert!(matches!(
            b.receive::<Reply>().await,
            Err(ChannelError::Closed)
        ));
    }
}
