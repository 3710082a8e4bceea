use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::http::{self, Outcome, Target};
use super::state::{Schedule, Tally};

#[test]
fn schedules_have_upstreams_defaults() {
    let s = Schedule::of(&Probe::default());
    assert_eq!(
        (
            s.initial_delay,
            s.period,
            s.timeout,
            s.successes,
            s.failures
        ),
        (
            Duration::ZERO,
            Duration::from_secs(10),
            Duration::from_secs(1),
            1,
            3
        )
    );
    let s = Schedule::of(&Probe {
        period_seconds: Some(0),
        failure_threshold: Some(-1),
        ..Probe::default()
    });
    assert_eq!((s.period, s.failures), (Duration::from_secs(1), 3));
}

#[test]
fn verdicts_turn_after_thresholds() {
    let schedule = Schedule::of(&Probe {
        success_threshold: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    });
    let mut tally = Tally::new(schedule, Some(false));
    let got: Vec<_> = [
        true, false, true, true, true, false, false, true, false, false, false, false,
    ]
    .into_iter()
    .map(|r| tally.add(r))
    .collect();
    assert_eq!(
        got,
        [
            None,
            None,
            None,
            Some(true),
            None,
            None,
            None,
            None,
            None,
            None,
            Some(false),
            None
        ]
    );
    let mut liveness = Tally::new(Schedule::of(&Probe::default()), Some(true));
    assert_eq!(
        [
            liveness.add(false),
            liveness.add(false),
            liveness.add(false)
        ],
        [None, None, Some(false)]
    );
    let mut startup = Tally::new(Schedule::of(&Probe::default()), None);
    assert_eq!(startup.add(true), Some(true));
}

/// Serves answers on this machine's loopback, one connection each.
async fn serve(answers: Vec<&'static str>) -> (Target, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut seen = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            seen.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        seen
    });
    let target = Target {
        tls: false,
        address: "127.0.0.1".parse().unwrap(),
        port,
        host: None,
        path: "/healthz".into(),
        headers: vec![("X-A".into(), "b\r\nEvil: 1".into())],
    };
    (target, task)
}

#[tokio::test]
async fn http_statuses_and_redirects() {
    for (answers, want) in [
        (vec!["HTTP/1.1 204 No Content\r\n\r\n"], Outcome::Success),
        (
            vec![
                "HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n",
                "HTTP/1.0 200 OK\r\n\r\nok",
            ],
            Outcome::Success,
        ),
        (
            vec!["HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nbad "],
            Outcome::Failure("HTTP status 500: bad".into()),
        ),
        (
            vec!["HTTP/1.1 301 M\r\nLocation: http://example.com/\r\n\r\n"],
            Outcome::Redirected("redirected to http://example.com/, which is not followed".into()),
        ),
        (
            vec!["SSH-2.0-x\r\n\r\n"],
            Outcome::Failure("the answer is not HTTP/1".into()),
        ),
        (
            vec![""],
            Outcome::Failure("the connection was closed before an answer".into()),
        ),
    ] {
        let (target, task) = serve(answers).await;
        assert_eq!(http::get(&target).await, want);
        let seen = task.await.unwrap();
        assert!(
            seen[0].starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"),
            "{}",
            seen[0]
        );
        assert!(
            seen[0].contains("User-Agent: kube-probe/") && seen[0].contains("X-A: bEvil: 1\r\n")
        );
    }
}

/// A TLS server with a certificate for another name, which nobody has signed.
fn tls_acceptor() -> tokio_rustls::TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["elsewhere.test".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    std::sync::Arc::new(config).into()
}

