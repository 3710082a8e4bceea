//! A remote command over WebSocket: the first byte of a message names its
//! channel.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::resize::Sizes;
use super::{CLOSE_TIMEOUT, OUTPUT_BYTES};
use crate::error::StreamError;
use crate::node::{RESIZE_BACKLOG_COUNT, Session, Streams, TerminalSize, Work};
use crate::pipe::{Reader, Writer, pipe};
use crate::upgrade::{Channels, Version};
use crate::ws::{Chunk, Event, Opcode, Role, WsReader, WsWriter};

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// v5: the channel whose messages name a channel that ends.
pub(crate) const CLOSE: u8 = 255;

/// Longest message in base64, in bytes of text; binary ones have no bound,
/// as they are never held whole.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Sends a piece of a channel.
pub(crate) async fn send<W: AsyncWrite + Unpin>(
    writer: &WsWriter<W>,
    base64: bool,
    channel: u8,
    bytes: &[u8],
) -> Result<(), StreamError> {
    if base64 {
        let text = STANDARD.encode(bytes);
        let digit = [b'0' + channel];
        writer.send(Opcode::Text, &digit, text.as_bytes()).await
    } else {
        writer.send(Opcode::Binary, &[channel], bytes).await
    }
}

/// Puts the pieces of messages together again: which channel, which bytes.
#[derive(Debug)]
pub(crate) struct Demux {
    base64: bool,
    channel: Option<u8>,
    text: Vec<u8>,
}

impl Demux {
    pub(crate) const fn new(base64: bool) -> Self {
        Self {
            base64,
            channel: None,
            text: Vec::new(),
        }
    }

    /// What a chunk brings: the channel and bytes of it, if any.
    pub(crate) fn feed(&mut self, chunk: &Chunk) -> Result<Option<(u8, Vec<u8>)>, StreamError> {
        let mut bytes = &chunk.bytes[..];
        if chunk.start {
            self.channel = None;
            self.text.clear();
        }
        if self.channel.is_none() {
            let Some((first, rest)) = bytes.split_first() else {
                return Ok(None);
            };
            self.channel = Some(if self.base64 {
                first.wrapping_sub(b'0')
            } else {
                *first
            });
            bytes = rest;
        }
        let channel = self.channel.unwrap_or(u8::MAX);
        if !self.base64 {
            return Ok(Some((channel, bytes.to_vec())));
        }
        if self.text.len() + bytes.len() > MAX_TEXT_BYTES {
            return Err(StreamError::Limit {
                protocol: "WebSocket",
                what: "bytes of a base64 message",
                value: (self.text.len() + bytes.len()) as u64,
                limit: MAX_TEXT_BYTES as u64,
            });
        }
        self.text.extend_from_slice(bytes);
        if !chunk.end {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.text);
        match STANDARD.decode(&text) {
            Ok(bytes) => Ok(Some((channel, bytes))),
            Err(_) => Err(StreamError::Protocol {
                protocol: "WebSocket",
                what: "a message that is not base64",
            }),
        }
    }
}

/// What a client sends, on its way to the node.
struct Inputs {
    version: Version,
    stdin: Option<Writer>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    sizes: Sizes,
}

impl Inputs {
    async fn take(&mut self, channel: u8, bytes: &[u8]) {
        match channel {
            STDIN => {
                if let Some(stdin) = &mut self.stdin
                    && stdin.write_all(bytes).await.is_err()
                {
                    // The command reads no more: discard what still comes.
                    self.stdin = None;
                }
            }
            RESIZE => {
                let Some(resize) = &self.resize else { return };
                for size in self.sizes.feed(bytes).unwrap_or_default() {
                    // The command may be over already.
                    let _ = resize.send(size).await;
                }
            }
            CLOSE if self.version >= Version::V5 && bytes == [STDIN] => self.stdin = None,
            _ => {}
        }
    }
}

