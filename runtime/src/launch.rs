//! Running a plan once, without a keeper: the new process is a child of this
//! one, and of its subreaper when this one ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rkube_keeper::plan::{MAX_PLAN_BYTES, MAX_PLAN_FDS};
use rkube_keeper::protocol::{Kind, Reply, Request, StartRequest};
use rkube_keeper::{socket, wire};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::set_socket_passcred,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::error::{Context, Error, Result};
use crate::open::Prepared;
use crate::program::Program;

/// A process that runs, or waits for its start.
#[derive(Debug)]
pub struct Launched {
    /// On the host.
    pub pid: i32,
    /// Names it.
    pub pidfd: OwnedFd,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// What was done in another way than asked.
    pub warnings: Vec<String>,
}

/// What is done at a rendezvous, with the pid of the stage.
pub type Meet<'a> = &'a mut dyn FnMut(i32) -> Result<()>;

/// A stop of the stage, for hooks of the host.
#[derive(Debug)]
pub struct Rendezvous {
    ours: OwnedFd,
}

impl Rendezvous {
    /// A pair: this end, and the one for
    /// [`PlanInput::rendezvous`](crate::PlanInput).
    ///
    /// # Errors
    /// socketpair(2)'s.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .on("make", "socket pair")?;
        // The kernel then tells the sender's pid, as this process sees it.
        set_socket_passcred(&ours, true).on("set SO_PASSCRED of", "rendezvous")?;
        Ok((Self { ours }, theirs))
    }

    /// Reads the byte; the pid of the stage, `None` when it has ended.
    fn arrived(&self) -> Result<Option<i32>> {
        let mut byte = [0_u8; 1];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut byte)];
        let got = match recvmsg(&self.ours, &mut parts, &mut control, RecvFlags::empty()) {
            Err(Errno::CONNRESET) => return Ok(None),
            other => other.on("hear from", "rendezvous")?,
        };
        if got.bytes == 0 {
            return Ok(None);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmCredentials(who) = message {
                return Ok(Some(who.pid.as_raw_nonzero().get()));
            }
        }
        Err(Error::Stage("came to the rendezvous without a pid".into()))
    }
}

/// Has the small program run a plan. `at_rendezvous` is called with the pid
/// when the stage stands at its rendezvous; its error ends the stage.
///
/// # Errors
/// What the stage failed with, or why it could not be started.
pub fn launch(
    program: &Program,
    prepared: Prepared,
    kind: Kind,
    rendezvous: Option<(Rendezvous, Meet<'_>)>,
) -> Result<Launched> {
    let Prepared {
        plan,
        fds,
        mut warnings,
    } = prepared;
    if fds.len() > MAX_PLAN_FDS {
        return Err(Error::TooLarge {
            what: "descriptors",
            count: fds.len(),
            limit: MAX_PLAN_FDS,
        });
    }
    let bytes = wire::encode(&plan);
    if bytes.len() > MAX_PLAN_BYTES {
        return Err(Error::TooLarge {
            what: "bytes",
            count: bytes.len(),
            limit: MAX_PLAN_BYTES,
        });
    }
    let (ours, theirs) = socket::pair().on("make", "socket pair")?;
    let mut child = program
        .spawn("stage", theirs)
        .map_err(|source| Error::Spawn { source })?;
    let talked = talk(&ours, &plan.id, &bytes, fds, kind, rendezvous);
    drop(ours);
    // It ends by itself once it has answered or its socket is closed.
    let status = child.wait().map_err(|source| Error::Spawn { source })?;
    let packet = talked?;
    if packet.bytes.is_empty() {
        return Err(Error::Stage(format!("ended without an answer, {status}")));
    }
    let reply = wire::decode::<Reply>(&packet.bytes).map_err(|e| Error::Stage(e.to_string()))?;
    match reply {
        Reply::Started {
            status,
            terminal,
            warnings: more,
            ..
        } => {
            warnings.extend(more);
            let mut fds = packet.fds.into_iter();
            let pidfd = fds
                .next()
                .ok_or_else(|| Error::Stage("answered without a pidfd".into()))?;
            Ok(Launched {
                pid: status.pid,
                pidfd,
                start_ticks: status.start_ticks,
                terminal: if terminal { fds.next() } else { None },
                warnings,
            })
        }
        Reply::Failed { failure, .. } => {
            reap(packet.fds.first());
            Err(Error::Container(failure))
        }
        _ => Err(Error::Stage("answered something else".into())),
    }
}

fn talk(
    socket: &OwnedFd,
    id: &str,
    plan: &[u8],
    fds: Vec<OwnedFd>,
    kind: Kind,
    rendezvous: Option<(Rendezvous, Meet<'_>)>,
) -> Result<socket::Packet> {
    let plan = rkube_sys::memfd::sealed_data(c"plan", plan).on("make memory file", "plan")?;
    let request = Request::Start {
        token: 1,
        request: StartRequest {
            key: id.to_owned(),
            kind,
            log: None,
            stdin: false,
            oom_counter: false,
        },
    };
    let mut all: Vec<BorrowedFd<'_>> = vec![plan.as_fd()];
    all.extend(fds.iter().map(AsFd::as_fd));
    socket::send(socket.as_fd(), &wire::encode(&request), &all).on("send plan to", "stage")?;
    drop(fds);
    drop(plan);
    if let Some((meeting, run)) = rendezvous {
        let answered = {
            let mut both = [
                PollFd::new(socket, PollFlags::IN),
                PollFd::new(&meeting.ours, PollFlags::IN),
            ];
            while let Err(errno) = poll(&mut both, None) {
                if errno != Errno::INTR {
                    return Err(errno).on("wait for", "stage");
                }
            }
            // An answer before the rendezvous is a failure; both at once
            // cannot be, since the stage waits.
            both[1].revents().is_empty()
        };
        if !answered && let Some(pid) = meeting.arrived()? {
            match run(pid) {
                Ok(()) => match rustix::io::write(&meeting.ours, &[1]) {
                    // The stage has failed meanwhile, and says why below.
                    Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
                    Err(errno) => return Err(errno).on("answer", "rendezvous"),
                },
                Err(error) => {
                    // The stage hears the end, fails, and is reaped.
                    drop(meeting);
                    let packet = socket::receive(socket.as_fd()).on("hear from", "stage")?;
                    reap(packet.fds.first());
                    return Err(error);
                }
            }
        }
    }
    socket::receive(socket.as_fd()).on("hear from", "stage")
}

/// Takes the end of a process that failed and has been killed: as a zombie it
/// would hold up the end of the process namespace that it was in.
fn reap(pidfd: Option<&OwnedFd>) {
    if let Some(pidfd) = pidfd {
        let id = WaitId::PidFd(pidfd.as_fd());
        while matches!(waitid(id.clone(), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
    }
}
