//! An OCI `linux.resources` object put in force.

mod cpu;
mod io;
mod memory;
mod misc;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::device::DeviceRules;
use crate::error::{Error, Result, Warning};
use crate::file::Dir;
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Mode};

/// Limits that OCI has no field for. `None` leaves a value as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Extras {
    /// `memory.high` in bytes: above it the group is throttled and
    /// reclaimed; -1 for none. v2 only.
    pub memory_high: Option<i64>,
    /// `memory.min` in bytes: never reclaimed from below it. v2 only.
    pub memory_min: Option<u64>,
    /// `memory.oom.group`: a lack of memory kills the whole group at once.
    /// v2 only; `false` is what v1 does anyway.
    pub oom_group: Option<bool>,
    /// Swap alone in bytes, -1 for unlimited; wins over OCI's sum of memory
    /// and swap.
    pub swap_max: Option<i64>,
}

impl Extras {
    /// True if one of the memory controller's is set.
    pub(crate) fn any_memory(&self) -> bool {
        self.memory_high.is_some()
            || self.memory_min.is_some()
            || self.oom_group.is_some()
            || self.swap_max.is_some()
    }
}

/// What the appliers share.
pub(crate) struct Job<'a> {
    group: &'a Cgroup,
    mode: Mode,
    warnings: Vec<Warning>,
}

impl Job<'_> {
    /// Notes a setting that is ignored.
    fn warn(&mut self, setting: &'static str, message: impl Into<String>) {
        self.warnings.push(Warning {
            setting,
            message: message.into(),
        });
    }

    /// The error for what this kernel and mode cannot do.
    fn cannot(
        &self,
        controller: Controller,
        setting: &str,
        file: &str,
        reason: &'static str,
    ) -> Error {
        Error::NotExpressible {
            controller,
            file: file.to_owned(),
            mode: self.mode,
            setting: setting.to_owned(),
            reason,
        }
    }
}

impl Cgroup {
    /// Puts limits in force, for a new group as for a running one. What is
    /// absent stays as it is. OCI's numbers where 0 means "not set"
    /// (memory, swap, cpu, block weight) are left alone too; negative limits
    /// are "none".
    ///
    /// Everything that can be checked without the kernel is checked before
    /// the first write. A refused write leaves those before it in force.
    ///
    /// # Errors
    /// [`Error::MissingController`], [`Error::NotJoined`],
    /// [`Error::NotExpressible`], [`Error::Invalid`],
    /// [`Error::MemoryInUse`], or [`Error::Write`] with file and value.
    pub fn apply(&self, resources: &LinuxResources, extras: &Extras) -> Result<Vec<Warning>> {
        let mut job = Job {
            group: self,
            mode: self.hierarchies().mode(),
            warnings: Vec::new(),
        };
        let devices = match resources.devices() {
            Some(list) if !list.is_empty() => Some(DeviceRules::from_oci(list)?),
            _ => None,
        };
        let unified = misc::check_unified(&job, resources.unified().as_ref())?;

        if resources.memory().is_some() || extras.any_memory() {
            memory::apply(&mut job, &resources.memory().unwrap_or_default(), extras)?;
        }
        if let Some(cpu) = resources.cpu() {
            cpu::apply(&job, cpu)?;
        }
        if let Some(pids) = resources.pids() {
            misc::pids(&mut job, pids.limit())?;
        }
        if let Some(block) = resources.block_io() {
            io::apply(&job, block)?;
        }
        if let Some(limits) = resources.hugepage_limits() {
            misc::hugetlb(&job, limits)?;
        }
        if let Some(network) = resources.network() {
            misc::network(&job, network)?;
        }
        if let Some(rdma) = resources.rdma() {
            misc::rdma(&job, rdma)?;
        }
        misc::write_unified(&job, &unified)?;
        if let Some(rules) = devices {
            self.set_devices(&rules)?;
        }
        Ok(job.warnings)
    }
}

/// A limit as v2 writes it.
fn max_or(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// A limit as v1 writes it.
fn minus_one_or(limit: i64) -> String {
    limit.max(-1).to_string()
}

/// Values that bound one another (period and quota, quota and burst): which
/// may be written first depends on the old ones, so those the kernel answers
/// EINVAL are tried again after the others, as long as that helps.
fn settle(dir: &Dir, values: Vec<(&str, String)>) -> Result<()> {
    let mut pending = values;
    while !pending.is_empty() {
        let before = pending.len();
        let mut refused = Vec::new();
        for (file, value) in pending {
            match dir.write_raw(file, &value) {
                Ok(()) => {}
                Err(source) if source == rustix::io::Errno::INVAL => refused.push((file, value)),
                Err(source) => return Err(dir.write_error(file, &value, source)),
            }
        }
        if refused.len() == before
            && let Some((file, value)) = refused.first()
        {
            return Err(dir.write_error(file, value, rustix::io::Errno::INVAL));
        }
        pending = refused;
    }
    Ok(())
}
