//! Copies of a container's output for whoever is attached to it.
//!
//! They get bytes as the container wrote them, unfinished lines included,
//! while the log gets whole lines. Nobody who is attached slows a container
//! down: what does not fit into their pipe is left out for them, and stands in
//! the log.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Most pipes that one stream of a container is copied to.
pub const MAX_SINKS: usize = 16;

/// The pipes that one stream is copied to.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    pipes: Vec<OwnedFd>,
    /// Bytes at the front of the stream's FIFO that were copied and are not
    /// taken from it yet: the tail of an unfinished line.
    copied: usize,
}

impl Sinks {
    /// Adds the write end of a pipe, with what it is given first.
    ///
    /// # Errors
    /// ENOSPC beyond [`MAX_SINKS`], and fcntl(2)'s.
    pub(crate) fn add(&mut self, pipe: OwnedFd, first: &[u8]) -> Result<(), Errno> {
        // One whose reader has gone makes room.
        self.pipes.retain(|p| give(p, &[]));
        if self.pipes.len() >= MAX_SINKS {
            return Err(Errno::NOSPC);
        }
        let flags = rustix::fs::fcntl_getfl(&pipe)?;
        rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
        if give(&pipe, first) {
            self.pipes.push(pipe);
        }
        Ok(())
    }

    /// Copies bytes that were just read.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.pipes.retain(|pipe| give(pipe, bytes));
    }

    /// Copies what is new among `bytes`, the whole of what a FIFO holds, of
    /// which `taken` are about to be taken from it.
    pub(crate) fn copy_fifo(&mut self, bytes: &[u8], taken: usize) {
        if let Some(new) = bytes.get(self.copied..) {
            self.copy(new);
        }
        self.copied = bytes.len().saturating_sub(taken);
    }

    /// What of a FIFO's bytes everybody else has had.
    pub(crate) fn had<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        bytes.get(..self.copied).unwrap_or(bytes)
    }

    /// Nothing more will come: all readers see the end.
    pub(crate) fn close(&mut self) {
        self.pipes = Vec::new();
    }
}

/// Writes what fits; `false` once nobody reads any more.
fn give(pipe: &OwnedFd, mut bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        let mut fds = [rustix::event::PollFd::new(
            pipe,
            rustix::event::PollFlags::OUT,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Of a pipe without a reader poll(2) tells POLLERR.
        return rustix::event::poll(&mut fds, Some(&now)).is_err()
            || !fds[0].revents().contains(rustix::event::PollFlags::ERR);
    }
    while !bytes.is_empty() {
        match rustix::io::write(pipe, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pipe: &OwnedFd) -> String {
        let mut buffer = [0_u8; 256];
        let n = rustix::io::read(pipe, &mut buffer).expect("read");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[test]
    fn an_unfinished_line_is_copied_once() {
        let mut sinks = Sinks::default();
        let (one, pipe) = rustix::pipe::pipe().expect("pipe");
        sinks.add(pipe, b"").expect("add");
        sinks.copy_fifo(b"line\nname: ", 5);
        assert_eq!(read(&one), "line\nname: ");
        // A second one gets the prompt that waits in the FIFO.
        let (two, pipe) = rustix::pipe::pipe().expect("pipe");
        sinks
            .add(pipe, sinks.had(b"name: ").to_vec().as_slice())
            .expect("add");
        assert_eq!(read(&two), "name: ");
        sinks.copy_fifo(b"name: me\n", 9);
        assert_eq!((read(&one).as_str(), read(&two).as_str()), ("me\n", "me\n"));
        sinks.close();
        assert_eq!(read(&one), "");
    }

    #[test]
    fn a_slow_reader_holds_nobody_up_and_one_that_goes_is_forgotten() {
        let mut sinks = Sinks::default();
        let (slow, pipe) = rustix::pipe::pipe().expect("pipe");
        sinks.add(pipe, b"").expect("add");
        for _ in 0..100 {
            sinks.copy(&[b'x'; 4096]);
        }
        assert_eq!(sinks.pipes.len(), 1);
        drop(slow);
        rkube_sys::signal::ignore_sigpipe();
        sinks.copy(b"y");
        assert!(sinks.pipes.is_empty());
        let kept: Vec<_> = (0..MAX_SINKS)
            .map(|_| {
                let (reader, pipe) = rustix::pipe::pipe().expect("pipe");
                sinks.add(pipe, b"").expect("room");
                reader
            })
            .collect();
        let (_reader, pipe) = rustix::pipe::pipe().expect("pipe");
        assert_eq!(sinks.add(pipe, b""), Err(Errno::NOSPC));
        drop(kept);
        let (_reader, pipe) = rustix::pipe::pipe().expect("pipe");
        sinks.add(pipe, b"").expect("the others have gone");
    }
}
