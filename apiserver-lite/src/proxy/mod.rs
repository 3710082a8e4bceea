//! `pods/proxy` and `services/proxy`: HTTP requests to what runs in pods.
//!
//! The server opens the connection itself, so it must run where pods' addresses are routed
//! (its own node does). Upgrades (WebSockets) are passed through. Answers are rewritten as
//! upstream does (`k8s.io/apimachinery/pkg/util/proxy`): links and redirects that begin at the
//! root lead back through the proxy.

mod html;
mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rkube_api::status::Status;
use rkube_pki::AnyCertificate;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::connect::{Connect, ConnectRequest, Later};
use crate::http::{Body, BodyError};
use html::Rewriter;
use place::Place;

/// How long a backend may take to accept a connection (upstream's dialer: 30 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Where the request came in, for programs that make links of their own.
static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// Headers that are about one connection (RFC 9110 section 7.6.1) and those that older programs
/// take for such.
static HOP_HEADERS: [HeaderName; 7] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Proxies to pods and Services.
#[derive(Debug)]
pub struct Proxy {
    tls: Arc<ClientConfig>,
}

impl Proxy {
    /// A proxy. Behind `https:` in a proxied name any certificate is taken, as upstream does.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(AnyCertificate::new(Arc::clone(&provider)));
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    async fn serve(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let place = match request.resource.plural {
            "pods" => place::of_pod(&request.objects, &request.namespace, &request.name)?,
            "services" => place::of_service(&request.objects, &request.namespace, &request.name)?,
            other => {
                return Err(Status::unavailable(format!(
                    "{other}/proxy is not served by this server"
                )));
            }
        };
        let path = request.http.uri().path();
        let rest = match request.rest.as_str() {
            "" if path.ends_with('/') => "/".to_owned(),
            rest => rest.to_owned(),
        };
        let upgrade = request.http.headers().contains_key(UPGRADE);
        if rest.is_empty()
            && !upgrade
            && let Some(answer) = to_the_root(&request.http)?
        {
            return Ok(answer);
        }
        let prefix = path.strip_suffix(rest.as_str()).unwrap_or(path).to_owned();
        self.forward(&place, &prefix, &rest, request.http).await
    }

    /// Sends a request on, and its answer back.
    async fn forward<B>(
        &self,
        place: &Place,
        prefix: &str,
        rest: &str,
        mut http: Request<B>,
    ) -> Result<Response<Body>, Status>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let unreachable = |why: &dyn std::fmt::Display| {
            Status::unavailable(format!("error trying to reach service: {why}"))
        };
        let upgrade = http.headers().get(UPGRADE).cloned();
        let waiting = upgrade.is_some().then(|| hyper::upgrade::on(&mut http));
        let (parts, body) = http.into_parts();
        let host = match (parts.headers.get(HOST), parts.uri.authority()) {
            (Some(host), _) => host.to_str().unwrap_or("").to_owned(),
            (None, Some(authority)) => authority.to_string(),
            (None, None) => String::new(),
        };
        let links = Links {
            prefix: prefix.to_owned(),
            backend: place.authority(),
            asked: host.clone(),
        };
        let onward = onward(parts, &links, rest, upgrade.as_ref())?;
        let onward = Request::from_parts(onward, body);
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((place.ip, place.port)));
        let tcp = tcp
            .await
            .map_err(|_| unreachable(&format!("dial tcp {}: i/o timeout", links.backend)))?
            .map_err(|e| unreachable(&format!("dial tcp {}: {e}", links.backend)))?;
        // Small messages of interactive programs are not held back; a socket that refuses is
        // only slower.
        let _ = tcp.set_nodelay(true);
        let answer = if place.tls {
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            let name = ServerName::IpAddress(place.ip.into());
            let tls = connector.connect(name, tcp).await;
            send(tls.map_err(|e| unreachable(&e))?, onward).await
        } else {
            send(tcp, onward).await
        };
        let answer = answer.map_err(|e| unreachable(&e))?;
        Ok(match (answer.status(), waiting) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => join(answer, client),
            _ => back(answer, links),
        })
    }
}

impl Connect for Proxy {
    fn connect(&self, request: ConnectRequest) -> Later<'_, Result<Response<Body>, Status>> {
        Box::pin(self.serve(request))
    }
}

/// What links of an answer are judged by.
#[derive(Debug, Clone)]
struct Links {
    /// The path of the proxy itself, without a slash at its end.
    prefix: String,
    /// `IP:PORT` that was asked.
    backend: String,
    /// The `Host` that the client asked for.
    asked: String,
}

