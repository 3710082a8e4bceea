//! As many requests as fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::Method;
use serde_json::json;

use super::connection::{Connection, Server};
use super::{Ask, Done, Rate, etcd};

/// A pod for which nobody looks for a node: all that is done is the write and
/// what the server's own watchers make of it.
fn pod(tag: &str, number: u32) -> Vec<u8> {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{tag}-{number}"),
            "labels": {"app": "bench", "run": tag},
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "a", "image": crate::rkube::IMAGE,
                "command": ["/bin/toolbox", "run", "sleep inf"],
                "ports": [{"containerPort": 8080}],
                "env": [{"name": "MODE", "value": "bench"}],
                "resources": {
                    "requests": {"cpu": "10m", "memory": "16Mi"},
                    "limits": {"memory": "64Mi"},
                },
            }],
        },
    })
    .to_string()
    .into_bytes()
}

/// What all places share.
struct Shared {
    rate: Rate,
    next: AtomicU32,
    end: Instant,
}

pub(super) async fn run(server: &Server, rate: &Rate) -> anyhow::Result<Done> {
    let mut places = Vec::new();
    for _ in 0..rate.connections {
        let connection = server.connect(rate.streams > 1).await?;
        for _ in 1..rate.streams {
            places.push(connection.shared()?);
        }
        places.push(connection);
    }
    let begin = Instant::now();
    let shared = Arc::new(Shared {
        rate: rate.clone(),
        next: AtomicU32::new(0),
        end: begin + Duration::from_secs(rate.seconds.into()),
    });
    let work: Vec<_> = places
        .into_iter()
        .map(|place| tokio::spawn(ask(place, Arc::clone(&shared))))
        .collect();
    let mut times_ms = Vec::new();
    for work in work {
        times_ms.extend(work.await.context("a place")??);
    }
    Ok(Done {
        count: u32::try_from(times_ms.len())?,
        times_ms,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

async fn ask(mut place: Connection, shared: Arc<Shared>) -> anyhow::Result<Vec<f64>> {
    let mut times_ms = Vec::new();
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        if start >= shared.end {
            return Ok(times_ms);
        }
        match &shared.rate.ask {
            Ask::CreatePods { tag } => {
                let path = "/api/v1/namespaces/default/pods";
                place.json(Method::POST, path, pod(tag, number)).await?;
            }
            Ask::GetPods { tag, count } => {
                let number = number % count;
                let path = format!("/api/v1/namespaces/default/pods/{tag}-{number}");
                place.json(Method::GET, &path, "").await?;
            }
            Ask::Puts { tag, bytes } => {
                let key = format!("/bench/{tag}-{number}");
                let message = etcd::put(&key, &vec![b'v'; *bytes]);
                place.call(etcd::PUT, &message).await?;
            }
            Ask::Ranges { tag, count } => {
                let key = format!("/bench/{tag}-{}", number % count);
                place.call(etcd::RANGE, &etcd::range(&key)).await?;
            }
        }
        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
}
