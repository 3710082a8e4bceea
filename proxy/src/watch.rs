//! Hears of changes that others make to the table, where the kernel cannot
//! keep them from it (before 6.9): `nft flush ruleset` of a firewall's reload.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use rkube_nft::{Socket, query};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::driver::Shared;
use crate::error::Error;

/// The thread that listens; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Listens for changes of `table` by others than the socket with `port`.
    pub(crate) fn start(table: &str, port: u32, shared: &Arc<Shared>) -> Result<Self, Error> {
        let mut socket = Socket::open_changes().map_err(|source| Error::Table {
            table: table.to_owned(),
            source,
        })?;
        let stop =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| Error::Thread { source: e.into() })?;
        let stop = Arc::new(stop);
        let (table, stopped, shared) =
            (table.to_owned(), Arc::clone(&stop), Arc::downgrade(shared));
        let thread = std::thread::Builder::new()
            .name("proxy-watch".to_owned())
            .spawn(move || listen(&mut socket, &stopped, &table, port, &shared))
            .map_err(|source| Error::Thread { source })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An eventfd takes 8 bytes at any time.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(socket: &mut Socket, stop: &OwnedFd, table: &str, own: u32, shared: &Weak<Shared>) {
    loop {
        let mut fds = [
            PollFd::new(&*socket, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "listen for changes of nftables");
                return;
            }
            Ok(_) => {}
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let foreign = match query::changed_tables(socket) {
            Ok(changes) => changes
                .iter()
                .any(|(port, name)| *port != own && name == table),
            Err(error) if error.errno() == Some(Errno::NOBUFS) => true,
            Err(error) => {
                tracing::error!(%error, "hear of changes of nftables");
                return;
            }
        };
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if foreign {
            tracing::warn!(table, "another program changed the table: it is made anew");
            shared.reinstall();
        }
    }
}
