//! A connection after the handshake: its two halves.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use super::frame::{self, Head, MAX_CONTROL_BYTES, Opcode, Role, apply_mask, broken};
use crate::error::StreamError;

/// Bytes read from the connection at a time; also the longest [`Chunk`].
pub const READ_BYTES: usize = 32 << 10;

/// A piece of a message, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Whether a message starts here.
    pub start: bool,
    /// Whether the message ends here.
    pub end: bool,
    /// Whether the message is text.
    pub text: bool,
    /// The bytes; at most [`READ_BYTES`], may be none.
    pub bytes: Bytes,
}

/// What came from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Data(Chunk),
    /// To be answered by [`WsWriter::pong`].
    Ping(Bytes),
    /// The peer sends no more; the code it gave.
    Close(Option<u16>),
}

#[derive(Debug, Clone, Copy)]
struct Current {
    head: Head,
    done: u64,
}

/// The reading half. `next` may be cancelled without loss.
#[derive(Debug)]
pub struct WsReader<R> {
    io: R,
    role: Role,
    buffer: BytesMut,
    current: Option<Current>,
    /// Whether a message is under way, and whether it is text.
    message: Option<bool>,
    /// Whether its first chunk is still to come.
    fresh: bool,
}

impl<R: AsyncRead + Unpin> WsReader<R> {
    /// Reads as `role` from what follows the handshake.
    pub fn new(io: R, role: Role) -> Self {
        Self {
            io,
            role,
            buffer: BytesMut::new(),
            current: None,
            message: None,
            fresh: false,
        }
    }

    /// The next event; `None` at the end of the connection.
    ///
    /// # Errors
    /// The connection broke, or the peer broke the protocol.
    pub async fn next(&mut self) -> Result<Option<Event>, StreamError> {
        loop {
            if let Some(event) = self.step()? {
                return Ok(Some(event));
            }
            self.buffer.reserve(READ_BYTES);
            let read = self.io.read_buf(&mut self.buffer).await;
            let read = read.map_err(|source| StreamError::Io {
                action: "read from",
                protocol: "WebSocket",
                source,
            })?;
            if read == 0 {
                return Ok(None);
            }
        }
    }

    /// An event out of what is buffered.
    fn step(&mut self) -> Result<Option<Event>, StreamError> {
        if self.current.is_none() {
            let Some((head, used)) = frame::decode(&self.buffer, self.role)? else {
                return Ok(None);
            };
            self.begin(head)?;
            self.buffer.advance(used);
            self.current = Some(Current { head, done: 0 });
        }
        let Some(current) = self.current else {
            return Ok(None);
        };
        let left = current.head.len - current.done;
        let here = usize::try_from(left).unwrap_or(usize::MAX);
        if current.head.opcode.is_control() {
            if self.buffer.len() < here {
                return Ok(None);
            }
            let payload = self.take(current, here);
            return self.control(current.head.opcode, &payload);
        }
        let count = here.min(self.buffer.len()).min(READ_BYTES);
        if count == 0 && left > 0 {
            return Ok(None);
        }
        let bytes = self.take(current, count);
        let text = self.message == Some(true);
        let end = current.head.fin && left == bytes.len() as u64;
        let start = std::mem::take(&mut self.fresh);
        if end {
            self.message = None;
        }
        Ok(Some(Event::Data(Chunk {
            start,
            end,
            text,
            bytes,
        })))
    }

    /// A frame begins: which message does it belong to?
    fn begin(&mut self, head: Head) -> Result<(), StreamError> {
        match head.opcode {
            Opcode::Text | Opcode::Binary if self.message.is_some() => {
                Err(broken("a new message inside another"))
            }
            Opcode::Text | Opcode::Binary => {
                self.message = Some(head.opcode == Opcode::Text);
                self.fresh = true;
                Ok(())
            }
            Opcode::Continuation if self.message.is_none() => {
                Err(broken("a continuation of no message"))
            }
            _ => Ok(()),
        }
    }

    /// Takes `count` bytes of the current frame and unmasks them.
    fn take(&mut self, mut current: Current, count: usize) -> Bytes {
        let mut bytes = self.buffer.split_to(count);
        if let Some(mask) = current.head.mask {
            apply_mask(mask, current.done, &mut bytes);
        }
        current.done += count as u64;
        self.current = (current.done < current.head.len).then_some(current);
        bytes.freeze()
    }

    fn control(&mut self, opcode: Opcode, payload: &Bytes) -> Result<Option<Event>, StreamError> {
        match opcode {
            Opcode::Ping => Ok(Some(Event::Ping(payload.clone()))),
            Opcode::Close => match payload.len() {
                0 => Ok(Some(Event::Close(None))),
                1 => Err(broken("a close code of one byte")),
                _ => Ok(Some(Event::Close(Some(u16::from_be_bytes([
                    payload[0], payload[1],
                ]))))),
            },
            // A pong needs no answer: look at what follows it.
            _ => self.step(),
        }
    }
}

/// The writing half, shared by all who send; each frame is written whole.
#[derive(Debug)]
pub struct WsWriter<W> {
    io: Arc<Mutex<W>>,
    role: Role,
}

