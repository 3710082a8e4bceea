//! Registries behind a proxy.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::real::{Real, import};
use common::{Host, layer};
use rkube_distribution::{Patience, Proxies, Registries, chain};
use rkube_image::pull::{Cancel, Progress, PullRequest, Silent};

/// A name that nobody but the proxy knows.
const REGISTRY: &str = "registry.test:5000";

/// A proxy that lets in who has `u:p`, and leads everybody to one place.
struct Forwarder {
    host: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Forwarder {
    fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, to) = (Arc::clone(&asked), to.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, to) = (Arc::clone(&log), to.clone());
                std::thread::spawn(move || forward(stream, &to, &log));
            }
        });
        Self { host, asked }
    }
}

fn forward(mut client: TcpStream, to: &str, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    log.lock()
        .unwrap()
        .push(head.lines().next().unwrap().to_owned());
    // u:p
    if !head.contains("Proxy-Authorization: Basic dTpw\r\n") {
        let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        return;
    }
    let mut server = TcpStream::connect(to).unwrap();
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        .unwrap();
    let mut back = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back.0, &mut back.1);
        let _ = back.1.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

#[test]
fn an_image_goes_and_comes_through_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["registry.test".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let (crt, pem) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&crt, cert.pem()).unwrap();
    std::fs::write(&pem, key.serialize_pem()).unwrap();
    let tls = format!(
        "  tls: {{certificate: {}, key: {}}}\n",
        crt.display(),
        pem.display()
    );
    let Some(real) = Real::start(dir.path(), &tls) else {
        return;
    };
    let proxy = Forwarder::start(&real.host);
    let host = Host::new();
    host.write(&format!("certs.d/{REGISTRY}/ca.crt"), &cert.pem());
    import(&host, "local/app:1", &layer("file", 300_000));
    let registries = |user: &str| {
        let text = format!("http://{user}{}", proxy.host);
        let proxies = Proxies::of(|name| (name == "HTTPS_PROXY").then(|| text.clone()));
        Registries::of_root(host.dir.path())
            .with_patience(Patience {
                first_pause: std::time::Duration::from_millis(2),
                ..Patience::default()
            })
            .with_proxies(proxies)
    };
    let to = format!("{REGISTRY}/team/app:1").parse().unwrap();
    let silent: Arc<dyn Progress> = Arc::new(Silent);
    let push = |user: &str| {
        registries(user).push_image(&host.store, "local/app:1", &to, &silent, &Cancel::default())
    };
    let error = chain(&push("").unwrap_err());
    assert!(
        error.contains("407") && error.contains(&proxy.host),
        "{error}"
    );
    let pushed = push("u:p@").unwrap();
    let guest = Host::new();
    let request = PullRequest::new(to.clone());
    let pulled = registries("u:p@")
        .pull_image(&guest.store, &request)
        .unwrap();
    assert_eq!(pulled.image.manifest_digest, pushed.digest);
    let asked = proxy.asked.lock().unwrap();
    let wanted = format!("CONNECT {REGISTRY} HTTP/1.1");
    assert!(asked.iter().all(|line| *line == wanted), "{asked:?}");
}
