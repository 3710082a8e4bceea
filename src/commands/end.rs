//! `rkube stop`, `rkube rm` and `rkube wait`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Instance;
use rkube_kubelet::pod;
use tokio::task::JoinSet;

use super::client_and_pods;
use crate::cli::{Rm, Stop, Wait};
use crate::client::{Client, Watcher, is_lost, runtime, unexpected};
use crate::wire::{End, Reply, Request};
use crate::{output, view};

/// Ends pods at the same time; all are tried, then all errors told.
async fn end(
    root: &Path,
    pods: &[Pod],
    grace_seconds: Option<u64>,
    forget: bool,
) -> anyhow::Result<()> {
    let instance = Instance::open(root)?;
    let mut tasks = JoinSet::new();
    for pod in pods {
        let request = End {
            uid: pod::uid(pod).to_owned(),
            grace_seconds,
            forget,
        };
        let (instance, name) = (instance.clone(), pod::display_name(pod));
        tasks.spawn(async move {
            let ended = one(&instance, request).await;
            ended
                .with_context(|| format!("end pod {name}"))
                .map(|()| name)
        });
    }
    let mut errors = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result.context("end a pod").and_then(|r| r) {
            Ok(name) => output::print(&(name + "\n"))?,
            Err(error) => errors.push(error),
        }
    }
    several(errors)
}

/// Ends a pod and waits for that.
pub(super) async fn one(instance: &Instance, request: End) -> anyhow::Result<()> {
    let mut client = Client::start(instance).await?;
    let request = Request::End(request);
    client.send(&request, &[]).await?;
    answer(instance, client, &request).await
}

/// Waits for the pod's end; a writer that dies meanwhile is replaced and
/// asked again.
async fn answer(instance: &Instance, mut client: Client, request: &Request) -> anyhow::Result<()> {
    loop {
        match client.reply().await {
            Ok(Reply::Done) => return Ok(()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if is_lost(&error) => {
                client = Client::start(instance).await?;
                let uids: Vec<String> = client
                    .pods()
                    .await?
                    .iter()
                    .map(|p| pod::uid(p).to_owned())
                    .collect();
                if let Request::End(end) = request
                    && !uids.contains(&end.uid)
                {
                    return Ok(());
                }
                client.send(request, &[]).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// One error, or one that tells all.
pub(super) fn several(mut errors: Vec<anyhow::Error>) -> anyhow::Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => {
            let texts: Vec<String> = errors
                .iter()
                .map(|e| crate::error::chain(e.as_ref()))
                .collect();
            Err(anyhow::anyhow!(texts.join("; ")))
        }
    }
}

pub(super) fn stop(root: &Path, args: &Stop) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        // Connected all the while, so that one supervisor serves it all.
        let (_client, pods) = client_and_pods(root, &args.pods.pods, &args.pods.namespace).await?;
        let running: Vec<Pod> = pods.into_iter().filter(|p| !view::finished(p)).collect();
        end(root, &running, args.grace, false).await
    })?;
    Ok(0)
}

pub(super) fn rm(root: &Path, args: &Rm) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let (_client, pods) = client_and_pods(root, &args.pods.pods, &args.pods.namespace).await?;
        if let Some(pod) = pods.iter().find(|p| !args.force && !view::finished(p)) {
            let failure =
                crate::wire::Failure::new(format!("pod {} has not ended", pod::display_name(pod)));
            return Err(failure
                .hint("stop it first, or remove it with --force")
                .into());
        }
        end(root, &pods, Some(0), true).await
    })?;
    Ok(0)
}

pub(super) fn wait(root: &Path, args: &Wait) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let (client, pods) = client_and_pods(root, &args.pods.pods, &args.pods.namespace).await?;
        let instance = Instance::open(root)?;
        let ended = ended(&instance, client, pods);
        let pods = match args.timeout {
            None => ended.await?,
            Some(seconds) => {
                match tokio::time::timeout(Duration::from_secs(seconds), ended).await {
                    Ok(pods) => pods?,
                    Err(_) => anyhow::bail!("not all pods have ended after {seconds} s"),
                }
            }
        };
        Ok(view::exit_code(&pods))
    })
}

/// Waits until pods have ended or are gone, and tells how they stood last.
async fn ended(
    instance: &Instance,
    client: Client,
    mut pods: Vec<Pod>,
) -> anyhow::Result<Vec<Pod>> {
    let uids: Vec<String> = pods.iter().map(|p| pod::uid(p).to_owned()).collect();
    let mut open = uids.clone();
    let mut watcher = Watcher::begin(instance, client, uids, false).await?;
    while !open.is_empty() {
        match watcher.next().await? {
            Reply::Pod(news) => {
                if view::finished(&news) {
                    open.retain(|uid| uid != pod::uid(&news));
                }
                if let Some(known) = pods.iter_mut().find(|p| pod::uid(p) == pod::uid(&news)) {
                    *known = *news;
                }
            }
            Reply::Gone { uid } => open.retain(|o| *o != uid),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(pods)
}
