//! The parent's side of a stage: clone, id maps, and what it says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rkube_sys::clone::{CLONE_NEWPID, Cloned};
use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Context, Result, refusal};
use crate::plan::{Failure, IdRange, Plan, StageMessage};
use crate::{bridge, idmap, socket, stage, wire};

/// A process on its way to its program.
#[derive(Debug)]
pub struct Launch {
    /// The process.
    pub pid: i32,
    /// Names it.
    pub pidfd: OwnedFd,
    /// Readable when it has something to say.
    pub sync: OwnedFd,
    /// A terminal's master.
    pub terminal: Option<OwnedFd>,
    /// A seccomp notification descriptor.
    pub listener: Option<OwnedFd>,
    /// What was done in another way than asked.
    pub warnings: Vec<String>,
    /// Set once it is ready.
    ready: bool,
    /// Ready is the last that it says (pause, and programs that wait).
    stays: bool,
    uid_map: String,
    gid_map: String,
    waits: u8,
}

/// How far it is.
#[derive(Debug)]
pub enum Progress {
    /// Not there yet.
    Going,
    /// Its program runs (or it waits, where the plan says so).
    Running,
    /// It has failed and ends.
    Failed(Failure),
}

/// The text of /proc/PID/uid_map (user_namespaces(7)).
pub(crate) fn map_text(ranges: &[IdRange]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for r in ranges {
        let _ = writeln!(text, "{} {} {}", r.inside, r.outside, r.count);
    }
    text
}

impl Launch {
    /// Clones the stage of a plan. With `as_sibling` the new process is a
    /// child of the caller's parent.
    ///
    /// # Safety
    /// The calling process must be single-threaded.
    #[allow(unsafe_code)]
    pub unsafe fn new(plan: &Plan, fds: &[OwnedFd], as_sibling: bool) -> Result<Self> {
        // SAFETY: as the caller vouches.
        unsafe { idmap::apply(plan, fds) }?;
        give_streams(plan, fds);
        let (ours, theirs) = socket::pair().on("make", "sync socket")?;
        let (pid, pidfd) = if bridge::is_needed(plan) && !as_sibling {
            // SAFETY: as the caller vouches.
            unsafe { bridge::across(plan, fds, &theirs) }?
        } else {
            // SAFETY: as the caller vouches.
            match unsafe { Self::clone(plan, fds, as_sibling) }? {
                Cloned::Child => {
                    drop(ours);
                    stage::run(plan, fds, theirs.as_fd())
                }
                Cloned::Parent { pid, pidfd } => (pid, pidfd),
            }
        };
        Ok(Self {
            pid,
            pidfd,
            sync: ours,
            terminal: None,
            listener: None,
            warnings: Vec::new(),
            ready: false,
            stays: plan.program.argv.is_empty() || plan.start.is_some(),
            waits: 0,
            uid_map: map_text(&plan.uid_map),
            gid_map: map_text(&plan.gid_map),
        })
    }

    /// The clone, by this very process.
    #[allow(unsafe_code)]
    unsafe fn clone(plan: &Plan, fds: &[OwnedFd], as_sibling: bool) -> Result<Cloned> {
        let pick = |index: u16| bridge::borrowed(fds, index);
        let mut own_pids = None;
        if bridge::is_needed(plan) {
            // Used once only: it may go where there is no way back from.
            bridge::enter(plan, &pick)?;
        } else {
            own_pids = join_process_namespace(plan, &pick)?;
        }
        let cgroup = plan.cgroup.directory.map(pick).transpose()?;
        // SAFETY: the caller vouches for being single-threaded.
        let cloned = unsafe { bridge::clone_stage(plan, cgroup, as_sibling) };
        if let (Some(own), Ok(Cloned::Parent { .. }) | Err(_)) = (own_pids, &cloned) {
            // Back to where this process' own children belong.
            rkube_sys::process::join_namespaces(own.as_fd(), CLONE_NEWPID)
                .on("return to", "own process namespace")?;
        }
        cloned
    }

