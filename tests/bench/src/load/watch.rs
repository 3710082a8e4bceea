//! From a write to each watcher's event.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;

use super::connection::{Connection, Server, full};
use super::{Done, Watch, etcd};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What each write's name begins with; seven digits follow.
const MARK: &[u8] = b"watched-";
const DIGITS: usize = 7;
/// Size of what is written.
const BYTES: usize = 400;
/// How long watchers get to be served before the first write.
const SETTLING: Duration = Duration::from_millis(500);
/// How long the last event may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(server: &Server, watch: &Watch) -> anyhow::Result<Done> {
    let mut writer = server.connect(true).await?;
    let mut watchers = Vec::new();
    for _ in 0..watch.watchers {
        let mut connection = server.connect(true).await?;
        let body = open(&mut connection, watch.etcd).await?;
        watchers.push(tokio::spawn(events(connection, body, watch.writes)));
    }
    tokio::time::sleep(SETTLING).await;
    let mut begun = Vec::new();
    let begin = Instant::now();
    for number in 0..watch.writes {
        tokio::time::sleep(Duration::from_millis(watch.pause_ms)).await;
        begun.push(Instant::now());
        write(&mut writer, watch.etcd, number).await?;
    }
    let mut times_ms = Vec::new();
    for watcher in watchers {
        let seen = tokio::time::timeout(PATIENCE, watcher);
        let seen = seen.await.context("an event is missing")??;
        for (begun, seen) in begun.iter().zip(seen?) {
            times_ms.push((seen - *begun).as_secs_f64() * 1e3);
        }
    }
    Ok(Done {
        times_ms,
        count: watch.writes,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

async fn write(writer: &mut Connection, etcd: bool, number: u32) -> anyhow::Result<()> {
    let name = format!("{}{number:07}", String::from_utf8_lossy(MARK));
    let text = "x".repeat(BYTES);
    if etcd {
        let message = etcd::put(&format!("/bench/{name}"), text.as_bytes());
        writer.call(etcd::PUT, &message).await?;
    } else {
        let map = json!({"metadata": {"name": name}, "data": {"text": text}});
        writer.json(Method::POST, MAPS, map.to_string()).await?;
    }
    Ok(())
}

async fn open(connection: &mut Connection, etcd: bool) -> anyhow::Result<Incoming> {
    let response = if etcd {
        use futures_util::StreamExt as _;
        let first = Frame::data(etcd::framed(&etcd::watch("/bench/watched-")));
        // The watch ends with what asks for it.
        let asked = futures_util::stream::iter([Ok(first)]).chain(futures_util::stream::pending());
        let body = StreamBody::new(asked);
        let body = http_body_util::combinators::BoxBody::new(body);
        let sent = connection.send(Method::POST, etcd::WATCH, etcd::CONTENT_TYPE, body);
        sent.await?
    } else {
        let listed = connection.json(Method::GET, MAPS, "").await?;
        let listed: serde_json::Value = serde_json::from_slice(&listed)?;
        let revision = listed["metadata"]["resourceVersion"].as_str();
        let path = format!(
            "{MAPS}?watch=true&resourceVersion={}",
            revision.context("a list has no revision")?
        );
        let sent = connection.send(Method::GET, &path, "application/json", full(""));
        sent.await?
    };
    Ok(response.into_body())
}

/// When each write was seen.
async fn events(
    connection: Connection,
    mut body: Incoming,
    writes: u32,
) -> anyhow::Result<Vec<Instant>> {
    let mut seen = Vec::new();
    // The end of one chunk may be the first part of a name.
    let mut text: Vec<u8> = Vec::new();
    while seen.len() < usize::try_from(writes)? {
        let Some(frame) = body.frame().await else {
            bail!("the watch ended");
        };
        let now = Instant::now();
        let data: Bytes = frame?.into_data().unwrap_or_default();
        text.extend_from_slice(&data);
        let expected = |n: usize| {
            let digits = format!("{n:0DIGITS$}");
            [MARK, digits.as_bytes()].concat()
        };
        while let Some(at) = find(&text, &expected(seen.len())) {
            seen.push(now);
            text.drain(..at);
        }
        let keep = MARK.len() + DIGITS;
        text.drain(..text.len().saturating_sub(keep));
    }
    drop(connection);
    Ok(seen)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
