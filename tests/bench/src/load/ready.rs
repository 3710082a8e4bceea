//! Until a server that is being started is ready, and its node.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http::Method;
use http_body_util::BodyExt;
use rkube_client::https::Identity;
use serde_json::Value;

use super::Done;
use super::connection::{Connection, Server, full};
use crate::clock::{between, monotonic_ns};

/// Between two looks, in milliseconds: what the figures may be too large by.
const LOOK_MS: u64 = 1;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn pause() {
    tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
}

/// Milliseconds from the start until `/readyz` says yes, and until a watch
/// says that the node is ready.
pub(super) async fn run(
    since_ns: i64,
    authority: &Path,
    url: &str,
    node: &str,
    config: &Path,
) -> anyhow::Result<Done> {
    let both = async {
        tokio::join!(
            readyz(since_ns, authority, url),
            node_ready(since_ns, node, config)
        )
    };
    let (readyz, node) = tokio::time::timeout(PATIENCE, both)
        .await
        .context("the server does not become ready")?;
    Ok(Done {
        times_ms: vec![readyz, node],
        count: 2,
        seconds: between(since_ns, monotonic_ns()).as_secs_f64(),
    })
}

fn since(start_ns: i64) -> f64 {
    between(start_ns, monotonic_ns()).as_secs_f64() * 1e3
}

async fn readyz(start_ns: i64, authority: &Path, url: &str) -> f64 {
    let mut connection: Option<Connection> = None;
    loop {
        match &mut connection {
            Some(open) => {
                if open.json(Method::GET, "/readyz", "").await.is_ok() {
                    return since(start_ns);
                }
            }
            None => connection = anonymous(authority, url).await.ok(),
        }
        pause().await;
    }
}

async fn anonymous(authority: &Path, url: &str) -> anyhow::Result<Connection> {
    let server = Server::new(url, std::fs::read(authority)?, Identity::Anonymous)?;
    server.connect(true).await
}

async fn node_ready(start_ns: i64, node: &str, config: &Path) -> f64 {
    // Neither file nor server nor node is there at first.
    while watch(node, config).await.is_err() {
        pause().await;
    }
    since(start_ns)
}

async fn watch(node: &str, config: &Path) -> anyhow::Result<()> {
    let mut connection = Server::of(config)?.connect(true).await?;
    let path = format!("/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{node}");
    let sent = connection.send(Method::GET, &path, "application/json", full(""));
    let mut body = sent.await?.into_body();
    let mut text: Vec<u8> = Vec::new();
    loop {
        let frame = body.frame().await.context("the watch ended")??;
        text.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line)?;
            let conditions = event["object"]["status"]["conditions"].as_array();
            let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            if conditions.is_some_and(|all| all.iter().any(is_ready)) {
                return Ok(());
            }
        }
    }
}
