//! The HTTPS transport against real TLS servers on the loopback.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rkube_client::https::{Endpoint, Identity, Roots, ca_fingerprint, hosts_file};
use rkube_client::{
    ApiError, FrameKind, HttpsConfig, HttpsTransport, Request, Target, Transport, Verb,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Certificate and key in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

type Answer = http::Response<BoxBody<Bytes, Infallible>>;

fn whole(status: u16, text: &str) -> Answer {
    let body = Full::new(Bytes::from(text.to_owned())).boxed();
    http::Response::builder().status(status).body(body).unwrap()
}

async fn answer(
    request: http::Request<Incoming>,
    client: Option<usize>,
    seen: Arc<Seen>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let header = |name: &str| {
        let value = request.headers().get(name);
        value.map_or("-".to_owned(), |v| v.to_str().unwrap().to_owned())
    };
    let line = format!(
        "{} {path} auth={} type={} certificates={}",
        request.method(),
        header("authorization"),
        header("content-type"),
        client.unwrap_or(0),
    );
    seen.requests.lock().unwrap().push(line);
    if path.contains("watch=true") {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        tokio::spawn(async move {
            // An event in two pieces, then one that is never ended.
            for piece in [
                "{\"type\":\"ADDED\",\"obj",
                "ect\":{\"n\":1}}\n",
                "{\"type\":\"MODIFIED\",\"object\":{\"n\":2}}\n",
            ] {
                if sender.send(Bytes::from(piece)).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sender.closed().await;
        });
        let stream = futures(receiver);
        return Ok(http::Response::new(BodyExt::boxed(StreamBody::new(stream))));
    }
    if path.ends_with("/missing") {
        let status = r#"{"kind":"Status","code":404,"reason":"NotFound","message":"no"}"#;
        return Ok(whole(404, status));
    }
    if path.ends_with("/proxy") {
        return Ok(whole(502, "<html>bad gateway</html>"));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let text = format!("{{\"len\":{}}}", body.len());
    Ok(whole(200, &text))
}

fn futures(
    mut receiver: tokio::sync::mpsc::Receiver<Bytes>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::poll_fn(move |cx| {
        receiver
            .poll_recv(cx)
            .map(|piece| piece.map(|p| Ok(Frame::data(p))))
    })
}

/// A server that shows the authority's certificate behind its own.
async fn serve(
    authority: &Authority,
    http2: bool,
    clients: Option<&Authority>,
) -> (SocketAddr, Arc<Seen>) {
    let (certificate, key) = authority.sign("127.0.0.1");
    let chain = vec![
        CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap(),
        CertificateDer::from(authority.der.clone()),
    ];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = rustls::RootCertStore::empty();
            roots
                .add(CertificateDer::from(clients.der.clone()))
                .unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(roots),
                provider,
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = if http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let certificates = stream.get_ref().1.peer_certificates().map(<[_]>::len);
                let service = service_fn(move |r| answer(r, certificates, Arc::clone(&seen)));
                let io = TokioIo::new(stream);
                if http2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(io, service).await);
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    drop(server.serve_connection(io, service).await);
                }
            });
        }
    });
    (address, seen)
}

fn transport(address: SocketAddr, roots: Roots, identity: Identity) -> HttpsTransport {
    HttpsTransport::new(HttpsConfig {
        endpoint: Endpoint::parse(&format!("https://{address}")).unwrap(),
        roots,
        identity,
        resolve: hosts_file(),
        user_agent: "test/1".to_owned(),
    })
    .unwrap()
}

fn request(verb: Verb, name: &str, query: &[(&'static str, &str)]) -> Request {
    Request {
        verb,
        target: Target {
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            namespace: Some("default".to_owned()),
            name: Some(name.to_owned()).filter(|n| !n.is_empty()),
            ..Target::default()
        },
        query: query.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
        content_type: "application/json",
        body: (verb == Verb::Create).then(|| Bytes::from_static(b"{}")),
    }
}

async fn converse(http2: bool) {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, http2, None).await;
    let roots = Roots::Pem(authority.pem.clone().into_bytes());
    let transport = transport(address, roots, Identity::Token("t0".to_owned()));
    let list = request(Verb::List, "", &[("labelSelector", "a=b,c in (d e)")]);
    assert_eq!(&transport.call(list).await.unwrap()[..], b"{\"len\":0}");
    let create = request(Verb::Create, "", &[]);
    assert_eq!(&transport.call(create).await.unwrap()[..], b"{\"len\":2}");
    let error = transport.call(request(Verb::Get, "missing", &[])).await;
    assert!(error.unwrap_err().is_not_found());
    let error = transport.call(request(Verb::Get, "proxy", &[])).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, ApiError::Connection { .. }) && error.to_string().contains("bad gateway"),
        "{error}"
    );
    let mut watch = transport
        .watch(request(Verb::Watch, "", &[("watch", "true")]))
        .await
        .unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!(
        (first.kind, &first.object[..]),
        (FrameKind::Added, &b"{\"n\":1}"[..])
    );
    let second = watch.next().await.unwrap().unwrap();
    assert_eq!(second.kind, FrameKind::Modified);
    // While the watch is open, other requests go on.
    transport.call(request(Verb::Get, "x", &[])).await.unwrap();
    drop(watch);
    let gone = transport.watch(request(Verb::Watch, "missing", &[])).await;
    assert!(gone.err().unwrap().is_not_found());
    let requests = seen.requests.lock().unwrap().clone();
    assert_eq!(
        requests[0],
        "GET /api/v1/namespaces/default/pods?labelSelector=a%3Db%2Cc%20in%20%28d%20e%29 \
         auth=Bearer t0 type=- certificates=0"
    );
    assert_eq!(
        requests[1],
        "POST /api/v1/namespaces/default/pods auth=Bearer t0 type=application/json certificates=0"
    );
    // HTTP/1.1 has one request a connection at a time: the watch and another.
    let connections = seen.connections.load(Ordering::SeqCst);
    assert_eq!(connections, if http2 { 1 } else { 2 });
}

