//! The host supervisor: the writer of a root where no agent or server runs.
//!
//! The first `rkube run` starts it, and it ends when no pod is active any
//! more and no command is connected; pods that have ended stay in the records
//! for the next one. It is one thread and a few short-lived ones for blocking
//! calls, and at rest it makes no system call.
//!
//! Beginning and end are serialised by [`locks`]; SIGTERM and SIGINT end it
//! in good order and leave the pods to their keepers.

mod config;
mod exec;
pub(crate) mod home;
mod join;
pub(crate) mod launch;
pub(crate) mod locks;
pub(crate) mod node;
mod report;
mod serve;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rkube_engine::instance::Instance;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::wire::{Failure, socket};
use launch::News;
use locks::LockError;
use node::{Node, Setting};

/// Stack of threads for blocking calls, in bytes.
const BLOCKING_STACK_BYTES: usize = 512 << 10;
/// Most blocking calls at a time; more wait. Starting a pod takes two.
const MAX_BLOCKING_THREADS: usize = 16;
/// How long an idle thread stays for the next call.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a supervisor waits for the command that started it.
const FIRST_CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// Most commands that are connected at a time.
const MAX_CLIENTS: usize = 256;

/// Serves until there is nothing left to do.
///
/// With `adopt` it makes nothing: where a reset has been there is nothing to
/// serve.
pub(crate) fn serve(root: &Path, adopt: bool) -> anyhow::Result<()> {
    // A session of its own; EPERM means that it leads one already.
    let _ = rustix::process::setsid();
    // It was started from a descriptor of its own file, whose name means nothing.
    let _ = rustix::thread::set_name(c"rkube");
    rkube_sys::signal::ignore_sigpipe();
    let result = if adopt {
        begin_adopting(root)
    } else {
        begin(root)
    };
    if let Err(error) = &result {
        match error.downcast_ref::<LockError>() {
            Some(LockError::Busy) => {
                launch::tell(&News::Busy);
                return Ok(());
            }
            _ => launch::tell(&News::Failed(crate::error::failure(error))),
        }
    }
    result
}

fn begin(root: &Path) -> anyhow::Result<()> {
    let instance = Instance::open(root)?;
    let run_dir = instance.run_dir();
    socket::make_run_dir(&run_dir)
        .with_context(|| format!("create directory {}", run_dir.display()))?;
    let start = locks::start(&run_dir)?;
    serve_from(instance, start)
}

fn begin_adopting(root: &Path) -> anyhow::Result<()> {
    let Some(instance) = Instance::find(root)? else {
        return Ok(());
    };
    let start = match locks::start(&instance.run_dir()) {
        Err(error) if error.is_absence() => return Ok(()),
        other => other?,
    };
    // A reset may have held the lock.
    if Instance::find(root)?.as_ref() == Some(&instance) {
        serve_from(instance, start)?;
    }
    Ok(())
}

fn serve_from(mut instance: Instance, start: locks::Lock) -> anyhow::Result<()> {
    let run_dir = instance.run_dir();
    let writer = locks::writer(&run_dir)?;
    home::ask_systemd(&mut instance);
    let instance = &instance;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .context("start the async runtime")?;
    let listener =
        socket::listen(&run_dir).with_context(|| format!("listen in {}", run_dir.display()))?;
    // Others may connect from here on; they are answered once pods are known.
    drop(start);
    // Who connects while it ends hears of that only once the lock is held:
    // then nobody finds neither a writer that listens nor a free lock.
    let door = listener.try_clone().context("duplicate the socket")?;
    let ended = runtime.block_on(run(instance, listener));
    let end = locks::start(&run_dir)?;
    drop(door);
    socket::remove_socket(&run_dir)
        .with_context(|| format!("remove the socket in {}", run_dir.display()))?;
    runtime.shutdown_background();
    drop(writer);
    drop(end);
    ended
}

async fn run(
    instance: &Instance,
    listener: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    listener
        .set_nonblocking(true)
        .context("set the socket non-blocking")?;
    let listener = UnixListener::from_std(listener).context("watch the socket")?;
    let orphans = signal(SignalKind::child()).context("handle SIGCHLD")?;
    let node = Arc::new(Node::open(instance, Setting::alone()).await?);
    launch::tell(&News::Ready);
    tracing::info!(root = %instance.root.display(), iid = %instance.iid, "the supervisor serves");
    rkube_task::spawn(home::move_in(instance.cgroup_parent()));
    rkube_task::spawn(home::tidy(node.changes()));
    let clients = Arc::new(watch::Sender::new(0_usize));
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = idle(&node, clients.subscribe()) => {}
        }
    };
    answer(listener, &node, &clients, orphans, end).await;
    node.leave().await;
    tracing::info!("the supervisor ends");
    Ok(())
}

/// Answers commands until `end`.
pub(crate) async fn answer(
    listener: UnixListener,
    node: &Arc<Node>,
    clients: &Arc<watch::Sender<usize>>,
    mut orphans: Signal,
    end: impl Future<Output = ()>,
) {
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            // A connection that waits comes before the end.
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, node, clients),
                // What the client's side or a shortage of descriptors causes
                // passes; the next accept tells.
                Err(error) => {
                    tracing::warn!(%error, "accept a command's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = orphans.recv() => node.engine.reap_orphans(),
            () = &mut end => return,
        }
    }
}

fn admit(stream: tokio::net::UnixStream, node: &Arc<Node>, clients: &Arc<watch::Sender<usize>>) {
    let node = Arc::clone(node);
    let guard = Guest::enter(clients);
    let crowded = *clients.borrow() > MAX_CLIENTS;
    rkube_task::spawn(async move {
        let refusal = crowded.then(|| {
            Failure::new(format!(
                "more than {MAX_CLIENTS} commands are connected to the writer"
            ))
        });
        if let Err(error) = serve::talk(stream, &node, refusal).await {
            tracing::debug!(%error, "a command's connection ended");
        }
        drop(guard);
    });
}

/// Counts a connected command.
struct Guest(Arc<watch::Sender<usize>>);

impl Guest {
    fn enter(clients: &Arc<watch::Sender<usize>>) -> Self {
        clients.send_modify(|n| *n += 1);
        Self(Arc::clone(clients))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// Returns when no pod is active and no command is connected.
async fn idle(node: &Node, mut clients: watch::Receiver<usize>) {
    let mut changes = node.changes();
    if !node.any_active() {
        // Started by a command that has not connected yet, or has died.
        let _ = tokio::time::timeout(FIRST_CLIENT_PATIENCE, clients.wait_for(|n| *n > 0)).await;
    }
    loop {
        if *clients.borrow_and_update() == 0 && !node.any_active() {
            return;
        }
        tokio::select! {
            // The sender lives as long as the loop that polls this.
            _ = clients.changed() => {}
            _ = changes.recv() => {}
        }
    }
}