impl Links {
    /// A link that leads back through the proxy, if it has to be another one.
    fn through(&self, link: &str) -> Option<String> {
        let (origin, path) = match link.split_once("://") {
            Some((scheme @ ("http" | "https"), after)) => {
                let cut = after.find(['/', '?', '#']).unwrap_or(after.len());
                let (host, path) = after.split_at(cut);
                // A link to the server itself keeps its origin; one to the backend loses it.
                let origin = if host == self.asked && host != self.backend {
                    format!("{scheme}://{host}")
                } else if host == self.backend {
                    String::new()
                } else {
                    return None;
                };
                (origin, path)
            }
            Some(_) => return None,
            None => (String::new(), link),
        };
        if !path.starts_with('/') || path.starts_with("//") {
            return None;
        }
        let prefix = match path.starts_with(&self.prefix) {
            true => "",
            false => &self.prefix,
        };
        let through = format!("{origin}{prefix}{path}");
        (through != link).then_some(through)
    }
}

/// A path without its slash leads to the one with it, so that relative links work.
fn to_the_root<B>(http: &Request<B>) -> Result<Option<Response<Body>>, Status> {
    if !matches!(*http.method(), Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let mut to = format!("{}/", http.uri().path());
    if let Some(query) = http.uri().query() {
        to.push('?');
        to.push_str(query);
    }
    let to = HeaderValue::try_from(to)
        .map_err(|_| Status::bad_request("the path is no value of a header"))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(LOCATION, to);
    Ok(Some(answer))
}

/// The head of the request as the backend gets it.
fn onward(
    mut parts: http::request::Parts,
    links: &Links,
    rest: &str,
    upgrade: Option<&HeaderValue>,
) -> Result<http::request::Parts, Status> {
    let bad = |what: &str| Status::bad_request(format!("{what} of the request cannot be sent on"));
    let query = parts.uri.query();
    let path = match (rest, query) {
        ("", None) => "/".to_owned(),
        ("", Some(query)) => format!("/?{query}"),
        (rest, None) => rest.to_owned(),
        (rest, Some(query)) => format!("{rest}?{query}"),
    };
    parts.uri = Uri::try_from(path).map_err(|_| bad("the path"))?;
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    let headers = &mut parts.headers;
    strip(headers);
    // Credentials were for this server, and an answer must be readable to be rewritten.
    headers.remove(AUTHORIZATION);
    headers.remove(ACCEPT_ENCODING);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    let asked = HeaderValue::try_from(&links.asked).map_err(|_| bad("the host"))?;
    headers.insert(HOST, asked);
    let uri = format!("{}{rest}", links.prefix);
    let uri = HeaderValue::try_from(uri).map_err(|_| bad("the path"))?;
    headers.insert(&FORWARDED_URI, uri);
    Ok(parts)
}

/// Takes away what was about the connection that it came by.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_HEADERS) {
        headers.remove(name);
    }
}

async fn send<I, B>(io: I, request: Request<B>) -> Result<Response<Incoming>, hyper::Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    rkube_task::spawn(async move {
        // An error is the answer's too.
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended early");
        }
    });
    sender.send_request(request.map(Box::pin)).await
}

/// Joins client and backend, which have agreed on another protocol.
fn join(answer: Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Response<Body> {
    let mut switched = Response::new(Body::empty());
    *switched.status_mut() = answer.status();
    *switched.headers_mut() = answer.headers().clone();
    switched.headers_mut().remove(CONTENT_LENGTH);
    let backend = hyper::upgrade::on(answer);
    rkube_task::spawn(async move {
        let joined = async {
            let (client, backend) = (client.await?, backend.await?);
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            // However it ends, both ends see it.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            Ok::<_, hyper::Error>(())
        };
        if let Err(error) = joined.await {
            tracing::debug!(%error, "a proxied connection was not upgraded");
        }
    });
    switched
}

/// The answer as the client gets it.
fn back(answer: Response<Incoming>, links: Links) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let headers = &mut parts.headers;
    strip(headers);
    let location = headers.get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.and_then(|to| links.through(to));
    if let Some(to) = location.and_then(|to| HeaderValue::try_from(to).ok()) {
        headers.insert(LOCATION, to);
    }
    let is_html = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.to_ascii_lowercase().starts_with("text/html"));
    let rewriter = (is_html && !headers.contains_key(CONTENT_ENCODING)).then(|| {
        headers.remove(CONTENT_LENGTH);
        Rewriter::new(move |link: &str| links.through(link))
    });
    Response::from_parts(parts, stream_of(body, rewriter))
}

fn stream_of(
    body: Incoming,
    rewriter: Option<Rewriter<impl Fn(&str) -> Option<String> + Send + 'static>>,
) -> Body {
    let state = Some((body, rewriter));
    Body::stream(stream::unfold(state, |state| async move {
        let (mut body, mut rewriter) = state?;
        loop {
            let bytes = match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    // Trailers.
                    Err(_) => continue,
                },
                Some(Err(error)) => return Some((Err(error.into()), None)),
                None => {
                    let last = Bytes::from(rewriter?.end());
                    return (!last.is_empty()).then_some((Ok(last), None));
                }
            };
            let bytes = match &mut rewriter {
                Some(rewriter) => Bytes::from(rewriter.push(&bytes)),
                None => bytes,
            };
            if !bytes.is_empty() {
                return Some((Ok(bytes), Some((body, rewriter))));
            }
        }
    }))
}
