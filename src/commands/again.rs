//! `rkube start`, `rkube restart` and `rkube update`.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Instance;
use rkube_kubelet::manager::Ask;
use rkube_kubelet::pod::{self, Kind};
use rkube_kubelet::translate::limits::{Amount, LimitsChange};

use super::end::several;
use super::{client_and_pods, container_of};
use crate::cli::{Restart, Start, Update};
use crate::client::{Client, Watcher, is_lost, runtime, unexpected};
use crate::wire::{Failure, Reply, Request};
use crate::{output, view};

/// Asks until it is answered: a writer that dies meanwhile is replaced. What
/// is asked twice is done once where the first was recorded, but for a
/// restart, which then comes twice.
async fn ask(instance: &Instance, uid: &str, ask: &Ask) -> anyhow::Result<()> {
    loop {
        let mut client = Client::start(instance).await?;
        let request = Request::Ask {
            uid: uid.to_owned(),
            ask: ask.clone(),
        };
        match client.call(&request).await {
            Ok(Reply::Done) => return Ok(()),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn start(root: &Path, args: &Start) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let (client, pods) = client_and_pods(root, &args.pods.pods, &args.pods.namespace).await?;
        all(root, client, &pods, &Ask::Start, args.timeout).await
    })
}

pub(super) fn restart(root: &Path, args: &Restart) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let (client, pods) = client_and_pods(root, &args.pods.pods, &args.pods.namespace).await?;
        for pod in &pods {
            for name in &args.container {
                container_of(pod, Some(name))?;
            }
        }
        let ask = Ask::Restart {
            containers: args.container.clone(),
            grace_seconds: args.grace,
        };
        all(root, client, &pods, &ask, args.timeout).await
    })
}

/// Asks all pods, waits for those that were asked with success, and tells all
/// that went wrong.
async fn all(
    root: &Path,
    client: Client,
    pods: &[Pod],
    what: &Ask,
    timeout: u64,
) -> anyhow::Result<u8> {
    let instance = Instance::open(root)?;
    let (mut errors, mut asked) = (Vec::new(), Vec::new());
    for pod in pods {
        match ask(&instance, pod::uid(pod), what).await {
            Ok(()) => asked.push(pod.clone()),
            Err(error) => errors.push(error),
        }
    }
    if timeout == 0 {
        for pod in &asked {
            output::print(&format!("{}\n", pod::display_name(pod)))?;
        }
    } else {
        let limit = Duration::from_secs(timeout);
        let up = up(&instance, client, &asked, what);
        match tokio::time::timeout(limit, up).await {
            Ok(result) => result?,
            Err(_) => errors.push(
                Failure::new(format!("not all pods run after {timeout} s"))
                    .hint("they are still being tried; `rkube events` tells more")
                    .into(),
            ),
        }
    }
    several(errors).map(|()| 0)
}

/// Waits until each pod runs again, or has run to its end.
async fn up(instance: &Instance, client: Client, pods: &[Pod], what: &Ask) -> anyhow::Result<()> {
    if pods.is_empty() {
        return Ok(());
    }
    let mut open: Vec<&Pod> = pods.iter().collect();
    let uids = pods.iter().map(|p| pod::uid(p).to_owned()).collect();
    let mut watcher = Watcher::begin(instance, client, uids, false).await?;
    while !open.is_empty() {
        let news = watcher.next().await?;
        let uid = match &news {
            Reply::Pod(pod) => pod::uid(pod).to_owned(),
            Reply::Gone { uid } => uid.clone(),
            other => return Err(unexpected(other)),
        };
        let Some(at) = open.iter().position(|p| pod::uid(p) == uid) else {
            continue;
        };
        match news {
            Reply::Pod(now) if !runs_again(open[at], &now, what) => continue,
            Reply::Pod(_) => {}
            _ => anyhow::bail!("pod {} was removed", pod::display_name(open[at])),
        }
        output::print(&format!("{}\n", pod::display_name(open[at])))?;
        open.remove(at);
    }
    Ok(())
}

/// Whether every container that was to run again has begun a run that it had
/// not before. What ran and was only to be started needs none.
fn runs_again(before: &Pod, now: &Pod, what: &Ask) -> bool {
    let wanted = |kind: Kind, name: &str| match what {
        Ask::Restart { containers, .. } if !containers.is_empty() => {
            containers.iter().any(|c| c == name)
        }
        _ => kind == Kind::Main,
    };
    if *what == Ask::Start && !view::finished(before) {
        return true;
    }
    let begun = |name: &str| {
        let of = |pod: &Pod| {
            view::statuses(pod)
                .find(|(_, s)| s.name == name)
                .map(|(_, s)| s.clone())
        };
        let Some(now) = of(now) else { return false };
        let state = now.state.unwrap_or_default();
        let began = state.running.is_some() || state.terminated.is_some();
        // One that never ran has no count to grow.
        let first = of(before).is_none_or(|s| s.container_id.is_none());
        let grown = of(before).is_none_or(|s| now.restart_count > s.restart_count);
        began && (grown || first) || state.waiting.is_some() && grown && !first
    };
    pod::containers(now)
        .filter(|(kind, c)| wanted(*kind, &c.name))
        .all(|(_, c)| begun(&c.name))
}

pub(super) fn update(root: &Path, args: &Update) -> anyhow::Result<u8> {
    let amount = |text: &Option<String>| {
        text.as_ref().map(|text| match text.as_str() {
            "none" => Amount::Unlimited,
            text => Amount::Of(text.to_owned()),
        })
    };
    runtime()?.block_on(async {
        let names = [args.pod.pod.clone()];
        let (_client, pods) = client_and_pods(root, &names, &args.pod.namespace).await?;
        let pod = pods.first().context("find the pod")?;
        let change = LimitsChange {
            container: container_of(pod, args.container.as_deref())?,
            cpu_request: amount(&args.cpu_request),
            cpu_limit: amount(&args.cpu_limit),
            memory_request: amount(&args.memory_request),
            memory_limit: amount(&args.memory_limit),
            memory_high: amount(&args.memory_high),
            pids: amount(&args.pids),
        };
        let name = format!("{}/{}", pod::display_name(pod), change.container);
        let instance = Instance::open(root)?;
        ask(&instance, pod::uid(pod), &Ask::Limit(change)).await?;
        output::print(&format!("{name}\n"))
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, count: i32, state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "a"}]},
            "status": {"phase": phase, "containerStatuses": [{"name": "a", "image": "",
                "imageID": "", "containerID": "rkube://u/a/0", "ready": false,
                "restartCount": count, "state": state}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_restart_is_over_with_a_new_run() {
        let restart = Ask::Restart {
            containers: Vec::new(),
            grace_seconds: None,
        };
        let running = || json!({"running": {}});
        let ended = || json!({"terminated": {"exitCode": 0}});
        let before = pod("Running", 0, running());
        assert!(!runs_again(&before, &before, &restart));
        assert!(!runs_again(&before, &pod("Running", 0, ended()), &restart));
        assert!(runs_again(&before, &pod("Running", 1, running()), &restart));
        assert!(runs_again(&before, &pod("Succeeded", 1, ended()), &restart));
        let stopped = pod("Failed", 0, ended());
        assert!(!runs_again(&stopped, &stopped, &Ask::Start));
        assert!(runs_again(
            &stopped,
            &pod("Running", 1, running()),
            &Ask::Start
        ));
        // It runs already.
        assert!(runs_again(&before, &before, &Ask::Start));
    }
}
