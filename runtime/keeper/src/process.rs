//! One process of a keeper: how it is made, what it writes, how it ended.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::error::{Context, Result, refusal};
use crate::launch::Launch;
use crate::log::{Log, Pumped, Scratch, Stream, now_ns};
use crate::plan::{MAX_PLAN_BYTES, Plan};
use crate::protocol::{Exit, Kind, ProcessStatus, StartRequest};
use crate::wire;

/// Reads of one stream before others have their turn.
const MAX_PUMPS: usize = 16;

/// Text of an OOM counter that is kept, in bytes: what `memory.events` of
/// today's kernels holds fits in half of it.
const MAX_COUNTER_BYTES: usize = 256;

/// How long the reaper of an adopted process may take, in seconds.
const REAPED_LIMIT_S: i64 = 1;

/// FIFOs belong to root alone, until a stage gives one to its program's user.
const FIFO_MODE: u32 = 0o600;

/// A process, from its launch until it is forgotten.
#[derive(Debug)]
pub struct Process {
    /// As it was asked for.
    pub request: StartRequest,
    /// How it stands.
    pub status: ProcessStatus,
    /// Names it.
    pub pidfd: OwnedFd,
    /// While it is not running yet: the launch and the token of its request.
    pub launch: Option<(Launch, u64)>,
    /// A terminal's master.
    pub terminal: Option<OwnedFd>,
    /// Read ends of standard output and error.
    pub streams: [Option<OwnedFd>; 2],
    /// Keeps a standard input open that is to end once.
    input: Option<OwnedFd>,
    log: Option<Log>,
    oom: Option<OwnedFd>,
}

/// Where FIFOs and records of processes lie.
pub type RunDir = OwnedFd;

impl Process {
    /// Clones the stage of a request. `fds` are those of its packet: the
    /// encoded plan, the plan's own, and the OOM counter. With `once` its
    /// standard input ends when [`Self::close_input`] says so.
    ///
    /// # Safety
    /// The calling process must be single-threaded.
    #[allow(unsafe_code)]
    pub unsafe fn start(
        request: StartRequest,
        mut fds: Vec<OwnedFd>,
        dir: &RunDir,
        token: u64,
        once: bool,
    ) -> Result<Self> {
        check_key(&request.key)?;
        let oom = if request.oom_counter { fds.pop() } else { None };
        let mut input = None;
        let mut plan = take_plan(&mut fds)?;
        let log = request.log.clone().map(Log::open).transpose()?;
        let mut streams = [None, None];
        if log.is_some() && plan.terminal.is_none() {
            plan.stdio = vec![None; 3];
            for (n, end) in ["out", "err"].iter().enumerate() {
                let (reader, writer) = open_fifo(dir, &format!("{}.{end}", request.key))?;
                streams[n] = Some(reader);
                plan.stdio[n + 1] = Some(push(&mut fds, writer));
            }
            if request.stdin {
                // Open for writing too, as the outputs are: it does not end
                // with the keeper, nor with whoever attaches.
                let (reader, both) = open_fifo(dir, &input_name(&request.key))?;
                let theirs = if once {
                    input = Some(both);
                    blocking(reader).on("open FIFO", request.key.as_str())?
                } else {
                    both
                };
                plan.stdio[0] = Some(push(&mut fds, theirs));
            }
        }
        // SAFETY: as the caller vouches.
        let launch = unsafe { Launch::new(&plan, &fds, false) }?;
        let status = ProcessStatus {
            key: request.key.clone(),
            kind: request.kind,
            pid: launch.pid,
            start_ticks: start_ticks(launch.pid)?,
            started_ns: now_ns(),
            exit: None,
        };
        Ok(Self {
            request,
            status,
            pidfd: launch.pidfd.try_clone().on("duplicate", "pidfd")?,
            launch: Some((launch, token)),
            terminal: None,
            streams,
            input,
            log,
            oom,
        })
    }

    /// Takes over a process of a keeper that has died.
    pub fn adopt(
        request: StartRequest,
        status: ProcessStatus,
        has_terminal: bool,
        mut fds: Vec<OwnedFd>,
        dir: &RunDir,
    ) -> Result<Self> {
        check_key(&request.key)?;
        let oom = if request.oom_counter { fds.pop() } else { None };
        let terminal = if has_terminal { fds.pop() } else { None };
        let pidfd = fds
            .pop()
            .ok_or_else(|| refusal("adopt", request.key.as_str(), "its pidfd is missing"))?;
        if status.exit.is_none() && start_ticks(status.pid).ok() != Some(status.start_ticks) {
            return Err(refusal(
                "adopt",
                request.key.as_str(),
                "its pid names another process",
            ));
        }
        let log = request.log.clone().map(Log::open).transpose()?;
        let mut streams = [None, None];
        if log.is_some() {
            for (n, end) in ["out", "err"].iter().enumerate() {
                // None with a terminal.
                streams[n] = open_reader(dir, &format!("{}.{end}", request.key)).ok();
            }
        }
        // Needless where it is open for writing inside, and gone where it was
        // closed.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = input_name(&request.key);
        let input = rustix::fs::openat(dir, name, flags, Mode::empty()).ok();
        Ok(Self {
            request,
            status,
            pidfd,
            launch: None,
            terminal,
            streams,
            input,
            log,
            oom,
        })
    }

