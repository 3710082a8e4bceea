//! Joining what runs: streams, files and ports of pods.
//!
//! The writer hands descriptors out and is out of the way: no byte goes
//! through it.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::ContainerId;

use super::node::{Node, failed};
use super::serve::pod_of;
use crate::view;
use crate::wire::channel::Channel;
use crate::wire::{Attach, Failure, Reply, Request};

/// Joins a container and waits for its end; `None` when the client has left
/// before it.
pub(super) async fn attach(
    channel: &mut Channel,
    node: &Arc<Node>,
    request: Attach,
) -> anyhow::Result<Option<Result<i32, Failure>>> {
    if let Err(failure) = pod_of(node, &request.uid) {
        return Ok(Some(Err(failure)));
    }
    let (uid, stdin) = (request.uid.clone(), request.stdin);
    let joined = node.ask(move |engine| {
        let id = Node::running(engine, &request.uid, &request.container)?;
        let attached = engine.attach(&id, stdin).map_err(|e| failed(&e))?;
        Ok((id, attached))
    });
    let (id, attached) = match joined.await.and_then(|joined| joined) {
        Ok(joined) => joined,
        Err(failure) => return Ok(Some(Err(failure))),
    };
    let Some(mut view) = node.manager.follow(&uid) else {
        return Ok(Some(Err(Failure::new("the pod has gone"))));
    };
    let tty = attached.terminal.is_some();
    let fds = attached.outputs.iter().chain(&attached.input);
    let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
    channel.send(&Reply::Attached { tty }, &fds).await?;
    // The client has the only copies from here on: its end is their end.
    drop(attached);
    let ended = async {
        let ended = view.wait_for(|v| end(&v.pod, &id).is_some()).await;
        // Without it the pod is forgotten.
        ended.ok().and_then(|v| end(&v.pod, &id)).unwrap_or(-1)
    };
    let mut ended = std::pin::pin!(ended);
    let left = loop {
        tokio::select! {
            code = &mut ended => break Some(Ok(code)),
            request = channel.receive::<Request>() => match request? {
                Some(Request::InputEnded) => close_input(node, &id).await,
                None => break None,
                Some(_) => anyhow::bail!("a request came while another was under way"),
            },
        }
    };
    if stdin {
        close_input(node, &id).await;
    }
    Ok(left)
}

/// The input of a container with `stdinOnce` ends with its first attach.
async fn close_input(node: &Arc<Node>, id: &ContainerId) {
    let id = id.clone();
    let closed = node
        .ask(move |engine| engine.close_input(&id).map_err(|e| failed(&e)))
        .await;
    if let Ok(Err(error)) | Err(error) = closed {
        tracing::warn!(%error, "end a container's standard input");
    }
}

/// How an attempt of a container ended, if it has.
fn end(pod: &Pod, id: &ContainerId) -> Option<i32> {
    let attempt = i32::try_from(id.attempt).unwrap_or(i32::MAX);
    let (_, status) = view::statuses(pod).find(|(_, s)| s.name == id.name)?;
    let terminated = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        let ended = state.as_ref()?.terminated.as_ref()?;
        Some(ended.exit_code)
    };
    match status.restart_count {
        count if count == attempt => terminated(&status.state).or_else(|| {
            // Waiting for its next run.
            terminated(&status.last_state).filter(|_| {
                let state = status.state.as_ref();
                state.is_some_and(|s| s.waiting.is_some())
            })
        }),
        count if count > attempt => Some(terminated(&status.last_state).unwrap_or(-1)),
        _ => None,
    }
}

/// Hands out the root directory of a container.
pub(super) async fn files(
    channel: &mut Channel,
    node: &Arc<Node>,
    uid: String,
    container: String,
) -> anyhow::Result<()> {
    let opened = match pod_of(node, &uid) {
        Err(failure) => Err(failure),
        Ok(_) => {
            let asked = node.ask(move |engine| {
                let id = Node::running(engine, &uid, &container)?;
                engine.files(&id).map_err(|e| failed(&e))
            });
            asked.await.and_then(|files| files)
        }
    };
    match opened {
        Ok(files) => {
            let reply = Reply::Files {
                first_id: files.first_id,
                uid: files.uid,
                gid: files.gid,
            };
            channel.send(&reply, &[files.root.as_fd()]).await
        }
        Err(failure) => channel.send(&Reply::Failed(failure), &[]).await,
    }
    .context("answer")
}

/// Hands out a connection to a port of a pod.
pub(super) async fn connect(
    channel: &mut Channel,
    node: &Arc<Node>,
    uid: String,
    port: u16,
) -> anyhow::Result<()> {
    let connected = match pod_of(node, &uid) {
        Err(failure) => Err(failure),
        Ok(_) => {
            let asked = node.ask(move |engine| engine.connect(&uid, port).map_err(|e| failed(&e)));
            asked.await.and_then(|stream| stream)
        }
    };
    match connected {
        Ok(stream) => channel.send(&Reply::Connected, &[stream.as_fd()]).await,
        Err(failure) => channel.send(&Reply::Failed(failure), &[]).await,
    }
    .context("answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_attempt_is_told_by_its_number() {
        let pod = |count: i32, state: serde_json::Value, last: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "spec": {"containers": [{"name": "a"}]},
                "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "",
                    "ready": false, "restartCount": count, "state": state, "lastState": last}]},
            }))
            .unwrap()
        };
        let id = |attempt| ContainerId {
            sandbox: "u".into(),
            name: "a".into(),
            attempt,
        };
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let (running, ended) = (
            json(r#"{"running": {}}"#),
            json(r#"{"terminated": {"exitCode": 3}}"#),
        );
        let waiting = json(r#"{"waiting": {"reason": "CrashLoopBackOff"}}"#);
        let none = json("{}");
        assert_eq!(end(&pod(0, running.clone(), none.clone()), &id(0)), None);
        assert_eq!(end(&pod(0, ended.clone(), none.clone()), &id(0)), Some(3));
        assert_eq!(
            end(&pod(0, waiting.clone(), ended.clone()), &id(0)),
            Some(3)
        );
        assert_eq!(
            end(&pod(1, running.clone(), ended.clone()), &id(0)),
            Some(3)
        );
        assert_eq!(end(&pod(1, running, ended), &id(1)), None);
        assert_eq!(end(&pod(2, waiting, none), &id(0)), Some(-1));
    }
}
