//! A plain HTTP client of a test server.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rkube_apiserver::testing::{self, TestServer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub struct Http {
    pub server: TestServer,
    tls: rustls::ClientConfig,
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("")
    }
}

impl Http {
    pub async fn start(folder: &Path) -> Self {
        let server = testing::start(folder).await.expect("a server");
        Self::to(server)
    }

    pub fn to(server: TestServer) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(server.ca_pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { server, tls }
    }

    async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.server.server.address())
            .await
            .expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(Arc::new(tls));
        connector.connect(name, stream).await.expect("TLS")
    }

    /// Sends a request over HTTP/1.1; the body of the answer is not read yet.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let io = TokioIo::new(self.connect(b"http/1.1").await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.expect("an answer");
        // The sender's end would end the connection before the body.
        tokio::spawn(async move {
            let _ = sender.ready().await;
        });
        answer
    }

    pub fn request(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).expect("a request")
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        read(self.open(Self::request(method, path, headers, body)).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string()).await
    }

    /// Sends a request over HTTP/2.
    pub async fn get_http2(&self, path: &str) -> Answer {
        let io = TokioIo::new(self.connect(b"h2").await);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("HTTP/2");
        tokio::spawn(connection);
        let uri = format!("https://localhost{path}");
        let request = Request::get(uri)
            .body(Full::new(Bytes::new()))
            .expect("a request");
        read(sender.send_request(request).await.expect("an answer")).await
    }

    /// Begins a watch.
    pub async fn watch(&self, path: &str, headers: &[(&str, &str)]) -> Lines {
        let answer = self.open(Self::request("GET", path, headers, "")).await;
        assert_eq!(answer.status(), 200, "{path}");
        Lines {
            body: answer.into_body(),
            buffer: Vec::new(),
        }
    }
}

async fn read(answer: Response<Incoming>) -> Answer {
    let (parts, body) = answer.into_parts();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.expect("a body").to_bytes(),
    }
}

/// The frames of a watch.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            let frame = self.body.frame().await?.expect("no broken body");
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Type and name of the next frame.
    pub async fn kind_and_name(&mut self) -> (String, String) {
        let frame = self.next().await.expect("a frame");
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (
            text(&frame["type"]),
            text(&frame["object"]["metadata"]["name"]),
        )
    }
}
