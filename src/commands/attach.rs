//! `rkube attach`.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rkube_kubelet::pod;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::keys::Detach;
use super::terminal::{self, COPY_BYTES, Raw};
use super::{client_and_pods, container_of};
use crate::cli;
use crate::client::{Client, is_lost, runtime, unexpected};
use crate::error::{FAILURE, INTERRUPTED, bad_input};
use crate::wire::{Attach, Reply, Request};

/// How long the end of a container may take to be told, after its output has
/// ended. When it is not, its keeper has died and another one has it.
const TOLD_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn attach(root: &Path, args: cli::Attach) -> anyhow::Result<u8> {
    let runtime = runtime()?;
    let code = runtime.block_on(run(root, args));
    // A thread may still wait for keys: it ends with the process.
    runtime.shutdown_background();
    code
}

/// How an attach ended.
enum End {
    /// The container has ended.
    Exited(u8),
    /// The user has left.
    Left(u8),
    /// The output has ended and the container has not.
    Lost,
}

async fn run(root: &Path, args: cli::Attach) -> anyhow::Result<u8> {
    let raw = args.tty && args.stdin;
    if raw && !io::stdin().is_terminal() {
        return Err(bad_input(
            "--tty with --stdin: standard input is not a terminal",
        ));
    }
    let detach = Detach::parse(&args.detach_keys).map_err(bad_input)?;
    let mut user = User::new(args.stdin, raw, detach)?;
    loop {
        let names = [args.pod.pod.clone()];
        let (mut client, pods) = client_and_pods(root, &names, &args.pod.namespace).await?;
        let pod = pods.first().context("find the pod")?;
        let request = Attach {
            uid: pod::uid(pod).to_owned(),
            container: container_of(pod, args.container.as_deref())?,
            stdin: args.stdin,
        };
        client.send(&Request::Attach(request), &[]).await?;
        let streams = joined(&mut client, args.stdin).await?;
        if raw && !streams.tty {
            return Err(bad_input(
                "--tty: the container has no terminal (spec.containers[].tty)",
            ));
        }
        let end = user.converse(&mut client, streams).await;
        user.cook();
        match end? {
            End::Exited(code) => return Ok(code),
            End::Left(code) => {
                let _ = writeln!(io::stderr(), "left the container running");
                return Ok(code);
            }
            End::Lost => {
                let _ = writeln!(io::stderr(), "the pod's keeper has gone; attaching again");
            }
        }
    }
}

/// What comes with [`Reply::Attached`].
struct Streams {
    tty: bool,
    output: Option<AsyncFd<OwnedFd>>,
    errors: Option<AsyncFd<OwnedFd>>,
    input: Option<AsyncFd<OwnedFd>>,
}

async fn joined(client: &mut Client, stdin: bool) -> anyhow::Result<Streams> {
    let tty = match client.reply().await? {
        Reply::Attached { tty } => tty,
        other => return Err(unexpected(&other)),
    };
    let mut fds = client.take_fds().into_iter();
    let mut open = |wanted: bool, interest| -> anyhow::Result<Option<AsyncFd<OwnedFd>>> {
        if !wanted {
            return Ok(None);
        }
        let fd = fds.next().context("the writer sent too few streams")?;
        terminal::set_nonblocking(&fd)?;
        terminal::register(fd, interest).map(Some)
    };
    Ok(Streams {
        tty,
        output: open(true, Interest::READABLE)?,
        errors: open(!tty, Interest::READABLE)?,
        input: open(stdin, Interest::WRITABLE)?,
    })
}

/// The user's side.
struct User {
    keys: Option<mpsc::Receiver<Vec<u8>>>,
    /// Where standard input is a terminal in raw mode: what ends the attach.
    detach: Option<Detach>,
    wants_raw: bool,
    raw: Option<Raw>,
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What the user has done.
enum Deed {
    Typed(Vec<u8>),
    InputEnded,
    Resized,
    Left(u8),
}

impl User {
    fn new(stdin: bool, raw: bool, detach: Detach) -> anyhow::Result<Self> {
        let handle = |kind, name: &'static str| signal(kind).context(name);
        Ok(Self {
            keys: if stdin {
                Some(terminal::input_thread()?.0)
            } else {
                None
            },
            detach: raw.then_some(detach),
            wants_raw: raw,
            raw: None,
            resized: handle(SignalKind::window_change(), "handle SIGWINCH")?,
            interrupt: handle(SignalKind::interrupt(), "handle SIGINT")?,
            terminate: handle(SignalKind::terminate(), "handle SIGTERM")?,
            hangup: handle(SignalKind::hangup(), "handle SIGHUP")?,
        })
    }

