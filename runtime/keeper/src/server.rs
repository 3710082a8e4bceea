//! The keeper: parent of a pod's processes, and all that must outlive the
//! big process.
//!
//! One thread around one epoll. It sleeps in the kernel until a process ends,
//! writes, or the controller asks for something: at rest it makes no system
//! call.

mod asked;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};

use crate::error::{Context, Result, failure, refusal};
use crate::launch::Progress;
use crate::log::{Pumped, Scratch, Stream};
use crate::plan::Failure;
use crate::process::{Process, RunDir};
use crate::protocol::{Exit, Kind, MAX_PROCESSES, ProcessStatus, Reply, Request, StartRequest};
use crate::socket;
use crate::wire::{PROTOCOL_VERSION, decode, encode};

/// What an epoll event is about; the upper bits are the slot of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Listener,
    Controller,
    End,
    Sync,
    Stdout,
    Stderr,
}

const WHATS: [What; 6] = [
    What::Listener,
    What::Controller,
    What::End,
    What::Sync,
    What::Stdout,
    What::Stderr,
];

fn data(slot: u32, what: What) -> EventData {
    EventData::new_u64((u64::from(slot) << 8) | what as u64)
}

/// Output is watched by edges: the tail of an unfinished line stays in its
/// FIFO, and a level would tell of it for ever.
const OUTPUT: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Exit code of a container whose program could not be started (what
/// containerd reports as StartError).
const NOT_STARTED: i32 = 128;

/// The token of nobody's request.
const NO_TOKEN: u64 = 0;

/// A terminal's output goes into the log, where there is one.
fn watch_terminal(epoll: &OwnedFd, slot: u32, process: &Process) -> Result<()> {
    let (Some(master), Some(_)) = (&process.terminal, &process.request.log) else {
        return Ok(());
    };
    let flags = rustix::fs::fcntl_getfl(master).on("read flags of", "terminal")?;
    rustix::fs::fcntl_setfl(master, flags | rustix::fs::OFlags::NONBLOCK)
        .on("make non-blocking", "terminal")?;
    epoll::add(epoll, master, data(slot, What::Stdout), OUTPUT).on("watch", "terminal")
}

/// All that a keeper holds.
#[derive(Debug)]
pub struct Keeper {
    epoll: OwnedFd,
    listener: OwnedFd,
    dir: RunDir,
    writer: Vec<CString>,
    controller: Option<OwnedFd>,
    processes: BTreeMap<u32, Process>,
    next_slot: u32,
    scratch: Scratch,
    done: bool,
}

/// Serves a pod until it is told to end. `first` is the socket that the
/// keeper was started with.
///
/// # Errors
/// What made it impossible to begin.
pub fn run(first: OwnedFd) -> Result<()> {
    let packet = socket::receive(first.as_fd()).on("receive", "configuration")?;
    let request = decode::<Request>(&packet.bytes)
        .map_err(|e| refusal("understand", "configuration", &e.to_string()))?;
    let Request::Configure {
        version: _,
        pod: _,
        writer,
    } = request
    else {
        return Err(refusal("understand", "configuration", "it must come first"));
    };
    let mut fds = packet.fds.into_iter();
    let (Some(listener), Some(dir)) = (fds.next(), fds.next()) else {
        return Err(refusal("take", "configuration", "descriptors are missing"));
    };
    for tasks in fds {
        rustix::io::write(&tasks, b"0").on("enter", "rkube's own cgroup")?;
    }
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).on("make", "epoll")?;
    let mut keeper = Keeper {
        epoll,
        listener,
        dir,
        writer,
        controller: None,
        processes: BTreeMap::new(),
        next_slot: 1,
        scratch: Scratch::new()?,
        done: false,
    };
    let listener = keeper.listener.as_fd();
    epoll::add(
        &keeper.epoll,
        listener,
        data(0, What::Listener),
        EventFlags::IN,
    )
    .on("watch", "listening socket")?;
    keeper.welcome(first)?;
    keeper.serve()
}

