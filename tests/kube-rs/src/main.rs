//! kube-rs, somebody else's client, over what `rkube server` serves: list,
//! watch with bookmarks, patches, apply, exec, port-forward, logs, deletion.
//!
//! The case `server::kube_rs` starts it with `KUBECONFIG` set; it prints one
//! line for each step and fails with the first that goes wrong.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{
    AttachParams, DeleteParams, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long one step may take.
const STEP: Duration = Duration::from_secs(60);

macro_rules! step {
    ($name:literal, $work:expr) => {
        tokio::time::timeout(STEP, $work)
            .await
            .with_context(|| format!("{}: not done after {STEP:?}", $name))?
            .context($name)?;
        println!("{}: done", $name);
    };
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = Client::try_default().await.context("read KUBECONFIG")?;
    step!("list", list(&client));
    step!("watch", watch(&client));
    step!("patch", patch(&client));
    step!("apply", apply(&client));
    step!("follow", follow(&client));
    step!("exec", exec(&client));
    step!("forward", forward(&client));
    step!("logs", logs(&client));
    step!("conflicts", conflicts(&client));
    step!("delete", delete(&client));
    Ok(())
}

fn deployment() -> Result<Deployment> {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "web", "image": "rkube.local/toolbox",
                    "command": ["httpd", "-p", "8080", "--text", "hello"],
                }]},
            },
        },
    });
    Ok(serde_json::from_value(deployment)?)
}

async fn list(client: &Client) -> Result<()> {
    let version = client.apiserver_version().await?;
    ensure!(version.minor == "36", "{version:?}");
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await?;
    ensure!(nodes.items.len() == 1, "{} nodes", nodes.items.len());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for name in ["a", "b", "c"] {
        let map =
            json!({"metadata": {"name": name, "labels": {"of": "kube-rs"}}, "data": {"k": name}});
        maps.create(&PostParams::default(), &serde_json::from_value(map)?)
            .await?;
    }
    // Page by page, all of one revision.
    let mut params = ListParams::default().labels("of=kube-rs").limit(2);
    let first = maps.list(&params).await?;
    ensure!(first.items.len() == 2, "{}", first.items.len());
    let token = first.metadata.continue_.context("no continue token")?;
    params = params.continue_token(&token);
    let second = maps.list(&params).await?;
    ensure!(second.items.len() == 1 && second.items[0].name_any() == "c");
    ensure!(first.metadata.resource_version == second.metadata.resource_version);
    ensure!(maps.get_opt("none").await?.is_none());
    let slim = maps.get_metadata("a").await?;
    ensure!(slim.labels()["of"] == "kube-rs");
    Ok(())
}

/// Initial events, the bookmark that ends them, and changes in order.
async fn watch(client: &Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let params = WatchParams::default()
        .labels("of=kube-rs")
        .timeout(50)
        .initial_events();
    let mut events = Box::pin(maps.watch(&params, "").await?);
    let mut seen = Vec::new();
    loop {
        match events.try_next().await?.context("the watch ended")? {
            WatchEvent::Added(map) => seen.push(map.name_any()),
            WatchEvent::Bookmark(mark) => {
                let end = mark.metadata.annotations.get("k8s.io/initial-events-end");
                ensure!(end.map(String::as_str) == Some("true"));
                break;
            }
            _ => bail!("something else before the initial events ended"),
        }
    }
    ensure!(seen == ["a", "b", "c"], "{seen:?}");
    let change = json!({"data": {"k": "changed"}});
    maps.patch("b", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    maps.delete("c", &DeleteParams::default()).await?;
    let mut told = Vec::new();
    while told.len() < 2 {
        match events.try_next().await?.context("the watch ended")? {
            WatchEvent::Modified(map) => told.push(format!("changed {}", map.name_any())),
            WatchEvent::Deleted(map) => told.push(format!("deleted {}", map.name_any())),
            WatchEvent::Bookmark(_) => {}
            _ => bail!("an event that nothing caused"),
        }
    }
    ensure!(told == ["changed b", "deleted c"], "{told:?}");
    Ok(())
}

async fn patch(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments
        .create(&PostParams::default(), &deployment()?)
        .await?;
    let params = PatchParams::default();
    let merge = json!({"metadata": {"labels": {"by": "merge"}}});
    let changed = deployments
        .patch("web", &params, &Patch::Merge(merge))
        .await?;
    ensure!(changed.labels()["by"] == "merge");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "web", "env": [{"name": "A", "value": "B"}]}]}}}});
    let changed = deployments
        .patch("web", &params, &Patch::Strategic(strategic))
        .await?;
    let container = json!(changed)["spec"]["template"]["spec"]["containers"].take();
    ensure!(
        container[0]["env"][0]["value"] == "B" && container[0]["image"] == "rkube.local/toolbox",
        "{container}"
    );
    let two = json!({"spec": {"replicas": 2}});
    let scale = deployments
        .patch_scale("web", &params, &Patch::Merge(two))
        .await?;
    ensure!(scale.spec.context("no spec")?.replicas == Some(2));
    let rolled = await_condition(
        deployments.clone(),
        "web",
        conditions::is_deployment_completed(),
    );
    rolled.await?;
    Ok(())
}

