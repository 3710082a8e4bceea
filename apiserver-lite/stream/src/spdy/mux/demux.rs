//! The reading side: frames to streams. It never waits for the writing side.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{DATA_BYTES, Out, Shared, SpdyStream};
use crate::error::StreamError;
use crate::spdy::frame::{
    self, Control, HEAD_BYTES, Head, INITIAL_WINDOW_BYTES, RST_INVALID_STREAM, RST_PROTOCOL_ERROR,
    RST_REFUSED_STREAM, broken,
};
use crate::spdy::headers::{Headers, Inflater};
use crate::ws::Role;

/// A window is announced again when so much was consumed.
const WINDOW_STEP_BYTES: u32 = INITIAL_WINDOW_BYTES / 2;

/// Announces consumed bytes when they are worth a frame; what finds no room
/// is announced with the next.
fn announce(answers: &mpsc::Sender<Out>, stream: u32, consumed: &mut u32) {
    if *consumed < WINDOW_STEP_BYTES {
        return;
    }
    let delta = *consumed;
    let frame = Control::WindowUpdate { stream, delta };
    if answers.try_send(Out::Control(frame)).is_ok() {
        *consumed = 0;
    }
}

/// The reading side.
pub(super) struct Demux<R> {
    io: R,
    role: Role,
    shared: Shared,
    accept: mpsc::Sender<SpdyStream>,
    inflater: Inflater,
    session_consumed: u32,
    last_peer_id: u32,
}

impl<R: AsyncRead + Unpin> Demux<R> {
    pub(super) fn new(io: R, role: Role, shared: Shared, accept: mpsc::Sender<SpdyStream>) -> Self {
        Self {
            io,
            role,
            shared,
            accept,
            inflater: Inflater::default(),
            session_consumed: 0,
            last_peer_id: 0,
        }
    }

    /// Reads frames until the peer has ended its side.
    pub(super) async fn run(&mut self) -> Result<(), StreamError> {
        let mut buffer = BytesMut::new();
        loop {
            if !self.fill(&mut buffer, HEAD_BYTES).await? {
                return Ok(());
            }
            let head = buffer.split_to(HEAD_BYTES);
            let head: [u8; HEAD_BYTES] = head[..]
                .try_into()
                .map_err(|_| broken("a frame without a head"))?;
            match frame::decode_head(head)? {
                Head::Control { kind, flags, len } => {
                    if !self.fill(&mut buffer, len as usize).await? {
                        return Ok(());
                    }
                    let payload = buffer.split_to(len as usize).freeze();
                    let control = frame::decode_control(kind, flags, &payload)?;
                    self.control(control).await?;
                }
                Head::Data { stream, fin, len } => {
                    let mut left = len as usize;
                    while left > 0 {
                        if !self.fill(&mut buffer, 1).await? {
                            return Ok(());
                        }
                        let bytes = buffer.split_to(left.min(buffer.len())).freeze();
                        left -= bytes.len();
                        self.data(stream, &bytes).await?;
                    }
                    if fin {
                        self.finish(stream);
                    }
                }
            }
        }
    }

