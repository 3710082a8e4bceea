//! `rkube reset`: in order, and only this root's.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rkube_engine::{Engine, EngineConfig, Instance};
use rkube_kubelet::node::Paths;
use rkube_kubelet::{pod, record};

use crate::cli::Reset;
use crate::client::{Client, runtime};
use crate::supervisor::launch;
use crate::supervisor::locks;
use crate::view;
use crate::wire::{Failure, Request, Role};

pub(super) fn reset(root: &Path, args: &Reset) -> anyhow::Result<u8> {
    let Some(instance) = Instance::find(root)? else {
        // Nothing was ever made.
        return Ok(0);
    };
    let run_dir = instance.run_dir();
    match runtime()?.block_on(end_pods(root, args.force)) {
        Ok(()) => {}
        // What a writer cannot take down any more is taken down without it.
        Err(error) if args.force => {
            tracing::warn!(error = crate::error::chain(error.as_ref()), "end the pods");
        }
        Err(error) => return Err(error),
    }
    crate::wire::socket::make_run_dir(&run_dir)
        .with_context(|| format!("create directory {}", run_dir.display()))?;
    let start = locks::start(&run_dir)?;
    let writer = locks::writer(&run_dir)?;
    let logs = log_dirs(&instance)?;
    let writer_argv = launch::argv(&instance.root)?;
    let config = EngineConfig {
        instance: instance.clone(),
        writer: writer_argv,
        pod_ranges: None,
        cluster_ranges: Vec::new(),
    };
    // What is tried first must not keep the rest from being tried.
    let network = crate::server::network::reset(&instance);
    Engine::reset(config, &logs)?;
    network?;
    remove_rest(&instance)?;
    drop(writer);
    drop(start);
    Ok(0)
}

/// Ends all pods and the writer.
async fn end_pods(root: &Path, force: bool) -> anyhow::Result<()> {
    let Some(mut client) = Client::look(root).await? else {
        return Ok(());
    };
    if client.role() != Role::Supervisor {
        let command = client.role().command();
        return Err(Failure::new(format!("`{command}` serves this root"))
            .hint("end it with SIGTERM first; its pods run on until the reset")
            .into());
    }
    let pods = client.pods().await?;
    let running: Vec<String> = pods
        .iter()
        .filter(|p| !view::finished(p))
        .map(pod::display_name)
        .collect();
    if !running.is_empty() && !force {
        return Err(
            Failure::new(format!("pods are running: {}", running.join(", ")))
                .hint("end them with `rkube stop` and `rkube rm`, or reset with --force")
                .into(),
        );
    }
    client
        .call(&Request::EndAll {
            grace_seconds: Some(0),
        })
        .await?;
    client.end_writer()
}

/// Log directories of the pods that are still on record, those of ended
/// sandboxes too. A record that cannot be read names none.
fn log_dirs(instance: &Instance) -> anyhow::Result<Vec<PathBuf>> {
    let paths = Paths::new(&instance.root);
    let mut dirs = Vec::new();
    for uid in record::uids(&paths)? {
        match record::read(&paths, &uid) {
            Ok(Some((wanted, _))) => dirs.push(paths.pod_logs(&wanted.pod)),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "find logs"),
        }
    }
    Ok(dirs)
}

/// The supervisor's log, and what is empty of a root of its own.
fn remove_rest(instance: &Instance) -> anyhow::Result<()> {
    let root = &instance.root;
    let log = root.join("var/log/rkube");
    match std::fs::remove_dir_all(&log) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", log.display()));
        }
        _ => {}
    }
    if root != Path::new("/") {
        for dir in ["run", "var/log/pods", "var/log", "var/lib", "var"] {
            // Others may keep things there; then it stays.
            let _ = std::fs::remove_dir(root.join(dir));
        }
    }
    Ok(())
}
