//! The tiny program: `keeper` serves a pod, `stage` makes one process and
//! ends. Both are started with a packet socket as standard input.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use rkube_keeper::error::{Context, Result, refusal};
use rkube_keeper::launch::Launch;
use rkube_keeper::process::{start_ticks, take_plan};
use rkube_keeper::protocol::{ProcessStatus, Reply, Request};
use rkube_keeper::{log, server, socket, wire};
use rustix::process::DumpableBehavior;

fn main() {
    let mode = std::env::args_os().nth(1).unwrap_or_default();
    let result = take_socket().and_then(|socket| match mode.to_str() {
        Some("keeper") => keeper(socket),
        Some("stage") => stage(socket.as_fd()),
        _ => Err(refusal("start", "keeper", "this program is rkube's own")),
    });
    if let Err(failure) = result {
        eprintln!("rkube-keeper: {failure}");
        rkube_sys::process::exit_now(1);
    }
}

fn take_socket() -> Result<OwnedFd> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .on("become", "non-dumpable")?;
    // SAFETY: nothing in this program has touched its standard input.
    let socket = unsafe { rkube_sys::fd::inherited(0) }.on("take", "socket")?;
    rustix::io::fcntl_dupfd_cloexec(&socket, 3)
        .on("move", "socket")
        .inspect(|_| {
            // Descriptor 0 stays open until something takes its place.
            std::mem::forget(socket);
        })
}

fn keeper(socket: OwnedFd) -> Result<()> {
    // A session of its own: no terminal's hang-up reaches it. It is no group
    // leader, since it was just spawned.
    rustix::process::setsid().on("make", "session")?;
    rustix::process::chdir(c"/").on("change directory to", "/")?;
    rkube_sys::signal::reset_all();
    rkube_sys::signal::ignore_sigpipe();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null =
        rustix::fs::open(c"/dev/null", flags, rustix::fs::Mode::empty()).on("open", "/dev/null")?;
    for n in 0..=2 {
        rkube_sys::fd::dup_to_stdio(null.as_fd(), n).on("connect", "/dev/null")?;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    protect_from_oom();
    rustix::thread::set_name(c"rkube-keeper").on("set name", "rkube-keeper")?;
    server::run(socket)
}

/// Keeper and pause go after every container when the host runs out of memory
/// (what the kubelet gives a pod's sandbox). Without CAP_SYS_RESOURCE the
/// score stays; the supervisor tells of that.
fn protect_from_oom() {
    const SCORE: &[u8] = b"-998";
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let path = c"/proc/self/oom_score_adj";
    if let Ok(file) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        let _ = rustix::io::write(&file, SCORE);
    }
}

/// Makes one process, a child of whoever started this one, and tells of it.
fn stage(socket: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let packet = socket::receive(socket).on("receive", "request")?;
    let request = wire::decode::<Request>(&packet.bytes)
        .map_err(|e| refusal("understand", "request", &e.to_string()))?;
    let Request::Start { token, request } = request else {
        return Err(refusal("understand", "request", "it must be a start"));
    };
    let mut fds = packet.fds;
    // A process that failed is handed out too: the caller is its parent and
    // must reap it, or the process namespace that it was in cannot end.
    let mut failed = None;
    let made = take_plan(&mut fds).and_then(|plan| {
        // SAFETY: this program has one thread.
        let mut launch = unsafe { Launch::new(&plan, &fds, true) }?;
        fds.clear();
        match launch.finish() {
            Ok(()) => Ok(launch),
            Err(failure) => {
                let _ = rkube_sys::signal::pidfd_signal(launch.pidfd.as_fd(), 9);
                failed = Some(launch.pidfd);
                Err(failure)
            }
        }
    });
    let (reply, fds) = match &made {
        Ok(launch) => {
            let status = ProcessStatus {
                key: request.key,
                kind: request.kind,
                pid: launch.pid,
                start_ticks: start_ticks(launch.pid).unwrap_or_default(),
                started_ns: log::now_ns(),
                exit: None,
            };
            let warnings = launch.warnings.clone();
            let terminal = launch.terminal.is_some();
            let fds: Vec<_> = std::iter::once(launch.pidfd.as_fd())
                .chain(launch.terminal.as_ref().map(AsFd::as_fd))
                .chain(launch.listener.as_ref().map(AsFd::as_fd))
                .collect();
            (
                Reply::Started {
                    token,
                    status,
                    terminal,
                    warnings,
                },
                fds,
            )
        }
        Err(failure) => (
            Reply::Failed {
                token,
                failure: failure.clone(),
            },
            failed.iter().map(AsFd::as_fd).collect(),
        ),
    };
    socket::send(socket, &wire::encode(&reply), &fds).on("answer", "request")
}
