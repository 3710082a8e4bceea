//! `rkube port-forward`.
//!
//! The writer connects inside the pod's network and hands the connection out;
//! the bytes go through this process alone.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Instance;
use rkube_kubelet::pod;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client_and_pods;
use crate::cli::{Listen, PortForward};
use crate::client::{Client, Watcher, runtime, unexpected};
use crate::error::bad_input;
use crate::view;
use crate::wire::{Reply, Request};

/// Most connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

/// A local port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    /// 0 for any free one.
    local: u16,
    remote: u16,
}

pub(super) fn port_forward(root: &Path, args: &PortForward) -> anyhow::Result<u8> {
    runtime()?.block_on(run(root, args))
}

async fn run(root: &Path, args: &PortForward) -> anyhow::Result<u8> {
    let (client, pods) =
        client_and_pods(root, std::slice::from_ref(&args.pod), &args.namespace).await?;
    let pod = pods.first().context("find the pod")?;
    if view::finished(pod) {
        anyhow::bail!("pod {} is not running", pod::display_name(pod));
    }
    let pairs = args.ports.iter().map(|text| pair(pod, text));
    let pairs = pairs.collect::<anyhow::Result<Vec<Pair>>>()?;
    let mut listeners = Vec::new();
    for pair in pairs {
        listeners.extend(listen(pair, &args.address).await?);
    }
    let instance = Arc::new(Instance::open(root)?);
    let uid: Arc<str> = pod::uid(pod).into();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for (listener, remote) in listeners {
        let (instance, uid, room) = (Arc::clone(&instance), Arc::clone(&uid), Arc::clone(&room));
        tasks.spawn(async move { accept(&listener, remote, &instance, &uid, &room).await });
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => Ok(0),
        _ = terminate.recv() => Ok(0),
        ended = until_over(&instance, client, &uid) => {
            ended?;
            anyhow::bail!("pod {} has ended", pod::display_name(pod))
        }
        Some(stopped) = tasks.join_next() => stopped.context("accept connections")?.map(|()| 0),
    }
}

/// Reads `REMOTE`, `LOCAL:REMOTE`, `:REMOTE`, where REMOTE may be a name.
fn pair(pod: &Pod, text: &str) -> anyhow::Result<Pair> {
    let wrong = |what: &str| bad_input(format!("port {text:?}: {what}"));
    let (local, remote) = match text.split_once(':') {
        Some((local, remote)) => (Some(local), remote),
        None => (None, text),
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0);
    let named = || {
        pod::containers(pod)
            .flat_map(|(_, c)| c.ports.iter().flatten())
            .find(|p| p.name.as_deref() == Some(remote))
            .and_then(|p| u16::try_from(p.container_port).ok())
    };
    let remote = number(remote)
        .or_else(named)
        .ok_or_else(|| wrong("give a number from 1 to 65535, or the name of a container's port"))?;
    let local = match local {
        None => remote,
        Some("") => 0,
        Some(text) => number(text).ok_or_else(|| wrong("the local port is no number"))?,
    };
    Ok(Pair { local, remote })
}

/// Listens on every address; of localhost's two, one may be missing.
async fn listen(pair: Pair, addresses: &[Listen]) -> anyhow::Result<Vec<(TcpListener, u16)>> {
    let mut listeners = Vec::new();
    // Any free port is the same one on all addresses.
    let mut local = pair.local;
    for address in addresses {
        let tries: &[IpAddr] = match address {
            Listen::Localhost => &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Listen::Address(ip) => std::slice::from_ref(ip),
        };
        let mut failed = None;
        let before = listeners.len();
        for ip in tries {
            match TcpListener::bind(SocketAddr::new(*ip, local)).await {
                Ok(listener) => {
                    let bound = listener.local_addr().context("getsockname")?;
                    local = bound.port();
                    say(&format!("Forwarding from {bound} -> {}", pair.remote));
                    listeners.push((listener, pair.remote));
                }
                Err(error) => {
                    failed.get_or_insert((*ip, error));
                }
            }
        }
        if let (Some((ip, error)), true) = (failed, listeners.len() == before) {
            return Err(error).with_context(|| format!("listen on {}", SocketAddr::new(ip, local)));
        }
    }
    Ok(listeners)
}

/// A line on standard output. It may be closed while the forward goes on.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

async fn accept(
    listener: &TcpListener,
    remote: u16,
    instance: &Arc<Instance>,
    uid: &Arc<str>,
    room: &Arc<Semaphore>,
) -> anyhow::Result<()> {
    loop {
        let place = Arc::clone(room).acquire_owned().await;
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        let (instance, uid) = (Arc::clone(instance), Arc::clone(uid));
        rkube_task::spawn(async move {
            say(&format!("Handling connection for {remote}"));
            // One that fails ends alone.
            if let Err(error) = carry(stream, remote, &instance, &uid).await {
                let text = crate::error::chain(error.as_ref());
                let _ = writeln!(std::io::stderr(), "error: port {remote}: {text}");
            }
            drop(place);
        });
    }
}

async fn carry(
    mut stream: TcpStream,
    remote: u16,
    instance: &Instance,
    uid: &str,
) -> anyhow::Result<()> {
    let mut inside = {
        let mut client = Client::start(instance).await?;
        let request = Request::Connect {
            uid: uid.to_owned(),
            port: remote,
        };
        match client.call(&request).await? {
            Reply::Connected => {}
            other => return Err(unexpected(&other)),
        }
        let fd = client.take_fds().into_iter().next();
        let fd = fd.context("the writer sent no connection")?;
        let stream = std::net::TcpStream::from(fd);
        stream
            .set_nonblocking(true)
            .context("set the connection non-blocking")?;
        TcpStream::from_std(stream).context("watch the connection")?
    };
    match tokio::io::copy_bidirectional(&mut stream, &mut inside).await {
        // Either side may have had enough.
        Err(error) if is_cut(&error) => Ok(()),
        other => other.map(drop).context("carry bytes"),
    }
}

fn is_cut(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::NotConnected
    )
}

/// Waits until the pod has ended or is gone.
async fn until_over(instance: &Instance, client: Client, uid: &str) -> anyhow::Result<()> {
    let uids = vec![uid.to_owned()];
    let mut watcher = Watcher::begin(instance, client, uids, false).await?;
    loop {
        match watcher.next().await? {
            Reply::Pod(pod) if !view::finished(&pod) => {}
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}}))
        .unwrap();
        let of = |text: &str| pair(&pod, text).map(|p| (p.local, p.remote)).ok();
        assert_eq!(of("80"), Some((80, 80)));
        assert_eq!(of("8000:80"), Some((8000, 80)));
        assert_eq!(of(":80"), Some((0, 80)));
        assert_eq!(of("http"), Some((8080, 8080)));
        assert_eq!(of("1:http"), Some((1, 8080)));
        for bad in ["0", "", ":", "x", "80:", "0:80", "65536", "1:2:3", "a:80"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
