//! Many streams over one connection.

mod demux;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::frame::{self, Control};
use super::headers::{Deflater, Headers};
use crate::error::StreamError;
use crate::pipe::{Reader, Writer, pipe};
use crate::ws::Role;
use demux::Demux;

/// Most streams at a time on one connection. Port-forward uses two a
/// connection, so this is 256 connections through one tunnel.
pub const MAX_STREAMS_COUNT: usize = 512;
/// Frames that wait to be written.
const WRITE_BACKLOG_COUNT: usize = 16;
/// Answers (replies, resets, pongs, windows) that wait to be written. They
/// have a queue of their own, before data, because the reading side must never
/// wait for the writing side: two peers that did would wait for each other.
const ANSWER_BACKLOG_COUNT: usize = 1024;
/// Streams that wait to be accepted.
const ACCEPT_BACKLOG_COUNT: usize = 16;
/// Payload of a data frame that this side sends.
const DATA_BYTES: usize = 32 << 10;

/// A stream: what the peer sends, and what is sent to it.
#[derive(Debug)]
pub struct SpdyStream {
    /// Its number on the connection.
    pub id: u32,
    /// What the opener said about it.
    pub headers: Headers,
    /// From the peer; ends when the peer ends its half.
    pub reader: Reader,
    /// To the peer; dropping it ends this half.
    pub writer: Writer,
    /// Told (or dropped) when all that was written, and the end of this half,
    /// is on its way: see [`Mux::flush`].
    pub finished: oneshot::Receiver<()>,
}

/// Streams that the peer opens.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<SpdyStream>);

impl Incoming {
    /// The next stream; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<SpdyStream> {
        self.0.recv().await
    }
}

/// What the writing task sends, in order.
#[derive(Debug)]
enum Out {
    Open {
        stream: u32,
        headers: Headers,
    },
    Reply {
        stream: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    Control(Control),
    /// Tells when everything before it was written.
    Flush(oneshot::Sender<()>),
    /// The last frame: ends the writing side.
    End,
}

#[derive(Debug)]
struct Entry {
    /// Where data goes; taken while it is being written to, and gone when the
    /// peer's half has ended.
    sink: Option<Writer>,
    /// Told when the peer replies to an open.
    opened: Option<oneshot::Sender<()>>,
    /// Consumed bytes that were not announced yet.
    consumed: u32,
    /// Sends this side's data; stopped when the peer resets the stream.
    sender: Option<AbortHandle>,
    /// Counts the stream while either half lives.
    _guard: Arc<Guard>,
}

#[derive(Debug)]
struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u32, Entry>,
    next_id: u32,
    gone: bool,
}

#[derive(Debug, Clone)]
struct Shared {
    table: Arc<Mutex<Table>>,
    live: Arc<AtomicUsize>,
    out: mpsc::Sender<Out>,
    answers: mpsc::Sender<Out>,
}

/// A handle to open streams.
#[derive(Debug, Clone)]
pub struct Mux {
    shared: Shared,
    /// One open at a time, so that ids go out in order.
    order: Arc<tokio::sync::Mutex<()>>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more stream.
    fn admit(&self) -> Result<Arc<Guard>, StreamError> {
        let live = self.live.fetch_add(1, Ordering::AcqRel);
        let guard = Arc::new(Guard(Arc::clone(&self.live)));
        if live < MAX_STREAMS_COUNT {
            return Ok(guard);
        }
        Err(StreamError::Limit {
            protocol: "SPDY",
            what: "streams at a time",
            value: live as u64 + 1,
            limit: MAX_STREAMS_COUNT as u64,
        })
    }

    /// Registers a stream and starts the task that sends its data.
    fn add(
        &self,
        id: u32,
        headers: Headers,
        guard: Arc<Guard>,
        opened: Option<oneshot::Sender<()>>,
        peer_sends: bool,
        may_send: bool,
    ) -> SpdyStream {
        let (sink, reader) = pipe();
        let (writer, source) = pipe();
        let (done, finished) = oneshot::channel();
        let sender = may_send.then(|| {
            let held = Arc::clone(&guard);
            let out = self.out.clone();
            let task = rkube_task::spawn(async move {
                send_all(out, id, source).await;
                // Nobody may wait for it.
                let _ = done.send(());
                drop(held);
            });
            task.abort_handle()
        });
        if peer_sends {
            let entry = Entry {
                sink: Some(sink),
                opened,
                consumed: 0,
                sender,
                _guard: guard,
            };
            self.lock().entries.insert(id, entry);
        }
        SpdyStream {
            id,
            headers,
            reader,
            writer,
            finished,
        }
    }

