//! Who a program runs as: limits, groups, user, capabilities, filter.

use std::os::fd::OwnedFd;

use rkube_sys::seccomp;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit as RawRlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_keep_capabilities,
};

use crate::error::{Context, Result, failure, refusal};
use crate::plan::{Capabilities, Program, Rlimit, Scheduler, Seccomp};

/// CAP_SYS_ADMIN (`linux/capability.h`), which loading a filter needs without
/// no_new_privs.
const CAP_SYS_ADMIN: u32 = 21;
/// CAP_SETPCAP (`linux/capability.h`), which changing the bounding set needs.
const CAP_SETPCAP: u32 = 8;

/// CAP_CHECKPOINT_RESTORE (`linux/capability.h`, 5.9): every kernel that can
/// run this knows it and those below.
const CAP_KNOWN: u32 = 40;
/// Open files that a stage may still need after its limits are set; a lower
/// limit is set last and untried.
const SETUP_FILES: u64 = 1024;
/// File mode creation mask of a program that names none (what runc gives).
const DEFAULT_UMASK: u32 = 0o022;

/// The limit of open files, which is set after everything that opens one.
#[derive(Debug, Clone, Copy)]
pub struct FileLimit(RawRlimit);

impl FileLimit {
    /// Sets it.
    pub fn set(self) -> Result<()> {
        rustix::process::setrlimit(Resource::Nofile, self.0)
            .on("set resource limit", "of open files")
    }
}

/// While the caller is still the host's root: raises hard limits that a
/// process in a user namespace could not raise, and sets the OOM score, whose
/// file is the host's. What the host does not allow stays as it is; the stage
/// sees and tells that.
pub fn raise_as_host_root(program: &Program) -> Result<()> {
    for limit in &program.rlimits {
        let Some(resource) = resource(limit.resource) else {
            continue;
        };
        let now = rustix::process::getrlimit(resource);
        let wanted = finite(limit.hard);
        let over = now
            .maximum
            .is_some_and(|hard| wanted.is_none_or(|w| w > hard));
        if over {
            let raised = RawRlimit {
                maximum: wanted,
                ..now
            };
            let _ = rustix::process::setrlimit(resource, raised);
        }
    }
    if let Some(adj) = program.oom_score_adj {
        let path = c"/proc/self/oom_score_adj";
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        let file =
            rustix::fs::open(path, flags, Mode::empty()).on("open", "/proc/self/oom_score_adj")?;
        match rustix::io::write(&file, adj.to_string().as_bytes()) {
            Ok(_) | Err(Errno::ACCESS | Errno::PERM) => {}
            Err(errno) => return Err(failure("set", "oom_score_adj", errno)),
        }
    }
    Ok(())
}

/// Sets resource limits, but for that of open files, which comes back checked.
/// One that may not be raised (without CAP_SYS_RESOURCE in the host's user
/// namespace) is clamped to the hard limit, and the warnings say so.
pub fn set_rlimits(limits: &[Rlimit], warnings: &mut Vec<String>) -> Result<Option<FileLimit>> {
    let mut files = None;
    for limit in limits {
        let resource = resource(limit.resource)
            .ok_or_else(|| refusal("set resource limit", limit.resource.to_string(), "unknown"))?;
        let wanted = RawRlimit {
            current: finite(limit.soft),
            maximum: finite(limit.hard),
        };
        let is_files = resource == Resource::Nofile;
        // Of open files the hard limit alone, for now: it tells whether it may
        // be set, and is no lower than what is needed until the end.
        let first = if is_files {
            RawRlimit {
                current: wanted.maximum,
                ..wanted
            }
        } else {
            wanted
        };
        // A low one needs no raising, and would be in the way until the end.
        let may_wait = is_files
            && wanted.maximum.is_some_and(|n| {
                let hard = rustix::process::getrlimit(resource).maximum;
                n < SETUP_FILES && hard.is_none_or(|h| h >= n)
            });
        let set = if may_wait {
            Ok(wanted)
        } else {
            set_or_clamp(resource, wanted, first, warnings)
        };
        let set = set.on("set resource limit", format!("{resource:?}"))?;
        if is_files {
            files = Some(FileLimit(set));
        }
    }
    Ok(files)
}

