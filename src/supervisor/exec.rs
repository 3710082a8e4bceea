//! Programs that run in a container beside its first one.
//!
//! The writer passes descriptors on and waits; no byte of the program's input
//! or output goes through it. With a terminal, the command gets the master.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rkube_engine::api::{ContainerRuntime, ExecConfig, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::node::{Node, failed};
use super::serve::pod_of;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::{Exec, Failure, Reply};

/// Runs the program and waits for its end; the exit code.
pub(super) async fn exec(
    channel: &mut Channel,
    node: &Arc<Node>,
    request: Exec,
    fds: Vec<OwnedFd>,
) -> Result<Result<i32, Failure>, ChannelError> {
    let (handle, id) = match start(node, request, fds).await {
        Ok(started) => started,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut handle = handle;
    let terminal = handle.terminal.take();
    let master: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
    channel
        .send(&Reply::ExecStarted { pid: handle.pid }, &master)
        .await?;
    // The command holds the only master from here on: when it goes, the
    // program gets SIGHUP.
    drop(terminal);
    let ended = wait_readable(&handle.pidfd).await;
    if let Err(error) = ended {
        return Ok(Err(Failure::new(format!(
            "wait for pid {}: {error}",
            handle.pid
        ))));
    }
    let code = node
        .ask(move |engine| engine.exec_wait(&id, &handle).map_err(|e| failed(&e)))
        .await;
    Ok(code.and_then(|code| code))
}

async fn start(
    node: &Arc<Node>,
    request: Exec,
    fds: Vec<OwnedFd>,
) -> Result<
    (
        rkube_engine::api::ExecHandle,
        rkube_engine::api::ContainerId,
    ),
    Failure,
> {
    pod_of(node, &request.uid)?;
    let mut fds = fds.into_iter();
    // The engine refuses what is neither a pipe nor a socket without a name.
    let stdin = if request.stdin { fds.next() } else { None };
    let stdio = Stdio {
        stdin,
        stdout: fds.next(),
        stderr: fds.next(),
    };
    let config = ExecConfig {
        argv: request.argv,
        env: request.env,
        tty: request.tty,
        size: request.size,
        ..ExecConfig::default()
    };
    let started = node.ask(move |engine| {
        let id = Node::running(engine, &request.uid, &request.container)?;
        let handle = engine.exec(&id, &config, stdio).map_err(|e| failed(&e))?;
        Ok((handle, id))
    });
    started.await?
}

/// Waits until a pidfd tells that its process has ended.
#[expect(
    deprecated,
    reason = "the newer constructor is unsafe because other types may swap their descriptor; an OwnedFd cannot"
)]
async fn wait_readable(fd: &OwnedFd) -> std::io::Result<()> {
    let watched = AsyncFd::with_interest(fd.try_clone()?, Interest::READABLE)?;
    watched.readable().await.map(drop)
}
