//! A command and everything that it starts, under ptrace(2), with one count of
//! system calls over all of its processes.
//!
//! ```text
//!   sh (waits for a line) ──seize──► exec of the command: calls count from here
//!      every clone of its processes is traced too; one that executes a program
//!      that is not the runtime's own is let go
//! ```
//! What strace injects it counts by kind of call and by process, so that one
//! number names many points and some points have none; here each call of a run
//! has a number of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::wait::{WAIT_SECS, child_ended};

/// `op` of `struct ptrace_syscall_info` (`linux/ptrace.h`).
const SYSCALL_ENTRY: u8 = 1;
/// How the runtime starts its small program: by a descriptor.
const BY_DESCRIPTOR: &[u8] = b"/proc/self/fd/";

/// A system call that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number among all calls of all processes, from 1.
    pub count: usize,
    /// Whose it is: 0 for the command, then by birth.
    pub process: usize,
    /// What it is (`SYS_*`).
    pub number: i64,
    /// Its number among the calls of this kind of this process, from 1.
    pub nth: usize,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It is made.
    Go,
    /// Its process is killed before it; nothing is traced any more.
    Kill,
    /// All processes are; nothing is traced any more.
    KillAll,
    /// It is not made, and answers with this errno.
    Fail(i32),
}

/// How a traced command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// Where a command's output goes.
#[derive(Debug)]
pub struct Output {
    /// Standard output; `None` is /dev/null.
    pub stdout: Option<File>,
    /// Standard error.
    pub stderr: Option<File>,
}

/// Runs a command (program and arguments) and asks `decide` at each system
/// call; returns how it ended. What it started lives on, untraced.
///
/// # Errors
/// ptrace(2)'s, or a command that does not end.
pub fn run(
    words: &[String],
    output: Output,
    decide: &mut (dyn FnMut(&Call) -> Act + Send),
) -> anyhow::Result<End> {
    // With the thread that traces, all tracing ends.
    let traced = std::thread::scope(|scope| {
        let tracer = scope.spawn(|| Tracer::start(words, output)?.follow(decide));
        let joined = tracer.join();
        joined.unwrap_or_else(|_| bail!("the tracer panicked"))
    });
    match traced? {
        Followed::Ended(end) => Ok(end),
        Followed::LetGo(command) => {
            let number = u32::try_from(command.as_raw()).context("pid")?;
            if !child_ended(number, Duration::from_secs(WAIT_SECS))? {
                kill(command, Signal::SIGKILL).context("end a command that hangs")?;
                waitpid(command, None).context("wait for a command")?;
                bail!("{words:?} does not end after a kill");
            }
            match waitpid(command, None).context("wait for a command")? {
                WaitStatus::Exited(_, code) => Ok(End::Exited(code)),
                WaitStatus::Signaled(_, signal, _) => Ok(End::Signaled(signal as i32)),
                other => bail!("{words:?}: {other:?}"),
            }
        }
    }
}

enum Followed {
    Ended(End),
    /// It was not waited for.
    LetGo(Pid),
}

/// One process.
#[derive(Debug, Default)]
struct Traced {
    index: usize,
    /// Calls by kind.
    calls: HashMap<i64, usize>,
    /// What the call that it is in shall answer.
    answer: Option<i32>,
}

struct Tracer {
    command: Pid,
    /// The command's program, by its path.
    program: String,
    processes: HashMap<Pid, Traced>,
    births: usize,
    count: usize,
    /// The command's own program has been executed.
    begun: bool,
}

impl Tracer {
    fn start(words: &[String], output: Output) -> anyhow::Result<Self> {
        let stream = |file: Option<File>| file.map_or_else(Stdio::null, Stdio::from);
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read -r line && exec \"$@\" < /dev/null", "sh"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(stream(output.stdout))
            .stderr(stream(output.stderr))
            .spawn()
            .context("start a command to trace")?;
        let command = Pid::from_raw(i32::try_from(child.id()).context("pid")?);
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE;
        ptrace::seize(command, options).context("seize a command")?;
        let mut gate = child.stdin.take().context("no standard input")?;
        gate.write_all(b"\n").context("let a command go")?;
        let mut tracer = Self {
            command,
            program: words.first().cloned().unwrap_or_default(),
            processes: HashMap::new(),
            births: 0,
            count: 0,
            begun: false,
        };
        tracer.born(command);
        Ok(tracer)
    }

    fn born(&mut self, pid: Pid) -> &mut Traced {
        let births = &mut self.births;
        self.processes.entry(pid).or_insert_with(|| {
            *births += 1;
            Traced {
                index: *births - 1,
                ..Traced::default()
            }
        })
    }

    /// Follows all processes until the command ends or one was killed. A
    /// command that takes too long is killed.
    fn follow(mut self, decide: &mut dyn FnMut(&Call) -> Act) -> anyhow::Result<Followed> {
        let command = self.command;
        let (done, ended) = channel::<()>();
        let watch = std::thread::spawn(move || {
            let late = ended.recv_timeout(Duration::from_secs(WAIT_SECS));
            let late = late == Err(RecvTimeoutError::Timeout);
            late && kill(command, Signal::SIGKILL).is_ok()
        });
        let followed = self.all(decide);
        drop(done);
        let late = watch.join().unwrap_or(false);
        ensure!(!late, "the command did not end by itself");
        followed
    }

