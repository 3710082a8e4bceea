//! The last part of a stage: streams, limits, identity, filter, program.

use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rkube_sys::exec::{CVec, execve};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::Stage;
use crate::bridge;
use crate::error::{Context, Result, failure, refusal};
use crate::identity::{self, FileLimit, PreparedFilter};
use crate::mounts::{Mounts, show};
use crate::plan::{Program, StageMessage, Step};
use crate::program::{enter_directory, find_program};
use crate::{socket, terminal, wire};

impl Stage<'_> {
    pub(super) fn program(&mut self) -> Result<()> {
        let plan = self.plan;
        let program = &plan.program;
        let filter = program
            .seccomp
            .as_ref()
            .map(PreparedFilter::new)
            .transpose()?;
        if let Some(adj) = program.oom_score_adj {
            self.set_oom_score(adj)?;
        }
        let master = self.open_streams()?;
        let mut warnings = std::mem::take(&mut self.warnings);
        if let Some(scheduler) = &program.scheduler {
            identity::set_scheduler(scheduler)?;
        }
        if let Some((class, level)) = program.io_priority {
            rkube_sys::process::set_io_priority(class, level)
                .on("set I/O priority", format!("class {class} level {level}"))?;
        }
        if let Some(persona) = program.personality {
            rkube_sys::process::set_personality(persona)
                .on("set personality", format!("{persona:#x}"))?;
        }
        if program.new_keyring {
            match rkube_sys::process::new_session_keyring() {
                // A kernel without keyrings has none to share.
                Ok(()) | Err(Errno::NOSYS) => {}
                Err(errno) => return Err(failure("make", "session keyring", errno)),
            }
        }
        enter_directory(self.root()?.as_ref(), &program.cwd)?;
        identity::assume(program)?;
        // A change of user has reset it (PR_SET_DUMPABLE, prctl(2)).
        Self::become_undumpable()?;
        let path = find_program(program)?;
        let argv = CVec::new(program.argv.clone());
        let envp = CVec::new(program.env.clone());
        let files = identity::set_rlimits(&program.rlimits, &mut warnings)?;
        self.let_go(master.as_ref())?;
        for text in warnings {
            self.tell(&StageMessage::Warning { text }, &[])?;
        }
        let ready = StageMessage::Ready {
            terminal: master.is_some(),
            listener: false,
        };
        match &master {
            Some(master) => self.tell(&ready, &[master.as_fd()])?,
            None => self.tell(&ready, &[])?,
        }
        drop(master);
        let mut start = self.wait_for_start()?;
        let failed = match self.seal(program, files, filter.as_ref(), &mut start) {
            Ok(()) => failure("execute", show(&path), execve(&path, &argv, &envp)),
            Err(failed) => failed,
        };
        if let Some(start) = start {
            // Whoever started it may have gone; the parent is told below.
            let _ = rustix::io::write(&start, &wire::encode(&failed));
        }
        Err(failed)
    }

    /// The last things, after which only an exec comes.
    fn seal(
        &mut self,
        program: &Program,
        files: Option<FileLimit>,
        filter: Option<&PreparedFilter>,
        start: &mut Option<OwnedFd>,
    ) -> Result<()> {
        let plan = self.plan;
        for step in &plan.start_steps {
            self.step(step)?;
        }
        if !plan.extra_fds.is_empty() {
            self.place_extra_fds(start)?;
        }
        // After everything that opens a file.
        if let Some(files) = files {
            files.set()?;
        }
        // Made before: with the filter in force even memory may be asked about.
        let text = self.agent_text();
        identity::seal(program, filter, &|listener| self.hand_over(listener, &text))
    }

    /// What the agent is told of the container, if there is one.
    fn agent_text(&self) -> Vec<u8> {
        let state = self
            .plan
            .seccomp_agent
            .iter()
            .flat_map(|agent| &agent.state);
        let parts: Vec<&[u8]> = state.map(|part| part.to_bytes()).collect();
        parts.join(self.host_pid.to_string().as_bytes())
    }

    /// Hands the listener to the agent. The filter is in force already: of
    /// the calls that it may ask about, this makes sendmsg alone.
    fn hand_over(&self, listener: &OwnedFd, text: &[u8]) -> Result<()> {
        let agent = self.plan.seccomp_agent.as_ref();
        let agent = agent.ok_or_else(|| refusal("hand over", "seccomp listener", "no agent"))?;
        let socket = match &self.moved_agent {
            Some(moved) => moved.as_fd(),
            None => self.fd(agent.fd)?.as_fd(),
        };
        socket::send_one(socket, text, listener.as_fd()).on("send seccomp listener to", "its agent")
    }

    fn set_oom_score(&mut self, adj: i32) -> Result<()> {
        let text = adj.to_string();
        let path = c"self/oom_score_adj";
        if bridge::enters_user_namespace(self.plan) {
            // It was set by the host's root, to whom the file belongs.
            return self.note_oom_score(adj);
        }
        // /proc/self is a symbolic link within the instance, no magic link.
        match self.private_proc()?.write(path, text.as_bytes()) {
            Err(failed)
                if failed.errno == Errno::ACCESS.raw_os_error()
                    || failed.errno == Errno::PERM.raw_os_error() =>
            {
                self.note_oom_score(adj)
            }
            other => other,
        }
    }

    /// Warns where the score is not what it should be.
    fn note_oom_score(&mut self, adj: i32) -> Result<()> {
        let file = self
            .private_proc()?
            .open(c"self/oom_score_adj", OFlags::RDONLY)?;
        let mut buffer = [0_u8; 16];
        let n = crate::files::read_start(&file, &mut buffer).on("read", "oom_score_adj")?;
        let now = String::from_utf8_lossy(&buffer[..n]).trim().to_owned();
        if now != adj.to_string() {
            self.warnings.push(format!(
                "oom_score_adj stays at {now} instead of {adj} since CAP_SYS_RESOURCE is missing"
            ));
        }
        Ok(())
    }

    /// Connects standard input, output and error; returns a terminal's master.
    fn open_streams(&mut self) -> Result<Option<OwnedFd>> {
        let program = &self.plan.program;
        if let Some(wanted) = &self.plan.terminal {
            let pty = terminal::open(self.root()?.as_ref(), wanted, program.uid)?;
            if self
                .plan
                .steps
                .iter()
                .any(|s| matches!(s, Step::PivotRoot { .. }))
            {
                terminal::attach_console(self.root()?.as_ref(), &pty)?;
            }
            for n in 0..=2 {
                rkube_sys::fd::dup_to_stdio(pty.slave.as_fd(), n).on("connect", "terminal")?;
            }
            return Ok(Some(pty.master));
        }
        let null = self.root()?.open(b"/dev/null", OFlags::RDWR);
        for n in 0..3_i32 {
            let index = usize::try_from(n)
                .ok()
                .and_then(|n| self.plan.stdio.get(n).copied());
            if let Some(index) = index.flatten() {
                let fd = self.fd(index)?;
                give_stream(fd, program.uid);
                rkube_sys::fd::dup_to_stdio(fd.as_fd(), n).on("connect stream", n.to_string())?;
            } else {
                let null = null
                    .as_ref()
                    .map_err(|e| failure("open", "/dev/null", *e))?;
                rkube_sys::fd::dup_to_stdio(null.as_fd(), n).on("connect", "/dev/null")?;
            }
        }
        Ok(None)
    }

    /// Gives the program its descriptors 3, 4, ... Everything that is still
    /// needed moves out of their way first.
    fn place_extra_fds(&mut self, start: &mut Option<OwnedFd>) -> Result<()> {
        let count = i32::try_from(self.plan.extra_fds.len()).unwrap_or(i32::MAX);
        let beyond = 3_i32.saturating_add(count);
        let copy = |fd: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(fd, beyond)
                .on("duplicate descriptor", fd.as_raw_fd().to_string())
        };
        self.moved_sync = Some(copy(self.sync)?);
        if let Some(old) = start.as_mut() {
            *old = copy(old.as_fd())?;
        }
        if let Some(agent) = &self.plan.seccomp_agent {
            self.moved_agent = Some(copy(self.fd(agent.fd)?.as_fd())?);
        }
        let mut copies = Vec::new();
        for index in &self.plan.extra_fds {
            copies.push(copy(self.fd(*index)?.as_fd())?);
        }
        for (n, copy) in (3..).zip(&copies) {
            // SAFETY: what had this number has moved or is used no more: an
            // exec follows, or the end of this process.
            #[allow(unsafe_code)]
            unsafe { rkube_sys::fd::dup_to_number(copy.as_fd(), n) }
                .on("place descriptor", n.to_string())?;
        }
        Ok(())
    }

    /// A process that waits for its start may be looked at by others of its
    /// container for long: it keeps what its program needs, and nothing of
    /// the host.
    fn let_go(&mut self, master: Option<&OwnedFd>) -> Result<()> {
        let Some(start) = self.plan.start else {
            return Ok(());
        };
        self.mounts = Mounts::default();
        self.proc = None;
        self.root = OnceCell::new();
        let mut keep = vec![self.sync, self.fd(start)?.as_fd()];
        keep.extend(master.map(AsFd::as_fd));
        for index in &self.plan.extra_fds {
            keep.push(self.fd(*index)?.as_fd());
        }
        if let Some(agent) = &self.plan.seccomp_agent {
            keep.push(self.fd(agent.fd)?.as_fd());
        }
        // SAFETY: of the plan's descriptors those are used from here on, and
        // this process never returns to the code that owns the others.
        #[allow(unsafe_code)]
        unsafe { rkube_sys::fd::close_others(&keep) }.on("close", "what is not needed any more")
    }

    fn wait_for_start(&self) -> Result<Option<OwnedFd>> {
        let Some(index) = self.plan.start else {
            return Ok(None);
        };
        let listener = self.fd(index)?;
        let connection = rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)
            .on("wait for", "start")?;
        let mut byte = [0_u8; 1];
        match rustix::io::read(&connection, &mut byte).on("wait for", "start")? {
            1 => Ok(Some(connection)),
            _ => Err(refusal("wait for", "start", "the starter has gone")),
        }
    }
}

/// A stream that is a pipe or FIFO of rkube's belongs to the program's user,
/// so that it can open it again as /dev/stdout.
fn give_stream(fd: &OwnedFd, uid: u32) {
    if uid == 0 {
        return;
    }
    let fifo =
        rustix::fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo);
    if fifo {
        // A program that does not open it again needs nothing of this.
        let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
    }
}
