//! Connections to a server, and requests on them.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rkube_client::https::{Dialer, Endpoint, Identity, Roots, hosts_file};
use rkube_pki::kubeconfig::Kubeconfig;

use super::etcd;

/// What is sent.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// A server and who asks it.
pub(super) struct Server {
    dialer: Dialer,
}

impl Server {
    /// As a kubeconfig has it.
    pub(super) fn of(config: &Path) -> anyhow::Result<Server> {
        let config = Kubeconfig::read(config)?;
        let identity = match config.client {
            Some((certificate, key)) => Identity::Certificate {
                certificate: certificate.into_bytes(),
                key: key.into_bytes(),
            },
            None => Identity::Anonymous,
        };
        Server::new(&config.server, config.authority.into_bytes(), identity)
    }

    pub(super) fn new(url: &str, authority: Vec<u8>, identity: Identity) -> anyhow::Result<Server> {
        let dialer = Dialer::new(
            Endpoint::parse(url)?,
            Roots::Pem(authority),
            identity,
            hosts_file(),
        )?;
        Ok(Server { dialer })
    }

    /// A new connection, HTTP/2 or HTTP/1.1.
    pub(super) async fn connect(&self, two: bool) -> anyhow::Result<Connection> {
        let connection = self.dialer.connect(two).await?;
        ensure!(connection.http2 == two, "the server chose another HTTP");
        let io = TokioIo::new(connection.stream);
        // A connection's end is told to whoever waits for an answer.
        let sender = if two {
            let (sender, driver) = http2::Builder::new(TokioExecutor::new())
                .initial_connection_window_size(16 << 20)
                .initial_stream_window_size(1 << 20)
                .handshake(io)
                .await?;
            tokio::spawn(async move { drop(driver.await) });
            Sender::Two(sender)
        } else {
            let (sender, driver) = http1::handshake(io).await?;
            tokio::spawn(async move { drop(driver.await) });
            Sender::One(sender)
        };
        let authority = self.dialer.endpoint().authority();
        Ok(Connection { sender, authority })
    }
}

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// A connection.
pub(super) struct Connection {
    sender: Sender,
    authority: String,
}

/// One whole body.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

impl Connection {
    /// The same connection, for another request at the same time.
    pub(super) fn shared(&self) -> anyhow::Result<Connection> {
        let Sender::Two(sender) = &self.sender else {
            anyhow::bail!("HTTP/1.1 has one request at a time");
        };
        Ok(Connection {
            sender: Sender::Two(sender.clone()),
            authority: self.authority.clone(),
        })
    }

    /// Sends a request; gives the head of its answer, which is a success.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        let shown = || format!("{method} {path}");
        let request = Request::builder()
            .method(method.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let response = match &mut self.sender {
            Sender::One(sender) => {
                let request = request.uri(path).header(HOST, &self.authority);
                sender.ready().await.with_context(shown)?;
                sender.send_request(request.body(body)?).await
            }
            Sender::Two(sender) => {
                let request = request
                    .uri(format!("https://{}{path}", self.authority))
                    .header(TE, HeaderValue::from_static("trailers"));
                sender.ready().await.with_context(shown)?;
                sender.send_request(request.body(body)?).await
            }
        };
        let response = response.with_context(shown)?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::bail!("{}: {status}: {}", shown(), String::from_utf8_lossy(&body));
        }
        Ok(response)
    }

    /// Sends JSON, or nothing; gives the answer.
    pub(super) async fn json(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Bytes> {
        let response = self.send(method, path, "application/json", full(body));
        Ok(response.await?.into_body().collect().await?.to_bytes())
    }

    /// Calls a method of etcd; gives its message.
    pub(super) async fn call(&mut self, path: &str, message: &[u8]) -> anyhow::Result<Bytes> {
        let body = full(etcd::framed(message));
        let response = self.send(Method::POST, path, etcd::CONTENT_TYPE, body);
        let collected = response.await?.into_body().collect().await?;
        let trailers = collected.trailers();
        let code = trailers.and_then(|t| t.get("grpc-status"));
        ensure!(
            code.is_some_and(|code| code == "0"),
            "{path}: {:?}",
            trailers.and_then(|t| t.get("grpc-message"))
        );
        Ok(collected.to_bytes())
    }
}
