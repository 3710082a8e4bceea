//! One command's conversation with the writer.

use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::Event;
use rkube_kubelet::manager::Change;
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;

use super::node::Node;
use super::{exec, join, report};
use crate::wire::channel::Channel;
use crate::wire::{Failure, Reply, Request, check_hello};

/// Answers until the client closes the connection.
pub(super) async fn talk(
    stream: UnixStream,
    node: &Arc<Node>,
    refusal: Option<Failure>,
) -> anyhow::Result<()> {
    let mut channel = Channel::new(stream);
    let (uid, pid) = channel.peer().context("getsockopt SO_PEERCRED")?;
    if uid != 0 {
        // The socket's mode keeps others out; this is the second lock.
        anyhow::bail!("uid {uid} (pid {pid:?}) is not root");
    }
    let hello = channel.expect::<Request>().await?;
    if let Err(failure) = refusal.map_or_else(|| check_hello(&hello), Err) {
        channel.send(&Reply::Failed(failure), &[]).await?;
        return Ok(());
    }
    let hello = Reply::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        role: node.role,
    };
    channel.send(&hello, &[]).await?;
    while let Some(request) = channel.receive::<Request>().await? {
        answer(&mut channel, node, request).await?;
    }
    Ok(())
}

async fn answer(channel: &mut Channel, node: &Arc<Node>, request: Request) -> anyhow::Result<()> {
    let fds = channel.take_fds();
    let done = |result: Result<(), Failure>| result.map(|()| Reply::Done);
    let result = match request {
        Request::Watch { uids, events } => return watch(channel, node, &uids, events).await,
        Request::Events { uid, follow } => {
            return events(channel, node, uid.as_deref(), follow).await;
        }
        Request::Exec(request) => exec::exec(channel, node, request, fds)
            .await?
            .map(|code| Reply::Exited { code }),
        Request::Attach(request) => match join::attach(channel, node, request).await? {
            Some(result) => result.map(|code| Reply::Exited { code }),
            None => return Ok(()),
        },
        Request::Files { uid, container } => {
            return join::files(channel, node, uid, container).await;
        }
        Request::Connect { uid, port } => return join::connect(channel, node, uid, port).await,
        Request::InputEnded => Err(Failure::new("nothing is attached to")),
        Request::Ask { uid, ask } => done(node.obey(&uid, ask).await),
        Request::Hello { .. } => Err(Failure::new("Hello was said already")),
        Request::Apply(request) => node.apply(*request).await.map(Reply::Applied),
        Request::List => Ok(Reply::Pods(node.pods())),
        Request::End(request) => done(node.end(&request).await),
        Request::ImagesChanged => {
            node.images_changed();
            Ok(Reply::Done)
        }
        Request::EndAll { grace_seconds } => done(node.end_all(grace_seconds).await),
        Request::Stats => report::stats(node).await.map(Reply::Value),
        Request::Namespaces => report::namespaces(node).await.map(Reply::Value),
    };
    channel
        .send(&result.unwrap_or_else(Reply::Failed), &[])
        .await?;
    Ok(())
}

/// Tells how pods stand until the client closes the connection. A client that
/// reads slowly misses states in between, never the latest one.
async fn watch(
    channel: &mut Channel,
    node: &Arc<Node>,
    uids: &[String],
    with_events: bool,
) -> anyhow::Result<()> {
    let wanted = |uid: &str| uids.is_empty() || uids.iter().any(|u| u == uid);
    let mut changes = node.changes();
    let mut happened = node.events_to_come();
    tell_all(channel, node, uids).await?;
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Updated(view)) if wanted(&view.uid) => {
                    channel.send(&Reply::Pod(Box::new(view.pod.clone())), &[]).await?;
                }
                Ok(Change::Removed(view)) if wanted(&view.uid) => {
                    channel.send(&Reply::Gone { uid: view.uid.clone() }, &[]).await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => tell_all(channel, node, uids).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            event = happened.recv(), if with_events => {
                // Events that a slow client misses are in the journal.
                if let Ok(event) = event
                    && event.involved_object.uid.as_deref().is_some_and(wanted)
                {
                    channel.send(&Reply::Event(Box::new(event)), &[]).await?;
                }
            }
            closed = channel.receive::<Request>() => return closed_early(closed?.as_ref()),
        }
    }
}

/// All watched pods as they stand, and which of them are gone.
async fn tell_all(channel: &mut Channel, node: &Arc<Node>, uids: &[String]) -> anyhow::Result<()> {
    if uids.is_empty() {
        for pod in node.pods() {
            channel.send(&Reply::Pod(Box::new(pod)), &[]).await?;
        }
    }
    for uid in uids {
        let reply = match node.pod(uid) {
            Some(pod) => Reply::Pod(Box::new(pod)),
            None => Reply::Gone { uid: uid.clone() },
        };
        channel.send(&reply, &[]).await?;
    }
    Ok(())
}

async fn events(
    channel: &mut Channel,
    node: &Arc<Node>,
    uid: Option<&str>,
    follow: bool,
) -> anyhow::Result<()> {
    let mut happened = node.events_to_come();
    for event in node.events(uid) {
        channel.send(&Reply::Event(Box::new(event)), &[]).await?;
    }
    if !follow {
        return Ok(channel.send(&Reply::Done, &[]).await?);
    }
    let wanted =
        |event: &Event| uid.is_none_or(|uid| event.involved_object.uid.as_deref() == Some(uid));
    loop {
        tokio::select! {
            event = happened.recv() => match event {
                Ok(event) if wanted(&event) => {
                    channel.send(&Reply::Event(Box::new(event)), &[]).await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "a client misses events"),
                Err(RecvError::Closed) => return Ok(channel.send(&Reply::Done, &[]).await?),
            },
            closed = channel.receive::<Request>() => return closed_early(closed?.as_ref()),
        }
    }
}

/// A client ends a watch by closing; anything it says instead is wrong.
fn closed_early(request: Option<&Request>) -> anyhow::Result<()> {
    match request {
        None => Ok(()),
        Some(_) => anyhow::bail!("a request came while another was under way"),
    }
}

/// The pod of a request.
pub(super) fn pod_of(node: &Node, uid: &str) -> Result<k8s_openapi::api::core::v1::Pod, Failure> {
    node.pod(uid)
        .ok_or_else(|| Failure::new(format!("there is no pod {uid}")))
}