/// Server-side apply does not exist yet (LIMITS.md): the answer says so.
async fn apply(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let params = PatchParams::apply("kube-rs").force();
    match deployments
        .patch("web", &params, &Patch::Apply(deployment()?))
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 415 => {}
        other => bail!("{other:?}"),
    }
    // What clients do without it: the whole object, at its revision.
    let mut there = deployments.get("web").await?;
    there
        .annotations_mut()
        .insert("applied".to_owned(), "yes".to_owned());
    let replaced = deployments
        .replace("web", &PostParams::default(), &there)
        .await?;
    ensure!(replaced.annotations()["applied"] == "yes");
    Ok(())
}

/// kube's own informer, with streamed lists.
async fn follow(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let config = watcher::Config::default()
        .labels("app=web")
        .streaming_lists();
    let mut pods = Box::pin(watcher(pods, config).applied_objects());
    let mut ready = std::collections::BTreeSet::new();
    while ready.len() < 2 {
        let pod = pods.try_next().await?.context("the watch ended")?;
        let status = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if status == Some("Running") && pod.metadata.deletion_timestamp.is_none() {
            ready.insert(pod.name_any());
        }
    }
    Ok(())
}

async fn a_pod(client: &Client) -> Result<(Api<Pod>, String)> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let list = pods.list(&ListParams::default().labels("app=web")).await?;
    let running = list.items.into_iter().find(|pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
    });
    Ok((pods, running.context("no pod runs")?.name_any()))
}

/// Over WebSocket: output, input, and how it ended.
async fn exec(client: &Client) -> Result<()> {
    let (pods, name) = a_pod(client).await?;
    let params = AttachParams::default().stderr(false);
    let mut echo = pods.exec(&name, ["echo", "a b"], &params).await?;
    let mut said = String::new();
    let mut stdout = echo.stdout().context("no stdout")?;
    stdout.read_to_string(&mut said).await?;
    ensure!(said == "a b\n", "{said:?}");
    let status = echo.take_status().context("no status")?.await;
    ensure!(
        status.as_ref().and_then(|s| s.status.as_deref()) == Some("Success"),
        "{status:?}"
    );
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut cat = pods.exec(&name, ["cat"], &params).await?;
    let mut stdin = cat.stdin().context("no stdin")?;
    let mut stdout = cat.stdout().context("no stdout")?;
    stdin.write_all(b"through\n").await?;
    let mut buffer = [0; 8];
    stdout.read_exact(&mut buffer).await?;
    ensure!(&buffer == b"through\n");
    // Version 5 of the protocol closes the stream, so cat ends by itself.
    stdin.shutdown().await?;
    drop(stdin);
    let status = cat.take_status().context("no status")?.await;
    ensure!(
        status.as_ref().and_then(|s| s.status.as_deref()) == Some("Success"),
        "{status:?}"
    );
    drop(stdout);
    cat.join().await?;
    let mut bad = pods
        .exec(&name, ["exit", "7"], &AttachParams::default())
        .await?;
    let status = bad.take_status().context("no status")?.await;
    let causes = json!(status)["details"]["causes"].take();
    ensure!(causes[0]["message"] == "7", "{status:?}");
    Ok(())
}

async fn forward(client: &Client) -> Result<()> {
    let (pods, name) = a_pod(client).await?;
    let mut ports = pods.portforward(&name, &[8080]).await?;
    let mut stream = ports.take_stream(8080).context("no stream")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.ends_with("hello\n"), "{answer:?}");
    Ok(())
}

async fn logs(client: &Client) -> Result<()> {
    let (pods, name) = a_pod(client).await?;
    let all = pods.logs(&name, &LogParams::default()).await?;
    ensure!(all == "serving on port 8080\n", "{all:?}");
    let params = LogParams {
        follow: true,
        ..LogParams::default()
    };
    let mut lines = pods.log_stream(&name, &params).await?.lines();
    let first = lines.next().await.context("no line")??;
    ensure!(first == "serving on port 8080");
    Ok(())
}

async fn conflicts(client: &Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let stale = maps.get("a").await?;
    let change = json!({"data": {"k": "newer"}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    match maps.replace("a", &PostParams::default(), &stale).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {}
        other => bail!("{other:?}"),
    }
    match maps.create(&PostParams::default(), &stale).await {
        Err(kube::Error::Api(_)) => Ok(()),
        other => bail!("{other:?}"),
    }
}

async fn delete(client: &Client) -> Result<()> {
    let (pods, name) = a_pod(client).await?;
    let uid = pods.get(&name).await?.uid().context("no uid")?;
    pods.evict(&name, &EvictParams::default()).await?;
    await_condition(pods.clone(), &name, conditions::is_deleted(&uid)).await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let uid = deployments.get("web").await?.uid().context("no uid")?;
    deployments
        .delete("web", &DeleteParams::foreground())
        .await?;
    await_condition(deployments, "web", conditions::is_deleted(&uid)).await?;
    let left = pods.list(&ListParams::default().labels("app=web")).await?;
    ensure!(left.items.is_empty(), "{} pods are left", left.items.len());
    Ok(())
}
