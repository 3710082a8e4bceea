//! Programs started by cases: always with a deadline, always with their output
//! kept for the failure report.
//!
//! Output of a finished command goes through files, not pipes: a daemon that
//! kept the descriptor open would otherwise hang the reader, and that is a bug
//! of the daemon which the leak check reports, not a hung test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{WAIT_SECS, child_ended};

/// A program to run.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    shown: String,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cmd {
    /// A command line; nothing is started yet.
    pub fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd {
        let mut command = Command::new(program.as_ref());
        let mut shown = program.as_ref().to_string_lossy().into_owned();
        for arg in args {
            shown.push(' ');
            shown.push_str(&arg.as_ref().to_string_lossy());
            command.arg(arg);
        }
        command.stdin(Stdio::null());
        Cmd {
            command,
            shown,
            stdin: None,
            deadline: Duration::from_secs(WAIT_SECS),
        }
    }

    /// Bytes for its standard input (kept under a pipe's 64 KiB by the caller
    /// when the program may not read them).
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Cmd {
        self.stdin = Some(bytes.into());
        self
    }

    /// An environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.command.env(key, value);
        self
    }

    /// The directory it starts in.
    pub fn dir(mut self, dir: impl AsRef<std::path::Path>) -> Cmd {
        self.command.current_dir(dir);
        self
    }

    /// Another deadline than [`WAIT_SECS`].
    pub fn within(mut self, deadline: Duration) -> Cmd {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or is killed at its deadline; a bad exit status
    /// is no error here.
    pub fn output(mut self) -> anyhow::Result<Output> {
        let mut out = tempfile::tempfile().context("make a file for stdout")?;
        let mut err = tempfile::tempfile().context("make a file for stderr")?;
        self.command
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?);
        if self.stdin.is_some() {
            self.command.stdin(Stdio::piped());
        }
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.shown))?;
        if let (Some(bytes), Some(mut pipe)) = (self.stdin.take(), child.stdin.take()) {
            // A program that ends without reading all of it is judged by its status.
            let _ = pipe.write_all(&bytes);
        }
        let ended = child_ended(child.id(), self.deadline)?;
        if !ended {
            child
                .kill()
                .with_context(|| format!("kill {}", self.shown))?;
        }
        let status = child
            .wait()
            .with_context(|| format!("wait for {}", self.shown))?;
        let output = Output {
            status,
            stdout: read_back(&mut out)?,
            stderr: read_back(&mut err)?,
            shown: self.shown,
        };
        ensure!(
            ended,
            "{}: not done after {} s\n{output}",
            output.shown,
            self.deadline.as_secs()
        );
        Ok(output)
    }

    /// Runs it and demands exit status 0.
    ///
    /// # Errors
    /// As [`Cmd::output`], or another status; the message has all its output.
    pub fn ok(self) -> anyhow::Result<Output> {
        let output = self.output()?;
        ensure!(
            output.status.success(),
            "{}: {}\n{output}",
            output.shown,
            output.status
        );
        Ok(output)
    }

    /// Runs it and demands this exit code.
    ///
    /// # Errors
    /// As [`Cmd::output`], or another status.
    pub fn exits(self, code: i32) -> anyhow::Result<Output> {
        let output = self.output()?;
        ensure!(
            output.status.code() == Some(code),
            "{}: {}, expected exit status {code}\n{output}",
            output.shown,
            output.status
        );
        Ok(output)
    }

    /// Starts it and leaves it running; its output arrives line by line.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        self.command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.shown))?;
        let mut stdin = child.stdin.take();
        if let (Some(bytes), Some(pipe)) = (self.stdin.take(), stdin.as_mut()) {
            pipe.write_all(&bytes)
                .with_context(|| format!("write to {}", self.shown))?;
        }
        let (send, lines) = channel();
        let err_send = send.clone();
        let out = child.stdout.take().context("stdout is piped")?;
        let err = child.stderr.take().context("stderr is piped")?;
        std::thread::spawn(move || forward(BufReader::new(out), |l| send.send(l).is_ok()));
        std::thread::spawn(move || forward(BufReader::new(err), |l| err_send.send(l).is_ok()));
        Ok(Running {
            child,
            stdin,
            lines,
            seen: Vec::new(),
            shown: self.shown,
            abandoned: false,
        })
    }
}