    /// Reads one message of the stage (blocking where nothing is there yet).
    ///
    /// # Errors
    /// When the socket itself fails.
    pub fn advance(&mut self) -> Result<Progress> {
        let packet = socket::receive(self.sync.as_fd()).on("hear from", "stage")?;
        if packet.bytes.is_empty() {
            if self.ready {
                return Ok(Progress::Running);
            }
            let hint = "it was killed (by the OOM killer, where its memory limit is very small)";
            return Ok(Progress::Failed(refusal(
                "set up container:",
                "the stage ended",
                hint,
            )));
        }
        let message = wire::decode::<StageMessage>(&packet.bytes)
            .map_err(|e| refusal("understand", "stage", &e.to_string()))?;
        match message {
            StageMessage::Waiting {} => {
                self.answer_wait()?;
                Ok(Progress::Going)
            }
            StageMessage::Warning { text } => {
                self.warnings.push(text);
                Ok(Progress::Going)
            }
            StageMessage::Ready { terminal, listener } => {
                self.ready = true;
                let mut fds = packet.fds.into_iter();
                if terminal {
                    self.terminal = fds.next();
                }
                if listener {
                    self.listener = fds.next();
                }
                Ok(if self.stays {
                    Progress::Running
                } else {
                    Progress::Going
                })
            }
            StageMessage::Failed { failure } => Ok(Progress::Failed(failure)),
            StageMessage::Cloned { .. } => Ok(Progress::Failed(refusal(
                "understand",
                "stage",
                "only a bridge tells of a clone",
            ))),
        }
    }

    /// Goes on until the program runs.
    ///
    /// # Errors
    /// What the stage failed with.
    pub fn finish(&mut self) -> Result<()> {
        loop {
            match self.advance()? {
                Progress::Going => {}
                Progress::Running => return Ok(()),
                Progress::Failed(failure) => return Err(failure),
            }
        }
    }

    fn answer_wait(&mut self) -> Result<()> {
        self.waits += 1;
        let has_maps = !self.uid_map.is_empty() || !self.gid_map.is_empty();
        if has_maps && self.waits == 1 {
            write_map(self.pid, "uid_map", &self.uid_map)?;
            write_map(self.pid, "gid_map", &self.gid_map)?;
        }
        socket::send(self.sync.as_fd(), &wire::encode(&self.pid), &[]).on("answer", "stage")
    }
}

/// Gives streams that are pipes or FIFOs to the program's user, where the
/// stage could not do that itself.
fn give_streams(plan: &Plan, fds: &[OwnedFd]) {
    let Some(owner) = plan.stream_owner else {
        return;
    };
    for index in plan.stdio.iter().flatten() {
        let Some(fd) = fds.get(usize::from(*index)) else {
            continue;
        };
        let fifo = rustix::fs::fstat(fd)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo);
        if fifo {
            // A program that does not open it again needs nothing of this.
            let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(owner)), None);
        }
    }
}

/// Joins the process namespace of the plan, so that the next child is born in
/// it; returns the way back.
fn join_process_namespace<'a>(
    plan: &Plan,
    pick: &dyn Fn(u16) -> Result<BorrowedFd<'a>>,
) -> Result<Option<OwnedFd>> {
    let Some(join) = plan.joins.iter().find(|j| j.kind & CLONE_NEWPID != 0) else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open(c"/proc/self/ns/pid", flags, Mode::empty())
        .on("open", "own process namespace")?;
    rkube_sys::process::join_namespaces(pick(join.fd)?, CLONE_NEWPID)
        .on("join", "process namespace")?;
    Ok(Some(own))
}

/// Writes an id map of a process.
pub(crate) fn write_map(pid: i32, name: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{name}");
    let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .on("open", path.as_str())?;
    rustix::io::write(&file, text.as_bytes())
        .map(drop)
        .on("write", path)
}
