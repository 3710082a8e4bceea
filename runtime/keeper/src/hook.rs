//! Hooks that run in the container's namespaces.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Context, Result, refusal};
use crate::mounts::show;

/// Runs a hook to its end: with the container's state on standard input,
/// killed after `timeout_s` seconds (OCI runtime-spec, config.md, POSIX-platform
/// hooks). Its output goes to where rkube's goes.
pub fn run(
    path: &CStr,
    argv: &[CString],
    env: &[CString],
    timeout_s: Option<u32>,
    stdin: &CStr,
) -> Result<()> {
    let text = |s: &CStr| OsStr::from_bytes(s.to_bytes()).to_owned();
    let mut command = Command::new(text(path));
    if let Some((zero, rest)) = argv.split_first() {
        command.arg0(text(zero)).args(rest.iter().map(|a| text(a)));
    }
    // A file has room for any state, and is no trouble when nobody reads it.
    let state = rkube_sys::memfd::sealed_data(c"rkube-hook", stdin.to_bytes())
        .and_then(|fd| {
            rustix::fs::seek(&fd, SeekFrom::Start(0))
                .map(|_| fd)
                .map_err(Into::into)
        })
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        .on("keep input of hook", show(path))?;
    command.env_clear().stdin(Stdio::from(state));
    for pair in env {
        let bytes = pair.to_bytes();
        if let Some(cut) = bytes.iter().position(|b| *b == b'=') {
            command.env(
                OsStr::from_bytes(&bytes[..cut]),
                OsStr::from_bytes(&bytes[cut + 1..]),
            );
        }
    }
    let mut child = command.spawn().on("run hook", show(path))?;
    if let Some(seconds) = timeout_s {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| refusal("watch hook", show(path), "it has no pid"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).on("watch hook", show(path))?;
        let limit = Timespec::try_from(Duration::from_secs(seconds.into())).ok();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        if poll(&mut fds, limit.as_ref()).on("wait for hook", show(path))? == 0 {
            let _ = child.kill();
            let _ = child.wait();
            return Err(refusal(
                "run hook",
                show(path),
                "it ran into its time limit",
            ));
        }
    }
    let status = child.wait().on("wait for hook", show(path))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(refusal(
            "run hook",
            show(path),
            &format!("it ended with exit code {code}"),
        )),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            Err(refusal(
                "run hook",
                show(path),
                &format!("signal {signal} ended it"),
            ))
        }
    }
}
