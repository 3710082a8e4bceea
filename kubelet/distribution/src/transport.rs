//! Connections: name, address, TCP, TLS, HTTP/1.1; kept for the next request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::{Error, Result};
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_BUFFER_BYTES, HANDSHAKE_TIMEOUT, MAX_HEADERS, MAX_IDLE_CONNECTIONS,
    Patience,
};
use crate::proxy::{Proxies, Proxy};
use crate::resolve::Resolver;
use crate::tls;
use crate::url::Url;

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A small body.
pub(crate) fn full(bytes: Bytes) -> Body {
    let whole = Full::new(bytes);
    whole
        .map_err(|never: Infallible| -> io::Error { match never {} })
        .boxed_unsync()
}

/// Told by TLS when the peer answers something else (a plain HTTP server).
const PLAIN_HTTP: &str =
    ": it does not speak TLS; if that is right, set insecure = true for it in registries.conf";
const UNTRUSTED: &str = ": put its authority into certs.d/HOST[:PORT]/ca.crt, or set insecure = true for it in registries.conf";

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Makes connections and keeps them. Lives within one runtime.
#[derive(Debug)]
pub(crate) struct Transport {
    certs_d: PathBuf,
    proxies: Proxies,
    pub(crate) patience: Patience,
    resolver: Resolver,
    idle: Mutex<Vec<(Origin, SendRequest<Body>)>>,
    tls: Mutex<HashMap<Origin, Arc<rustls::ClientConfig>>>,
}

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Origin {
    tls: bool,
    verify: bool,
    host: String,
    port: u16,
}

impl Transport {
    pub(crate) fn new(certs_d: PathBuf, proxies: Proxies, patience: Patience) -> Self {
        Self {
            certs_d,
            proxies,
            patience,
            resolver: Resolver::default(),
            idle: Mutex::default(),
            tls: Mutex::default(),
        }
    }

    /// Sends a request; its answer's head.
    pub(crate) async fn send(
        &self,
        url: &Url,
        verify: bool,
        request: Request<Body>,
    ) -> Result<Response<Incoming>> {
        let origin = Origin {
            tls: url.tls,
            verify,
            host: url.host.clone(),
            port: url.port,
        };
        let mut sender = match self.take(&origin) {
            Some(sender) => sender,
            None => self.connect(&origin).await?,
        };
        let name = format!("{} {}", request.method(), url.shown());
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| Error::Transport {
                request: name,
                source: io_error(&e),
            })?;
        self.keep(origin, sender);
        Ok(answer)
    }

    /// A connection that waits for a request.
    fn take(&self, origin: &Origin) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, s)| !s.is_closed());
        let at = idle.iter().position(|(o, s)| o == origin && s.is_ready())?;
        Some(idle.swap_remove(at).1)
    }

    /// It is ready again when the answer's body was read.
    fn keep(&self, origin: Origin, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE_CONNECTIONS {
            idle.remove(0);
        }
        idle.push((origin, sender));
    }

    async fn connect(&self, origin: &Origin) -> Result<SendRequest<Body>> {
        let name = format!("{}:{}", origin.host, origin.port);
        let stream: Box<dyn Stream> = if origin.tls {
            let tcp = match self.proxies.find(&origin.host, origin.port)? {
                Some(proxy) => self.through(&proxy, &name).await?,
                None => self.tcp(&origin.host, origin.port, &name).await?,
            };
            Box::new(self.handshake(origin, &name, tcp).await?)
        } else {
            Box::new(self.tcp(&origin.host, origin.port, &name).await?)
        };
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(CONNECTION_BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Error::Connect {
                host: name,
                source: io_error(&e),
            })?;
        rkube_task::spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// A tunnel to `name` (`host:port`).
    async fn through(&self, proxy: &Proxy, name: &str) -> Result<TcpStream> {
        let mut stream = self.tcp(&proxy.host, proxy.port, &proxy.name()).await?;
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let asked = timeout(CONNECT_TIMEOUT, proxy.tunnel(&mut stream, name)).await;
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(()) => Ok(stream),
            Err(source) => Err(Error::Connect {
                host: format!("{name} through the proxy {}", proxy.name()),
                source,
            }),
        }
    }

    async fn tcp(&self, host: &str, port: u16, name: &str) -> Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for ip in self.resolver.addresses(host).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect((ip, port))).await {
                Ok(Ok(stream)) => {
                    // Requests are small and wait for their answers.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(e)) => last = e,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
            }
        }
        Err(Error::Connect {
            host: name.to_owned(),
            source: last,
        })
    }

    async fn handshake(
        &self,
        origin: &Origin,
        name: &str,
        tcp: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let config = self.tls_config(origin)?;
        let bare = origin.host.trim_start_matches('[').trim_end_matches(']');
        let server = ServerName::try_from(bare.to_owned()).map_err(|e| Error::Tls {
            host: name.to_owned(),
            hint: "",
            source: io::Error::new(io::ErrorKind::InvalidData, e),
        })?;
        let handshake = TlsConnector::from(config).connect(server, tcp);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let done = timeout(HANDSHAKE_TIMEOUT, handshake).await;
        done.unwrap_or_else(|_| Err(late()))
            .map_err(|source| Error::Tls {
                host: name.to_owned(),
                hint: hint(&source),
                source,
            })
    }

    fn tls_config(&self, origin: &Origin) -> Result<Arc<rustls::ClientConfig>> {
        let mut all = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = all.get(origin) {
            return Ok(Arc::clone(config));
        }
        let (host, port) = (&origin.host, origin.port);
        let config = Arc::new(tls::client_config(
            &self.certs_d,
            host,
            port,
            origin.verify,
        )?);
        all.insert(origin.clone(), Arc::clone(&config));
        Ok(config)
    }
}

fn rustls_error(e: &io::Error) -> Option<&rustls::Error> {
    e.get_ref()?.downcast_ref()
}

/// Whether the peer answered a TLS greeting with something else.
pub(crate) fn is_plain_http(error: &Error) -> bool {
    let Error::Tls { source, .. } = error else {
        return false;
    };
    match rustls_error(source) {
        Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
        // It hangs up on what it does not understand.
        None => matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
    }
}

fn hint(e: &io::Error) -> &'static str {
    match rustls_error(e) {
        Some(rustls::Error::InvalidMessage(_)) => PLAIN_HTTP,
        Some(rustls::Error::InvalidCertificate(_)) => UNTRUSTED,
        _ => "",
    }
}

/// hyper's errors with their kind, where they have one.
pub(crate) fn io_error(e: &hyper::Error) -> io::Error {
    let mut source = std::error::Error::source(e);
    let mut kind = if e.is_timeout() {
        io::ErrorKind::TimedOut
    } else if e.is_parse() {
        io::ErrorKind::InvalidData
    } else {
        io::ErrorKind::ConnectionReset
    };
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            kind = io.kind();
        }
        source = inner.source();
    }
    io::Error::new(kind, crate::error::chain(e))
}
