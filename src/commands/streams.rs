//! Standard streams of a program in a container: pipes of its own, and
//! threads that copy between them and this process' streams.
//!
//! The program never gets this process' own descriptors: through
//! /proc/self/fd it could open them anew, with any access, and keep them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};

/// How much is copied at a time.
const COPY_BYTES: usize = 16 << 10;
/// Stack of a copying thread, in bytes.
const STACK_BYTES: usize = 128 << 10;

/// The copying threads of one program.
#[derive(Debug)]
pub(super) struct Streams {
    ended: Arc<OwnedFd>,
    outputs: Vec<JoinHandle<io::Result<()>>>,
}

/// Pipes, not copied yet.
#[derive(Debug)]
pub(super) struct Pipes {
    input: Option<OwnedFd>,
    outputs: [OwnedFd; 2],
    /// The program's ends: standard input where there is one, output, error.
    pub(super) theirs: Vec<OwnedFd>,
}

impl Pipes {
    /// Makes them; without `with_input` the program reads its own /dev/null.
    pub(super) fn new(with_input: bool) -> anyhow::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context("pipe2");
        let mut theirs = Vec::with_capacity(3);
        let mut input = None;
        if with_input {
            let (reader, writer) = pipe()?;
            theirs.push(reader);
            input = Some(writer);
        }
        let (out, writer) = pipe()?;
        theirs.push(writer);
        let (err, writer) = pipe()?;
        theirs.push(writer);
        let outputs = [out, err];
        Ok(Self {
            input,
            outputs,
            theirs,
        })
    }

    /// Begins to copy, once the program has its ends: this side's copies of
    /// them go.
    pub(super) fn copy(self) -> anyhow::Result<Streams> {
        drop(self.theirs);
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("eventfd")?);
        if let Some(pipe) = self.input {
            // It may wait for keys when all is over: it ends with the process.
            spawn("stdin", move || copy_in(&pipe))?;
        }
        let [out, err] = self.outputs;
        let (one, two) = (Arc::clone(&ended), Arc::clone(&ended));
        let outputs = vec![
            spawn("stdout", move || copy_out(&out, &one, io::stdout().as_fd()))?,
            spawn("stderr", move || copy_out(&err, &two, io::stderr().as_fd()))?,
        ];
        Ok(Streams { ended, outputs })
    }
}

impl Streams {
    /// The program has ended: what it wrote is copied to the end. What others
    /// go on to write that it left behind is not waited for.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        rustix::io::write(&*self.ended, &1_u64.to_ne_bytes()).context("write to an eventfd")?;
        for thread in self.outputs {
            match thread.join() {
                // Whoever reads has had enough.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Ok(copied) => copied.context("copy the program's output")?,
                Err(_) => anyhow::bail!("the thread that copies the program's output has panicked"),
            }
        }
        Ok(())
    }
}

fn spawn(
    name: &str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<io::Result<()>>> {
    let builder = std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES);
    builder
        .spawn(work)
        .with_context(|| format!("start a thread for {name}"))
}

/// Copies standard input until it ends or nobody reads any more.
fn copy_in(pipe: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; COPY_BYTES];
    loop {
        match rustix::io::read(io::stdin(), &mut buffer) {
            Err(Errno::INTR) => {}
            Ok(0) => return Ok(()),
            Ok(n) => write_all(pipe.as_fd(), &buffer[..n])?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Copies a pipe until its end or, after the program's, until it is empty.
/// When the other side closes, so does the pipe: the program gets SIGPIPE.
fn copy_out(pipe: &OwnedFd, ended: &OwnedFd, to: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
    let mut buffer = [0; COPY_BYTES];
    // What the pipe can hold when the program ends, from then on.
    let mut left = None;
    loop {
        match rustix::io::read(pipe, &mut buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if left.is_some() => return Ok(()),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Ok(()),
            Ok(n) => {
                write_all(to, &buffer[..n])?;
                left = match left.map(|l: usize| l.saturating_sub(n)) {
                    Some(0) => return Ok(()),
                    left => left,
                };
                continue;
            }
        }
        let mut fds = [
            PollFd::new(pipe, PollFlags::IN),
            PollFd::new(ended, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if fds[1].revents().contains(PollFlags::IN) => {
                left = Some(fcntl_getpipe_size(pipe)?)
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // The description is shared, and somebody made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_was_written_before_the_end_arrives_and_nothing_is_waited_for() {
        let (reader, mut program) = std::io::pipe().expect("pipe");
        let (mut user, to) = std::io::pipe().expect("pipe");
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"));
        let (reader, told) = (OwnedFd::from(reader), Arc::clone(&ended));
        let copy = std::thread::spawn(move || copy_out(&reader, &told, to.as_fd()));
        program.write_all(b"last words").expect("write");
        rustix::io::write(&*ended, &1_u64.to_ne_bytes()).expect("tell");
        // A child of the program keeps its end open.
        copy.join().expect("thread").expect("copied");
        drop(program);
        let mut text = String::new();
        user.read_to_string(&mut text).expect("read");
        assert_eq!(text, "last words");
    }

    #[test]
    fn a_reader_that_goes_ends_the_program_s_pipe() {
        let (reader, mut program) = std::io::pipe().expect("pipe");
        let (user, to) = std::io::pipe().expect("pipe");
        drop(user);
        let ended = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        program.write_all(b"x").expect("write");
        let reader = OwnedFd::from(reader);
        let copied = copy_out(&reader, &ended, to.as_fd());
        assert_eq!(
            copied.expect_err("closed").kind(),
            io::ErrorKind::BrokenPipe
        );
        drop(reader);
        assert!(program.write_all(b"y").is_err());
    }
}
