//! `rkube server` with many objects: killed, and how soon it is ready again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use rkube_client::https::{Endpoint, Identity, Roots, hosts_file};
use rkube_client::{Client, HttpsConfig, HttpsTransport};
use rkube_pki::kubeconfig::Kubeconfig;
use rkube_tests::command::{Cmd, Running};
use rustix::process::Signal;
use serde_json::json;

use super::Bench;
use crate::place::Place;
use crate::report::Row;
use crate::stats::Samples;

const OBJECTS: u32 = 100_000;
/// Requests at a time while they are made.
const WRITERS: u32 = 64;
const RESTARTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let place = Place::of_rkube(&bench.program)?;
    let (program, root) = (bench.program.clone(), place.dir().join("root"));
    let rows = place.run(move || measure(&program, &root));
    place.close()?;
    rows
}

/// Starts the server; milliseconds until it says that it is ready.
fn start(program: &Path, root: &Path) -> anyhow::Result<(Running, Duration)> {
    let root = root.to_string_lossy();
    let server = Cmd::new(program, ["--root", &root, "server", "--node-name", "bench"]);
    let begin = Instant::now();
    let mut running = server.env("RKUBE_LOG", "info").spawn()?;
    running.line("readiness", PATIENCE, |l| l.contains("the server is ready"))?;
    Ok((running, begin.elapsed()))
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

fn kill(running: Running) -> anyhow::Result<()> {
    running.signal(Signal::KILL)?;
    running.end(PATIENCE).map(drop)
}

fn measure(program: &Path, root: &Path) -> anyhow::Result<Vec<Row>> {
    let (server, first) = start(program, root)?;
    kill(server)?;
    let (server, empty) = start(program, root)?;
    let begin = Instant::now();
    fill(root)?;
    let filling = begin.elapsed().as_secs_f64();
    kill(server)?;
    let mut samples = Samples::default();
    for _ in 0..RESTARTS {
        let (server, span) = start(program, root)?;
        samples.push_ms(span);
        kill(server)?;
    }
    let (server, _) = start(program, root)?;
    server.signal(Signal::TERM)?;
    server.end(PATIENCE)?;
    let rate = f64::from(OBJECTS) / filling;
    let mut full = Row::new(
        "server ready after a kill, 100,000 objects",
        "rkube",
        "ms",
        samples,
    );
    full.target = Some("1000 ms".to_owned());
    full.note = Some(format!(
        "created at {rate:.0}/s over TLS by {WRITERS} at a time"
    ));
    Ok(vec![
        Row::one("server ready, first start", "rkube", "ms", ms(first)),
        Row::one("server ready, second start", "rkube", "ms", ms(empty)),
        full,
    ])
}

/// Makes the objects through the API.
fn fill(root: &Path) -> anyhow::Result<()> {
    let config = Kubeconfig::read(&root.join("etc/rkube/admin.conf"))?;
    let (certificate, key) = config.client.context("no client certificate")?;
    let transport = HttpsTransport::new(HttpsConfig {
        endpoint: Endpoint::parse(&config.server)?,
        roots: Roots::Pem(config.authority.into_bytes()),
        identity: Identity::Certificate {
            certificate: certificate.into_bytes(),
            key: key.into_bytes(),
        },
        resolve: hosts_file(),
        user_agent: "rkube-bench".to_owned(),
    })?;
    let client = Client::new(Arc::new(transport));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let next = Arc::new(AtomicU32::new(0));
    let done = runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| tokio::spawn(write(client.clone(), Arc::clone(&next))))
            .collect();
        let mut done = 0;
        for writer in writers {
            done += writer.await.context("a writer")??;
        }
        anyhow::Ok(done)
    })?;
    ensure!(done == OBJECTS, "{done} of {OBJECTS} objects were made");
    Ok(())
}

async fn write(client: Client, next: Arc<AtomicU32>) -> anyhow::Result<u32> {
    let maps = client.namespaced::<ConfigMap>("default");
    let text = "x".repeat(400);
    let mut done = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= OBJECTS {
            return Ok(done);
        }
        let map = json!({"metadata": {"name": format!("m{number}")}, "data": {"text": text}});
        maps.create(&map).await?;
        done += 1;
    }
}
