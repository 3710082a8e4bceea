//! The plan of a container.

use std::path::Path;

use oci_spec::runtime::{Linux, Spec};
use rkube_keeper::plan::Step;
use rkube_sys::clone;
use rkube_sys::mount::{MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};

use super::hooks::HookKind;
use super::mounts::Scene;
use super::options::{Attributes, propagation};
use super::process::Lsm;
use super::{
    Draft, PlanInput, RootSource, Source, attach, c_string, devices, hooks, host, mounts, numa,
    process, streams,
};
use crate::error::{Error, Result};

/// Drafts the plan of a container.
///
/// # Errors
/// The field of the spec that breaks a rule or cannot be honoured.
pub fn plan_container(mut input: PlanInput<'_>) -> Result<Draft> {
    let spec = input.spec;
    let empty = Linux::default();
    let linux = spec.linux().as_ref();
    let linux = linux.unwrap_or(&empty);
    let mut draft = Draft::default();
    draft.plan.id = input.id.to_owned();
    refuse(&mut draft, spec, linux)?;
    hooks::check(spec)?;

    if let Some(group) = input.cgroup.as_mut() {
        let fds = rkube_cgroup::AttachFds {
            clone_into: group.attach.clone_into.take(),
            tasks: std::mem::take(&mut group.attach.tasks),
        };
        attach(&mut draft, fds)?;
    }
    let own = host::namespaces(&mut draft, &mut input)?;
    let owners = host::owners(&draft);
    let new_mount = draft.plan.new_namespaces & clone::CLONE_NEWNS != 0;

    // Mount events of the host come in where asked; none ever goes out.
    let wanted = root_propagation(linux)?;
    let base = match wanted {
        Some((MS_PRIVATE | MS_UNBINDABLE, _)) => MS_PRIVATE,
        _ => MS_SLAVE,
    };
    if new_mount {
        draft.step(Step::Propagation { flag: base });
    }
    host::names(&mut draft, spec, own)?;
    host::sysctls(&mut draft, linux.sysctl().as_ref(), own)?;

    let root = root(&mut draft, &mut input, base)?;
    let scene = Scene {
        bundle: input.bundle,
        propagation: base,
        cgroup: input.cgroup.as_ref(),
        cgroup_namespace: own & clone::CLONE_NEWCGROUP != 0,
        owners: &owners,
    };
    let list = spec.mounts().as_deref().unwrap_or_default();
    let steps = mounts::add(&mut draft, list, &scene)?;
    draft.plan.steps.extend(steps.before);
    rendezvous(&mut draft, &mut input)?;
    let inside_pid = i32::from(draft.plan.new_namespaces & clone::CLONE_NEWPID != 0);
    let (id, bundle) = (input.id, input.bundle);
    let create = HookKind::CreateContainer;
    let create = hooks::steps(spec, id, bundle, create, "creating", inside_pid)?;
    draft.plan.steps.extend(create);
    draft.step(Step::PivotRoot {
        fd: root,
        no_pivot: input.no_pivot,
    });
    draft.plan.steps.extend(steps.after);
    // A volume at /dev is its owner's, and may be the host's: nothing is made
    // in it.
    let over_dev =
        |m: &super::ExtraMount| mounts::normal(Path::new(&m.target)) == Path::new("/dev");
    let dev_is_bound = steps.dev_is_bound || input.mounts.iter().any(over_dev);
    for extra in std::mem::take(&mut input.mounts) {
        let fd = draft.source(Source::Open(extra.mount))?;
        draft.step(Step::AttachFd {
            fd,
            target: c_string("mounts", extra.target)?,
            directory: extra.directory,
        });
    }
    if !dev_is_bound {
        let list = linux.devices().as_deref().unwrap_or_default();
        devices::add(&mut draft, list, owners.are_mapped())?;
    }
    draft.plan.steps.extend(steps.late);
    if let Some(policy) = linux.memory_policy() {
        draft.step(numa::step(policy)?);
    }
    mounts::covers(
        &mut draft,
        linux.masked_paths().as_ref(),
        linux.readonly_paths().as_ref(),
    )?;
    let read_only = spec.root().as_ref().and_then(|r| r.readonly());
    if read_only.unwrap_or(false) {
        draft.step(Step::RootReadOnly {});
    }
    if let Some((flag, recursive)) = wanted {
        draft.step(Step::RootPropagation { flag, recursive });
    }

    if let Some(p) = spec.process() {
        process::add(&mut draft, p, input.home.as_deref(), input.grantable)?;
        draft.plan.program.personality = process::personality(linux.personality().as_ref())?;
        draft.plan.program.new_keyring = !input.no_new_keyring;
        let filter = linux.seccomp().as_ref();
        let pid = inside_pid;
        process::seccomp(&mut draft, filter, input.seccomp_cache, &|| {
            hooks::state_value(spec, id, bundle, "creating", pid)
        })?;
        if owners.are_mapped() {
            draft.plan.stream_owner = host::on_host(linux, p.user().uid());
        }
    }
    let start = HookKind::StartContainer;
    draft.plan.start_steps = hooks::steps(spec, id, bundle, start, "created", inside_pid)?;
    let extra = std::mem::take(&mut input.extra_fds);
    streams(&mut draft, std::mem::take(&mut input.stdio), extra)?;
    if let Some(listener) = input.start.take() {
        draft.plan.start = Some(draft.source(Source::Open(listener))?);
    }
    Ok(draft)
}

fn rendezvous(draft: &mut Draft, input: &mut PlanInput<'_>) -> Result<()> {
    if let Some(socket) = input.rendezvous.take() {
        let fd = draft.source(Source::Open(socket))?;
        draft.step(Step::Rendezvous { fd });
    }
    Ok(())
}

/// The root file system; returns its descriptor.
fn root(draft: &mut Draft, input: &mut PlanInput<'_>, base: u64) -> Result<u16> {
    match std::mem::replace(&mut input.rootfs, RootSource::Bundle) {
        RootSource::Mount(fd) => draft.source(Source::Open(fd)),
        RootSource::Bundle => {
            let root = input.spec.root().as_ref();
            let root = root.ok_or_else(|| Error::spec("root", "it is missing"))?;
            if root.path().as_os_str().is_empty() {
                return Err(Error::spec("root.path", "it is empty"));
            }
            draft.source(Source::Tree {
                path: input.bundle.join(root.path()),
                recursive: true,
                attributes: Attributes::default(),
                recursive_attributes: Attributes::default(),
                propagation: (base, None),
                directory: true,
            })
        }
    }
}

fn root_propagation(linux: &Linux) -> Result<Option<(u64, bool)>> {
    let name = linux.rootfs_propagation().as_deref().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let found = propagation(name)
        .ok_or_else(|| Error::spec("linux.rootfsPropagation", format!("{name:?} is unknown")))?;
    // A slave of the host's mount that is also shared stays its slave.
    debug_assert!(matches!(
        found.0,
        MS_SHARED | MS_SLAVE | MS_PRIVATE | MS_UNBINDABLE
    ));
    Ok(Some(found))
}

/// Parts of the spec that are not honoured.
fn refuse(draft: &mut Draft, spec: &Spec, linux: &Linux) -> Result<()> {
    if linux.intel_rdt().is_some() {
        return Err(Error::unsupported("linux.intelRdt", "Intel RDT"));
    }
    if linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(Error::unsupported(
            "linux.netDevices",
            "moving a network device",
        ));
    }
    if linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()) {
        draft.plan_lsm("linux.mountLabel", Lsm::Selinux);
    }
    for (name, there) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if there {
            draft.warn(name, "it is for another platform; ignored");
        }
    }
    Ok(())
}