/// Sets `first`; what was not allowed is clamped, in what comes back too.
fn set_or_clamp(
    resource: Resource,
    mut wanted: RawRlimit,
    first: RawRlimit,
    warnings: &mut Vec<String>,
) -> std::result::Result<RawRlimit, Errno> {
    match rustix::process::setrlimit(resource, first) {
        Err(Errno::PERM) => {}
        other => return other.map(|()| wanted),
    }
    let hard = rustix::process::getrlimit(resource).maximum;
    let over = |value: Option<u64>| hard.is_some_and(|h| value.is_none_or(|v| v > h));
    if !over(wanted.maximum) {
        // Refused for another reason than that it is too high.
        return Err(Errno::PERM);
    }
    let clamp = |value: Option<u64>| if over(value) { hard } else { value };
    wanted.current = clamp(wanted.current);
    wanted.maximum = hard;
    warnings.push(format!(
        "resource limit {resource:?} stays at {} since CAP_SYS_RESOURCE is missing",
        hard.map_or_else(|| "unlimited".to_owned(), |h| h.to_string()),
    ));
    let now = RawRlimit {
        current: clamp(first.current),
        maximum: hard,
    };
    rustix::process::setrlimit(resource, now).map(|()| wanted)
}

/// Leaves the caller without any capability, for good: for a process that
/// only waits.
pub fn give_up_everything() -> Result<()> {
    let sets = rustix::thread::capabilities(None).on("read", "capabilities")?;
    limit_bounding_set(0, sets.effective.bits())?;
    rustix::thread::set_no_new_privs(true).on("set", "no_new_privs")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).on("give up", "capabilities")
}

fn finite(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

/// By the numbers of `asm-generic/resource.h`.
fn resource(number: u32) -> Option<Resource> {
    Some(match number {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
        5 => Resource::Rss,
        6 => Resource::Nproc,
        7 => Resource::Nofile,
        8 => Resource::Memlock,
        9 => Resource::As,
        10 => Resource::Locks,
        11 => Resource::Sigpending,
        12 => Resource::Msgqueue,
        13 => Resource::Nice,
        14 => Resource::Rtprio,
        15 => Resource::Rttime,
        _ => return None,
    })
}

/// Sets scheduling attributes.
pub fn set_scheduler(s: &Scheduler) -> Result<()> {
    rkube_sys::process::set_scheduler(rkube_sys::process::SchedAttr {
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    })
    .on("set scheduling policy", s.policy.to_string())
}

/// What is granted of a wanted set: a capability that this process itself
/// lacks cannot be given (OCI runtime-spec 1.3: a warning, no error).
fn granted(wanted: u64, have: u64) -> u64 {
    wanted & have
}

/// Changes to the program's user, groups and capabilities, and loads its
/// filter. Returns the seccomp listener where the filter asks for one.
///
/// Order: the bounding set while CAP_SETPCAP is there; ids with the permitted
/// set kept; the filter before the last capabilities go (without
/// no_new_privs it needs CAP_SYS_ADMIN) or, with no_new_privs, after.
pub fn assume(program: &Program) -> Result<()> {
    let sets = rustix::thread::capabilities(None).on("read", "capabilities")?;
    if let Some(wanted) = &program.capabilities {
        limit_bounding_set(wanted.bounding, sets.effective.bits())?;
    }
    let umask = program.umask.unwrap_or(DEFAULT_UMASK);
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    set_keep_capabilities(true).on("keep", "capabilities")?;
    let groups: Vec<Gid> = program.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // With setgroups denied in a user namespace an empty list is what
        // there is already.
        Err(Errno::PERM) if groups.is_empty() => {}
        other => other.on("set groups", format!("{:?}", program.groups))?,
    }
    let gid = Gid::from_raw(program.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).on("set group", program.gid.to_string())?;
    let uid = Uid::from_raw(program.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).on("set user", program.uid.to_string())?;
    set_keep_capabilities(false).on("reset keeping of", "capabilities")?;
    // A change from uid 0 has cleared the effective set; what follows needs
    // it again.
    let whole = CapabilitySets {
        effective: sets.permitted,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
    };
    rustix::thread::set_capabilities(None, whole).on("restore", "capabilities")
}

