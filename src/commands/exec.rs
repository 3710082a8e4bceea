//! `rkube exec`.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use rkube_kubelet::pod;
use tokio::signal::unix::{SignalKind, signal};

use super::streams::Pipes;
use super::terminal::{self, Raw};
use super::{client_and_pods, container_of};
use crate::cli;
use crate::client::{Client, runtime, unexpected};
use crate::error::{FAILURE, bad_input};
use crate::wire::{Exec, Reply, Request};

pub(super) fn exec(root: &Path, args: cli::Exec) -> anyhow::Result<u8> {
    let runtime = runtime()?;
    let code = runtime.block_on(run(root, args));
    // A thread may still wait for keys: it ends with the process.
    runtime.shutdown_background();
    code
}

async fn run(root: &Path, args: cli::Exec) -> anyhow::Result<u8> {
    let mut env = Vec::new();
    for pair in &args.env {
        let (name, value) = pair
            .split_once('=')
            .filter(|(n, _)| !n.is_empty())
            .ok_or_else(|| bad_input(format!("--env {pair:?}: give NAME=VALUE")))?;
        env.push((name.to_owned(), value.to_owned()));
    }
    if args.tty && args.stdin && !std::io::stdin().is_terminal() {
        return Err(bad_input(
            "--tty with --stdin: standard input is not a terminal",
        ));
    }
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.insert(0, ("TERM".to_owned(), term));
    }
    let (mut client, pods) = client_and_pods(root, &[args.pod.pod], &args.pod.namespace).await?;
    let pod = pods.first().context("find the pod")?;
    let container = container_of(pod, args.container.as_deref())?;
    let request = Exec {
        uid: pod::uid(pod).to_owned(),
        container,
        argv: args.command,
        env,
        tty: args.tty,
        size: args.tty.then(terminal::size).flatten(),
        stdin: args.stdin && !args.tty,
    };
    if args.tty {
        with_terminal(&mut client, request, args.stdin).await
    } else {
        with_pipes(&mut client, request, args.stdin).await
    }
}

/// The program gets pipes, never this process's own descriptors.
async fn with_pipes(client: &mut Client, request: Exec, stdin: bool) -> anyhow::Result<u8> {
    let pipes = Pipes::new(stdin)?;
    let theirs: Vec<_> = pipes.theirs.iter().map(AsFd::as_fd).collect();
    client.send(&Request::Exec(request), &theirs).await?;
    started(client).await?;
    let streams = pipes.copy()?;
    let code = ended(client).await?;
    streams.finish()?;
    Ok(code)
}

async fn with_terminal(client: &mut Client, request: Exec, stdin: bool) -> anyhow::Result<u8> {
    client.send(&Request::Exec(request), &[]).await?;
    let master = started(client)
        .await?
        .context("the writer sent no terminal")?;
    // Ends here too when the terminal or the session goes.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let raw = if stdin { Some(Raw::enter()?) } else { None };
    let carried = tokio::select! {
        carried = terminal::carry(master, stdin) => carried,
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = hangup.recv() => Err(anyhow::anyhow!("ended by SIGHUP")),
    };
    drop(raw);
    carried?;
    ended(client).await
}

async fn started(client: &mut Client) -> anyhow::Result<Option<OwnedFd>> {
    match client.reply().await? {
        Reply::ExecStarted { .. } => Ok(client.take_fds().into_iter().next()),
        other => Err(unexpected(&other)),
    }
}

async fn ended(client: &mut Client) -> anyhow::Result<u8> {
    match client.reply().await? {
        Reply::Exited { code } => Ok(u8::try_from(code).unwrap_or(FAILURE)),
        other => Err(unexpected(&other)),
    }
}
