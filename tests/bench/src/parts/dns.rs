//! Cluster DNS: queries by UDP over loopback, in a network namespace of its
//! own. The figure is per second of the server thread's own processor time.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rkube_client::{ApiError, BoxFuture, Client, Frame, Frames, Informers, Request, Transport};
use rkube_dns::{Dns, DnsConfig};
use rkube_netns::route::{LOOPBACK_INDEX, Requests, RouteSocket};
use serde_json::{Value, json};

use super::Figures;

const SERVICES: usize = 10_000;
/// How many queries are on their way at once.
const OUTSTANDING: usize = 64;
const SPAN: Duration = Duration::from_secs(3);

pub(super) fn figures() -> anyhow::Result<Figures> {
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        let mut route = RouteSocket::open()?;
        route.run(Requests::new().up(LOOPBACK_INDEX))?;
        measure()
    };
    let thread = std::thread::spawn(run);
    let (per_core, per_second) = thread
        .join()
        .map_err(|_| anyhow::anyhow!("it panicked"))??;
    Ok(Figures::from([
        ("per_core".to_owned(), vec![per_core]),
        ("per_second".to_owned(), vec![per_second]),
    ]))
}

/// An API with objects that never change.
#[derive(Debug)]
struct Still;

struct Nothing;

impl Frames for Nothing {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Frame, ApiError>>> {
        Box::pin(std::future::pending())
    }
}

impl Transport for Still {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<bytes::Bytes, ApiError>> {
        let items: Vec<Value> = match &*request.target.resource {
            "namespaces" => vec![json!({"metadata": {"name": "bench"}})],
            "services" => (0..SERVICES).map(service).collect(),
            _ => Vec::new(),
        };
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
        Box::pin(std::future::ready(Ok(list.to_string().into())))
    }

    fn watch(&self, _: Request) -> BoxFuture<'_, Result<Box<dyn Frames>, ApiError>> {
        Box::pin(std::future::ready(Ok(Box::new(Nothing) as Box<dyn Frames>)))
    }
}

fn service(number: usize) -> Value {
    let ip = format!("10.96.{}.{}", number / 256, number % 256);
    json!({"metadata": {"name": format!("s{number}"), "namespace": "bench"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}})
}

fn query(number: usize) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let name = format!("s{}.bench.svc.cluster.local", number % SERVICES);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn measure() -> anyhow::Result<(f64, f64)> {
    let udp = UdpSocket::bind("127.0.0.1:53").context("bind port 53")?;
    let server = udp.local_addr()?;
    let (ready, wait) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serve = move || -> anyhow::Result<f64> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let informers = Informers::new(Client::new(Arc::new(Still)));
            let config = DnsConfig {
                domain: "cluster.local".to_owned(),
                addresses: Vec::new(),
                upstreams: Vec::new(),
            };
            let dns = Dns::start(&informers, config)?;
            dns.synced().await;
            let _serving = dns.serve(vec![udp], Vec::new())?;
            let before = cpu()?;
            ready.send(())?;
            // The sender goes when the client is done.
            let _ = stopped.await;
            Ok(cpu()? - before)
        })
    };
    let thread = std::thread::spawn(serve);
    if wait.recv().is_err() {
        let ended = thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        return Err(ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended")));
    }
    let answers = ask(server);
    drop(stop);
    let seconds = thread
        .join()
        .map_err(|_| anyhow::anyhow!("it panicked"))??;
    let answers = answers?;
    Ok((answers / seconds, answers / SPAN.as_secs_f64()))
}

/// Processor seconds of the calling thread.
fn cpu() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let total = usage.user_time() + usage.system_time();
    let micros = total.num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?).as_secs_f64())
}

fn ask(server: SocketAddr) -> anyhow::Result<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let queries: Vec<Vec<u8>> = (0..SERVICES).map(query).collect();
    let mut next = queries.iter().cycle();
    let mut buffer = [0; 512];
    let mut send = || -> anyhow::Result<()> {
        let query = next.next().context("no query")?;
        socket.send(query)?;
        Ok(())
    };
    for _ in 0..OUTSTANDING {
        send()?;
    }
    let start = Instant::now();
    let mut answers = 0.0;
    while start.elapsed() < SPAN {
        if socket.recv(&mut buffer).is_ok() {
            answers += 1.0;
        }
        // One that got lost is made up for.
        send()?;
    }
    Ok(answers)
}
