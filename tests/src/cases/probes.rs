//! Probes over TLS.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::case::Case;
use crate::host::TestHost;
use crate::pods::{pod, status, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new("probes::over_tls", over_tls)]
}

/// A certificate for another name, which nobody has signed.
fn config() -> anyhow::Result<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed(vec!["elsewhere.test".to_owned()])?;
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let key = key.map_err(|e| anyhow::anyhow!("{e}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(Arc::new(config))
}

/// One request and its answer. A client that goes is none of a server's
/// business.
fn answer(stream: TcpStream, config: &Arc<ServerConfig>, well: bool) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, stream);
    let mut request = [0; 2048];
    let read = tls.read(&mut request)?;
    ensure!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
    let text: &[u8] = if well {
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    } else {
        b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nsick"
    };
    tls.write_all(text)?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}

/// The server is this case's own: a probe may name any host.
fn over_tls(host: &TestHost) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let port = listener.local_addr()?.port();
    let config = config()?;
    let well = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&well);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &config, now.load(Ordering::Relaxed));
        }
    });
    let made = with(
        pod("p", &[tool("a", &["sleep", "inf"])]),
        "spec.containers.0",
        json!({"readinessProbe": {"periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 1,
            "httpGet": {"scheme": "HTTPS", "host": "127.0.0.1", "port": port, "path": "/healthz"}}}),
    );
    let out = host.up(&[made])?;
    ensure!(!out.stderr.contains("not honoured"), "{out}");
    host.wait_pod("p", "readiness", |p| status(p, "a")["ready"] == true)?;
    well.store(false, Ordering::Relaxed);
    host.wait_pod("p", "a failed probe", |p| status(p, "a")["ready"] == false)?;
    let event = host.wait_event("p", "Unhealthy")?;
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(message.contains("HTTP status 500: sick"), "{message}");
    host.rm(&["p"])?;
    Ok(())
}