impl Keeper {
    fn serve(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(32);
        while !self.done {
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failure("wait for", "events", errno)),
            }
            // Output before ends: what a process wrote last is read first.
            let order = |e: &epoll::Event| std::cmp::Reverse(e.data.u64() & 0xff);
            events.sort_by_key(order);
            for event in &events {
                let raw = event.data.u64();
                let slot = u32::try_from(raw >> 8).unwrap_or_default();
                let what = usize::try_from(raw & 0xff)
                    .ok()
                    .and_then(|n| WHATS.get(n).copied());
                match what {
                    Some(What::Listener) => self.accept(),
                    Some(What::Controller) => self.hear(),
                    Some(What::End) => self.ended(slot),
                    Some(What::Sync) => self.advance(slot),
                    Some(What::Stdout) => self.pump(slot, Stream::Stdout),
                    Some(What::Stderr) => self.pump(slot, Stream::Stderr),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// A new controller takes the place of the old one. Only root may be one.
    fn accept(&mut self) {
        let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            return;
        };
        let is_root =
            rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid.is_root());
        if is_root {
            // The next event tells when this does not work.
            let _ = self.welcome(socket);
        }
    }

    fn welcome(&mut self, socket: OwnedFd) -> Result<()> {
        self.drop_controller();
        epoll::add(
            &self.epoll,
            &socket,
            data(0, What::Controller),
            EventFlags::IN,
        )
        .on("watch", "controller")?;
        self.controller = Some(socket);
        let processes: Vec<ProcessStatus> =
            self.processes.values().map(|p| p.status.clone()).collect();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        self.say(
            &Reply::Hello {
                version: PROTOCOL_VERSION,
                pid,
                processes,
            },
            &[],
        );
        Ok(())
    }

    fn drop_controller(&mut self) {
        if let Some(old) = self.controller.take() {
            // Closing removes it from epoll as well.
            let _ = epoll::delete(&self.epoll, &old);
        }
    }

    /// A controller that does not take its messages is dropped: when it comes
    /// back, it is told everything anew.
    fn say(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(controller) = &self.controller else {
            return;
        };
        let flags = SendFlags::DONTWAIT;
        if socket::send_with(controller.as_fd(), &encode(reply), fds, flags).is_err() {
            self.drop_controller();
        }
    }

    fn hear(&mut self) {
        let Some(controller) = &self.controller else {
            return;
        };
        let packet = match socket::receive(controller.as_fd()) {
            Ok(packet) if !packet.bytes.is_empty() => packet,
            // It was killed: what it was about to do, another one must.
            _ => {
                self.drop_controller();
                return self.start_writer();
            }
        };
        let Ok(request) = decode::<Request>(&packet.bytes) else {
            return self.drop_controller();
        };
        match request {
            Request::Configure { .. } | Request::Hello { .. } => {}
            Request::Goodbye {} => self.drop_controller(),
            Request::Start { token, request } => {
                let result = self.start(token, request, packet.fds, false);
                self.complain(token, result);
            }
            Request::StartOnce { token, request } => {
                let result = self.start(token, request, packet.fds, true);
                self.complain(token, result);
            }
            Request::CloseInput { token, key } => {
                let result = self.close_input(&key);
                self.answer(token, result);
            }
            Request::Adopt {
                token,
                request,
                status,
                terminal,
            } => {
                let result = self.adopt(request, status, terminal, packet.fds);
                self.answer(token, result);
            }
            Request::Signal { token, key, signal } => {
                let result = self.signal(&key, signal);
                self.answer(token, result);
            }
            Request::Forget { token, key } => {
                let result = self.forget(&key);
                self.answer(token, result);
            }
            Request::Resize {
                token,
                key,
                columns,
                rows,
            } => {
                let result = self.resize(&key, columns, rows);
                self.answer(token, result);
            }
            Request::Terminal { token, key } => self.hand_out_terminal(token, &key),
            Request::Attach { token, key } => {
                let result = self.attach(&key, packet.fds);
                self.answer(token, result);
            }
            Request::Shutdown { token } => {
                let living = self.processes.values().find(|p| p.status.exit.is_none());
                let result = match living {
                    Some(p) => Err(refusal("end keeper of", p.status.key.as_str(), "it lives")),
                    None => Ok(()),
                };
                self.done = result.is_ok();
                self.answer(token, result);
            }
        }
    }

