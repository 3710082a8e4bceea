//! `rkube logs`: reads the files themselves; a writer is asked only how long
//! to follow.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Instance;
use rkube_kubelet::logs::{Follow, LogError, Options, read};
use rkube_kubelet::node::Paths;
use rkube_kubelet::{pod, record};
use tokio::sync::watch;

use super::paint::Painter;
use super::{container_of, find};
use crate::cli::Logs;
use crate::client::{Client, Watcher, runtime};
use crate::error::bad_input;
use crate::view;
use crate::wire::Reply;

pub(super) fn logs(root: &Path, args: &Logs) -> anyhow::Result<u8> {
    let pods = recorded(root)?;
    let pod = find(&pods, &args.pod.pod, &args.pod.namespace)?;
    let options = Options {
        tail: args.tail,
        since: args
            .since
            .as_deref()
            .map(|text| since(text, SystemTime::now()))
            .transpose()?,
        previous: args.previous,
        stream: None,
    };
    let containers = chosen(pod, args)?;
    let mut painter = Painter::new(args.all_containers, args.timestamps);
    for name in &containers {
        painter.learn(name);
    }
    let instance = Instance::open(root)?;
    let dir = Paths::new(&instance.root).pod_logs(pod);
    if args.follow {
        runtime()?.block_on(follow(&instance, pod, &dir, &containers, &options, painter))?;
    } else {
        print(&dir, &containers, &options, painter)?;
    }
    Ok(0)
}

/// The pods on record.
fn recorded(root: &Path) -> anyhow::Result<Vec<Pod>> {
    let Some(instance) = Instance::find(root)? else {
        return Ok(Vec::new());
    };
    let paths = Paths::new(&instance.root);
    let mut pods = Vec::new();
    for uid in record::uids(&paths)? {
        // A pod may be removed meanwhile.
        if let Some((wanted, _)) = record::read(&paths, &uid)? {
            pods.push(wanted.pod);
        }
    }
    Ok(pods)
}

fn chosen(pod: &Pod, args: &Logs) -> anyhow::Result<Vec<String>> {
    let all: Vec<String> = pod::containers(pod).map(|(_, c)| c.name.clone()).collect();
    if args.all_containers {
        return Ok(all);
    }
    let mains = pod::containers(pod)
        .filter(|(kind, _)| *kind == pod::Kind::Main)
        .count();
    if args.container.is_none() && mains > 1 {
        let names = all.join(", ");
        return Err(bad_input(format!(
            "pod {} has several containers: choose with -c among {names}, or --all-containers",
            pod::display_name(pod)
        )));
    }
    Ok(vec![container_of(pod, args.container.as_deref())?])
}

fn print(
    dir: &Path,
    containers: &[String],
    options: &Options,
    mut painter: Painter,
) -> anyhow::Result<()> {
    for name in containers {
        let mut failed = None;
        let result = read(&dir.join(name), options, |entry| {
            failed = painter.write(name, &entry).err();
            failed.is_none()
        });
        match result {
            // Of several containers some have not begun yet.
            Err(LogError::Missing { .. }) if containers.len() > 1 => {}
            other => other.with_context(|| format!("read the log of container {name}"))?,
        }
        if let Some(error) = failed {
            return Err(error).context("write to standard output");
        }
    }
    Ok(())
}

async fn follow(
    instance: &Instance,
    pod: &Pod,
    dir: &Path,
    containers: &[String],
    options: &Options,
    mut painter: Painter,
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let mut follow = Follow::new(stopped)?;
    for name in containers {
        let dir = dir.join(name);
        // Watched before its first line: a container may not have begun.
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("create directory {}", dir.display()))?;
        follow.add(dir, options.clone(), true)?;
    }
    let uid = pod::uid(pod).to_owned();
    let instance = instance.clone();
    let over = rkube_task::spawn(async move {
        let result = until_over(&instance, uid).await;
        stop.send_replace(true);
        result
    });
    while let Some((number, entry)) = follow.next().await? {
        let name = containers
            .get(number)
            .map(String::as_str)
            .unwrap_or_default();
        painter
            .write(name, &entry)
            .context("write to standard output")?;
    }
    over.await.context("watch the pod")?
}

/// Waits until the pod has ended or is gone.
async fn until_over(instance: &Instance, uid: String) -> anyhow::Result<()> {
    let client = Client::start(instance).await?;
    let mut watcher = Watcher::begin(instance, client, vec![uid], false).await?;
    loop {
        match watcher.next().await? {
            Reply::Pod(pod) if !view::finished(&pod) => {}
            _ => return Ok(()),
        }
    }
}

/// A time (RFC 3339), or a duration before now: numbers with h, m or s.
fn since(text: &str, now: SystemTime) -> anyhow::Result<SystemTime> {
    let wrong = || {
        bad_input(format!(
            "--since {text:?}: give a time like 2026-01-02T03:04:05Z or a duration like 90s, 10m, 2h30m"
        ))
    };
    if let Ok(at) = text.parse::<k8s_openapi::jiff::Timestamp>() {
        return Ok(rkube_kubelet::time::from_timestamp(at));
    }
    let ago = crate::duration::parse(text).map_err(|_| wrong())?;
    Ok(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn since_takes_times_and_durations() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |s| now - Duration::from_secs(s);
        assert_eq!(since("90s", now).unwrap(), ago(90));
        assert_eq!(since("2h30m", now).unwrap(), ago(9000));
        let at = since("1970-01-02T00:00:00Z", now).unwrap();
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(86400));
        for bad in [
            "",
            "5",
            "5x",
            "m",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert!(since(bad, now).is_err(), "{bad}");
        }
    }
}
