//! From the creation of pods to a watch that sees them run.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Done;
use super::connection::{Connection, Server, full};

const PODS: &str = "/api/v1/namespaces/default/pods";
/// How long one event may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A watch over pods.
struct Events {
    body: Incoming,
    text: Vec<u8>,
    _connection: Connection,
}

impl Events {
    async fn open(server: &Server) -> anyhow::Result<Events> {
        let mut connection = server.connect(true).await?;
        let listed = connection.json(Method::GET, PODS, "").await?;
        let listed: Value = serde_json::from_slice(&listed)?;
        let revision = &listed["metadata"]["resourceVersion"];
        let path = format!(
            "{PODS}?watch=true&resourceVersion={}",
            revision.as_str().context("a list has no revision")?
        );
        let sent = connection.send(Method::GET, &path, "application/json", full(""));
        Ok(Events {
            body: sent.await?.into_body(),
            text: Vec::new(),
            _connection: connection,
        })
    }

    async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let next = tokio::time::timeout(PATIENCE, self.body.frame());
            let Some(frame) = next.await.context("wait for an event")? else {
                bail!("the watch ended");
            };
            let data = frame?.into_data().unwrap_or_default();
            self.text.extend_from_slice(&data);
        }
    }

    /// Until each of these pods was told of so.
    async fn until(
        &mut self,
        names: &[String],
        is_so: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let mut left: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        while !left.is_empty() {
            let event = self.next().await?;
            let phase = &event["object"]["status"]["phase"];
            if phase == "Failed" {
                bail!("a pod failed: {}", event["object"]["status"]);
            }
            if is_so(&event)
                && let Some(name) = event["object"]["metadata"]["name"].as_str()
            {
                left.remove(name);
            }
        }
        Ok(())
    }
}

fn pod(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "a", "image": crate::rkube::IMAGE,
                "command": ["/bin/toolbox", "run", "sleep inf"],
                "resources": {"limits": {"memory": "64Mi"}},
            }],
        },
    })
    .to_string()
}

async fn create(mut connection: Connection, name: &str) -> anyhow::Result<()> {
    connection
        .json(Method::POST, PODS, pod(name))
        .await
        .map(drop)
}

async fn delete(mut connection: Connection, name: &str) -> anyhow::Result<()> {
    let path = format!("{PODS}/{name}");
    connection.json(Method::DELETE, &path, "").await.map(drop)
}

async fn turn(
    events: &mut Events,
    connection: &Connection,
    names: &[String],
) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let all = names.iter().map(|n| Ok(create(connection.shared()?, n)));
    let created = try_join_all(all.collect::<anyhow::Result<Vec<_>>>()?);
    let running = events.until(names, |event| {
        event["object"]["status"]["phase"] == "Running"
    });
    tokio::try_join!(created, running)?;
    let time_ms = begin.elapsed().as_secs_f64() * 1e3;
    let all = names.iter().map(|n| Ok(delete(connection.shared()?, n)));
    let deleted = try_join_all(all.collect::<anyhow::Result<Vec<_>>>()?);
    let gone = events.until(names, |event| event["type"] == "DELETED");
    tokio::try_join!(deleted, gone)?;
    Ok(time_ms)
}

/// One after the other; the time of each.
pub(super) async fn one_by_one(server: &Server, count: usize) -> anyhow::Result<Done> {
    let mut events = Events::open(server).await?;
    let connection = server.connect(true).await?;
    let begin = Instant::now();
    let mut done = Done::default();
    for number in 0..count {
        let names = [format!("one-{number}")];
        let time_ms = turn(&mut events, &connection, &names).await?;
        done.times_ms.push(time_ms);
        done.count += 1;
    }
    done.seconds = begin.elapsed().as_secs_f64();
    Ok(done)
}

/// All at once; the time until the last.
pub(super) async fn at_once(server: &Server, count: usize) -> anyhow::Result<Done> {
    let mut events = Events::open(server).await?;
    let connection = server.connect(true).await?;
    let names: Vec<String> = (0..count).map(|n| format!("many-{n}")).collect();
    let begin = Instant::now();
    let time_ms = turn(&mut events, &connection, &names).await?;
    Ok(Done {
        times_ms: vec![time_ms],
        count: u32::try_from(count)?,
        seconds: begin.elapsed().as_secs_f64(),
    })
}