    /// Reads until `wanted` bytes are there; false at the end.
    async fn fill(&mut self, buffer: &mut BytesMut, wanted: usize) -> Result<bool, StreamError> {
        while buffer.len() < wanted {
            buffer.reserve(DATA_BYTES.max(wanted - buffer.len()));
            let read = self.io.read_buf(buffer).await;
            let read = read.map_err(|source| StreamError::Io {
                action: "read from",
                protocol: "SPDY",
                source,
            })?;
            if read == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn control(&mut self, frame: Control) -> Result<(), StreamError> {
        match frame {
            Control::SynStream {
                stream,
                fin,
                unidirectional,
                block,
            } => {
                let headers = self.inflater.headers(&block)?;
                self.syn(stream, headers, !fin, !unidirectional).await
            }
            Control::SynReply { stream, fin, block } => {
                self.inflater.headers(&block)?;
                let opened = {
                    let mut table = self.shared.lock();
                    let entry = table.entries.get_mut(&stream);
                    entry.and_then(|entry| entry.opened.take())
                };
                if let Some(opened) = opened {
                    // Nobody waits any more: the opener was cancelled.
                    let _ = opened.send(());
                }
                if fin {
                    self.finish(stream);
                }
                Ok(())
            }
            Control::Headers { stream, fin, block } => {
                self.inflater.headers(&block)?;
                if fin {
                    self.finish(stream);
                }
                Ok(())
            }
            Control::RstStream { stream, .. } => {
                let entry = self.shared.lock().entries.remove(&stream);
                if let Some(sender) = entry.and_then(|entry| entry.sender) {
                    sender.abort();
                }
                Ok(())
            }
            Control::Ping(id) => {
                // Odd pings are the client's; those of this side are answers.
                let from_client = id % 2 == 1;
                if from_client == (self.role == Role::Server) {
                    self.shared.answer(Out::Control(Control::Ping(id)))?;
                }
                Ok(())
            }
            Control::GoAway | Control::WindowUpdate { .. } | Control::Other(_) => Ok(()),
        }
    }

    async fn syn(
        &mut self,
        stream: u32,
        headers: Headers,
        peer_sends: bool,
        may_send: bool,
    ) -> Result<(), StreamError> {
        // Section 2.3.2: the peer's parity, and growing.
        let parity = u32::from(self.role == Role::Server);
        if stream % 2 != parity || stream <= self.last_peer_id {
            return self.reset(stream, RST_PROTOCOL_ERROR);
        }
        self.last_peer_id = stream;
        let Ok(guard) = self.shared.admit() else {
            return self.reset(stream, RST_REFUSED_STREAM);
        };
        self.shared.answer(Out::Reply { stream })?;
        let new = self
            .shared
            .add(stream, headers, guard, None, peer_sends, may_send);
        if self.accept.send(new).await.is_err() {
            self.shared.lock().entries.remove(&stream);
            return self.reset(stream, RST_REFUSED_STREAM);
        }
        Ok(())
    }

    fn reset(&mut self, stream: u32, status: u32) -> Result<(), StreamError> {
        let frame = Control::RstStream { stream, status };
        self.shared.answer(Out::Control(frame))
    }

    async fn data(&mut self, stream: u32, bytes: &Bytes) -> Result<(), StreamError> {
        let sink = {
            let mut table = self.shared.lock();
            match table.entries.get_mut(&stream) {
                Some(entry) => entry.sink.take(),
                None => None,
            }
        };
        let Some(mut sink) = sink else {
            return self.data_of_nobody(stream);
        };
        // A reader that is gone discards; the peer is not told, as it may
        // still want this stream's other direction.
        let kept = sink.write_all(bytes).await.is_ok();
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if !kept {
            tracing::trace!(stream, "SPDY data of a stream that nobody reads");
        }
        {
            let mut table = self.shared.lock();
            if let Some(entry) = table.entries.get_mut(&stream) {
                entry.sink = Some(sink);
                entry.consumed = entry.consumed.saturating_add(count);
                announce(&self.shared.answers, stream, &mut entry.consumed);
            }
        }
        self.session_consumed = self.session_consumed.saturating_add(count);
        announce(&self.shared.answers, 0, &mut self.session_consumed);
        Ok(())
    }

    /// Data after a stream's end is an error of that stream only; after a
    /// reset it may simply have been under way.
    fn data_of_nobody(&mut self, stream: u32) -> Result<(), StreamError> {
        let known = self.shared.lock().entries.contains_key(&stream);
        let never_was =
            stream % 2 == u32::from(self.role == Role::Server) && stream > self.last_peer_id;
        if known || never_was {
            self.reset(stream, RST_INVALID_STREAM)?;
        }
        Ok(())
    }

    /// The peer's half of a stream ends: its reader sees the end.
    fn finish(&mut self, stream: u32) {
        self.shared.lock().entries.remove(&stream);
    }
}
