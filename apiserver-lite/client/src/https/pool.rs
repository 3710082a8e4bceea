//! Connections that requests share.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::dial::{Connection, Dialer};

/// Requests and watches that share one HTTP/2 connection; one more opens
/// another. Servers allow 100 or more (RFC 9113 section 6.5.2).
const STREAMS_PER_CONNECTION: usize = 80;
/// A connection that says nothing for so long is asked whether it lives, as
/// client-go does.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP/1.1 connections that are kept for the next request.
const MAX_IDLE_CONNECTIONS: usize = 4;
/// What may be under way to us on all streams of a connection, 16 MiB, so
/// that one slow watch does not hold up the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// The same for one stream.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

type Sent = Full<Bytes>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// There is no connection.
    #[error("{endpoint}")]
    Connect {
        /// The server.
        endpoint: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke, or something other than HTTP came.
    #[error("{endpoint}")]
    Exchange {
        /// The server.
        endpoint: String,
        /// Why.
        source: hyper::Error,
    },
}

/// An HTTP/2 connection and how many requests are on it.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Sent>,
    generation: u64,
    streams: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Connections {
    shared: Vec<Shared>,
    idle: Vec<(u64, http1::SendRequest<Sent>)>,
    /// The server offers HTTP/1.1 only.
    plain: bool,
}

/// The connections to one server.
pub(super) struct Pool {
    dialer: Dialer,
    connections: Arc<Mutex<Connections>>,
    /// Held while a shared connection is made: others wait for it.
    dialing: tokio::sync::Mutex<()>,
}

fn lock(connections: &Mutex<Connections>) -> std::sync::MutexGuard<'_, Connections> {
    // Nothing panics while it holds the lock.
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Taken {
    Shared(Shared, Stream),
    Own(u64, http1::SendRequest<Sent>),
}

impl Pool {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            connections: Arc::default(),
            dialing: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Sends a request. A connection that turns out to be closed before it
    /// took the request is replaced; one that breaks later too, where the
    /// request may be `repeatable`.
    pub(super) async fn exchange(
        &self,
        request: http::Request<Sent>,
        repeatable: bool,
    ) -> Result<http::Response<Answer>, ExchangeError> {
        let mut request = request;
        let again = repeatable.then(|| request.clone());
        let (parts_sent, error) = match self.once(request).await {
            Ok(response) => return Ok(response),
            Err(Failed::Refused(returned, error)) => (Some(*returned), error),
            Err(Failed::Lost(error)) => (None, error),
        };
        request = match parts_sent.or(again) {
            Some(request) => request,
            None => return Err(error),
        };
        match self.once(request).await {
            Ok(response) => Ok(response),
            Err(Failed::Refused(_, error) | Failed::Lost(error)) => Err(error),
        }
    }

    async fn once(
        &self,
        mut request: http::Request<Sent>,
    ) -> Result<http::Response<Answer>, Failed> {
        let taken = match self.take().await {
            Ok(taken) => taken,
            // Another try so soon meets the same.
            Err(error) => return Err(Failed::Lost(error)),
        };
        let broken = |source: hyper::Error| ExchangeError::Exchange {
            endpoint: self.dialer.endpoint().to_string(),
            source,
        };
        let refused = |mut e: hyper::client::conn::TrySendError<http::Request<Sent>>| match e
            .take_message()
        {
            Some(request) => Failed::Refused(Box::new(request), broken(e.into_error())),
            None => Failed::Lost(broken(e.into_error())),
        };
        match taken {
            Taken::Shared(mut shared, stream) => {
                // HTTP/2 names the server in the URI, not in a header.
                let uri = format!("{}{}", self.dialer.endpoint(), request.uri());
                if let Ok(uri) = uri.parse() {
                    *request.uri_mut() = uri;
                    request.headers_mut().remove(http::header::HOST);
                }
                let response = shared.sender.try_send_request(request).await;
                let response = response.map_err(refused)?;
                Ok(response.map(|body| Answer {
                    body,
                    _place: Place::Stream(stream),
                }))
            }
            Taken::Own(generation, mut sender) => {
                let response = sender.try_send_request(request).await.map_err(refused)?;
                let connections = Arc::clone(&self.connections);
                Ok(response.map(|body| Answer {
                    body,
                    _place: Place::Own(Own {
                        generation,
                        sender: Some(sender),
                        connections,
                    }),
                }))
            }
        }
    }

    /// What is there, if it can carry one more.
    fn ready(&self) -> Option<Taken> {
        let generation = self.dialer.generation();
        let mut all = lock(&self.connections);
        all.shared
            .retain(|c| c.generation == generation && !c.sender.is_closed());
        all.idle
            .retain(|(of, sender)| *of == generation && sender.is_ready());
        let roomy = |c: &&Shared| c.streams.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION;
        if let Some(shared) = all.shared.iter().find(roomy) {
            let stream = Stream::enter(&shared.streams);
            return Some(Taken::Shared(shared.clone(), stream));
        }
        let (generation, sender) = all.idle.pop()?;
        Some(Taken::Own(generation, sender))
    }

    async fn take(&self) -> Result<Taken, ExchangeError> {
        if let Some(taken) = self.ready() {
            return Ok(taken);
        }
        let _first = if lock(&self.connections).plain {
            None
        } else {
            let guard = self.dialing.lock().await;
            if let Some(taken) = self.ready() {
                return Ok(taken);
            }
            Some(guard)
        };
        let generation = self.dialer.generation();
        let endpoint = || self.dialer.endpoint().to_string();
        let connection = self.dialer.connect(true).await;
        let connection = connection.map_err(|source| ExchangeError::Connect {
            endpoint: endpoint(),
            source,
        })?;
        let opened = self.open(connection, generation).await;
        opened.map_err(|source| ExchangeError::Exchange {
            endpoint: endpoint(),
            source,
        })
    }

    async fn open(&self, connection: Connection, generation: u64) -> Result<Taken, hyper::Error> {
        let io = TokioIo::new(connection.stream);
        if !connection.http2 {
            lock(&self.connections).plain = true;
            let (sender, driver) = http1::handshake(io).await?;
            // How it ended is told to whoever waits for an answer.
            rkube_task::spawn(async move { drop(driver.await) });
            return Ok(Taken::Own(generation, sender));
        }
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(io)
            .await?;
        rkube_task::spawn(async move { drop(driver.await) });
        let shared = Shared {
            sender,
            generation,
            streams: Arc::default(),
        };
        let stream = Stream::enter(&shared.streams);
        lock(&self.connections).shared.push(shared.clone());
        Ok(Taken::Shared(shared, stream))
    }
}

enum Failed {
    /// The server has not seen the request.
    Refused(Box<http::Request<Sent>>, ExchangeError),
    /// It may have.
    Lost(ExchangeError),
}

/// A place on a shared connection.
struct Stream(Arc<AtomicUsize>);

impl Stream {
    fn enter(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that carries one request at a time.
struct Own {
    generation: u64,
    sender: Option<http1::SendRequest<Sent>>,
    connections: Arc<Mutex<Connections>>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // One whose answer was not read to its end is closed.
        if let Some(sender) = self.sender.take().filter(http1::SendRequest::is_ready) {
            let mut all = lock(&self.connections);
            if all.idle.len() < MAX_IDLE_CONNECTIONS {
                all.idle.push((self.generation, sender));
            }
        }
    }
}

#[expect(dead_code, reason = "held until the answer is read or given up")]
enum Place {
    Stream(Stream),
    Own(Own),
}

/// The body of an answer; its place on the connection is free when it is
/// dropped.
pub(super) struct Answer {
    body: Incoming,
    _place: Place,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
