//! Requests through the proxy to a server of this process.

use http_body_util::Full;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const PREFIX: &str = "/api/v1/namespaces/n/pods/p:80/proxy";

fn links() -> Links {
    Links {
        prefix: PREFIX.to_owned(),
        backend: "10.0.0.1:80".to_owned(),
        asked: "server:6443".to_owned(),
    }
}

#[test]
fn links_lead_back_through_the_proxy() {
    for (link, expected) in [
        ("/x", Some("P/x")),
        ("/", Some("P/")),
        ("x", None),
        ("../x", None),
        ("//other/x", None),
        ("http://other/x", None),
        ("mailto://x", None),
        ("http://10.0.0.1:80/x?y", Some("P/x?y")),
        ("https://server:6443/x", Some("https://server:6443P/x")),
        ("P/x", None),
    ] {
        let (link, expected) = (
            link.replace('P', PREFIX),
            expected.map(|e| e.replace('P', PREFIX)),
        );
        assert_eq!(links().through(&link), expected, "{link}");
    }
}

/// A backend that tells what it was asked.
async fn backend() -> Place {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let header = |name: &str| {
                    let value = parts.headers.get(name).and_then(|v| v.to_str().ok());
                    value.unwrap_or("-").to_owned()
                };
                let mut answer = Response::builder().header("x-kept", "yes");
                if parts.uri.path() == "/moved" {
                    answer = answer.status(302).header("location", "/there");
                }
                if parts.uri.path() == "/page" {
                    answer = answer.header("content-type", "text/html; charset=utf-8");
                }
                let text = format!(
                    "<a href=\"/{}\">{} {} host={} auth={} uri={} hop={} {}",
                    "x",
                    parts.method,
                    parts.uri,
                    header("host"),
                    header("authorization"),
                    header("x-forwarded-uri"),
                    header("x-hop"),
                    String::from_utf8_lossy(&body),
                );
                answer.body(Full::new(Bytes::from(text)))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Place {
        ip: address.ip(),
        port: address.port(),
        tls: false,
    }
}

async fn ask(place: Place, method: &str, rest: &str) -> (u16, HeaderMap, String) {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://server:6443{PREFIX}{rest}?q=1"))
        .header("authorization", "Bearer secret")
        .header("connection", "x-hop, keep-alive")
        .header("x-hop", "1")
        .body(Full::new(Bytes::from("body")))
        .unwrap();
    let proxy = Proxy::new().unwrap();
    let answer = proxy.forward(&place, PREFIX, rest, request).await;
    let answer = answer.unwrap_or_else(|s| {
        Response::builder()
            .status(s.code)
            .body(Body::full(s.message))
            .unwrap()
    });
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (parts.status.as_u16(), parts.headers, text)
}

#[tokio::test]
async fn a_request_goes_through() {
    let place = backend().await;
    let (code, headers, text) = ask(place, "PUT", "/a%20b/").await;
    assert_eq!(
        (code, &headers["x-kept"]),
        (200, &HeaderValue::from_static("yes"))
    );
    assert_eq!(
        text,
        format!(
            "<a href=\"/x\">PUT /a%20b/?q=1 host=server:6443 auth=- uri={PREFIX}/a%20b/ hop=- body"
        )
    );
    let (code, headers, _) = ask(place, "GET", "/moved").await;
    assert_eq!(
        (code, headers["location"].to_str().unwrap()),
        (302, &*format!("{PREFIX}/there"))
    );
    let (_, _, text) = ask(place, "GET", "/page").await;
    assert!(
        text.starts_with(&format!("<a href=\"{PREFIX}/x\">GET /page")),
        "{text}"
    );
    let nobody = Place { port: 1, ..place };
    let (code, _, text) = ask(nobody, "GET", "/").await;
    assert_eq!(code, 503);
    assert!(
        text.starts_with("error trying to reach service: dial tcp 127.0.0.1:1"),
        "{text}"
    );
}

#[test]
fn a_path_without_its_slash_is_sent_there() {
    let at = |method: &str, uri: &str| {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        let answer = to_the_root(&request).unwrap();
        answer.map(|a| (a.status().as_u16(), a.headers()[LOCATION].clone()))
    };
    let to = |text: &'static str| Some((301, HeaderValue::from_static(text)));
    assert_eq!(at("GET", "/p/proxy"), to("/p/proxy/"));
    assert_eq!(at("GET", "/p/proxy?a=b"), to("/p/proxy/?a=b"));
    assert_eq!(at("POST", "/p/proxy"), None);
}

/// An upgrade needs a real connection at both ends.
#[tokio::test]
async fn an_upgrade_goes_through() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(
            head.contains("upgrade: echo") && head.contains("connection: upgrade"),
            "{head}"
        );
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let place = Place {
        ip: address.ip(),
        port: address.port(),
        tls: false,
    };
    let (client, server) = tokio::io::duplex(1024);
    let service = service_fn(move |request: Request<Incoming>| async move {
        let proxy = Proxy::new().unwrap();
        let answer = proxy.forward(&place, PREFIX, "/ws", request).await;
        Ok::<_, hyper::Error>(answer.unwrap_or_else(|s| {
            Response::builder()
                .status(s.code)
                .body(Body::full(s.message))
                .unwrap()
        }))
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades(),
    );
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .uri("/ws")
        .header("connection", "upgrade")
        .header("upgrade", "echo")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut seen = [0; 4];
    io.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"ping");
}
