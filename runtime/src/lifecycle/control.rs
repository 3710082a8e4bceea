//! Starting, signalling, freezing and limiting a container.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use oci_spec::runtime::LinuxResources;
use rkube_cgroup::Extras;
use rkube_keeper::plan::Failure;
use rkube_keeper::wire;
use rkube_sys::clone::CLONE_NEWPID;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::record::{Container, Status};
use super::{KILL_WAIT, hook, open_group};
use crate::draft::HookKind;
use crate::error::{Context, Error, Result};

/// Largest failure that a container tells at its start, in bytes.
const MAX_FAILURE_BYTES: u64 = 64 << 10;
const SIGKILL: i32 = 9;

/// Names of signals by number from 1 (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First and last real-time signal as the C library counts (signal(7)).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal by number or name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub i32);

impl std::str::FromStr for Signal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::spec("signal", format!("unknown signal {text:?}"));
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let number: i32 = text.parse().map_err(|_| unknown())?;
            return if (0..=RTMAX).contains(&number) {
                Ok(Self(number))
            } else {
                Err(unknown())
            };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(at) = SIGNALS.iter().position(|s| *s == name) {
            return i32::try_from(at + 1).map(Self).map_err(|_| unknown());
        }
        let offset = |rest: &str| match rest {
            "" => Some(0),
            rest => rest.get(1..)?.parse::<i32>().ok(),
        };
        let number = match name {
            "POLL" => Some(29),
            "CLD" => Some(17),
            "IOT" => Some(6),
            name => match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) if rest.is_empty() || rest.starts_with('+') => {
                    offset(rest).map(|n| RTMIN + n)
                }
                (_, Some(rest)) if rest.is_empty() || rest.starts_with('-') => {
                    offset(rest).map(|n| RTMAX - n)
                }
                _ => None,
            },
        };
        number
            .filter(|n| (1..=RTMAX).contains(n))
            .map(Self)
            .ok_or_else(unknown)
    }
}

impl Container {
    fn refuse(&self, operation: &'static str, status: Status) -> Error {
        Error::State {
            operation,
            id: self.record.id.clone(),
            status: status.name(),
        }
    }

