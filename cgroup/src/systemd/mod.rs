//! Groups that systemd makes: transient scopes with `Delegate=yes`, asked for
//! over D-Bus. Where systemd is PID 1 on cgroup v2, the tree is its own, and a
//! group that it does not know would be in its way (systemd,
//! CGROUP_DELEGATION.md).
//!
//! A scope needs a process when it is started, and ends by itself with its
//! last one. Everything else works on its directory, as on any other group.

mod bus;
#[cfg(test)]
mod tests;
mod wire;

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use self::bus::Bus;
pub use self::wire::Property;
use self::wire::{Reader, Writer};
use crate::convert::shares_to_weight;
use crate::error::{Error, Result};
use crate::path::CgroupPath;

/// The system bus (D-Bus Specification, Well-known Message Bus Instances).
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// systemd's own socket, for root: there without a bus too.
const PRIVATE: &str = "/run/systemd/private";
/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// The slice of a container whose path names none.
const DEFAULT_SLICE: &str = "system.slice";
/// Longest name of a unit, in bytes (UNIT_NAME_MAX of systemd's unit-name.h,
/// less the NUL).
const MAX_UNIT_BYTES: usize = 255;

/// Whether systemd is PID 1 here.
#[must_use]
pub fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Names a scope and where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    slice: String,
    unit: String,
}

impl Scope {
    /// A scope in a slice.
    ///
    /// # Errors
    /// [`Error::Unit`] for a name that systemd would not take.
    pub fn new(slice: &str, unit: &str) -> Result<Self> {
        check(slice, ".slice")?;
        check(unit, ".scope")?;
        Ok(Self {
            slice: slice.to_owned(),
            unit: unit.to_owned(),
        })
    }

    /// From an OCI `cgroupsPath` of the form `slice:prefix:name` (what every
    /// runtime takes with `--systemd-cgroup`); without one,
    /// `system.slice:rkube:<id>`.
    ///
    /// # Errors
    /// [`Error::Unit`].
    pub fn from_cgroups_path(path: &str, id: &str) -> Result<Self> {
        let parts: Vec<&str> = path.split(':').collect();
        let (slice, prefix, name) = match parts.as_slice() {
            [""] => ("", "rkube", id),
            [slice, prefix, name] => (*slice, *prefix, *name),
            _ => {
                return Err(Error::Unit {
                    name: path.chars().take(128).collect(),
                    reason: "with the systemd driver it must be slice:prefix:name",
                });
            }
        };
        let slice = if slice.is_empty() {
            DEFAULT_SLICE
        } else {
            slice
        };
        let unit = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        Self::new(slice, &unit)
    }

    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Where systemd puts it: a slice's name spells the slices above it
    /// (systemd.slice(5)).
    ///
    /// # Errors
    /// [`Error::Path`].
    pub fn path(&self) -> Result<CgroupPath> {
        let mut path = String::new();
        let stem = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        if stem != "-" {
            let mut above = String::new();
            for part in stem.split('-') {
                if !above.is_empty() {
                    above.push('-');
                }
                above.push_str(part);
                path.push_str(&above);
                path.push_str(".slice/");
            }
        }
        CgroupPath::new(&format!("{path}{}", self.unit))
    }
}

fn check(name: &str, suffix: &str) -> Result<()> {
    let fail = |reason| {
        Err(Error::Unit {
            name: name.chars().take(128).collect(),
            reason,
        })
    };
    let Some(stem) = name.strip_suffix(suffix) else {
        return fail("it must be a slice, or a scope in one (systemd.unit(5))");
    };
    if name.len() > MAX_UNIT_BYTES {
        return fail("it is longer than 255 bytes");
    }
    // systemd.unit(5), Description.
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if stem.is_empty() || !stem.chars().all(plain) {
        return fail("it may hold letters, digits and :-_.\\@ only");
    }
    let dashes = stem.starts_with('-') || stem.ends_with('-') || stem.contains("--");
    if suffix == ".slice" && stem != "-" && dashes {
        return fail("a slice's dashes must each stand between two names");
    }
    Ok(())
}