#[tokio::test]
async fn https_without_a_check_of_who_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let from = plain.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let acceptor = tls_acceptor();
        let answers = [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy",
            "HTTP/1.1 200 OK\r\n\r\n",
        ];
        for answer in answers {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        // It is no TLS that comes last.
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    });
    let target = Target {
        tls: true,
        address: "127.0.0.1".parse().unwrap(),
        port,
        host: None,
        path: "/healthz".into(),
        headers: Vec::new(),
    };
    assert_eq!(http::get(&target).await, Outcome::Success);
    assert_eq!(
        http::get(&target).await,
        Outcome::Failure("HTTP status 503: busy".into())
    );
    // A redirect from the plain port to this one is followed.
    let redirecting = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await.unwrap();
        let answer =
            format!("HTTP/1.1 308 P\r\nLocation: https://127.0.0.1:{port}/healthz\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let first = Target {
        tls: false,
        port: from,
        ..target.clone()
    };
    assert_eq!(http::get(&first).await, Outcome::Success);
    redirecting.await.unwrap();
    let Outcome::Failure(message) = http::get(&target).await else {
        panic!("no TLS is no answer");
    };
    assert!(message.starts_with("TLS handshake: "), "{message}");
    server.await.unwrap();
}

/// What a health server says: its HTTP status, its message, its own status.
type Health = (u16, &'static [u8], &'static str);

/// A server of HTTP/2 (hyper's) that answers each call with the next of
/// `answers` and gives back what it was asked.
async fn health(answers: Vec<Health>) -> (u16, tokio::task::JoinHandle<Vec<(String, Vec<u8>)>>) {
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        for (status, message, code) in answers {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = std::sync::Arc::clone(&seen);
            let service = hyper::service::service_fn(
                move |request: ::http::Request<hyper::body::Incoming>| {
                    let seen = std::sync::Arc::clone(&seen);
                    async move {
                        let path = request.uri().path().to_owned();
                        let asked = request.into_body().collect().await.unwrap().to_bytes();
                        seen.lock().unwrap().push((path, asked.to_vec()));
                        let mut trailers = ::http::HeaderMap::new();
                        trailers.insert("grpc-status", code.parse().unwrap());
                        trailers.insert("grpc-message", "why".parse().unwrap());
                        let frames = vec![
                            Ok::<_, std::convert::Infallible>(Frame::data(
                                bytes::Bytes::from_static(message),
                            )),
                            Ok(Frame::trailers(trailers)),
                        ];
                        let body = StreamBody::new(futures_util::stream::iter(frames));
                        let answer = ::http::Response::builder().status(status);
                        let answer = answer.header("content-type", "application/grpc").body(body);
                        Ok::<_, std::convert::Infallible>(answer.unwrap())
                    }
                },
            );
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            // The client cuts the connection when it knows enough.
            let _ = hyper::server::conn::http2::Builder::new(executor)
                .serve_connection(io, service)
                .await;
        }
        let seen = seen.lock().unwrap();
        seen.clone()
    });
    (port, task)
}

#[tokio::test]
async fn grpc_health_of_a_real_server() {
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
    const NOT_SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 2];
    let (port, server) = health(vec![
        (200, SERVING, "0"),
        (200, NOT_SERVING, "0"),
        (200, b"", "5"),
        (200, b"", "12"),
        (404, b"", "0"),
    ])
    .await;
    let ask = async || super::grpc::check("127.0.0.1".parse().unwrap(), port, "web").await;
    assert_eq!(ask().await, Ok(()));
    let wanted = [
        "service unhealthy (responded with \"NOT_SERVING\")",
        "error: health rpc probe failed: status 5: why",
        "error: this server does not implement the grpc health protocol",
        "error: health rpc probe failed: HTTP status 404",
    ];
    for text in wanted {
        let message = ask().await.unwrap_err();
        assert!(message.starts_with(text), "{message}");
    }
    let seen = server.await.unwrap();
    assert_eq!(seen.len(), 5);
    let asked = [0, 0, 0, 0, 5, 0x0a, 3, b'w', b'e', b'b'];
    assert_eq!(seen[0].0, "/grpc.health.v1.Health/Check");
    assert_eq!(seen[0].1, asked);
    // Nobody is there any more.
    let message = ask().await.unwrap_err();
    assert!(message.starts_with("connect to 127.0.0.1:"), "{message}");
}

#[tokio::test]
async fn grpc_needs_an_http2_server() {
    let (target, task) = serve(vec!["HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    let asked = super::grpc::check(target.address, target.port, "").await;
    let message = asked.unwrap_err();
    assert!(
        message.starts_with("error: health rpc probe failed: "),
        "{message}"
    );
    task.await.unwrap();
}
