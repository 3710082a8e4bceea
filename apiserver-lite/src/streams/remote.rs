//! A node behind its HTTPS port: the kubelet API, as its client.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rkube_pki::Identity;
use rkube_stream::exec::client::spdy_work;
use rkube_stream::forward::client::RemotePorts;
use rkube_stream::node::{
    AttachRequest, ExecRequest, LogBody, LogRequest, NodeStreams, PodRef, Ports, Refused, Streams,
    Work,
};
use rkube_stream::pipe::pipe;
use rkube_stream::upgrade::{FORWARD_PROTOCOL, SPDY, STREAM_PROTOCOL, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a node may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to begin an answer; it may have to start a shim.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest error that a node may answer with, in bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// The kubelet's port where a node names none.
const KUBELET_PORT: u16 = 10250;
/// What stays as it is in a path or query (RFC 3986 section 2.3).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const EXEC_PROTOCOL: &str = "v4.channel.k8s.io";

/// How kubelets are reached: as whom, and whom to believe.
pub struct KubeletClient {
    tls: RwLock<Arc<ClientConfig>>,
}

impl fmt::Debug for KubeletClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletClient").finish_non_exhaustive()
    }
}

impl KubeletClient {
    /// A client that proves itself with `identity` and believes certificates
    /// of `authority` (PEM).
    ///
    /// # Errors
    /// The certificates or the key do not parse.
    pub fn new(identity: &Identity, authority: &str) -> Result<Self, rustls::Error> {
        let tls = Self::config(identity, authority)?;
        Ok(Self {
            tls: RwLock::new(tls),
        })
    }

    /// Proves itself with another identity from the next connection on.
    ///
    /// # Errors
    /// As [`KubeletClient::new`]; the old one stays.
    pub fn replace(&self, identity: &Identity, authority: &str) -> Result<(), rustls::Error> {
        let tls = Self::config(identity, authority)?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        Ok(())
    }

    fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn config(identity: &Identity, authority: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
        let general = |e: rustls::pki_types::pem::Error| rustls::Error::General(e.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).map_err(general)?)?;
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(general)?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(general)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(tls))
    }
}

/// One node.
#[derive(Debug, Clone)]
pub struct RemoteNode {
    client: Arc<KubeletClient>,
    name: String,
    ip: IpAddr,
    port: u16,
}

impl RemoteNode {
    /// The node of an object.
    ///
    /// # Errors
    /// It has no address yet.
    pub fn of(client: Arc<KubeletClient>, node: &Value) -> Result<Self, String> {
        let name = node["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let addresses = node["status"]["addresses"].as_array();
        let ip = addresses
            .into_iter()
            .flatten()
            .filter(|address| address["type"] == "InternalIP" || address["type"] == "ExternalIP")
            .find_map(|address| address["address"].as_str()?.parse().ok())
            .ok_or_else(|| {
                format!("no preferred addresses found for node {name:?}; known addresses: []")
            })?;
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        Ok(Self {
            client,
            name,
            ip,
            port: port
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(KUBELET_PORT),
        })
    }

    /// Sends a request; with protocols, one that is to be upgraded.
    async fn send(
        &self,
        method: Method,
        path: &str,
        protocols: &[&str],
    ) -> Result<Response<Incoming>, Refused> {
        let failed = |what: &str, error: &dyn fmt::Display| {
            Refused::internal(format!(
                "error dialing backend: {what} node {} at {}:{}: {error}",
                self.name, self.ip, self.port
            ))
        };
        let open = async {
            let tcp = TcpStream::connect((self.ip, self.port)).await;
            let tcp = tcp.map_err(|e| failed("connect to", &e))?;
            // Keystrokes are small.
            tcp.set_nodelay(true)
                .map_err(|e| failed("connect to", &e))?;
            let name = ServerName::try_from(self.name.clone());
            let name = name.map_err(|e| failed("name", &e))?;
            let connector = TlsConnector::from(self.client.tls());
            let tls = connector.connect(name, tcp).await;
            tls.map_err(|e| failed("speak TLS with", &e))
        };
        let tls = tokio::time::timeout(CONNECT_TIMEOUT, open).await;
        let tls = tls.map_err(|_| failed("connect to", &"no answer in 10 s"))??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|e| failed("speak HTTP with", &e))?;
        rkube_task::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.name);
        if !protocols.is_empty() {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, SPDY);
        }
        for protocol in protocols {
            request = request.header(STREAM_PROTOCOL, *protocol);
        }
        let request = request.body(Empty::<bytes::Bytes>::new());
        let request = request.map_err(|e| failed("ask", &e))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let answer = answer.map_err(|_| failed("ask", &"no answer in 60 s"))?;
        let answer = answer.map_err(|e| failed("ask", &e))?;
        let wanted = if protocols.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SWITCHING_PROTOCOLS
        };
        if answer.status() == wanted {
            return Ok(answer);
        }
        Err(refusal(answer).await)
    }

    async fn upgraded(
        &self,
        path: &str,
        protocol: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Refused> {
        let answer = self.send(Method::POST, path, &[protocol]).await?;
        let io = hyper::upgrade::on(answer).await;
        io.map(TokioIo::new).map_err(|e| {
            Refused::internal(format!(
                "error dialing backend: upgrade with node {}: {e}",
                self.name
            ))
        })
    }

    async fn command(&self, path: String, streams: Streams) -> Result<Work, Refused> {
        let io = self.upgraded(&path, EXEC_PROTOCOL).await?;
        Ok(spdy_work(io, Version::V4, streams))
    }
}