fn read_back(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn forward(mut reader: impl BufRead, mut send: impl FnMut(String) -> bool) {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line)
            .trim_end_matches(['\n', '\r'])
            .to_owned();
        line.clear();
        if !send(text) {
            return;
        }
    }
}

impl Output {
    /// The standard output as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("parse as JSON:\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// What [`Running::next_line`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A line.
    Line(String),
    /// None within the deadline.
    Silence,
    /// None will come: both streams are closed.
    End,
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
    shown: String,
    abandoned: bool,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of output, of either stream.
    pub fn next_line(&mut self, deadline: Duration) -> Next {
        match self.lines.recv_timeout(deadline) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Timeout) => Next::Silence,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }

    /// Waits for a line of output (either stream) that satisfies `wanted`.
    ///
    /// # Errors
    /// The deadline passed or the output ended first; all lines are shown.
    pub fn line(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let end = Instant::now() + deadline;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!(
                    "{}: no {what} within {} s; output:\n{}",
                    self.shown,
                    deadline.as_secs(),
                    self.seen.join("\n")
                ),
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "{}: ended without {what}; output:\n{}",
                    self.shown,
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// It is closed.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let pipe = self.stdin.as_mut().context("stdin was closed")?;
        pipe.write_all(bytes)
            .with_context(|| format!("write to {}", self.shown))
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("pid")?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.shown))
    }

    /// Waits for its end and gives the status and every line it printed.
    ///
    /// # Errors
    /// The deadline passed.
    pub fn end(mut self, deadline: Duration) -> anyhow::Result<(ExitStatus, Vec<String>)> {
        self.stdin = None;
        if !child_ended(self.child.id(), deadline)? {
            self.seen.extend(self.lines.try_iter());
            bail!(
                "{}: not done after {} s; output:\n{}",
                self.shown,
                deadline.as_secs(),
                self.seen.join("\n")
            );
        }
        let status = self.child.wait()?;
        // The readers end with the pipe; a leaked copy of it must not hang the test.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(line);
        }
        Ok((status, std::mem::take(&mut self.seen)))
    }
}

impl Running {
    /// Kills it and does not wait: for a process that may hang in the kernel.
    pub fn abandon(mut self) {
        // Nothing else can be done for it.
        let _ = self.child.kill();
        self.abandoned = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        // Already ended is fine; there is nobody to tell anything else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_and_statuses_judged() {
        let out = Cmd::new("sh", ["-c", "cat; echo err >&2; exit 3"])
            .stdin("in")
            .exits(3)
            .unwrap();
        assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("in", "err\n"));
        let err = Cmd::new("sh", ["-c", "echo why; exit 1"]).ok().unwrap_err();
        assert!(err.to_string().contains("why"), "{err}");
    }

    #[test]
    fn a_deadline_kills() {
        let cmd = Cmd::new("sleep", ["1000"]).within(Duration::from_millis(50));
        assert!(
            cmd.output()
                .unwrap_err()
                .to_string()
                .contains("sleep 1000: not done")
        );
    }

    #[test]
    fn lines_arrive_while_it_runs() {
        let mut run = Cmd::new("cat", [""; 0]).spawn().unwrap();
        run.write(b"one\ntwo\n").unwrap();
        let wait = Duration::from_secs(WAIT_SECS);
        assert_eq!(run.line("two", wait, |l| l == "two").unwrap(), "two");
        let (status, lines) = run.end(wait).unwrap();
        assert!(status.success());
        assert_eq!(lines, ["one", "two"]);
    }
}