/// Reads until the client closes.
async fn incoming<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut reader: WsReader<R>,
    writer: WsWriter<W>,
    base64: bool,
    mut inputs: Inputs,
) -> Result<(), StreamError> {
    let mut demux = Demux::new(base64);
    while let Some(event) = reader.next().await? {
        match event {
            Event::Data(chunk) => {
                if let Some((channel, bytes)) = demux.feed(&chunk)? {
                    inputs.take(channel, &bytes).await;
                }
            }
            Event::Ping(payload) => writer.pong(&payload).await?,
            Event::Close(_) => break,
        }
    }
    Ok(())
}

/// Sends what the node writes until it drops its end.
pub(crate) async fn pump<W: AsyncWrite + Unpin>(
    from: Option<Reader>,
    writer: &WsWriter<W>,
    base64: bool,
    channel: u8,
) -> Result<(), StreamError> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; OUTPUT_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        send(writer, base64, channel, &buffer[..count]).await?;
    }
    Ok(())
}

fn channel(wanted: bool) -> (Option<Writer>, Option<Reader>) {
    if wanted {
        let (writer, reader) = pipe();
        (Some(writer), Some(reader))
    } else {
        (None, None)
    }
}

pub(crate) async fn serve<IO>(
    io: IO,
    Channels { version, base64 }: Channels,
    streams: Streams,
    work: Work,
) -> Result<(), StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let reader = WsReader::new(read, Role::Server);
    let writer = WsWriter::new(write, Role::Server);
    let (stdin_in, stdin) = channel(streams.stdin);
    let (stdout, stdout_out) = channel(streams.stdout);
    let (stderr, stderr_out) = channel(streams.stderr && !streams.tty);
    let (resize_in, resize) = if streams.tty {
        let (sender, receiver) = mpsc::channel(RESIZE_BACKLOG_COUNT);
        (Some(sender), Some(receiver))
    } else {
        (None, None)
    };
    let session = Session {
        stdin,
        stdout,
        stderr,
        resize,
    };
    let inputs = Inputs {
        version,
        stdin: stdin_in,
        resize: resize_in,
        sizes: Sizes::default(),
    };
    let incoming = incoming(reader, writer.clone(), base64, inputs);
    tokio::pin!(incoming);
    let outgoing = async {
        // An empty message tells the client that the connection stands.
        let lowest = match (streams.stdout, streams.stderr) {
            (true, _) => STDOUT,
            (false, true) => STDERR,
            (false, false) => ERROR,
        };
        send(&writer, base64, lowest, &[]).await?;
        let run = async { Ok(work(session).await) };
        let (exit, (), ()) = tokio::try_join!(
            run,
            pump(stdout_out, &writer, base64, STDOUT),
            pump(stderr_out, &writer, base64, STDERR)
        )?;
        let status = if version >= Version::V4 {
            exit.status().to_string()
        } else {
            exit.message()
        };
        if !status.is_empty() {
            send(&writer, base64, ERROR, status.as_bytes()).await?;
        }
        writer.close(1000).await
    };
    tokio::select! {
        ended = outgoing => ended?,
        // The client is gone, and with it whoever wanted the work.
        ended = &mut incoming => return ended,
    }
    // The client answers the close; it may still be sending.
    if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, incoming).await {
        tracing::debug!(%error, "after the end of a remote command");
    }
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_in_any_chunks(channel in 0u8..5, body in proptest::collection::vec(any::<u8>(), 0..80), cuts in proptest::collection::vec(0usize..100, 0..4), base64: bool) {
            let mut wire = if base64 { vec![b'0' + channel] } else { vec![channel] };
            if base64 { wire.extend(STANDARD.encode(&body).bytes()) } else { wire.extend(&body) }
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (wire.len() + 1)).collect();
            cuts.push(0);
            cuts.push(wire.len());
            cuts.sort_unstable();
            let mut demux = Demux::new(base64);
            let mut got = Vec::new();
            for (i, pair) in cuts.windows(2).enumerate() {
                let chunk = Chunk { start: i == 0, end: i == cuts.len() - 2, text: base64, bytes: Bytes::copy_from_slice(&wire[pair[0]..pair[1]]) };
                if let Some((c, bytes)) = demux.feed(&chunk).unwrap() {
                    prop_assert_eq!(c, channel);
                    got.extend(bytes);
                }
            }
            prop_assert_eq!(got, body);
        }
    }
}
