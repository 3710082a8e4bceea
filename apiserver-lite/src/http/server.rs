//! Connections: TLS, HTTP versions, the end of the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::{fmt, io};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::health::{self, Checks};
use super::identity::Peer;
use super::limits::{
    CONNECTIONS_MAX, DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, HEADER_BYTES_MAX, HEADER_TIMEOUT, InFlight,
    STREAMS_PER_CONNECTION_MAX,
};
use super::metrics::Metrics;
use super::service::{Pages, Service};
use crate::auth::Authenticate;
use crate::engine::Engine;

/// What a server is made of, beside its engine.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// TLS: certificates (through a resolver, so that they can change), and client certificates
    /// wanted but not needed. Protocols are set by the server.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who asks.
    pub authenticate: Arc<dyn Authenticate>,
    /// Conditions of `/readyz` and `/livez` beside the store's.
    pub checks: Checks,
    /// Pages that are no resources.
    pub pages: Pages,
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("listen", &self.listen)
            .field("authenticate", &self.authenticate)
            .field("checks", &self.checks)
            .field("pages", &self.pages.keys())
            .finish_non_exhaustive()
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens, and serves in tasks of the current runtime.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(engine: Engine, config: ServerConfig) -> Result<Self, ServerError> {
        let listen = |source| ServerError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let mut tls = rustls::ServerConfig::clone(&config.tls);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (stop, stopping) = watch::channel(false);
        let mut checks = health::own(Arc::clone(engine.store()));
        checks.extend(config.checks.0);
        let service = Arc::new(Service {
            engine,
            authenticate: config.authenticate,
            checks,
            pages: config.pages,
            address: address.to_string(),
            in_flight: InFlight::default(),
            metrics: Metrics::default(),
            stopping: stopping.clone(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let accepting = rkube_task::spawn(accept(listener, acceptor, service, stopping));
        tracing::info!(%address, "API server listens");
        Ok(Self {
            address,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, ends watches, and lets requests finish, for at most 10 s.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut self.accepting)
            .await
            .is_err()
        {
            tracing::warn!("connections were still open when the server stopped");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    mut stopping: watch::Receiver<bool>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: waiting lets others give theirs back.
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = acceptor.clone();
        let service = Arc::clone(&service);
        let stopping = stopping.clone();
        rkube_task::spawn(async move {
            serve(stream, remote, acceptor, service, stopping).await;
            drop(permit);
        });
    }
    drop(listener);
    // All permits back: all connections have ended.
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let _ = connections.acquire_many(all).await;
}

/// Waits until the server stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error is a server that is gone: the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn serve(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    mut stopping: watch::Receiver<bool>,
) {
    // Small answers must not wait for the acknowledgement of earlier ones.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let tls = match handshake.await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "TLS handshake");
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "TLS handshake timed out");
            return;
        }
    };
    let (_, session) = tls.get_ref();
    let certificates: Vec<_> = session
        .peer_certificates()
        .unwrap_or(&[])
        .iter()
        .map(|c| c.clone().into_owned())
        .collect();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Peer {
        certificates: certificates.into(),
        remote,
    };
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        let peer = peer.clone();
        async move { Ok::<_, std::convert::Infallible>(service.answer(peer, request).await) }
    });
    let io = TokioIo::new(tls);
    let ended = if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX));
        let connection = builder.serve_connection(io, answer);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(io, answer)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}