    fn complain(&mut self, token: u64, result: Result<()>) {
        if let Err(failure) = result {
            self.say(&Reply::Failed { token, failure }, &[]);
        }
    }

    fn answer(&mut self, token: u64, result: Result<()>) {
        match result {
            Ok(()) => self.say(&Reply::Done { token }, &[]),
            Err(failure) => self.say(&Reply::Failed { token, failure }, &[]),
        }
    }

    fn find(&self, key: &str) -> Result<u32> {
        self.processes
            .iter()
            .find(|(_, p)| p.status.key == key)
            .map(|(slot, _)| *slot)
            .ok_or_else(|| refusal("find process", key, "the keeper holds none of this name"))
    }

    fn get(&mut self, key: &str) -> Result<&mut Process> {
        let slot = self.find(key)?;
        self.processes
            .get_mut(&slot)
            .ok_or_else(|| refusal("find process", key, "the keeper holds none of this name"))
    }

    fn room_for(&self, key: &str) -> Result<()> {
        if self.find(key).is_ok() {
            return Err(refusal("make process", key, "one of this name is there"));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(refusal("make process", key, "the keeper holds too many"));
        }
        Ok(())
    }

    fn start(
        &mut self,
        token: u64,
        request: StartRequest,
        fds: Vec<OwnedFd>,
        once: bool,
    ) -> Result<()> {
        self.room_for(&request.key)?;
        // SAFETY: a keeper has one thread.
        #[allow(unsafe_code)]
        let process = unsafe { Process::start(request, fds, &self.dir, token, once) }?;
        let slot = self.insert(process)?;
        let Some(process) = self.processes.get(&slot) else {
            return Ok(());
        };
        if let Some((launch, _)) = &process.launch {
            epoll::add(
                &self.epoll,
                &launch.sync,
                data(slot, What::Sync),
                EventFlags::IN,
            )
            .on("watch", "stage")?;
        }
        Ok(())
    }

    fn adopt(
        &mut self,
        request: StartRequest,
        status: ProcessStatus,
        terminal: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        self.room_for(&request.key)?;
        let process = Process::adopt(request, status, terminal, fds, &self.dir)?;
        let slot = self.insert(process)?;
        let Some(process) = self.processes.get(&slot) else {
            return Ok(());
        };
        watch_terminal(&self.epoll, slot, process)?;
        epoll::add(
            &self.epoll,
            &process.pidfd,
            data(slot, What::End),
            EventFlags::IN,
        )
        .on("watch", "process")
    }

    fn insert(&mut self, process: Process) -> Result<u32> {
        let slot = self.next_slot;
        self.next_slot += 1;
        for (stream, what) in process.streams.iter().zip([What::Stdout, What::Stderr]) {
            if let Some(fd) = stream {
                epoll::add(&self.epoll, fd, data(slot, what), OUTPUT).on("watch", "output")?;
            }
        }
        self.processes.insert(slot, process);
        Ok(slot)
    }

    /// A stage has said something.
    fn advance(&mut self, slot: u32) {
        let Some(process) = self.processes.get_mut(&slot) else {
            return;
        };
        let Some((launch, token)) = &mut process.launch else {
            return;
        };
        let token = *token;
        match launch.advance() {
            Ok(Progress::Going) => {}
            Ok(Progress::Running) => self.running(slot, token),
            Ok(Progress::Failed(failure)) | Err(failure) => self.failed(slot, token, failure),
        }
    }

    fn running(&mut self, slot: u32, token: u64) {
        let Some(process) = self.processes.get_mut(&slot) else {
            return;
        };
        let Some((launch, _)) = process.launch.take() else {
            return;
        };
        process.status.started_ns = crate::log::now_ns();
        // An exec's terminal belongs to whoever asked for it: its end hangs up.
        let is_exec = process.is_exec();
        let handed_out = launch.terminal.as_ref().map(OwnedFd::try_clone);
        process.terminal = launch.terminal.filter(|_| !is_exec);
        let watched = (|| {
            epoll::add(
                &self.epoll,
                &process.pidfd,
                data(slot, What::End),
                EventFlags::IN,
            )
            .on("watch", "process")?;
            watch_terminal(&self.epoll, slot, process)?;
            if is_exec {
                Ok(())
            } else {
                process.record(&self.dir)
            }
        })();
        if let Err(failure) = watched {
            let _ = rkube_sys::signal::pidfd_signal(process.pidfd.as_fd(), 9);
            return self.failed(slot, token, failure);
        }
        let mut fds = Vec::new();
        let copies: Vec<OwnedFd> = std::iter::once(process.pidfd.try_clone())
            .chain(handed_out)
            .flatten()
            .collect();
        fds.extend(copies.iter().map(AsFd::as_fd));
        let reply = Reply::Started {
            token,
            status: process.status.clone(),
            terminal: fds.len() > 1,
            warnings: launch.warnings,
        };
        self.say(&reply, &fds);
        rkube_sys::process::trim_heap();
    }

