//! Port-forward over SPDY: for each connection an error and a data stream
//! with the same `requestID` and the port in their headers
//! (`k8s.io/apimachinery/pkg/util/portforward`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::StreamError;
use crate::node::Ports;
use crate::spdy::headers;
use crate::spdy::mux::{self, Mux, SpdyStream};
use crate::ws::Role;

/// How long one stream of a pair waits for the other; as upstream's default.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Single streams that wait for their partner.
const MAX_WAITING_COUNT: usize = 64;

pub(crate) const STREAM_TYPE: &str = "streamtype";
pub(crate) const PORT: &str = "port";
pub(crate) const REQUEST_ID: &str = "requestid";

/// The first of a pair.
struct Half {
    stream: SpdyStream,
    is_error: bool,
    since: Instant,
}

pub(crate) async fn serve<IO>(io: IO, ports: Arc<dyn Ports>) -> Result<(), StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mux, mut incoming, drive) = mux::connect(io, Role::Server)?;
    let mut running = JoinSet::new();
    let mut waiting: HashMap<String, Half> = HashMap::new();
    let accepting = async {
        loop {
            let stream = tokio::select! {
                stream = incoming.next() => stream,
                Some(_) = running.join_next() => continue,
                () = tokio::time::sleep(PAIR_TIMEOUT), if !waiting.is_empty() => {
                    // Whoever waits so long has no partner.
                    let now = Instant::now();
                    let late = |half: &Half| now.duration_since(half.since) >= PAIR_TIMEOUT;
                    let ids: Vec<u32> = waiting.values().filter(|h| late(h)).map(|h| h.stream.id).collect();
                    waiting.retain(|_, half| !late(half));
                    for id in ids {
                        running.spawn(cancel(mux.clone(), id));
                    }
                    continue;
                }
            };
            let Some(stream) = stream else { return Ok(()) };
            let id = stream.id;
            match pair(&mut waiting, stream) {
                Pairing::Waits => {}
                Pairing::Refused(stream) => {
                    drop(stream);
                    running.spawn(cancel(mux.clone(), id));
                }
                Pairing::Both { port, data, error } => {
                    let connect = ports.connect(port);
                    let mux = mux.clone();
                    running.spawn(async move {
                        connection(&mux, connect.await, data, error).await;
                    });
                }
            }
        }
    };
    tokio::select! {
        result = accepting => result,
        result = drive => result,
    }
}

/// Cancels a stream. Apart from the accepting loop, which must not wait for
/// the writing side.
async fn cancel(mux: Mux, stream: u32) {
    // A connection that has ended has no streams.
    let _ = mux.cancel(stream).await;
}

enum Pairing {
    Waits,
    Refused(SpdyStream),
    Both {
        port: u16,
        data: SpdyStream,
        error: SpdyStream,
    },
}

/// Finds the partner of a stream, or lets it wait.
fn pair(waiting: &mut HashMap<String, Half>, stream: SpdyStream) -> Pairing {
    let header = |name: &str| headers::get(&stream.headers, name);
    let is_error = match header(STREAM_TYPE) {
        Some("error") => true,
        Some("data") => false,
        _ => return Pairing::Refused(stream),
    };
    let Some(port) = header(PORT)
        .and_then(|port| port.parse().ok())
        .filter(|p| *p > 0)
    else {
        return Pairing::Refused(stream);
    };
    // Clients of 1.0 sent no request ID: their data stream is the next one.
    let request = match header(REQUEST_ID) {
        Some(id) => id.to_owned(),
        None if is_error => stream.id.to_string(),
        None => stream.id.saturating_sub(2).to_string(),
    };
    match waiting.remove(&request) {
        Some(half) if half.is_error == is_error => {
            waiting.insert(request, half);
            Pairing::Refused(stream)
        }
        Some(half) => {
            let (data, error) = if is_error {
                (half.stream, stream)
            } else {
                (stream, half.stream)
            };
            Pairing::Both { port, data, error }
        }
        None if waiting.len() >= MAX_WAITING_COUNT => Pairing::Refused(stream),
        None => {
            let since = Instant::now();
            waiting.insert(
                request,
                Half {
                    stream,
                    is_error,
                    since,
                },
            );
            Pairing::Waits
        }
    }
}

/// One connection, from its two streams to the port. A connection that
/// breaks later ends its streams and no others.
async fn connection(
    mux: &Mux,
    port: Result<Box<dyn crate::node::Duplex>, String>,
    data: SpdyStream,
    mut error: SpdyStream,
) {
    let (data_id, error_id) = (data.id, error.id);
    match port {
        Ok(port) => {
            copy_both(port, data).await;
        }
        Err(why) => {
            // A client that is gone has ended all of this.
            let _ = error.writer.write_all(why.as_bytes()).await;
        }
    }
    drop(error.writer);
    let _ = error.finished.await;
    // What the client has not ended by itself ends now.
    let _ = mux.flush().await;
    let _ = mux.cancel(data_id).await;
    let _ = mux.cancel(error_id).await;
}

/// Copies in both directions, each until its end.
async fn copy_both(port: Box<dyn crate::node::Duplex>, data: SpdyStream) {
    let SpdyStream {
        mut reader,
        mut writer,
        finished,
        ..
    } = data;
    let (mut from_port, mut to_port) = tokio::io::split(port);
    let up = async {
        let copied = tokio::io::copy(&mut reader, &mut to_port).await;
        let _ = to_port.shutdown().await;
        copied
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_port, &mut writer).await;
        drop(writer);
        // All is on its way before the stream may be cancelled.
        let _ = finished.await;
        copied
    };
    tokio::pin!(up, down);
    // When the pod has ended its side, what the client still sends has no
    // reader; when the client has, the answer may still come.
    tokio::select! {
        copied = &mut down => report(&copied),
        copied = &mut up => {
            report(&copied);
            report(&down.await);
        }
    }
}

fn report(copied: &std::io::Result<u64>) {
    if let Err(error) = copied {
        tracing::debug!(%error, "a forwarded connection broke");
    }
}
