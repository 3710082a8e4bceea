//! A remote command over SPDY: one stream a channel, told by its header
//! `streamType`.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{CLOSE_TIMEOUT, STREAM_CREATION_TIMEOUT, resize};
use crate::error::StreamError;
use crate::node::{RESIZE_BACKLOG_COUNT, Session, Streams, Work};
use crate::spdy::headers;
use crate::spdy::mux::{self, Incoming, Mux, SpdyStream};
use crate::upgrade::Version;
use crate::ws::Role;

pub(crate) const STREAM_TYPE: &str = "streamtype";

/// The streams of one command, as they come.
#[derive(Debug, Default)]
struct Opened {
    error: Option<SpdyStream>,
    stdin: Option<SpdyStream>,
    stdout: Option<SpdyStream>,
    stderr: Option<SpdyStream>,
    resize: Option<SpdyStream>,
}

async fn collect(
    incoming: &mut Incoming,
    version: Version,
    streams: Streams,
) -> Result<Opened, StreamError> {
    let resizes = streams.tty && version >= Version::V3;
    let stderr = streams.stderr && !streams.tty;
    let wanted = [true, streams.stdin, streams.stdout, stderr, resizes];
    let wanted = wanted.iter().filter(|wanted| **wanted).count();
    let mut opened = Opened::default();
    let mut got = 0;
    let all = async {
        while got < wanted {
            let Some(stream) = incoming.next().await else {
                return Err(StreamError::Closed {
                    protocol: "SPDY",
                    during: "the client's streams were waited for",
                });
            };
            let slot = match headers::get(&stream.headers, STREAM_TYPE) {
                Some("error") => &mut opened.error,
                Some("stdin") => &mut opened.stdin,
                Some("stdout") => &mut opened.stdout,
                Some("stderr") => &mut opened.stderr,
                Some("resize") => &mut opened.resize,
                _ => return Err(broken("a stream of an unknown type")),
            };
            if slot.replace(stream).is_some() {
                return Err(broken("two streams of one type"));
            }
            got += 1;
        }
        Ok(())
    };
    match tokio::time::timeout(STREAM_CREATION_TIMEOUT, all).await {
        Ok(result) => result.map(|()| opened),
        Err(_) => Err(StreamError::StreamsMissing {
            seconds: STREAM_CREATION_TIMEOUT.as_secs(),
            got,
            wanted,
        }),
    }
}

const fn broken(what: &'static str) -> StreamError {
    StreamError::Protocol {
        protocol: "SPDY",
        what,
    }
}

pub(crate) async fn serve<IO>(
    io: IO,
    version: Version,
    streams: Streams,
    work: Work,
) -> Result<(), StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mux, incoming, drive) = mux::connect(io, Role::Server)?;
    tokio::pin!(drive);
    tokio::select! {
        result = run(&mux, incoming, version, streams, work) => result?,
        // The client is gone, and with it whoever wanted the work.
        result = &mut drive => return result,
    }
    // A connection that is closed while the client still sends is reset, and
    // the client may lose the status: it closes first, if it does in time.
    if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, drive).await {
        tracing::debug!(%error, "after the end of a remote command");
    }
    Ok(())
}

async fn run(
    mux: &Mux,
    mut incoming: Incoming,
    version: Version,
    streams: Streams,
    work: Work,
) -> Result<(), StreamError> {
    let opened = collect(&mut incoming, version, streams).await?;
    // Further streams are refused.
    drop(incoming);
    let mut finished = Vec::new();
    let mut output = |stream: Option<SpdyStream>| {
        let stream = stream?;
        finished.push(stream.finished);
        Some(stream.writer)
    };
    let stdout = output(opened.stdout);
    let stderr = output(opened.stderr);
    // The other half of stdin stays open until the command is over: clients
    // close their half when it ends.
    let (stdin, _stdin_back) = match opened.stdin {
        Some(stream) => (Some(stream.reader), Some(stream.writer)),
        None => (None, None),
    };
    let (sizes, resize) = if streams.tty {
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
    let resizing = async {
        if let (Some(stream), Some(sizes)) = (opened.resize, sizes) {
            let _back = stream.writer;
            resize::forward(stream.reader, sizes).await;
        }
        std::future::pending::<()>().await;
    };
    let exit = tokio::select! {
        exit = work(session) => exit,
        () = resizing => return Ok(()),
    };
    for stream in finished {
        // Output that was written is sent before the status.
        let _ = stream.await;
    }
    if let Some(mut error) = opened.error {
        let status = if version >= Version::V4 {
            exit.status().to_string()
        } else {
            exit.message()
        };
        // A client that reads no status has gone, which ends all.
        let _ = error.writer.write_all(status.as_bytes()).await;
        drop(error.writer);
        let _ = error.finished.await;
    }
    mux.flush().await?;
    mux.end().await
}
