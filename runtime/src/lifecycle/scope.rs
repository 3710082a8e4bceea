//! Cgroups that systemd makes (`--systemd-cgroup`).

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Spec};
use rkube_cgroup::systemd::{Scope, Systemd, is_booted, properties};
use rkube_cgroup::{Cgroup, Hierarchies, Mode};

use crate::error::{Context, Error, Result};
use crate::program::Program;

/// The scope of a container.
///
/// # Errors
/// A host without systemd on cgroup v2, or a path of another form.
pub(super) fn of(spec: &Spec, id: &str, hierarchies: &Hierarchies) -> Result<Scope> {
    const FLAG: &str = "--systemd-cgroup";
    if !is_booted() {
        return Err(Error::unsupported(
            FLAG,
            "a host whose PID 1 is not systemd",
        ));
    }
    if hierarchies.mode() != Mode::Unified {
        return Err(Error::unsupported(FLAG, "cgroup v1 by way of systemd"));
    }
    let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
    let path = path.unwrap_or_default();
    let text = path
        .to_str()
        .ok_or_else(|| Error::spec("linux.cgroupsPath", "it is not UTF-8"))?;
    Ok(Scope::from_cgroups_path(text, id)?)
}

/// A process that holds a scope until the container's own is in it: systemd
/// starts none that is empty.
#[derive(Debug)]
pub(super) struct Placeholder {
    child: Child,
    _socket: OwnedFd,
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // It waits for a plan that never comes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a scope, and opens its group.
///
/// # Errors
/// systemd's, or the group that is not where systemd says.
pub(super) fn start(
    program: &Program,
    scope: &Scope,
    resources: &LinuxResources,
    hierarchies: &Arc<Hierarchies>,
) -> Result<(Cgroup, Placeholder)> {
    let spawn = |source| Error::Spawn { source };
    let (ours, theirs) = rkube_keeper::socket::pair().on("make", "socket pair")?;
    let holder = Placeholder {
        child: program.spawn("stage", theirs).map_err(spawn)?,
        _socket: ours,
    };
    let description = format!("container {}", scope.unit());
    let limits = properties(resources);
    let mut systemd = Systemd::connect()?;
    let path = systemd.start_scope(scope, holder.child.id(), &description, &limits)?;
    if path != scope.path()? {
        return Err(Error::spec(
            "linux.cgroupsPath",
            format!("systemd put {} at {path}", scope.unit()),
        ));
    }
    let group = Cgroup::open(hierarchies, &path)?;
    if group.exists() {
        Ok((group, holder))
    } else {
        Err(Error::spec(
            "linux.cgroupsPath",
            format!("systemd made {path}, which is not there"),
        ))
    }
}

/// Ends a scope; one that has ended is no error.
pub(super) fn stop(scope: &Scope) -> Result<()> {
    if !is_booted() {
        // Another boot, without systemd: no unit of the old one is left.
        return Ok(());
    }
    Ok(Systemd::connect()?.stop(scope)?)
}

/// Tells systemd new limits, so that it does not undo them.
pub(super) fn update(scope: &Scope, resources: &LinuxResources) -> Result<()> {
    Ok(Systemd::connect()?.set(scope, &properties(resources))?)
}