/// The last two things before the program: its capabilities and its filter.
/// `hand_over` gets a seccomp listener at once, before anything else that the
/// filter may ask about.
pub fn seal(
    program: &Program,
    filter: Option<&PreparedFilter>,
    hand_over: &dyn Fn(&OwnedFd) -> Result<()>,
) -> Result<()> {
    let load = || match filter.map(PreparedFilter::load).transpose()?.flatten() {
        Some(listener) => hand_over(&listener),
        None => Ok(()),
    };
    if program.no_new_privileges {
        rustix::thread::set_no_new_privs(true).on("set", "no_new_privs")?;
        final_capabilities(program)?;
        load()
    } else {
        load()?;
        final_capabilities(program)
    }
}

fn limit_bounding_set(wanted: u64, effective: u64) -> Result<()> {
    let can_drop = effective & (1 << CAP_SETPCAP) != 0;
    for n in (0..64).filter(|n| wanted & (1_u64 << n) == 0) {
        let capability = CapabilitySet::from_bits_retain(1 << n);
        let dropped = if can_drop {
            // One that is not in the set may be dropped again.
            remove_capability_from_bounding_set(capability)
        } else {
            match capability_is_in_bounding_set(capability) {
                Ok(true) => {
                    let hint = "rkube itself lacks CAP_SETPCAP";
                    return Err(refusal("limit", "bounding set", hint));
                }
                other => other.map(drop),
            }
        };
        match dropped {
            Ok(()) => {}
            // The kernel knows none of this number, nor any higher one.
            Err(Errno::INVAL) if n > CAP_KNOWN => break,
            Err(errno) => {
                let what = format!("capability {n}");
                return Err(failure("drop from bounding set", what, errno));
            }
        }
    }
    Ok(())
}

fn final_capabilities(program: &Program) -> Result<()> {
    let Some(wanted) = &program.capabilities else {
        return Ok(());
    };
    let have = rustix::thread::capabilities(None)
        .on("read", "capabilities")?
        .permitted
        .bits();
    let Capabilities {
        effective,
        permitted,
        inheritable,
        ambient,
        ..
    } = *wanted;
    let permitted = granted(permitted, have);
    let inheritable = granted(inheritable, have);
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(effective & permitted),
        permitted: CapabilitySet::from_bits_retain(permitted),
        inheritable: CapabilitySet::from_bits_retain(inheritable),
    };
    rustix::thread::set_capabilities(None, sets).on("set", "capabilities")?;
    // EINVAL before 4.3, where there is nothing to clear.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(failure("clear", "ambient capabilities", errno)),
    }
    let ambient = ambient & permitted & inheritable;
    for n in (0..64).filter(|n| ambient & (1_u64 << n) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << n);
        configure_capability_in_ambient_set(capability, true)
            .on("raise ambient", format!("capability {n}"))?;
    }
    Ok(())
}

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub struct PreparedFilter {
    program: Vec<seccomp::Instruction>,
    flags: u64,
}

impl PreparedFilter {
    /// Decodes it.
    pub fn new(filter: &Seccomp) -> Result<Self> {
        let program = rkube_sys::bytes::instructions(&filter.program)
            .filter(|p| !p.is_empty() && p.len() <= seccomp::MAX_INSTRUCTIONS)
            .ok_or_else(|| failure("decode", "seccomp filter", Errno::INVAL))?;
        Ok(Self {
            program,
            flags: filter.flags,
        })
    }

    /// Loads it into the calling thread.
    pub fn load(&self) -> Result<Option<OwnedFd>> {
        seccomp::load(&self.program, self.flags).map_err(|errno| {
            let mut failed = failure("load", "seccomp filter", errno);
            if errno == Errno::ACCESS {
                failed.hint = format!("needs no_new_privs or capability {CAP_SYS_ADMIN}");
            }
            failed
        })
    }
}
