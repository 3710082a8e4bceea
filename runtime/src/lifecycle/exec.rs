//! A further process in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Process;
use rkube_keeper::protocol::Kind;
use rkube_sys::clone::CLONE_NEWUSER;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::create::{send_descriptor, write_pid};
use super::record::{Container, Status};
use super::{grantable, open_group, user};
use crate::draft::{ExecInput, host_user, plan_exec, state_value};
use crate::error::{Context, Error, Result};
use crate::launch::{Launched, launch};

/// What runs, and how.
#[derive(Debug)]
pub struct ExecOptions {
    /// The process.
    pub process: Process,
    /// Where its pid is written.
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets the pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Standard input, output and error.
    pub stdio: [Option<OwnedFd>; 3],
    /// Descriptors 3, 4, ... of the program.
    pub extra_fds: Vec<OwnedFd>,
    /// The caller stays and serves the terminal itself.
    pub keeps_terminal: bool,
    /// In a paused container too.
    pub ignore_paused: bool,
}

/// Processors of the calling thread, and of what it starts, until it is
/// dropped.
#[derive(Debug)]
struct Affinity {
    before: CpuSet,
}

impl Affinity {
    /// Those that an exec begins with, before it is in the container's cgroup.
    fn initial(process: &Process) -> Result<Option<Self>> {
        const FIELD: &str = "process.execCPUAffinity.initial";
        let affinity = process.exec_cpu_affinity().as_ref();
        let list = affinity.and_then(|a| a.initial().as_deref());
        let Some(list) = list.filter(|list| !list.is_empty()) else {
            return Ok(None);
        };
        let mask = crate::draft::number_mask(FIELD, list)?;
        let before = sched_getaffinity(None).on("read", "CPU affinity")?;
        rkube_sys::process::set_cpu_affinity(&mask).on("set", format!("{FIELD} {list}"))?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        // A command ends soon; nothing else depends on it.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Runs a process in a container; returns when it has been executed.
///
/// # Errors
/// [`Error::State`], or the step that did not work.
pub fn exec(container: &Container, options: ExecOptions) -> Result<Launched> {
    let status = container.status()?;
    let allowed = match status {
        Status::Running | Status::Created => true,
        Status::Paused => options.ignore_paused,
        Status::Creating | Status::Stopped => false,
    };
    if status == Status::Stopped {
        return Err(Error::NotRunning);
    }
    if !allowed {
        return Err(Error::State {
            operation: "exec in",
            id: container.record.id.clone(),
            status: status.name(),
        });
    }
    let terminal = options.process.terminal().unwrap_or(false);
    if terminal && options.console_socket.is_none() && !options.keeps_terminal {
        return Err(Error::spec(
            "--tty",
            "cannot allocate a terminal without a console socket (--console-socket)",
        ));
    }
    let spec = container.spec()?;
    let linux = spec.linux().as_ref();
    let target = container.pidfd().ok_or(Error::NotRunning)?;
    let namespaces = container.record.namespaces;
    let process = &options.process;
    let has_home = process
        .env()
        .iter()
        .flatten()
        .any(|e| e.len() > 5 && e.starts_with("HOME="));
    let home = if has_home {
        None
    } else {
        let root = format!("/proc/{}/root", container.record.pid);
        Some(user::home(root.as_ref(), process.user().uid())?)
    };
    let profile = linux.and_then(|l| l.seccomp().as_ref());
    let filters = profile.and_then(|_| container.filters());
    let record = &container.record;
    let joins = if namespaces & CLONE_NEWUSER == 0 {
        Vec::new()
    } else {
        container.namespaces()?
    };
    let draft = plan_exec(ExecInput {
        id: &record.id,
        process,
        target,
        namespaces,
        joins,
        stream_owner: host_user(&spec, process.user().uid()),
        state: state_value(&spec, &record.id, &record.bundle, status.name(), record.pid),
        seccomp: profile,
        seccomp_cache: filters.as_ref(),
        personality: linux.and_then(|l| l.personality().as_ref()),
        attach: Some(open_group(record)?.attach_fds_beside(record.pid.unsigned_abs())?),
        stdio: options.stdio,
        extra_fds: options.extra_fds,
        home,
        grantable: if namespaces & CLONE_NEWUSER == 0 {
            grantable()
        } else {
            u64::MAX
        },
    })?;
    let prepared = draft.open()?;
    let mut launched = {
        let _initial = Affinity::initial(&options.process)?;
        launch(&container.program()?, prepared, Kind::Exec {}, None)?
    };
    let finish = |launched: &mut Launched| {
        if let (Some(socket), Some(master)) = (&options.console_socket, &launched.terminal) {
            send_descriptor(socket, "/dev/ptmx", master.as_fd())?;
            launched.terminal = None;
        }
        if let Some(socket) = &options.pidfd_socket {
            send_descriptor(socket, "pidfd", launched.pidfd.as_fd())?;
        }
        match &options.pid_file {
            Some(path) => write_pid(path, launched.pid),
            None => Ok(()),
        }
    };
    finish(&mut launched).inspect_err(|_| {
        let _ = rkube_sys::signal::pidfd_signal(launched.pidfd.as_fd(), 9);
    })?;
    Ok(launched)
}