    /// Starts the program of a created container.
    ///
    /// # Errors
    /// [`Error::State`]; what the container's process failed with; a
    /// poststart hook (the container is killed then).
    pub fn start(&self) -> Result<()> {
        let _lock = self.lock()?;
        let status = self.status()?;
        if status != Status::Created {
            return Err(self.refuse("start", status));
        }
        if !self.record.has_process {
            return Err(Error::spec(
                "process",
                "the spec has none, so nothing can be started",
            ));
        }
        let shown = || self.start_path().display().to_string();
        let (held, address) = self.start_address()?;
        let mut stream = match UnixStream::connect(&address) {
            // The program has been executed, and whoever started it was
            // killed before it could tidy up.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(self.start_path());
                return Err(self.refuse("start", Status::Running));
            }
            other => other.on("connect to", shown())?,
        };
        drop(held);
        stream.write_all(&[1]).on("write", shown())?;
        let mut answer = Vec::new();
        let read = stream.take(MAX_FAILURE_BYTES).read_to_end(&mut answer);
        let _ = std::fs::remove_file(self.start_path());
        if !answer.is_empty() {
            return Err(match wire::decode::<Failure>(&answer) {
                Ok(failure) => Error::Container(failure),
                Err(e) => Error::Stage(e.to_string()),
            });
        }
        match read {
            // Nothing was left to read when the process ended.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => drop(other.on("read", shown())?),
        }
        self.poststart()
    }

    /// Runs the poststart hooks.
    ///
    /// # Errors
    /// The hook that failed; the container has been killed.
    pub fn poststart(&self) -> Result<()> {
        let spec = self.spec()?;
        let record = &self.record;
        let kind = HookKind::Poststart;
        hook::run(
            &spec,
            kind,
            &record.id,
            &record.bundle,
            "running",
            record.pid,
        )
        .inspect_err(|_| {
            if let Some(pidfd) = self.pidfd() {
                let _ = rkube_sys::signal::pidfd_signal(pidfd.as_fd(), SIGKILL);
            }
        })
    }

    /// One starter at a time; released when the descriptor is closed.
    fn lock(&self) -> Result<std::os::fd::OwnedFd> {
        let shown = || self.dir().display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(self.dir(), flags, Mode::empty()).on("open", shown())?;
        rustix::fs::flock(&fd, FlockOperation::LockExclusive).on("lock", shown())?;
        Ok(fd)
    }

    /// Sends a signal to the first process, or with `all` to every process of
    /// the container's cgroup.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or what the kernel refused.
    pub fn kill(&self, signal: Signal, all: bool) -> Result<()> {
        let shares_pids = self.record.namespaces & CLONE_NEWPID == 0;
        if !self.record.is_of_this_boot()? {
            return Err(Error::NotRunning);
        }
        if all || (signal.0 == SIGKILL && shares_pids) {
            let group = open_group(&self.record)?;
            if signal.0 == SIGKILL {
                return Ok(group.kill_all(KILL_WAIT)?);
            }
            for pid in group.pids()? {
                let pid = i32::try_from(pid)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw);
                let Some(pid) = pid else { continue };
                let flags = rustix::process::PidfdFlags::empty();
                if let Ok(pidfd) = rustix::process::pidfd_open(pid, flags) {
                    signal_pidfd(&pidfd, signal)?;
                }
            }
            return Ok(());
        }
        let pidfd = self.pidfd().ok_or(Error::NotRunning)?;
        match rkube_sys::signal::pidfd_signal(pidfd.as_fd(), signal.0) {
            Err(Errno::SRCH) => return Err(Error::NotRunning),
            other => other.on("send signal", signal.0.to_string())?,
        }
        if signal.0 == SIGKILL {
            // A v1 freezer holds even those that must die.
            let group = open_group(&self.record)?;
            if group.is_frozen()? {
                group.thaw()?;
            }
        }
        Ok(())
    }

    /// Freezes every process.
    ///
    /// # Errors
    /// [`Error::State`], or a freezer that does not come to rest.
    pub fn pause(&self) -> Result<()> {
        match self.status()? {
            Status::Running | Status::Created => Ok(open_group(&self.record)?.freeze(KILL_WAIT)?),
            status => Err(self.refuse("pause", status)),
        }
    }

    /// Lets a paused container run again.
    ///
    /// # Errors
    /// [`Error::State`], or what the kernel refused.
    pub fn resume(&self) -> Result<()> {
        match self.status()? {
            Status::Paused => Ok(open_group(&self.record)?.thaw()?),
            status => Err(self.refuse("resume", status)),
        }
    }

    /// The processes of the container, by pid.
    ///
    /// # Errors
    /// The cgroup that could not be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        Ok(open_group(&self.record)?.pids()?)
    }

    /// What the container uses.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or the cgroup that could not be read.
    pub fn stats(&self) -> Result<rkube_cgroup::Stats> {
        if !self.is_alive() {
            return Err(Error::NotRunning);
        }
        Ok(open_group(&self.record)?.stats()?)
    }

    /// Tells of OOM kills; a descriptor to wait on is in it.
    ///
    /// # Errors
    /// The cgroup that could not be watched.
    pub fn oom_watch(&self) -> Result<rkube_cgroup::OomWatch> {
        Ok(open_group(&self.record)?.oom_watch()?)
    }
}

fn signal_pidfd(pidfd: &std::os::fd::OwnedFd, signal: Signal) -> Result<()> {
    match rkube_sys::signal::pidfd_signal(pidfd.as_fd(), signal.0) {
        Err(Errno::SRCH) => Ok(()),
        other => other.on("send signal", signal.0.to_string()),
    }
}

/// Changes the limits of a container that has not stopped; returns warnings.
/// Devices stay as they were: create has added those that every container may
/// use, and a caller that hands over all resources of a spec knows of none of
/// them (other runtimes leave devices out of an update too).
///
/// # Errors
/// [`Error::NotRunning`], or the limit that was refused.
pub fn update(container: &Container, resources: &LinuxResources) -> Result<Vec<String>> {
    if !container.is_alive() {
        return Err(Error::NotRunning);
    }
    let mut limits = resources.clone();
    limits.set_devices(None);
    if let Some(scope) = &container.record.scope {
        super::scope::update(scope, &limits)?;
    }
    let warnings = open_group(&container.record)?.apply(&limits, &Extras::default())?;
    Ok(warnings
        .into_iter()
        .map(|w| format!("{}: {}", w.setting, w.message))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("SIGRTMIN", 34),
            ("0", 0),
            ("SYS", 31),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap(), Signal(number), "{text}");
        }
        for bad in [
            "",
            "65",
            "-1",
            "SIGFOO",
            "RTMIN+40",
            "RTMIN+x",
            "+9",
            "99999999999",
        ] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
    }
}