    /// Moves output into the log.
    pub fn pump(&mut self, stream: Stream, scratch: &Scratch) -> Pumped {
        let Some(log) = &mut self.log else {
            return Pumped::Ended;
        };
        for _ in 0..MAX_PUMPS {
            let pumped = match (&self.terminal, &self.streams[index(stream)]) {
                (Some(master), _) if stream == Stream::Stdout => log.pump_terminal(master),
                (_, Some(fifo)) => log.pump_fifo(stream, fifo, scratch),
                _ => return Pumped::Ended,
            };
            match pumped {
                Ok(Pumped::More) => {}
                Ok(other) => return other,
                Err(_) => return Pumped::Ended,
            }
        }
        Pumped::More
    }

    /// Writes what the process left in its streams, once it has ended.
    pub fn finish_output(&mut self, scratch: &Scratch) {
        if self.terminal.is_some() {
            // A terminal holds little (N_TTY_BUF_SIZE is 4096).
            self.pump(Stream::Stdout, scratch);
        }
        let Some(log) = &mut self.log else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fifo) = &self.streams[index(stream)] {
                log.finish_fifo(stream, fifo, scratch);
            }
        }
        log.finish();
        log.detach_all();
    }

    /// Copies its output to pipes from now on: standard output, and errors
    /// where it has no terminal.
    ///
    /// # Errors
    /// Where it has ended or has no log, and what the kernel answered.
    pub fn attach(&mut self, pipes: Vec<OwnedFd>, scratch: &Scratch) -> Result<()> {
        let key = self.status.key.as_str();
        let log = match &mut self.log {
            Some(log) if self.status.exit.is_none() => log,
            Some(_) => return Err(crate::error::failure("attach to", key, Errno::SRCH)),
            None => return Err(refusal("attach to", key, "it has no log")),
        };
        for (stream, pipe) in [Stream::Stdout, Stream::Stderr].into_iter().zip(pipes) {
            let fifo = self.streams[index(stream)].as_ref();
            log.attach(stream, pipe, fifo, scratch)
                .on("attach to", key)?;
        }
        Ok(())
    }

    /// Its standard input ends as soon as nobody else writes to it.
    pub fn close_input(&mut self, dir: &RunDir) {
        self.input = None;
        // Nobody can attach to it any more; it may be gone already.
        let name = input_name(&self.status.key);
        let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
    }

    /// Collects how the process ended; `false` while it lives.
    pub fn reap(&mut self) -> bool {
        if self.status.exit.is_some() {
            return true;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => return false,
            Ok(Some(status)) => Some(status),
            // Not this keeper's child (adopted): the pidfd told that it ended.
            Err(_) => None,
        };
        let (code, signal) = match &ended {
            Some(status) => exit_code(status),
            None => foreign_exit(&self.status, &self.pidfd),
        };
        let oom = self.oom.as_ref().map(read_counter).unwrap_or_default();
        self.status.exit = Some(Exit {
            code,
            signal,
            finished_ns: now_ns(),
            oom,
        });
        true
    }

    /// Writes the record of the process, by rename.
    pub fn record(&self, dir: &RunDir) -> Result<()> {
        let name = record_name(&self.status.key);
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, new.as_str(), flags, Mode::from_raw_mode(0o600))
            .on("write record", new.as_str())?;
        let bytes = wire::encode(&self.status);
        let n = rustix::io::write(&file, &bytes).on("write record", new.as_str())?;
        if n != bytes.len() {
            return Err(refusal("write record", new, "the disk is full"));
        }
        rustix::fs::renameat(dir, new.as_str(), dir, name.as_str()).on("rename record", name)
    }

    /// Removes FIFOs and record.
    pub fn remove_files(&self, dir: &RunDir) {
        let key = &self.status.key;
        for name in [
            record_name(key),
            format!("{key}.out"),
            format!("{key}.err"),
            input_name(key),
        ] {
            // Not every process has each of them.
            let _ = rustix::fs::unlinkat(dir, name.as_str(), rustix::fs::AtFlags::empty());
        }
    }

    /// Whether it is the keeper's business no longer.
    #[must_use]
    pub fn is_exec(&self) -> bool {
        matches!(self.request.kind, Kind::Exec {})
    }
}

/// The file in the run directory that tells of a process.
#[must_use]
pub fn record_name(key: &str) -> String {
    format!("{key}.proc")
}

