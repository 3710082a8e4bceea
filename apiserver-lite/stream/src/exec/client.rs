//! The client's side of a remote command: a [`Work`] whose command runs at
//! the other end of a connection. So a server hands a client on to a node,
//! whatever protocol each of them speaks.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::spdy::STREAM_TYPE;
use super::websocket::{CLOSE, Demux, ERROR, RESIZE, STDERR, STDIN, STDOUT, send};
use super::{OUTPUT_BYTES, resize};
use crate::error::StreamError;
use crate::node::{Exit, Session, Streams, TerminalSize, Work};
use crate::pipe::{Reader, Writer};
use crate::spdy::mux::{self, Mux, SpdyStream};
use crate::upgrade::{Channels, Version};
use crate::ws::{Event, Opcode, Role, WsReader, WsWriter};

/// Longest status on the error channel, in bytes.
const MAX_STATUS_BYTES: u64 = 64 << 10;

/// What an error channel said at its end.
#[must_use]
pub fn parse_status(text: &[u8], version: Version) -> Exit {
    let lossy = String::from_utf8_lossy(text).into_owned();
    if version < Version::V4 {
        return if text.is_empty() {
            Exit::Code(0)
        } else {
            Exit::Failed(lossy)
        };
    }
    let Ok(status) = serde_json::from_slice::<Value>(text) else {
        return Exit::Failed(format!("the node sent no status: {lossy:?}"));
    };
    if status["status"] == "Success" {
        return Exit::Code(0);
    }
    let code = status["details"]["causes"]
        .as_array()
        .and_then(|causes| causes.iter().find(|cause| cause["reason"] == "ExitCode"))
        .and_then(|cause| cause["message"].as_str()?.parse().ok());
    match (status["reason"].as_str(), code) {
        (Some("NonZeroExitCode"), Some(code)) => Exit::Code(code),
        _ => {
            let message = status["message"].as_str().unwrap_or("unknown");
            let inner = message.strip_prefix("Internal error occurred: ");
            Exit::Failed(inner.unwrap_or(message).to_owned())
        }
    }
}

/// Work at the other end of a SPDY connection on which `version` was agreed.
pub fn spdy_work<IO>(io: IO, version: Version, streams: Streams) -> Work
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    Box::new(move |session| {
        Box::pin(async move {
            let result = async {
                let (mux, _incoming, drive) = mux::connect(io, Role::Client)?;
                let running = over_spdy(&mux, version, streams, session);
                tokio::pin!(running);
                tokio::select! {
                    exit = &mut running => exit,
                    // All streams have ended now; what they brought before
                    // is still read.
                    ended = drive => match ended {
                        Ok(()) => running.await,
                        Err(error) => Err(error),
                    },
                }
            };
            result.await.unwrap_or_else(failed)
        })
    })
}

/// Work at the other end of a WebSocket on which `channels` was agreed.
pub fn websocket_work<IO>(io: IO, channels: Channels) -> Work
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    Box::new(move |session| {
        Box::pin(async move {
            over_websocket(io, channels, session)
                .await
                .unwrap_or_else(failed)
        })
    })
}

fn failed(error: StreamError) -> Exit {
    use std::error::Error as _;
    let cause = error.source().map(|s| format!(": {s}")).unwrap_or_default();
    Exit::Failed(format!("the connection to the node failed: {error}{cause}"))
}

const fn closed(protocol: &'static str) -> StreamError {
    StreamError::Closed {
        protocol,
        during: "the command was running",
    }
}