    /// Queues an answer without waiting; false when the queue is full.
    fn try_answer(&self, frame: Out) -> bool {
        self.answers.try_send(frame).is_ok()
    }

    /// Queues an answer that may not be lost.
    fn answer(&self, frame: Out) -> Result<(), StreamError> {
        if self.try_answer(frame) {
            return Ok(());
        }
        Err(StreamError::Limit {
            protocol: "SPDY",
            what: "answers that the peer has not read",
            value: ANSWER_BACKLOG_COUNT as u64 + 1,
            limit: ANSWER_BACKLOG_COUNT as u64,
        })
    }

    async fn send(&self, frame: Out) -> Result<(), StreamError> {
        self.out.send(frame).await.map_err(|_| StreamError::Closed {
            protocol: "SPDY",
            during: "a frame was to be sent",
        })
    }
}

/// Sends what is written to a stream until its writer is dropped.
async fn send_all(out: mpsc::Sender<Out>, stream: u32, mut source: Reader) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(DATA_BYTES);
        let fin = source.read_buf(&mut buffer).await.unwrap_or(0) == 0;
        let bytes = buffer.split().freeze();
        if out.send(Out::Data { stream, fin, bytes }).await.is_err() || fin {
            break;
        }
    }
}

/// Runs SPDY over a connection: a handle, the streams that the peer opens,
/// and the future that drives it. The connection lives as long as the future,
/// which ends with the peer's side; dropping it closes the connection.
///
/// # Errors
/// zlib refuses its dictionary (a defect).
pub fn connect<IO>(
    io: IO,
    role: Role,
) -> Result<
    (
        Mux,
        Incoming,
        impl Future<Output = Result<(), StreamError>> + Send,
    ),
    StreamError,
>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let deflater = Deflater::new()?;
    let (read, write) = tokio::io::split(io);
    let (out, frames) = mpsc::channel(WRITE_BACKLOG_COUNT);
    let (answers, answered) = mpsc::channel(ANSWER_BACKLOG_COUNT);
    let (accept, incoming) = mpsc::channel(ACCEPT_BACKLOG_COUNT);
    let table = Table {
        next_id: if role == Role::Client { 1 } else { 2 },
        ..Table::default()
    };
    let shared = Shared {
        table: Arc::new(Mutex::new(table)),
        live: Arc::default(),
        out,
        answers,
    };
    let mux = Mux {
        shared: shared.clone(),
        order: Arc::default(),
    };
    let mut demux = Demux::new(read, role, shared.clone(), accept);
    let drive = async move {
        let writing = write_all(write, deflater, frames, answered);
        tokio::pin!(writing);
        let result = {
            let reading = demux.run();
            tokio::pin!(reading);
            tokio::select! {
                result = &mut reading => result,
                // What the peer sent before it closed is still read.
                written = &mut writing => reading.await.and(written),
            }
        };
        // Streams learn that nothing comes any more.
        let mut table = shared.lock();
        table.gone = true;
        table.entries.clear();
        result
    };
    Ok((mux, Incoming(incoming), drive))
}