/// The FIFO in the run directory that is a process's standard input.
fn input_name(key: &str) -> String {
    format!("{key}.in")
}

/// A descriptor that waits, as programs expect of their standard input.
fn blocking(fd: OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
    Ok(fd)
}

fn check_key(key: &str) -> Result<()> {
    let fits = !key.is_empty()
        && key.len() <= 100
        && !key.starts_with('.')
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(refusal("name process", key, "invalid key"))
    }
}

/// The plan of a packet, and its descriptors without that of the plan.
pub fn take_plan(fds: &mut Vec<OwnedFd>) -> Result<Plan> {
    if fds.is_empty() {
        return Err(refusal("read", "plan", "it is missing"));
    }
    let file = fds.remove(0);
    let size = rustix::fs::fstat(&file).on("stat", "plan")?.st_size;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > MAX_PLAN_BYTES {
        return Err(refusal("read", "plan", "it is too large"));
    }
    let mut bytes = vec![0_u8; size];
    let mut at = 0;
    while at < size {
        let n = rustix::io::pread(&file, &mut bytes[at..], at as u64).on("read", "plan")?;
        if n == 0 {
            return Err(refusal("read", "plan", "it is truncated"));
        }
        at += n;
    }
    wire::decode(&bytes).map_err(|e| refusal("read", "plan", &e.to_string()))
}

fn push(fds: &mut Vec<OwnedFd>, fd: OwnedFd) -> u16 {
    fds.push(fd);
    u16::try_from(fds.len() - 1).unwrap_or(u16::MAX)
}

fn open_reader(dir: &RunDir, name: &str) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Both ends of a new FIFO. The writer's is open for reading too, so that it
/// gets no SIGPIPE when the keeper dies: its bytes wait for the next one.
fn open_fifo(dir: &RunDir, name: &str) -> Result<(OwnedFd, OwnedFd)> {
    let made = rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::from_raw_mode(FIFO_MODE), 0);
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(crate::error::failure("make FIFO", name, errno)),
    }
    let reader = open_reader(dir, name).on("open FIFO", name)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let writer = rustix::fs::openat(dir, name, flags, Mode::empty()).on("open FIFO", name)?;
    Ok((reader, writer))
}

/// Start time in clock ticks since boot (field 22 of /proc/PID/stat).
pub fn start_ticks(pid: i32) -> Result<u64> {
    stat_fields(pid)?
        .get(19)
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| {
            refusal(
                "understand",
                format!("/proc/{pid}/stat"),
                "field 22 is missing",
            )
        })
}

/// The fields of /proc/PID/stat from the third on. The command in field 2 may
/// hold anything: what counts follows its last `)`.
fn stat_fields(pid: i32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &path, flags, Mode::empty()).on("open", path.as_str())?;
    let mut buffer = [0_u8; 1024];
    let n = rustix::io::read(&file, &mut buffer).on("read", path.as_str())?;
    let text = String::from_utf8_lossy(&buffer[..n]);
    let (_, rest) = text
        .rsplit_once(')')
        .ok_or_else(|| refusal("understand", path, "it names no command"))?;
    Ok(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// The end of a process that somebody else reaps. Until that is done it is a
/// zombie, whose exit status /proc tells; afterwards the kernel tells it to
/// whoever holds a pidfd (Linux 6.15).
fn foreign_exit(status: &ProcessStatus, pidfd: &OwnedFd) -> (i32, i32) {
    let raw = zombie_status(status).or_else(|| {
        let limit = Timespec {
            tv_sec: REAPED_LIMIT_S,
            tv_nsec: 0,
        };
        // No event is asked for: the hang-up after the reaping is told all the
        // same (poll(2)).
        let mut fds = [PollFd::new(pidfd, PollFlags::empty())];
        let _ = poll(&mut fds, Some(&limit));
        rkube_sys::pidfd::exit_status(pidfd.as_fd())
    });
    match raw {
        Some(raw) if raw & 0x7f == 0 => ((raw >> 8) & 0xff, 0),
        Some(raw) => (128 + (raw & 0x7f), raw & 0x7f),
        None => (-1, 0),
    }
}

/// Field 52 of /proc/PID/stat, the wait status of a zombie (proc(5), 3.5).
fn zombie_status(status: &ProcessStatus) -> Option<i32> {
    let fields = stat_fields(status.pid).ok()?;
    let same = fields.get(19)?.parse() == Ok(status.start_ticks);
    (same && fields.first()? == "Z").then(|| fields.get(49)?.parse().ok())?
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

fn exit_code(status: &WaitIdStatus) -> (i32, i32) {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code, 0),
        (None, Some(signal)) => (128 + signal, signal),
        (None, None) => (-1, 0),
    }
}

fn read_counter(fd: &OwnedFd) -> String {
    let mut buffer = [0_u8; MAX_COUNTER_BYTES];
    let n = crate::files::read_start(fd, &mut buffer).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}