impl<W> Clone for WsWriter<W> {
    fn clone(&self) -> Self {
        Self {
            io: Arc::clone(&self.io),
            role: self.role,
        }
    }
}

impl<W: AsyncWrite + Unpin> WsWriter<W> {
    /// Writes as `role`.
    pub fn new(io: W, role: Role) -> Self {
        Self {
            io: Arc::new(Mutex::new(io)),
            role,
        }
    }

    /// Sends one whole message, or control frame: `prefix` and then `body`.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(
        &self,
        opcode: Opcode,
        prefix: &[u8],
        body: &[u8],
    ) -> Result<(), StreamError> {
        let failed = |source| StreamError::Io {
            action: "write to",
            protocol: "WebSocket",
            source,
        };
        let mask = match self.role {
            Role::Server => None,
            Role::Client => {
                let mut mask = [0; 4];
                let filled = SystemRandom::new().fill(&mut mask);
                filled.map_err(|_| failed(std::io::Error::other("no random bytes")))?;
                Some(mask)
            }
        };
        let len = prefix.len() + body.len();
        let mut out = Vec::with_capacity(len + frame::MAX_HEAD_BYTES);
        let head = Head {
            fin: true,
            opcode,
            mask,
            len: len as u64,
        };
        frame::encode(&head, &mut out);
        let payload = out.len();
        out.extend_from_slice(prefix);
        out.extend_from_slice(body);
        if let Some(mask) = mask {
            apply_mask(mask, 0, &mut out[payload..]);
        }
        let mut io = self.io.lock().await;
        io.write_all(&out).await.map_err(failed)?;
        io.flush().await.map_err(failed)
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn pong(&self, payload: &[u8]) -> Result<(), StreamError> {
        let cut = payload.len().min(MAX_CONTROL_BYTES);
        self.send(Opcode::Pong, &[], &payload[..cut]).await
    }

    /// Says that no more comes, and why (RFC 6455 section 7.4; 1000 is normal).
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(&self, code: u16) -> Result<(), StreamError> {
        self.send(Opcode::Close, &code.to_be_bytes(), &[]).await
    }

    /// Ends the writing side of what lies below.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn shutdown(&self) -> Result<(), StreamError> {
        let closed = self.io.lock().await.shutdown().await;
        closed.map_err(|source| StreamError::Io {
            action: "write to",
            protocol: "WebSocket",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All events of a connection that says `bytes` and ends.
    fn events(bytes: &[u8], role: Role) -> Result<Vec<Event>, StreamError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut reader = WsReader::new(bytes, role);
            let mut events = Vec::new();
            while let Some(event) = reader.next().await? {
                events.push(event);
            }
            Ok(events)
        })
    }

    #[test]
    fn a_fragmented_message_with_a_ping_inside() {
        let bytes = [
            0x01, 0x02, b'a', b'b', 0x89, 0x01, b'p', 0x8a, 0x00, 0x80, 0x01, b'c', 0x88, 0x02,
            0x03, 0xe8,
        ];
        let chunk = |start, end, bytes: &'static [u8]| {
            Event::Data(Chunk {
                start,
                end,
                text: true,
                bytes: Bytes::from_static(bytes),
            })
        };
        assert_eq!(
            events(&bytes, Role::Client).unwrap(),
            [
                chunk(true, false, b"ab"),
                Event::Ping(Bytes::from_static(b"p")),
                chunk(false, true, b"c"),
                Event::Close(Some(1000)),
            ]
        );
        assert!(
            events(&[0x80, 0x00], Role::Client).is_err(),
            "continues nothing"
        );
        assert!(events(&[0x01, 0x00, 0x01, 0x00], Role::Client).is_err());
        assert!(events(&[0x88, 0x01, 0x03], Role::Client).is_err());
    }

    #[tokio::test]
    async fn a_long_message_arrives_in_bounded_chunks() {
        let body = vec![5u8; 200_000];
        let (client, server) = tokio::io::duplex(1 << 16);
        let writer = WsWriter::new(client, Role::Client);
        let sent = body.clone();
        let task = tokio::spawn(async move {
            writer.send(Opcode::Binary, &[1], &sent).await.unwrap();
            writer.close(1000).await.unwrap();
        });
        let mut reader = WsReader::new(server, Role::Server);
        let mut got = Vec::new();
        let mut starts = 0;
        while let Some(Event::Data(chunk)) = reader.next().await.unwrap() {
            assert!(chunk.bytes.len() <= READ_BYTES);
            starts += usize::from(chunk.start);
            got.extend_from_slice(&chunk.bytes);
        }
        assert_eq!((starts, got[0], got.len()), (1, 1, body.len() + 1));
        task.await.unwrap();
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_in_events_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), server: bool) {
            let role = if server { Role::Server } else { Role::Client };
            if let Ok(events) = events(&bytes, role) {
                let total: usize = events.iter().map(|e| match e {
                    Event::Data(chunk) => chunk.bytes.len(),
                    Event::Ping(bytes) => bytes.len(),
                    Event::Close(_) => 0,
                }).sum();
                prop_assert!(total <= bytes.len());
            }
        }
    }
}