/// Copies until either side ends.
async fn copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(mut from: R, mut to: W) {
    // Either side may go first; the status tells how the command ended.
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

async fn over_spdy(
    mux: &Mux,
    version: Version,
    streams: Streams,
    session: Session,
) -> Result<Exit, StreamError> {
    let open = |kind: &str| mux.open(vec![(STREAM_TYPE.to_owned(), kind.to_owned())]);
    let error = open("error").await?;
    // All are open before the first byte: a node that has not read stdin
    // reads no further streams either.
    let mut stdin = None;
    if let Some(from) = session.stdin {
        stdin = Some((open("stdin").await?, from));
    }
    let mut outputs = Vec::new();
    if let Some(to) = session.stdout {
        outputs.push((open("stdout").await?, to));
    }
    if let Some(to) = session.stderr {
        outputs.push((open("stderr").await?, to));
    }
    let mut terminal = None;
    if streams.tty
        && version >= Version::V3
        && let Some(sizes) = session.resize
    {
        terminal = Some((open("resize").await?, sizes));
    }
    let mut inputs = tokio::task::JoinSet::new();
    if let Some((SpdyStream { reader, writer, .. }, from)) = stdin {
        inputs.spawn(async move {
            copy(from, writer).await;
            drop(reader);
        });
    }
    if let Some((mut stream, mut sizes)) = terminal {
        inputs.spawn(async move {
            while let Some(size) = sizes.recv().await {
                let text = resize::encode(size);
                if stream.writer.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut draining = tokio::task::JoinSet::new();
    let mut held: Vec<Writer> = Vec::new();
    for (stream, to) in outputs {
        held.push(stream.writer);
        draining.spawn(copy(stream.reader, to));
    }
    let mut text = Vec::new();
    let mut status = error.reader.take(MAX_STATUS_BYTES);
    // A pipe that breaks has ended.
    let _ = status.read_to_end(&mut text).await;
    while draining.join_next().await.is_some() {}
    Ok(parse_status(&text, version))
}

async fn over_websocket<IO>(
    io: IO,
    Channels { version, base64 }: Channels,
    session: Session,
) -> Result<Exit, StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let reader = WsReader::new(read, Role::Client);
    let writer = WsWriter::new(write, Role::Client);
    let sending = async {
        tokio::try_join!(
            send_stdin(session.stdin, &writer, version, base64),
            send_sizes(session.resize, &writer, base64)
        )?;
        std::future::pending::<Result<Exit, StreamError>>().await
    };
    let receiving = receive(
        reader,
        &writer,
        session.stdout,
        session.stderr,
        version,
        base64,
    );
    let exit = tokio::select! {
        exit = receiving => exit?,
        exit = sending => exit?,
    };
    // The other side may have closed first.
    let _ = writer.close(1000).await;
    let _ = writer.shutdown().await;
    Ok(exit)
}

async fn send_stdin<W: AsyncWrite + Unpin>(
    stdin: Option<Reader>,
    writer: &WsWriter<W>,
    version: Version,
    base64: bool,
) -> Result<(), StreamError> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    let mut buffer = vec![0; OUTPUT_BYTES];
    while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
        send(writer, base64, STDIN, &buffer[..count]).await?;
    }
    if version >= Version::V5 {
        writer.send(Opcode::Binary, &[CLOSE], &[STDIN]).await?;
    }
    Ok(())
}

async fn send_sizes<W: AsyncWrite + Unpin>(
    sizes: Option<mpsc::Receiver<TerminalSize>>,
    writer: &WsWriter<W>,
    base64: bool,
) -> Result<(), StreamError> {
    let Some(mut sizes) = sizes else {
        return Ok(());
    };
    while let Some(size) = sizes.recv().await {
        send(writer, base64, RESIZE, resize::encode(size).as_bytes()).await?;
    }
    Ok(())
}

async fn receive<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut reader: WsReader<R>,
    writer: &WsWriter<W>,
    mut stdout: Option<Writer>,
    mut stderr: Option<Writer>,
    version: Version,
    base64: bool,
) -> Result<Exit, StreamError> {
    let mut demux = Demux::new(base64);
    let mut status = Vec::new();
    while let Some(event) = reader.next().await? {
        let chunk = match event {
            Event::Data(chunk) => chunk,
            Event::Ping(payload) => {
                writer.pong(&payload).await?;
                continue;
            }
            Event::Close(_) => break,
        };
        let Some((channel, bytes)) = demux.feed(&chunk)? else {
            continue;
        };
        let out = match channel {
            STDOUT => &mut stdout,
            STDERR => &mut stderr,
            ERROR => {
                let len = (status.len() + bytes.len()) as u64;
                if len > MAX_STATUS_BYTES {
                    return Err(StreamError::Limit {
                        protocol: "WebSocket",
                        what: "bytes of a status",
                        value: len,
                        limit: MAX_STATUS_BYTES,
                    });
                }
                status.extend_from_slice(&bytes);
                continue;
            }
            _ => continue,
        };
        if let Some(pipe) = out
            && pipe.write_all(&bytes).await.is_err()
        {
            *out = None;
        }
    }
    if status.is_empty() && version >= Version::V4 {
        return Err(closed("WebSocket"));
    }
    Ok(parse_status(&status, version))
}
