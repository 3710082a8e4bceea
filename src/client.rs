//! A command's connection to the writer.
//!
//! A command connects, or starts a supervisor where nobody listens. Several
//! commands at once start one: see `supervisor::locks`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::instance::Instance;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;

use crate::supervisor::launch::{self, News};
use crate::supervisor::node::has_records;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::{PROTOCOL_VERSION, Reply, Request, Role, socket};

/// How often a writer may end just when a command comes, before the command
/// gives up.
const MAX_TRIES: u32 = 16;

/// A connection on which Hello was said.
#[derive(Debug)]
pub(crate) struct Client {
    channel: Channel,
    role: Role,
}

/// A runtime for one command: this thread alone.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .context("start the async runtime")
}

impl Client {
    /// Connects to the writer that serves, if one does.
    pub(crate) async fn connect(instance: &Instance) -> anyhow::Result<Option<Self>> {
        let run_dir = instance.run_dir();
        for _ in 0..MAX_TRIES {
            let stream = match socket::connect(&run_dir) {
                Ok(stream) => stream,
                Err(e) if socket::nobody_there(&e) => return Ok(None),
                Err(e) => {
                    return Err(e).with_context(|| {
                        format!("connect to the writer in {}", run_dir.display())
                    });
                }
            };
            if let Some(client) = Self::hello(stream).await? {
                return Ok(Some(client));
            }
        }
        bail!(
            "the writer in {} ends each time that a command comes",
            run_dir.display()
        )
    }

    /// Connects to the writer, and starts a supervisor first if none serves.
    pub(crate) async fn start(instance: &Instance) -> anyhow::Result<Self> {
        for _ in 0..MAX_TRIES {
            if let Some(client) = Self::connect(instance).await? {
                return Ok(client);
            }
            match launch::start(instance)? {
                // `Busy`: another command was quicker, and its supervisor
                // listens by now.
                News::Ready | News::Busy => {}
                News::Failed(failure) => return Err(failure).context("start supervisor"),
            }
        }
        bail!("no supervisor of {} stays", instance.root.display())
    }

    /// For commands that only look: starts a supervisor where pods are on
    /// record, and is `None` where there are none.
    pub(crate) async fn look(root: &std::path::Path) -> anyhow::Result<Option<Self>> {
        let Some(instance) = Instance::find(root)? else {
            return Ok(None);
        };
        if let Some(client) = Self::connect(&instance).await? {
            return Ok(Some(client));
        }
        if has_records(&instance.root)? {
            Self::start(&instance).await.map(Some)
        } else {
            Ok(None)
        }
    }

    /// `None` when the writer ended before it answered.
    async fn hello(stream: std::os::unix::net::UnixStream) -> anyhow::Result<Option<Self>> {
        stream
            .set_nonblocking(true)
            .context("set the socket non-blocking")?;
        let stream = UnixStream::from_std(stream).context("watch the socket")?;
        let mut channel = Channel::new(stream);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = Request::Hello {
            protocol: PROTOCOL_VERSION,
            version,
        };
        let answer = match channel.send(&hello, &[]).await {
            Ok(()) => channel.receive::<Reply>().await,
            Err(e) => Err(e),
        };
        match answer {
            Ok(Some(Reply::Hello { role, .. })) => Ok(Some(Self { channel, role })),
            Ok(Some(Reply::Failed(failure))) => Err(failure.into()),
            Ok(Some(other)) => bail!("the writer answers Hello with {other:?}"),
            Ok(None) | Err(ChannelError::Call { .. } | ChannelError::Closed) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Asks.
    pub(crate) async fn send(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        Ok(self.channel.send(request, fds).await?)
    }

    /// The next reply; a failure is an error.
    pub(crate) async fn reply(&mut self) -> anyhow::Result<Reply> {
        match self.channel.expect::<Reply>().await? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok(reply),
        }
    }

    /// Asks what has one answer.
    pub(crate) async fn call(&mut self, request: &Request) -> anyhow::Result<Reply> {
        self.send(request, &[]).await?;
        self.reply().await
    }

    /// The process that serves, as the kernel tells it.
    pub(crate) fn writer_pid(&self) -> Option<i32> {
        self.channel.peer().ok()?.1
    }

    /// What the process that serves is.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Asks the process at the other end to end, and waits for that. It
    /// leaves its pods to their keepers.
    pub(crate) fn end_writer(&self) -> anyhow::Result<()> {
        let pid = self
            .writer_pid()
            .and_then(Pid::from_raw)
            .context("the writer's pid is not known")?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            // It has ended.
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other.context("pidfd_open of the writer")?,
        };
        match pidfd_send_signal(&pidfd, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("send SIGTERM to the writer"),
        }
        loop {
            match poll(
                &mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)],
                None,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(drop).context("wait for the writer's end"),
            }
        }
    }

    /// Descriptors that came with the replies so far.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.channel.take_fds()
    }

    /// All pods.
    pub(crate) async fn pods(&mut self) -> anyhow::Result<Vec<Pod>> {
        match self.call(&Request::List).await? {
            Reply::Pods(pods) => Ok(pods),
            other => Err(unexpected(&other)),
        }
    }
}

/// News of pods that go on when the writer dies: another one is started then.
#[derive(Debug)]
pub(crate) struct Watcher {
    instance: Instance,
    client: Client,
    request: Request,
}

impl Watcher {
    /// Watches pods, on a connection that is used for nothing else.
    pub(crate) async fn begin(
        instance: &Instance,
        client: Client,
        uids: Vec<String>,
        events: bool,
    ) -> anyhow::Result<Self> {
        let request = Request::Watch { uids, events };
        let mut watcher = Self {
            instance: instance.clone(),
            client,
            request,
        };
        if let Err(error) = watcher.client.send(&watcher.request, &[]).await {
            watcher.recover(error).await?;
        }
        Ok(watcher)
    }

    /// The next news: `Pod`, `Gone` or `Event`. After the death of a writer
    /// all pods are told again.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Reply> {
        loop {
            match self.client.reply().await {
                Ok(reply @ (Reply::Pod(_) | Reply::Gone { .. } | Reply::Event(_))) => {
                    return Ok(reply);
                }
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => self.recover(error).await?,
            }
        }
    }

    async fn recover(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if !is_lost(&error) {
            return Err(error);
        }
        tracing::debug!(%error, "the writer has gone; another one is started");
        self.client = Client::start(&self.instance).await?;
        self.client.send(&self.request, &[]).await
    }
}

/// Whether an error means that the writer has gone.
pub(crate) fn is_lost(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ChannelError>(),
        Some(ChannelError::Closed | ChannelError::Call { .. })
    )
}

/// A reply that does not belong to its request.
pub(crate) fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("the writer answers with {reply:?}")
}
