//! The node's HTTPS port (10250): what an API server asks of a node.
//!
//! Every request needs a client certificate that the configuration admits;
//! without one it is answered 401. There is no port without TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rkube_stream::node::Refused;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::listen::listen;
use super::{Http, NodeBody, Query, pod_ref, refusal, stats};
use crate::Agent;

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 512;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Tells whether a client's certificates, its own first, let it in.
pub type Admit = Arc<dyn Fn(&[CertificateDer<'static>]) -> bool + Send + Sync>;

/// How the port is served.
#[derive(Clone)]
pub struct NodeServerConfig {
    /// Where to listen; `[::]` is for IPv4 too.
    pub listen: SocketAddr,
    /// Certificate and key, and that clients show theirs.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who is let in.
    pub admit: Admit,
}

impl std::fmt::Debug for NodeServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeServerConfig")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// Why the port is not served.
#[derive(Debug, thiserror::Error)]
pub enum NodeServerError {
    /// The address cannot be listened on.
    #[error("listen on {address} for the node's API")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The served port. Dropping it closes it.
#[derive(Debug)]
pub struct NodeServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for NodeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NodeServer {
    /// Listens, and serves in tasks of the current runtime.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        config: NodeServerConfig,
        agent: Arc<Agent>,
    ) -> Result<Self, NodeServerError> {
        let failed = |source| NodeServerError::Listen {
            address: config.listen,
            source,
        };
        let listener = listen(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = rkube_task::spawn(accept(listener, config, agent));
        Ok(Self { address, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, config: NodeServerConfig, agent: Arc<Agent>) {
    let mut tls = rustls::ServerConfig::clone(&config.tls);
    // Upgrades need HTTP/1.1, and nothing else here needs more.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, admit) = (acceptor.clone(), Arc::clone(&config.admit));
                let agent = Arc::clone(&agent);
                rkube_task::spawn(async move {
                    connection(stream, acceptor, admit, agent).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection to the node's API");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, admit: Admit, agent: Arc<Agent>) {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return,
    };
    let admitted = stream
        .get_ref()
        .1
        .peer_certificates()
        .is_some_and(|certificates| {
            let owned: Vec<CertificateDer<'static>> = certificates
                .iter()
                .map(|c| c.clone().into_owned())
                .collect();
            admit(&owned)
        });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let agent = Arc::clone(&agent);
        async move {
            let response = if admitted {
                answer(&agent, request).await
            } else {
                refusal(&Refused {
                    code: 401,
                    reason: "Unauthorized",
                    message: "Unauthorized".to_owned(),
                })
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to the node's API ended");
    }
}

async fn answer(agent: &Arc<Agent>, http: Http) -> Response<NodeBody> {
    let path = http.uri().path().to_owned();
    let query = Query::parse(http.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let streams = agent.streams();
    match parts.as_slice() {
        ["healthz"] | ["healthz", _] => text("ok"),
        ["pods"] => json_body(&stats::pods(agent)),
        ["stats", "summary"] => {
            let agent = Arc::clone(agent);
            match rkube_task::spawn_blocking(move || stats::summary(&agent)).await {
                Ok(value) => json_body(&value),
                Err(crash) => refusal(&Refused::internal(crash)),
            }
        }
        ["metrics"] => text(&stats::metrics(agent)),
        ["containerLogs", namespace, pod, container] => {
            match query.logs(pod_ref(namespace, pod, None), container) {
                Ok(asked) => super::logs(streams, asked, http).await,
                Err(refused) => refusal(&refused),
            }
        }
        ["exec", namespace, pod, rest @ ..] => {
            let Some((uid, container)) = container_of(rest) else {
                return missing(&path);
            };
            match query.exec(pod_ref(namespace, pod, uid), container) {
                Ok(asked) => super::exec(streams, asked, http).await,
                Err(refused) => refusal(&refused),
            }
        }
        ["attach", namespace, pod, rest @ ..] => {
            let Some((uid, container)) = container_of(rest) else {
                return missing(&path);
            };
            match query.attach(pod_ref(namespace, pod, uid), container) {
                Ok(asked) => super::attach(streams, asked, http).await,
                Err(refused) => refusal(&refused),
            }
        }
        ["portForward", namespace, pod, rest @ ..] if rest.len() < 2 => {
            let ports: Vec<String> = query
                .all("port")
                .chain(query.all("ports"))
                .map(str::to_owned)
                .collect();
            let wanted = pod_ref(namespace, pod, rest.first().copied());
            super::port_forward(streams, wanted, &ports, http).await
        }
        _ => missing(&path),
    }
}

/// `CONTAINER` or `UID/CONTAINER`.
fn container_of<'a>(rest: &[&'a str]) -> Option<(Option<&'a str>, &'a str)> {
    match rest {
        [container] => Some((None, container)),
        [uid, container] => Some((Some(uid), container)),
        _ => None,
    }
}

fn missing(path: &str) -> Response<NodeBody> {
    refusal(&Refused::not_found(format!("the node has no path {path}")))
}

fn text(text: &str) -> Response<NodeBody> {
    let mut response = Response::new(NodeBody::full(text.to_owned()));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

fn json_body(value: &serde_json::Value) -> Response<NodeBody> {
    let mut response = Response::new(NodeBody::full(json!(value).to_string()));
    *response.status_mut() = StatusCode::OK;
    let kind = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}