/// systemd's manager.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
}

impl Systemd {
    /// Connects over the system bus, or to systemd's own socket where no bus
    /// runs.
    ///
    /// # Errors
    /// [`Error::NoSystemd`], or why neither socket serves.
    pub fn connect() -> Result<Self> {
        if !is_booted() {
            return Err(Error::NoSystemd);
        }
        match Bus::connect(Path::new(SYSTEM_BUS), true) {
            Ok(bus) => Ok(Self { bus }),
            Err(first) => match Bus::connect(Path::new(PRIVATE), false) {
                Ok(bus) => Ok(Self { bus }),
                Err(_) => Err(first),
            },
        }
    }

    /// Connects to a socket that speaks as systemd's own does.
    ///
    /// # Errors
    /// The socket or the handshake.
    pub fn connect_to(path: &Path) -> Result<Self> {
        Ok(Self {
            bus: Bus::connect(path, false)?,
        })
    }

    /// Starts a scope with `Delegate=yes` around a running process, which
    /// systemd moves into it; returns when it has.
    ///
    /// # Errors
    /// [`Error::Systemd`] with systemd's words, or a job that failed.
    pub fn start_scope(
        &mut self,
        scope: &Scope,
        pid: u32,
        description: &str,
        properties: &[(&str, Property)],
    ) -> Result<CgroupPath> {
        let mut body = Writer::default();
        body.text(&scope.unit);
        // A unit of this name that is starting or stopping is an error.
        body.text("fail");
        body.array(8, |w| {
            for (name, value) in [
                ("Description", Property::Text(description.to_owned())),
                ("Slice", Property::Text(scope.slice.clone())),
                ("Delegate", Property::Flag(true)),
                // The container's end is no failure of the unit.
                (
                    "CollectMode",
                    Property::Text("inactive-or-failed".to_owned()),
                ),
                ("DefaultDependencies", Property::Flag(false)),
                ("PIDs", Property::Pids(vec![pid])),
            ] {
                w.property(name, &value);
            }
            for (name, value) in properties {
                w.property(name, value);
            }
        });
        body.array(8, |_| {});
        let answer = self
            .bus
            .manager("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0)?;
        let job = Reader::new(&answer).text()?;
        let result = self.bus.job_end(&job)?;
        if result != "done" {
            return Err(Error::Systemd {
                call: "StartTransientUnit".to_owned(),
                name: scope.unit.clone(),
                message: format!("its job ended with {result}"),
            });
        }
        self.place_of(scope)?.ok_or_else(|| Error::Systemd {
            call: "GetUnit".to_owned(),
            name: scope.unit.clone(),
            message: "it has ended already".to_owned(),
        })
    }

    /// Where a scope lies; `None` where it does not run.
    ///
    /// # Errors
    /// [`Error::Systemd`], or a place that is no group's.
    pub fn place_of(&mut self, scope: &Scope) -> Result<Option<CgroupPath>> {
        let mut body = Writer::default();
        body.text(&scope.unit);
        let answer = match self.bus.manager("GetUnit", "s", &body.0) {
            Err(Error::Systemd { name, .. }) if name.ends_with(".NoSuchUnit") => return Ok(None),
            other => other?,
        };
        let path = Reader::new(&answer).text()?;
        let interface = "org.freedesktop.systemd1.Scope";
        let group = self.bus.unit_property(&path, interface, "ControlGroup")?;
        if group.is_empty() {
            return Ok(None);
        }
        CgroupPath::new(&group).map(Some)
    }

    /// Stops a scope, which kills what is in it, and forgets its failure. One
    /// that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Systemd`].
    pub fn stop(&mut self, scope: &Scope) -> Result<()> {
        let mut body = Writer::default();
        body.text(&scope.unit);
        body.text("replace");
        match self.bus.manager("StopUnit", "ss", &body.0) {
            Err(Error::Systemd { name, .. }) if name.ends_with(".NoSuchUnit") => return Ok(()),
            Err(error) => return Err(error),
            Ok(answer) => {
                let job = Reader::new(&answer).text()?;
                self.bus.job_end(&job)?;
            }
        }
        let mut body = Writer::default();
        body.text(&scope.unit);
        match self.bus.manager("ResetFailedUnit", "s", &body.0) {
            Err(Error::Systemd { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Changes properties of a running scope.
    ///
    /// # Errors
    /// [`Error::Systemd`].
    pub fn set(&mut self, scope: &Scope, properties: &[(&str, Property)]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&scope.unit);
        // Until the next boot: a transient unit knows nothing else.
        body.flag(true);
        body.array(8, |w| {
            for (name, value) in properties {
                w.property(name, value);
            }
        });
        self.bus
            .manager("SetUnitProperties", "sba(sv)", &body.0)
            .map(drop)
    }
}

/// The limits that systemd has properties for. They are written to the group
/// as well; systemd must know them, or it would undo them when it reloads. What
/// [`Cgroup::apply`](crate::Cgroup::apply) takes for "not set" is left out here
/// too.
#[must_use]
pub fn properties(resources: &LinuxResources) -> Vec<(&'static str, Property)> {
    const INFINITY: u64 = u64::MAX;
    let mut out = Vec::new();
    let limit = |value: i64| u64::try_from(value).unwrap_or(INFINITY);
    if let Some(memory) = resources.memory() {
        if let Some(max) = memory.limit().filter(|max| *max != 0) {
            out.push(("MemoryMax", Property::Number(limit(max))));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            out.push(("MemoryLow", Property::Number(limit(low))));
        }
        if let (Some(both), Some(max)) = (
            memory.swap().filter(|both| *both != 0),
            memory.limit().filter(|max| *max != 0),
        ) && let Ok(Some(swap)) = crate::convert::swap_to_v2(Some(both), Some(max))
        {
            out.push(("MemorySwapMax", Property::Number(limit(swap))));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
            out.push(("CPUWeight", Property::Number(shares_to_weight(shares))));
        }
        if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
            let period = cpu.period().filter(|p| *p != 0).unwrap_or(100_000);
            let per_second = u64::try_from(quota)
                .ok()
                .filter(|q| *q > 0)
                .and_then(|q| q.checked_mul(1_000_000))
                .map_or(INFINITY, |q| q / period);
            out.push(("CPUQuotaPeriodUSec", Property::Number(period)));
            out.push(("CPUQuotaPerSecUSec", Property::Number(per_second)));
        }
        for (name, list) in [
            ("AllowedCPUs", cpu.cpus()),
            ("AllowedMemoryNodes", cpu.mems()),
        ] {
            if let Some(bits) = list.as_deref().and_then(cpu_mask) {
                out.push((name, Property::Bytes(bits)));
            }
        }
    }
    if let Some(pids) = resources.pids() {
        // 0 would let nothing start, and is taken as 1.
        let most = if pids.limit() == 0 { 1 } else { pids.limit() };
        out.push(("TasksMax", Property::Number(limit(most))));
    }
    out
}

/// `0-2,7` as a bit mask, bit 0 of byte 0 first; `None` for no list.
fn cpu_mask(list: &str) -> Option<Vec<u8>> {
    /// Highest CPU or node that is understood (NR_CPUS of large kernels).
    const HIGHEST: usize = 8191;
    let mut bits: Vec<u8> = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > HIGHEST {
            return None;
        }
        for n in first..=last {
            if bits.len() <= n / 8 {
                bits.resize(n / 8 + 1, 0);
            }
            *bits.get_mut(n / 8)? |= 1 << (n % 8);
        }
    }
    Some(bits)
}
