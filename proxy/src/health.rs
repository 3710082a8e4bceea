//! `healthCheckNodePort`: tells load balancers whether this node has
//! endpoints of a Service, in kube-proxy's words.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rkube_client::ObjectKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Longest request head, in bytes.
const HEAD_MAX_BYTES: usize = 8 << 10;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Port, Service, endpoints on this node.
pub(crate) type Checks = BTreeMap<u16, (ObjectKey, usize)>;

struct Listener {
    service: ObjectKey,
    count: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a listener for each check.
pub(crate) async fn run(mut checks: watch::Receiver<Checks>) {
    let mut listeners: BTreeMap<u16, Listener> = BTreeMap::new();
    loop {
        let wanted = checks.borrow_and_update().clone();
        listeners.retain(|port, l| wanted.get(port).is_some_and(|(key, _)| *key == l.service));
        for (port, (service, count)) in wanted {
            if let Some(listener) = listeners.get(&port) {
                listener.count.store(count, Ordering::Relaxed);
                continue;
            }
            match listen(port, service, count).await {
                Ok(listener) => drop(listeners.insert(port, listener)),
                Err(error) => tracing::warn!(port, %error, "listen on a healthCheckNodePort"),
            }
        }
        if checks.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(port: u16, service: ObjectKey, count: usize) -> std::io::Result<Listener> {
    let listener = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await?,
        Ok(listener) => listener,
    };
    let count = Arc::new(AtomicUsize::new(count));
    let (key, now) = (service.clone(), Arc::clone(&count));
    let serve = async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let text = answer(&key, now.load(Ordering::Relaxed));
            rkube_task::spawn(async move {
                // A client that leaves is its own business.
                let _ = tokio::time::timeout(PATIENCE, talk(stream, text)).await;
            });
        }
    };
    let task = rkube_task::spawn(serve).abort_handle();
    Ok(Listener {
        service,
        count,
        task,
    })
}

async fn talk(mut stream: TcpStream, text: String) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let got = stream.read(&mut part).await?;
        if got == 0 || head.len() + got > HEAD_MAX_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&part[..got]);
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(service: &ObjectKey, count: usize) -> String {
    let status = if count > 0 {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    let ObjectKey { namespace, name } = service;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}\n"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