    fn all(&mut self, decide: &mut dyn FnMut(&Call) -> Act) -> anyhow::Result<Followed> {
        // Of this thread alone: others have children of their own.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = waitpid(None, Some(flags)).context("wait for a stop")?;
            match status {
                WaitStatus::Exited(pid, code) if pid == self.command => {
                    return Ok(Followed::Ended(End::Exited(code)));
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.command => {
                    return Ok(Followed::Ended(End::Signaled(signal as i32)));
                }
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                    self.processes.remove(&pid);
                }
                WaitStatus::PtraceSyscall(pid) if self.call(pid, decide)? => {
                    return Ok(Followed::LetGo(self.command));
                }
                WaitStatus::PtraceSyscall(_) => {}
                WaitStatus::PtraceEvent(pid, _, event) => self.event(pid, event)?,
                WaitStatus::Stopped(pid, signal) => {
                    self.born(pid);
                    resume(pid, Some(signal))?;
                }
                _ => {}
            }
        }
    }

    fn event(&mut self, pid: Pid, event: i32) -> anyhow::Result<()> {
        match event {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                let new = ptrace::getevent(pid);
                if let Some(new) = new.ok().and_then(|n| i32::try_from(n).ok()) {
                    self.born(Pid::from_raw(new));
                }
            }
            libc::PTRACE_EVENT_EXEC => {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if !self.begun {
                    // The shell's own may be seen too.
                    self.begun = line.starts_with(self.program.as_bytes());
                } else if !line.starts_with(BY_DESCRIPTOR) {
                    // A container's program, or a hook: not the runtime's.
                    self.processes.remove(&pid);
                    return match ptrace::detach(pid, None) {
                        Ok(()) | Err(Errno::ESRCH) => Ok(()),
                        Err(errno) => Err(errno).context("let a program go"),
                    };
                }
            }
            _ => {
                self.born(pid);
            }
        }
        if self.begun {
            resume(pid, None)
        } else {
            ptrace::cont(pid, None).context("continue a command")
        }
    }

    /// A stop at a system call; true when all is over.
    fn call(&mut self, pid: Pid, decide: &mut dyn FnMut(&Call) -> Act) -> anyhow::Result<bool> {
        let info = match ptrace::syscall_info(pid) {
            Err(Errno::ESRCH) => return Ok(false),
            other => other.context("look at a system call")?,
        };
        if info.op != SYSCALL_ENTRY {
            let answer = self.born(pid).answer.take();
            if let Some(errno) = answer {
                regs::answer(pid, -i64::from(errno))?;
            }
            resume(pid, None)?;
            return Ok(false);
        }
        let number = regs::number(pid)?;
        self.count += 1;
        let count = self.count;
        let process = self.born(pid);
        let nth = process.calls.entry(number).or_default();
        *nth += 1;
        let call = Call {
            count,
            process: process.index,
            number,
            nth: *nth,
        };
        match decide(&call) {
            Act::Go => {}
            Act::Fail(errno) => {
                process.answer = Some(errno);
                regs::skip(pid)?;
            }
            Act::Kill => {
                kill(pid, Signal::SIGKILL).context("kill a process")?;
                return Ok(true);
            }
            Act::KillAll => {
                for pid in self.processes.keys() {
                    let _ = kill(*pid, Signal::SIGKILL);
                }
                return Ok(true);
            }
        }
        resume(pid, None)?;
        Ok(false)
    }
}

/// Lets a process run to its next call; one that was killed meanwhile tells so
/// at the next wait.
fn resume(pid: Pid, signal: Option<Signal>) -> anyhow::Result<()> {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).context("resume a process"),
    }
}

/// Registers of a system call (syscall(2)).
#[cfg(target_arch = "x86_64")]
mod regs {
    use super::{Context, Pid, ptrace};

    /// Number of the call that a process enters.
    pub(super) fn number(pid: Pid) -> anyhow::Result<i64> {
        let regs = ptrace::getregs(pid).context("read registers")?;
        Ok(regs.orig_rax.cast_signed())
    }

    /// Has the kernel make no call.
    pub(super) fn skip(pid: Pid) -> anyhow::Result<()> {
        let mut regs = ptrace::getregs(pid).context("read registers")?;
        regs.orig_rax = u64::MAX;
        ptrace::setregs(pid, regs).context("write registers")
    }

    /// Puts a result in the place of the kernel's.
    pub(super) fn answer(pid: Pid, value: i64) -> anyhow::Result<()> {
        let mut regs = ptrace::getregs(pid).context("read registers")?;
        regs.rax = value.cast_unsigned();
        ptrace::setregs(pid, regs).context("write registers")
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod regs {
    use super::{Pid, bail};

    const UNKNOWN: &str = "the tracer knows the registers of x86-64 alone";

    pub(super) fn number(_: Pid) -> anyhow::Result<i64> {
        bail!(UNKNOWN)
    }

    pub(super) fn skip(_: Pid) -> anyhow::Result<()> {
        bail!(UNKNOWN)
    }

    pub(super) fn answer(_: Pid, _: i64) -> anyhow::Result<()> {
        bail!(UNKNOWN)
    }
}