#[tokio::test]
async fn requests_and_watches_share_an_http2_connection() {
    converse(true).await;
}

#[tokio::test]
async fn a_server_of_http1_alone_is_spoken_to() {
    converse(false).await;
}

#[tokio::test]
async fn many_watches_open_more_connections() {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, true, None).await;
    let roots = Roots::Pem(authority.pem.clone().into_bytes());
    let transport = transport(address, roots, Identity::Anonymous);
    let mut watches = Vec::new();
    for _ in 0..100 {
        let begun = transport.watch(request(Verb::Watch, "", &[("watch", "true")]));
        watches.push(begun.await.unwrap());
    }
    for watch in &mut watches {
        assert!(watch.next().await.unwrap().is_ok());
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2);
    drop(watches);
    transport.call(request(Verb::Get, "x", &[])).await.unwrap();
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn only_the_right_authority_is_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (address, _) = serve(&authority, true, None).await;
    let get = || request(Verb::Get, "x", &[]);
    let wrong = transport(
        address,
        Roots::Pem(other.pem.clone().into_bytes()),
        Identity::Anonymous,
    );
    let error = wrong.call(get()).await.unwrap_err();
    assert!(matches!(error, ApiError::Connection { .. }), "{error}");
    let pinned = |sha256: String| {
        let found = Arc::new(Mutex::new(None));
        let roots = Roots::Fingerprint {
            sha256,
            found: Arc::clone(&found),
        };
        (transport(address, roots, Identity::Anonymous), found)
    };
    let (bad, found) = pinned(ca_fingerprint(&other.der));
    let error = bad.call(get()).await.unwrap_err().to_string();
    assert!(error.contains("fingerprint"), "{error}");
    assert!(found.lock().unwrap().is_none());
    let (good, found) = pinned(ca_fingerprint(&authority.der));
    good.call(get()).await.unwrap();
    assert_eq!(found.lock().unwrap().as_deref(), Some(&authority.der[..]));
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (address, seen) = serve(&authority, true, Some(&clients)).await;
    let (certificate, key) = clients.sign("node-1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("client.pem");
    std::fs::write(&path, certificate + &key).unwrap();
    let roots = Roots::Pem(authority.pem.clone().into_bytes());
    let shown = transport(
        address,
        roots.clone(),
        Identity::CertificateFiles {
            certificate: path.clone(),
            key: path,
        },
    );
    shown.call(request(Verb::Get, "x", &[])).await.unwrap();
    assert!(seen.requests.lock().unwrap()[0].ends_with("certificates=1"));
    let nobody = transport(address, roots, Identity::Anonymous);
    assert!(nobody.call(request(Verb::Get, "x", &[])).await.is_err());
}

#[tokio::test]
async fn a_replaced_token_file_is_read_again() {
    let authority = Authority::new();
    let (address, seen) = serve(&authority, true, None).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let roots = Roots::Pem(authority.pem.clone().into_bytes());
    let transport = transport(address, roots, Identity::TokenFile(path.clone()));
    transport.call(request(Verb::Get, "x", &[])).await.unwrap();
    std::fs::write(&path, "two\n").unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    file.set_modified(later).unwrap();
    // Files are looked at every ten seconds; only the clock moves here.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    transport.call(request(Verb::Get, "x", &[])).await.unwrap();
    let requests = seen.requests.lock().unwrap().clone();
    assert!(requests[0].contains("Bearer one") && requests[1].contains("Bearer two"));
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let authority = Authority::new();
    let roots = Roots::Pem(authority.pem.into_bytes());
    let transport = transport(address, roots, Identity::Anonymous);
    let error = transport
        .call(request(Verb::Get, "x", &[]))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&format!("connect to {address}")),
        "{error}"
    );
}
