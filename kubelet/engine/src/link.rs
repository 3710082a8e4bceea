//! Connections to keepers: one thread reads them all.
//!
//! A call sends its packet from the calling thread and waits for the reply
//! with its token; the reader thread sorts replies to callers and hands ends
//! of processes, lost keepers and OOM events to the engine's sink. It sleeps
//! in epoll, without a timer.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rkube_keeper::protocol::{ProcessStatus, Reply, Request};
use rkube_keeper::{socket, wire};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// How long a keeper may take to answer, in seconds: hooks have time limits
/// of their own far below, and a v1 cgroup is entered within milliseconds.
const ANSWER_LIMIT_S: u64 = 120;

/// Stack of the reader thread, in bytes: it decodes small packets.
const READER_STACK_BYTES: usize = 256 << 10;

/// Something that a connection or watch told by itself.
#[derive(Debug)]
pub(crate) enum Told {
    /// A process of a sandbox has ended.
    Exited {
        sandbox: String,
        status: ProcessStatus,
    },
    /// The connection to a sandbox's keeper is gone.
    Lost { sandbox: String },
    /// The OOM watch of this number has fired.
    Watch(u64),
}

/// Where told things go; called from the reader thread.
pub(crate) type Sink = Box<dyn Fn(Told) + Send + Sync>;

type Answer = (Reply, Vec<OwnedFd>);

/// The connection to one keeper.
#[derive(Debug)]
pub(crate) struct Link {
    sandbox: String,
    socket: OwnedFd,
    pending: Mutex<Option<HashMap<u64, SyncSender<Answer>>>>,
    next_token: AtomicU64,
}

#[derive(Debug, Clone)]
enum Watched {
    Link(Weak<Link>),
    Other,
}

/// The thread that reads all connections.
pub(crate) struct Reader {
    epoll: OwnedFd,
    watched: Mutex<HashMap<u64, Watched>>,
    next: AtomicU64,
    stop: OwnedFd,
    sink: Sink,
}

/// The number under which the end of the reader is watched.
const STOP: u64 = 0;

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}

/// The data are valid after a panic elsewhere: each change is one insert or
/// remove.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    /// Starts the thread.
    pub(crate) fn start(sink: Sink) -> std::io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        let reader = Arc::new(Self {
            epoll,
            stop,
            watched: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
            sink,
        });
        let own = Arc::clone(&reader);
        std::thread::Builder::new()
            .name("keepers".into())
            .stack_size(READER_STACK_BYTES)
            .spawn(move || own.run())?;
        Ok(reader)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "waiting for keepers is not possible");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    number => self.one(number),
                }
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        // An eventfd takes a small number at any time.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    fn one(&self, number: u64) {
        // The sink takes locks of its own and may come back to unwatch: no
        // guard is held while it runs.
        let watched = lock(&self.watched).get(&number).cloned();
        let link = match watched {
            Some(Watched::Link(link)) => link.upgrade(),
            Some(Watched::Other) => return (self.sink)(Told::Watch(number)),
            None => return,
        };
        let Some(link) = link else { return };
        match link.receive() {
            Ok(Some(status)) => {
                (self.sink)(Told::Exited {
                    sandbox: link.sandbox.clone(),
                    status,
                });
            }
            Ok(None) => {}
            Err(()) => {
                let _ = epoll::delete(&self.epoll, &link.socket);
                lock(&self.watched).remove(&number);
                link.close();
                (self.sink)(Told::Lost {
                    sandbox: link.sandbox.clone(),
                });
            }
        }
    }

    /// Reads a connection from now on.
    pub(crate) fn connect(&self, sandbox: &str, socket: OwnedFd) -> Result<Arc<Link>> {
        let link = Arc::new(Link {
            sandbox: sandbox.to_owned(),
            socket,
            pending: Mutex::new(Some(HashMap::new())),
            next_token: AtomicU64::new(first_token().map_err(|e| Error::Keeper {
                sandbox: sandbox.to_owned(),
                what: format!("draw a token: {e}"),
            })?),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut watched = lock(&self.watched);
            // Links that were dropped have closed their sockets.
            watched.retain(|_, w| !matches!(w, Watched::Link(l) if l.strong_count() == 0));
            watched.insert(number, Watched::Link(Arc::downgrade(&link)));
        }
        self.add(&link.socket, number)
            .map_err(|e| link.broken(&e.to_string()))?;
        Ok(link)
    }

    fn add(&self, fd: impl AsFd, number: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(number), EventFlags::IN)
    }

    /// Tells when a descriptor becomes readable, until [`Self::unwatch`].
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.watched).insert(number, Watched::Other);
        self.add(fd, number).inspect_err(|_| {
            lock(&self.watched).remove(&number);
        })?;
        Ok(number)
    }

    /// Stops watching.
    pub(crate) fn unwatch(&self, number: u64, fd: BorrowedFd<'_>) {
        lock(&self.watched).remove(&number);
        let _ = epoll::delete(&self.epoll, fd);
    }
}