/// What a node answered instead.
async fn refusal(answer: Response<Incoming>) -> Refused {
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ERROR_BYTES_MAX)
        .collect()
        .await;
    let text = body.map_or_else(
        |error| format!("the node's answer cannot be read: {error}"),
        |body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
    );
    let status: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = status["message"].as_str().map_or(text, str::to_owned);
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    Refused {
        code: if (400..600).contains(&code) {
            code
        } else {
            502
        },
        reason,
        message,
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// `/exec/NAMESPACE/POD/UID/CONTAINER`, the UID where it is known.
fn path(what: &str, pod: &PodRef, container: &str) -> String {
    let mut path = format!("/{what}/{}/{}", encode(&pod.namespace), encode(&pod.name));
    // Logs have no such form.
    if let (Some(uid), true) = (&pod.uid, what != "containerLogs") {
        path.push('/');
        path.push_str(&encode(uid));
    }
    if !container.is_empty() {
        path.push('/');
        path.push_str(&encode(container));
    }
    path
}

fn with_streams(path: &mut String, streams: Streams) {
    path.push('?');
    let flags = [
        ("input", streams.stdin),
        ("output", streams.stdout),
        ("error", streams.stderr),
        ("tty", streams.tty),
    ];
    for (name, _) in flags.iter().filter(|(_, wanted)| *wanted) {
        path.push_str(name);
        path.push_str("=1&");
    }
}

impl NodeStreams for RemoteNode {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        let node = self.clone();
        Box::pin(async move {
            let mut path = path("exec", &request.pod, &request.container);
            with_streams(&mut path, request.streams);
            for word in &request.command {
                path.push_str("command=");
                path.push_str(&encode(word));
                path.push('&');
            }
            node.command(path, request.streams).await
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        let node = self.clone();
        Box::pin(async move {
            let mut path = path("attach", &request.pod, &request.container);
            with_streams(&mut path, request.streams);
            node.command(path, request.streams).await
        })
    }

    fn port_forward(&self, pod: PodRef) -> BoxFuture<'static, Result<Arc<dyn Ports>, Refused>> {
        let node = self.clone();
        Box::pin(async move {
            let io = node
                .upgraded(&path("portForward", &pod, ""), FORWARD_PROTOCOL)
                .await?;
            let ports = RemotePorts::spdy(io).map_err(Refused::internal)?;
            Ok(ports as Arc<dyn Ports>)
        })
    }

    fn logs(&self, request: LogRequest) -> BoxFuture<'static, Result<LogBody, Refused>> {
        let node = self.clone();
        Box::pin(async move {
            let mut path = path("containerLogs", &request.pod, &request.container);
            path.push('?');
            let flags = [
                ("follow", request.follow),
                ("previous", request.previous),
                ("timestamps", request.timestamps),
            ];
            for (name, _) in flags.iter().filter(|(_, wanted)| *wanted) {
                path.push_str(&format!("{name}=true&"));
            }
            let numbers = [
                ("sinceSeconds", request.since_seconds),
                ("tailLines", request.tail_lines),
                ("limitBytes", request.limit_bytes),
            ];
            for (name, value) in numbers {
                if let Some(value) = value {
                    path.push_str(&format!("{name}={value}&"));
                }
            }
            for (name, value) in [
                ("sinceTime", &request.since_time),
                ("stream", &request.stream),
            ] {
                if let Some(value) = value {
                    path.push_str(&format!("{name}={}&", encode(value)));
                }
            }
            let mut body = node.send(Method::GET, &path, &[]).await?.into_body();
            let (mut writer, reader) = pipe();
            rkube_task::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    // A reader that is gone ends the request.
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
            Ok(Box::new(reader) as LogBody)
        })
    }
}