impl Mux {
    /// Opens a stream and waits until the peer has replied to it.
    ///
    /// # Errors
    /// Too many streams, or the connection ended or refused it.
    pub async fn open(&self, headers: Headers) -> Result<SpdyStream, StreamError> {
        let closed = || StreamError::Closed {
            protocol: "SPDY",
            during: "a stream was opened",
        };
        let guard = self.shared.admit()?;
        let (opened, reply) = oneshot::channel();
        let order = self.order.lock().await;
        let room = self.shared.out.reserve().await.map_err(|_| closed())?;
        let id = {
            let mut table = self.shared.lock();
            if table.gone {
                return Err(closed());
            }
            let id = table.next_id;
            table.next_id = id.checked_add(2).filter(|n| n >> 31 == 0).ok_or(closed())?;
            id
        };
        let syn = Out::Open {
            stream: id,
            headers: headers.clone(),
        };
        // Known before it is sent: the peer's answer may come before this
        // task runs again.
        let stream = self
            .shared
            .add(id, headers, guard, Some(opened), true, true);
        room.send(syn);
        {
            let mut table = self.shared.lock();
            if table.gone {
                // The connection ended meanwhile; nobody would answer.
                table.entries.remove(&id);
            }
        }
        drop(order);
        reply.await.map_err(|_| closed())?;
        Ok(stream)
    }

    /// Drops a stream at once, both halves, and tells the peer unless it has
    /// ended its half already.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn cancel(&self, stream: u32) -> Result<(), StreamError> {
        let entry = self.shared.lock().entries.remove(&stream);
        let Some(entry) = entry else {
            return Ok(());
        };
        if let Some(sender) = &entry.sender {
            sender.abort();
        }
        let status = frame::RST_CANCEL;
        let reset = Control::RstStream { stream, status };
        self.shared.send(Out::Control(reset)).await
    }

    /// Ends the writing side after all frames so far; the driving future goes
    /// on until the peer has ended its side too.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn end(&self) -> Result<(), StreamError> {
        self.shared.send(Out::End).await
    }

    /// Waits until all frames so far are written.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn flush(&self) -> Result<(), StreamError> {
        let (done, written) = oneshot::channel();
        self.shared.send(Out::Flush(done)).await?;
        written.await.map_err(|_| StreamError::Closed {
            protocol: "SPDY",
            during: "frames were still to be written",
        })
    }
}

/// Encodes and writes frames until all senders are gone.
async fn write_all<W: AsyncWrite + Unpin>(
    mut io: W,
    mut deflater: Deflater,
    mut frames: mpsc::Receiver<Out>,
    mut answers: mpsc::Receiver<Out>,
) -> Result<(), StreamError> {
    let failed = |source| StreamError::Io {
        action: "write to",
        protocol: "SPDY",
        source,
    };
    let mut buffer = Vec::with_capacity(DATA_BYTES + 64);
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = answers.recv() => frame,
            Some(frame) = frames.recv() => frame,
            else => break,
        };
        buffer.clear();
        let mut next = Some(frame);
        let mut flushes = Vec::new();
        // What already waits goes out with one write, up to a frame's worth.
        while let Some(frame) = next {
            match frame {
                Out::Flush(done) => flushes.push(done),
                Out::End => {
                    io.write_all(&buffer).await.map_err(failed)?;
                    return io.shutdown().await.map_err(failed);
                }
                frame => encode(&frame, &mut deflater, &mut buffer)?,
            }
            if buffer.len() >= DATA_BYTES {
                break;
            }
            next = answers.try_recv().or_else(|_| frames.try_recv()).ok();
        }
        io.write_all(&buffer).await.map_err(failed)?;
        io.flush().await.map_err(failed)?;
        for done in flushes {
            // Nobody may wait for it any more.
            let _ = done.send(());
        }
    }
    io.shutdown().await.map_err(failed)
}

fn encode(frame: &Out, deflater: &mut Deflater, out: &mut Vec<u8>) -> Result<(), StreamError> {
    match frame {
        Out::Open { stream, headers } => {
            let frame = Control::SynStream {
                stream: *stream,
                fin: false,
                unidirectional: false,
                block: deflater.block(headers)?,
            };
            frame::encode_control(&frame, out);
        }
        Out::Reply { stream } => {
            let frame = Control::SynReply {
                stream: *stream,
                fin: false,
                block: deflater.block(&Vec::new())?,
            };
            frame::encode_control(&frame, out);
        }
        Out::Data { stream, fin, bytes } => frame::encode_data(*stream, *fin, bytes, out),
        Out::Control(frame) => frame::encode_control(frame, out),
        Out::Flush(_) | Out::End => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
