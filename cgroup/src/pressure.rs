//! Alarms on pressure stall information (Documentation/accounting/psi.rst).
//!
//! A trigger is written into a pressure file of a v2 group, and lives as long
//! as the descriptor that it was written through. Pressure is a core feature
//! of v2 groups: it needs no controller, and hybrid hosts have it too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::group::Cgroup;
use crate::hierarchy::Controller;

/// The shortest window of a trigger, in microseconds (`WINDOW_MIN_US`,
/// kernel/sched/psi.c). Without CAP_SYS_RESOURCE a window is a whole number
/// of 2 s (Linux 6.5).
pub const MIN_WINDOW_USEC: u64 = 500_000;
/// The longest (`WINDOW_MAX_US`).
pub const MAX_WINDOW_USEC: u64 = 10_000_000;

/// What is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// Processors.
    Cpu,
    /// Memory.
    Memory,
    /// Block devices.
    Io,
}

impl Resource {
    /// The file's name before `.pressure`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.pressure",
            Self::Memory => "memory.pressure",
            Self::Io => "io.pressure",
        }
    }

    fn controller(self) -> Controller {
        match self {
            Self::Cpu => Controller::Cpu,
            Self::Memory => Controller::Memory,
            Self::Io => Controller::Io,
        }
    }
}

/// When an alarm goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alarm {
    /// What is watched.
    pub resource: Resource,
    /// All tasks that could run wait, not just some.
    pub full: bool,
    /// Time waited, in microseconds, less than the window.
    pub stall_usec: u64,
    /// In which it was waited, in microseconds, from [`MIN_WINDOW_USEC`] to
    /// [`MAX_WINDOW_USEC`]. It goes off once in each at most.
    pub window_usec: u64,
}

/// A descriptor that becomes readable, once, each time that an alarm goes
/// off.
#[derive(Debug)]
pub struct PressureWatch {
    notify: OwnedFd,
    /// The trigger lives as long as this.
    _trigger: OwnedFd,
}

impl AsFd for PressureWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

impl Cgroup {
    /// Sets an alarm. The kernel takes the event off when it is polled for,
    /// so there is nothing to read afterwards.
    ///
    /// # Errors
    /// [`Error::NotExpressible`] without a v2 hierarchy or a kernel with PSI
    /// (`CONFIG_PSI`, `psi=1`), or the call that was refused: EINVAL for a
    /// window that this process may not have.
    pub fn pressure_watch(&self, alarm: Alarm) -> Result<PressureWatch> {
        let file = alarm.resource.file();
        let cannot = |reason| Error::NotExpressible {
            controller: alarm.resource.controller(),
            file: file.to_owned(),
            mode: self.hierarchies().mode(),
            setting: "pressure alarm".to_owned(),
            reason,
        };
        let Some(dir) = self.v2() else {
            return Err(cannot("v1 groups have no pressure files"));
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let trigger = match dir.open_file(file, flags) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {
                return Err(cannot("this kernel runs without PSI (boot with psi=1)"));
            }
            Err(source) => {
                return Err(Error::Watch {
                    call: "open",
                    path: dir.path().join(file),
                    source,
                });
            }
        };
        let share = if alarm.full { "full" } else { "some" };
        // The text ends with a NUL byte, as in the kernel's example.
        let text = format!("{share} {} {}\0", alarm.stall_usec, alarm.window_usec);
        match rustix::io::write(&trigger, text.as_bytes()) {
            Ok(_) => {}
            Err(Errno::OPNOTSUPP) => {
                return Err(cannot("this kernel runs without PSI (boot with psi=1)"));
            }
            Err(source) => return Err(dir.write_error(file, text.trim_end_matches('\0'), source)),
        }
        let watch = |call| {
            let path = dir.path().join(file);
            move |source: Errno| Error::Watch { call, path, source }
        };
        let notify = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(watch("epoll_create1"))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&notify, &trigger, data, epoll::EventFlags::PRI).map_err(watch("epoll_ctl"))?;
        Ok(PressureWatch {
            notify,
            _trigger: trigger,
        })
    }
}