    fn failed(&mut self, slot: u32, token: u64, failure: Failure) {
        let mut ended = None;
        if let Some(mut process) = self.processes.remove(&slot) {
            // The stage ends by itself or was killed; its zombie goes now.
            let _ = rkube_sys::signal::pidfd_signal(process.pidfd.as_fd(), 9);
            let options = rustix::process::WaitIdOptions::EXITED;
            let id = rustix::process::WaitId::PidFd(process.pidfd.as_fd());
            let _ = rustix::process::waitid(id, options);
            process.finish_output(&self.scratch);
            process.remove_files(&self.dir);
            ended = Some(process.status);
        }
        if token != NO_TOKEN {
            return self.say(&Reply::Failed { token, failure }, &[]);
        }
        if let Some(mut status) = ended {
            // Whoever listens knows it from the list alone.
            status.exit = Some(Exit {
                code: NOT_STARTED,
                signal: 0,
                finished_ns: crate::log::now_ns(),
                oom: String::new(),
            });
            self.say(&Reply::Exited { status }, &[]);
        }
    }

    /// A process has ended.
    fn ended(&mut self, slot: u32) {
        let Some(process) = self.processes.get_mut(&slot) else {
            return;
        };
        if process.launch.is_some() || !process.reap() {
            return;
        }
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        // The record is what survives this keeper; a full disk costs just that.
        let _ = process.record(&self.dir);
        process.finish_output(&self.scratch);
        let status = process.status.clone();
        if process.is_exec() {
            process.remove_files(&self.dir);
            self.processes.remove(&slot);
        }
        let is_container = !matches!(status.kind, Kind::Exec {});
        self.say(&Reply::Exited { status }, &[]);
        if self.controller.is_none() && is_container {
            self.start_writer();
        }
        rkube_sys::process::trim_heap();
    }

    /// Output has come. A stream that has more than its turn allows is told
    /// of again: its edge is armed anew.
    fn pump(&mut self, slot: u32, stream: Stream) {
        let Some(process) = self.processes.get_mut(&slot) else {
            return;
        };
        let n = usize::from(stream == Stream::Stderr);
        match process.pump(stream, &self.scratch) {
            Pumped::Idle => {}
            Pumped::More => {
                let what = if n == 0 { What::Stdout } else { What::Stderr };
                let fd = match (&process.terminal, &process.streams[n]) {
                    (Some(master), _) if n == 0 => master,
                    (_, Some(fd)) => fd,
                    _ => return,
                };
                let _ = epoll::modify(&self.epoll, fd, data(slot, what), OUTPUT);
            }
            // A FIFO that nobody has open for writing; a terminal's slaves may
            // come again.
            Pumped::Ended => {
                if let Some(fd) = process.streams[n].take() {
                    let _ = epoll::delete(&self.epoll, &fd);
                }
            }
        }
    }

    /// Nobody is there to be told of an end: start who acts on it. When
    /// another keeper does the same, the second writer finds the lock taken.
    fn start_writer(&self) {
        let mut args = self
            .writer
            .iter()
            .map(|a| std::ffi::OsString::from_vec(a.to_bytes().to_vec()));
        let Some(program) = args.next() else { return };
        let null = std::process::Stdio::null;
        let spawned = std::process::Command::new(program)
            .args(args)
            .env_clear()
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .spawn();
        // It detaches itself at once; its first process is reaped here.
        if let Ok(mut child) = spawned {
            let _ = child.wait();
        }
    }
}
