//! Joining what runs: a container's streams, its files, a sandbox's ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rkube_keeper::protocol::Request;
use rkube_keeper::socket;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::api::{ContainerId, NamespaceMode, SandboxId};
use crate::engine::{Engine, key};
use crate::error::{Error, OnFile, Result};
use crate::link::lock;

/// How long a connection to a port on a pod's loopback may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// What the pipe of somebody who is attached holds, in bytes: a keeper waits
/// for no reader. The kernel's default limit for one pipe
/// (`fs.pipe-max-size`).
const OUTPUT_PIPE_BYTES: usize = 1 << 20;

/// Ends of a running container.
#[derive(Debug)]
pub struct Attached {
    /// What it writes from now on, and the unfinished line before: output
    /// and, without a terminal, errors. Their end is the container's, or its
    /// keeper's.
    pub outputs: Vec<OwnedFd>,
    /// Where its input is written, if that was asked for: its terminal's
    /// master, or a FIFO.
    pub input: Option<OwnedFd>,
    /// The master of its terminal, where it has one.
    pub terminal: Option<OwnedFd>,
    /// Its input ends with the first attach ([`Engine::close_input`]).
    pub input_once: bool,
}

/// The files of a running container.
#[derive(Debug)]
pub struct Files {
    /// Its root directory (`O_PATH`), with its mounts.
    pub root: OwnedFd,
    /// The id on the host that is its id 0.
    pub first_id: u32,
    /// The user that its program was started as, in its own numbers.
    pub uid: u32,
    /// The group, likewise.
    pub gid: u32,
}

impl Engine {
    /// Joins a running container's streams.
    ///
    /// # Errors
    /// When it does not run, it has no input to give, its keeper is of an
    /// older rkube, or something cannot be opened.
    pub fn attach(&self, id: &ContainerId, with_input: bool) -> Result<Attached> {
        let cell = self.inner.find(&id.sandbox)?;
        let (config, terminal, link) = {
            let state = lock(&cell.state);
            let container = state
                .containers
                .get(id)
                .ok_or_else(|| Error::NoContainer(id.to_string()))?;
            if !container.is_running() {
                return Err(Error::NotRunning(id.to_string()));
            }
            let terminal = container.terminal.as_ref().map(OwnedFd::try_clone);
            let terminal = terminal
                .transpose()
                .on("duplicate", Path::new("terminal"))?;
            (
                container.record.config.clone(),
                terminal,
                state.link.clone(),
            )
        };
        let object = format!("container {id}");
        let link = link.ok_or_else(|| Error::NotRunning(id.to_string()))?;
        let mut input = None;
        if with_input {
            if !config.stdin {
                return Err(Error::Invalid {
                    object,
                    what: "it has no standard input (spec.containers[].stdin)".into(),
                });
            }
            input = Some(match &terminal {
                Some(master) => master.try_clone().on("duplicate", Path::new("terminal"))?,
                None => self.open_input(id)?,
            });
        }
        let (mut outputs, mut pipes) = (Vec::new(), Vec::new());
        for _ in 0..if config.tty { 1 } else { 2 } {
            let pipe = Path::new("pipe");
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).on("make", pipe)?;
            // A host may allow less; then less fits.
            let _ = fcntl_setpipe_size(&writer, OUTPUT_PIPE_BYTES);
            outputs.push(reader);
            pipes.push(writer);
        }
        link.call(
            |token| Request::Attach {
                token,
                key: key(id),
            },
            &socket::borrow(&pipes),
            &object,
        )?;
        Ok(Attached {
            outputs,
            input,
            terminal,
            input_once: config.stdin_once,
        })
    }

    /// The FIFO that a container reads its input from.
    fn open_input(&self, id: &ContainerId) -> Result<OwnedFd> {
        let path = self
            .inner
            .pod_dir(&id.sandbox)
            .join(format!("{}.in", key(id)));
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            // Closed by the attach before (`stdinOnce`), or by the program.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO) => Err(Error::Invalid {
                object: format!("container {id}"),
                what: "its standard input has ended".into(),
            }),
            other => other.on("open FIFO", &path),
        }
    }

    /// The input of a container with `stdin_once` ends as soon as nobody
    /// writes to it; that of another one goes on.
    ///
    /// # Errors
    /// When its keeper has gone.
    pub fn close_input(&self, id: &ContainerId) -> Result<()> {
        let cell = self.inner.find(&id.sandbox)?;
        let (once, link) = {
            let state = lock(&cell.state);
            let container = state.containers.get(id).filter(|c| c.is_running());
            let once = container.is_some_and(|c| c.record.config.stdin_once);
            (once, state.link.clone())
        };
        let Some(link) = link.filter(|_| once) else {
            return Ok(());
        };
        let object = format!("input of {id}");
        let close = |token| Request::CloseInput {
            token,
            key: key(id),
        };
        link.call(close, &[], &object).map(drop)
    }

    /// The files of a running container, as it sees them.
    ///
    /// # Errors
    /// When it does not run.
    pub fn files(&self, id: &ContainerId) -> Result<Files> {
        let cell = self.inner.find(&id.sandbox)?;
        let state = lock(&cell.state);
        let container = state
            .containers
            .get(id)
            .ok_or_else(|| Error::NoContainer(id.to_string()))?;
        let first = container.process.clone();
        let first = first.ok_or_else(|| Error::NotRunning(id.to_string()))?;
        let user = container.record.process.as_ref().map(|p| p.user().clone());
        let first_id = state.record.ids.map_or(0, |ids| ids.first);
        drop(state);
        Ok(Files {
            root: first.root()?,
            first_id,
            uid: user.as_ref().map_or(0, |u| u.uid()),
            gid: user.as_ref().map_or(0, |u| u.gid()),
        })
    }

    /// Connects to a port on the loopback of a sandbox's network, IPv4 first.
    ///
    /// # Errors
    /// When the sandbox does not run or nobody listens.
    pub fn connect(&self, id: &SandboxId, port: u16) -> Result<TcpStream> {
        let cell = self.inner.find(id)?;
        let (host, pause) = {
            let state = lock(&cell.state);
            let host = state.record.config.network == NamespaceMode::Host;
            (host, state.pause.as_ref().map(Arc::clone))
        };
        if host {
            return connect_loopback(port);
        }
        let pause = pause.ok_or_else(|| Error::NotRunning(id.clone()))?;
        let netns = pause.namespace("net")?;
        let connected = rkube_netns::in_netns(netns.as_fd(), || Ok(connect_loopback(port)));
        connected.map_err(|source| Error::Network {
            object: id.clone(),
            source,
        })?
    }
}

fn connect_loopback(port: u16) -> Result<TcpStream> {
    let to = |ip: IpAddr| TcpStream::connect_timeout(&(ip, port).into(), CONNECT_LIMIT);
    let first = to(Ipv4Addr::LOCALHOST.into());
    let connected = match first {
        Ok(stream) => Ok(stream),
        Err(error) => to(Ipv6Addr::LOCALHOST.into()).map_err(|_| error),
    };
    let path = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    connected.on("connect to", Path::new(&path))
}
