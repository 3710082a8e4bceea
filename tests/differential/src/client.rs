//! A plain HTTPS client: one request at a time over a connection that lasts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// How long an answer may take: far beyond what any server needs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Where a server is, and whom it must have its certificate from.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl Endpoint {
    /// A server at an address with a certificate of an authority.
    ///
    /// # Errors
    /// The authority cannot be read.
    pub fn new(address: SocketAddr, authority_pem: &str) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes());
        roots.add(authority.context("read the authority")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            tls: Arc::new(tls),
        })
    }
}

/// A connection to a server, made when needed.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// All of the body.
    pub body: Bytes,
}

impl Client {
    /// A client of a server.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            sender: None,
        }
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.endpoint.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let connector = TlsConnector::from(Arc::clone(&self.endpoint.tls));
        let io = TokioIo::new(connector.connect(name, stream).await?);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request and reads the whole answer, the end of a watch too.
    ///
    /// # Errors
    /// The connection, or a server that does not end its answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(request))
            .await
            .context("the answer does not end")?
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let mut kept = None;
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            kept = Some(sender);
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await.context("connect")?,
        };
        let response = sender.send_request(request).await.context("send")?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("read the answer: {e}"))?;
        self.sender = Some(sender);
        Ok(Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }
}