/// Tokens of one connection follow each other. The first is drawn, so that an
/// answer to an earlier connection's request answers none of this one; none
/// is 0 or comes around to it.
fn first_token() -> std::io::Result<u64> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok((u64::from_ne_bytes(bytes) >> 1) | 1)
}

impl Link {
    fn broken(&self, what: &str) -> Error {
        Error::Keeper {
            sandbox: self.sandbox.clone(),
            what: what.to_owned(),
        }
    }

    /// Reads one packet: replies go to their callers, an exit comes back.
    fn receive(&self) -> std::result::Result<Option<ProcessStatus>, ()> {
        let packet = socket::receive(self.socket.as_fd()).map_err(|_| ())?;
        if packet.bytes.is_empty() {
            return Err(());
        }
        let reply: Reply = wire::decode(&packet.bytes).map_err(|_| ())?;
        let token = match &reply {
            Reply::Exited { status } => return Ok(Some(status.clone())),
            Reply::Hello { .. } => return Ok(None),
            Reply::Started { token, .. } | Reply::Failed { token, .. } | Reply::Done { token } => {
                *token
            }
        };
        let caller = lock(&self.pending).as_mut().and_then(|p| p.remove(&token));
        if let Some(caller) = caller {
            // A caller that gave up has dropped its end.
            let _ = caller.send((reply, packet.fds));
        }
        Ok(None)
    }

    /// All callers that wait are told that no answer will come.
    fn close(&self) {
        *lock(&self.pending) = None;
    }

    /// Whether the keeper is still there.
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.pending).is_some()
    }

    /// Asks, and waits for the answer.
    pub(crate) fn call(
        &self,
        request: impl FnOnce(u64) -> Request,
        fds: &[BorrowedFd<'_>],
        object: &str,
    ) -> Result<Answer> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = sync_channel(1);
        match lock(&self.pending).as_mut() {
            Some(pending) => pending.insert(token, sender),
            None => return Err(self.broken("it has gone")),
        };
        let bytes = wire::encode(&request(token));
        if let Err(errno) = socket::send(self.socket.as_fd(), &bytes, fds) {
            if let Some(pending) = lock(&self.pending).as_mut() {
                pending.remove(&token);
            }
            return Err(self.broken(&format!("send request: {errno}")));
        }
        match receiver.recv_timeout(Duration::from_secs(ANSWER_LIMIT_S)) {
            Ok((Reply::Failed { failure, .. }, _)) => Err(Error::Stage {
                object: object.to_owned(),
                failure,
            }),
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => Err(self.broken("it does not answer")),
            Err(RecvTimeoutError::Disconnected) => Err(self.broken("it has gone")),
        }
    }

    /// Says something that has no answer.
    pub(crate) fn say(&self, request: &Request) {
        // A keeper that has gone needs to hear nothing.
        let _ = socket::send(self.socket.as_fd(), &wire::encode(request), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;
    use std::sync::mpsc::channel;

    #[test]
    fn a_sink_may_unwatch_what_it_was_told_of() {
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC);
        let event = Arc::new(event.expect("eventfd"));
        let reader: Arc<OnceLock<Arc<Reader>>> = Arc::default();
        let (sender, told) = channel();
        let (own, fd) = (Arc::clone(&reader), Arc::clone(&event));
        let sink = move |t| {
            if let (Told::Watch(number), Some(reader)) = (t, own.get()) {
                reader.unwatch(number, fd.as_fd());
                let _ = sender.send(number);
            }
        };
        let started = Reader::start(Box::new(sink)).expect("thread");
        let started = reader.get_or_init(|| started);
        let number = started.watch(event.as_fd()).expect("watch");
        let limit = Duration::from_secs(10);
        assert_eq!(told.recv_timeout(limit), Ok(number));
        started.stop();
    }
}