    /// Makes the terminal as it was.
    fn cook(&mut self) {
        self.raw = None;
    }

    async fn next(&mut self) -> Deed {
        loop {
            tokio::select! {
                _ = self.resized.recv() => return Deed::Resized,
                _ = self.interrupt.recv() => return Deed::Left(INTERRUPTED),
                // 128 + the signal's number (signal(7)).
                _ = self.terminate.recv() => return Deed::Left(143),
                _ = self.hangup.recv() => return Deed::Left(129),
                bytes = terminal::next(&mut self.keys), if self.keys.is_some() => {
                    let Some(bytes) = bytes else {
                        self.keys = None;
                        return Deed::InputEnded;
                    };
                    let Some(detach) = &mut self.detach else {
                        return Deed::Typed(bytes);
                    };
                    match detach.feed(&bytes) {
                        Some(bytes) if bytes.is_empty() => {}
                        Some(bytes) => return Deed::Typed(bytes),
                        None => return Deed::Left(0),
                    }
                }
            }
        }
    }

    async fn converse(&mut self, client: &mut Client, mut streams: Streams) -> anyhow::Result<End> {
        if self.wants_raw && self.raw.is_none() {
            self.raw = Some(Raw::enter()?);
        }
        let size = |input: &Option<AsyncFd<OwnedFd>>| {
            if let Some(input) = input {
                terminal::copy_size(input.get_ref().as_fd());
            }
        };
        if streams.tty {
            size(&streams.input);
        }
        let (mut out, mut err) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
        let mut code = None;
        while streams.output.is_some() || streams.errors.is_some() {
            tokio::select! {
                read = read(&streams.output, &mut out), if streams.output.is_some() => match read? {
                    0 => streams.output = None,
                    n => terminal::write_out(&out[..n])?,
                },
                read = read(&streams.errors, &mut err), if streams.errors.is_some() => match read? {
                    0 => streams.errors = None,
                    n => io::stderr().write_all(&err[..n]).context("write to standard error")?,
                },
                ended = exited(client), if code.is_none() => match ended {
                    Ok(ended) => code = Some(ended),
                    // The streams are the keeper's, and go on.
                    Err(error) if is_lost(&error) => code = Some(FAILURE),
                    Err(error) => return Err(error),
                },
                deed = self.next() => match deed {
                    Deed::Typed(bytes) => {
                        let Some(input) = &streams.input else { continue };
                        if terminal::write_all(input, &bytes).await.is_err() {
                            // The program has closed it: read what is left.
                            streams.input = None;
                        }
                    }
                    Deed::InputEnded => {
                        if !streams.tty {
                            streams.input = None;
                        }
                        client.send(&Request::InputEnded, &[]).await?;
                    }
                    Deed::Resized if streams.tty => size(&streams.input),
                    Deed::Resized => {}
                    Deed::Left(code) => return Ok(End::Left(code)),
                },
            }
        }
        if let Some(code) = code {
            return Ok(End::Exited(code));
        }
        match tokio::time::timeout(TOLD_LIMIT, exited(client)).await {
            Ok(code) => code.map(End::Exited),
            Err(_) => Ok(End::Lost),
        }
    }
}

async fn read(from: &Option<AsyncFd<OwnedFd>>, buffer: &mut [u8]) -> anyhow::Result<usize> {
    match from {
        Some(from) => terminal::read_some(from, buffer).await,
        None => std::future::pending().await,
    }
}

async fn exited(client: &mut Client) -> anyhow::Result<u8> {
    match client.reply().await? {
        Reply::Exited { code } => Ok(u8::try_from(code).unwrap_or(FAILURE)),
        other => Err(unexpected(&other)),
    }
}
