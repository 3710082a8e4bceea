//! What only a process can do that does not go on afterwards.
//!
//! A user namespace that was joined cannot be left again, and a new time
//! namespace is for the children of whoever made it. So a short-lived process
//! stands between the caller and the stage where a plan has one of them: it
//! raises limits while it is still the host's root, joins, clones the stage as
//! its sibling, tells the caller, and ends. A caller that is used once anyway
//! (`rkube-keeper stage`) is its own bridge.
//!
//! ```text
//!   keeper ──clone3──► bridge: limits, setns ──clone3(CLONE_PARENT)──► stage
//!      ◄──────── pid and pidfd of the stage ─┘ _exit
//! ```
//! The bridge keeps the host's user id, so it may still put the stage into its
//! cgroup by CLONE_INTO_CGROUP, whose file belongs to that user. It is in the
//! host's process namespace all its life: nobody in the container sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rkube_sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME,
    CLONE_NEWUSER, CLONE_NEWUTS, CLONE_PARENT, Cloned, clone_process,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, WaitId, WaitIdOptions, waitid};

use crate::error::{Context, Result, refusal};
use crate::plan::{Plan, StageMessage};
use crate::{identity, socket, stage, wire};

/// What a stage joins by itself: the rest of a container's view, with the
/// rights that it has in its own user namespace.
const LEFT_TO_THE_STAGE: u64 = CLONE_NEWNS | CLONE_NEWCGROUP;

/// Whether the process of a plan gets into a user namespace, new or not.
#[must_use]
pub fn enters_user_namespace(plan: &Plan) -> bool {
    plan.new_namespaces & CLONE_NEWUSER != 0
        || plan.joins.iter().any(|j| j.kind & CLONE_NEWUSER != 0)
}

/// Whether a plan needs a process that does not go on.
#[must_use]
pub fn is_needed(plan: &Plan) -> bool {
    enters_user_namespace(plan) || plan.new_namespaces & CLONE_NEWTIME != 0
}

/// The part of a join that the stage of a plan does itself. A process
/// namespace takes effect for children only, so whoever clones the stage has
/// joined it.
#[must_use]
pub fn left_to_the_stage(plan: &Plan, kind: u64) -> u64 {
    if enters_user_namespace(plan) {
        kind & LEFT_TO_THE_STAGE
    } else {
        kind & !CLONE_NEWPID
    }
}

/// Names of namespaces, for messages.
#[must_use]
pub fn kind_names(kinds: u64) -> String {
    const NAMES: [(u64, &str); 8] = [
        (CLONE_NEWUSER, "user"),
        (CLONE_NEWNS, "mount"),
        (CLONE_NEWPID, "process"),
        (CLONE_NEWNET, "network"),
        (CLONE_NEWIPC, "ipc"),
        (CLONE_NEWUTS, "uts"),
        (CLONE_NEWCGROUP, "cgroup"),
        (CLONE_NEWTIME, "time"),
    ];
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(flag, _)| kinds & flag != 0)
        .map(|(_, name)| *name)
        .collect();
    names.join(", ")
}

/// Clones the stage of a plan by way of a bridge; a child of the caller.
///
/// # Safety
/// The calling process must be single-threaded.
#[allow(unsafe_code)]
pub unsafe fn across(plan: &Plan, fds: &[OwnedFd], sync: &OwnedFd) -> Result<(i32, OwnedFd)> {
    let (ours, theirs) = socket::pair().on("make", "socket pair")?;
    // SAFETY: the caller vouches for being single-threaded.
    let cloned = unsafe { clone_process(0, None) };
    match cloned.on("clone", "process that enters namespaces")? {
        Cloned::Child => {
            drop(ours);
            if let Err(failure) = become_bridge(plan, fds, sync, &theirs) {
                // Nobody is left to tell when this fails too.
                let message = StageMessage::Failed { failure };
                let _ = socket::send(theirs.as_fd(), &wire::encode(&message), &[]);
            }
            rkube_sys::process::exit_now(0)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let heard = socket::receive(ours.as_fd());
            let id = WaitId::PidFd(pidfd.as_fd());
            while matches!(waitid(id.clone(), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
            told(heard.on("hear from", "process that enters namespaces")?)
        }
    }
}

fn told(packet: socket::Packet) -> Result<(i32, OwnedFd)> {
    const WHO: &str = "process that enters namespaces";
    if packet.bytes.is_empty() {
        return Err(refusal("set up container:", WHO, "it was killed"));
    }
    let message = wire::decode::<StageMessage>(&packet.bytes)
        .map_err(|e| refusal("understand", WHO, &e.to_string()))?;
    match (message, packet.fds.into_iter().next()) {
        (StageMessage::Failed { failure }, _) => Err(failure),
        (StageMessage::Cloned { pid }, Some(pidfd)) => Ok((pid, pidfd)),
        _ => Err(refusal("understand", WHO, "it told something else")),
    }
}

fn become_bridge(plan: &Plan, fds: &[OwnedFd], sync: &OwnedFd, tell: &OwnedFd) -> Result<()> {
    let mut keep = socket::borrow(fds);
    keep.extend([sync.as_fd(), tell.as_fd()]);
    // SAFETY: this process never returns to the code that owns the others: it
    // ends by exit_now, and so does the stage that is cloned from it.
    #[allow(unsafe_code)]
    unsafe { rkube_sys::fd::close_others(&keep) }.on("close", "the keeper's descriptors")?;
    let pick = |index: u16| borrowed(fds, index);
    enter(plan, &pick)?;
    let cgroup = plan.cgroup.directory.map(pick).transpose()?;
    // SAFETY: a clone of a single-threaded process has one thread.
    #[allow(unsafe_code)]
    let cloned = unsafe { clone_stage(plan, cgroup, true) }?;
    match cloned {
        Cloned::Child => stage::run(plan, fds, sync.as_fd()),
        Cloned::Parent { pid, pidfd } => {
            let message = StageMessage::Cloned { pid };
            socket::send(tell.as_fd(), &wire::encode(&message), &[pidfd.as_fd()])
                .on("tell", "parent")
        }
    }
}

/// A descriptor of a plan.
pub(crate) fn borrowed(fds: &[OwnedFd], index: u16) -> Result<BorrowedFd<'_>> {
    let fd = fds.get(usize::from(index)).map(AsFd::as_fd);
    fd.ok_or_else(|| refusal("use descriptor", index.to_string(), "the plan has fewer"))
}

/// The clone itself.
///
/// # Safety
/// The calling process must be single-threaded.
#[allow(unsafe_code)]
pub(crate) unsafe fn clone_stage(
    plan: &Plan,
    cgroup: Option<BorrowedFd<'_>>,
    as_sibling: bool,
) -> Result<Cloned> {
    // A new time namespace has been made before (unshare(2)): its clocks must
    // be set while nobody is in it.
    let mut flags = plan.new_namespaces & !CLONE_NEWTIME;
    if as_sibling {
        flags |= CLONE_PARENT;
    }
    // SAFETY: as the caller vouches.
    unsafe { clone_process(flags, cgroup) }.map_err(|errno| {
        let names = kind_names(flags);
        let what = if names.is_empty() {
            "process".to_owned()
        } else {
            format!("process with new namespaces ({names})")
        };
        let mut failed = crate::error::failure("clone", what, errno);
        if errno == Errno::AGAIN {
            failed.hint = "a limit of processes is reached (pids.max, RLIMIT_NPROC)".to_owned();
        }
        failed
    })
}

/// Does everything that the stage's parent must have done, in the calling
/// process, which is good for nothing else afterwards.
pub(crate) fn enter<'a>(plan: &Plan, pick: &dyn Fn(u16) -> Result<BorrowedFd<'a>>) -> Result<()> {
    if enters_user_namespace(plan) {
        identity::raise_as_host_root(&plan.program)?;
        // The user namespace last: what belongs to the host's root can be
        // joined only before, and what belongs to the container's root too.
        for own in [false, true] {
            for join in &plan.joins {
                let kind = join.kind & !LEFT_TO_THE_STAGE;
                let kind = if own {
                    kind & CLONE_NEWUSER
                } else {
                    kind & !CLONE_NEWUSER
                };
                if kind != 0 {
                    rkube_sys::process::join_namespaces(pick(join.fd)?, kind)
                        .on("join namespace", kind_names(kind))?;
                }
            }
        }
        // The change of credentials has reset it (PR_SET_DUMPABLE, prctl(2)).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .on("become", "non-dumpable")?;
    } else {
        for join in plan.joins.iter().filter(|j| j.kind & CLONE_NEWPID != 0) {
            rkube_sys::process::join_namespaces(pick(join.fd)?, CLONE_NEWPID)
                .on("join namespace", "process")?;
        }
    }
    if plan.new_namespaces & CLONE_NEWTIME != 0 {
        rkube_sys::process::unshare_namespaces(CLONE_NEWTIME).on("make", "time namespace")?;
        set_clocks(plan)?;
    }
    Ok(())
}

/// Sets the clocks of the time namespace that children get (time_namespaces(7)).
fn set_clocks(plan: &Plan) -> Result<()> {
    const PATH: &str = "/proc/self/timens_offsets";
    if plan.time_offsets.is_empty() {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(PATH, flags, Mode::empty()).on("open", PATH)?;
    let mut text = String::new();
    for offset in &plan.time_offsets {
        use std::fmt::Write;
        let _ = writeln!(
            text,
            "{} {} {}",
            offset.clock, offset.seconds, offset.nanoseconds
        );
    }
    // One write for all: the kernel takes them together.
    rustix::io::write(&file, text.as_bytes())
        .map(drop)
        .on("set clocks of time namespace", text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Join;

    fn joining(kinds: u64) -> Plan {
        Plan {
            joins: vec![Join { kind: kinds, fd: 0 }],
            ..Plan::default()
        }
    }

    #[test]
    fn what_the_stage_joins_itself() {
        let all = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP;
        let plain = joining(all);
        assert!(!is_needed(&plain));
        assert_eq!(left_to_the_stage(&plain, all), all & !CLONE_NEWPID);
        let user = joining(all | CLONE_NEWUSER);
        assert!(is_needed(&user));
        let left = left_to_the_stage(&user, all | CLONE_NEWUSER);
        assert_eq!(left, CLONE_NEWNS | CLONE_NEWCGROUP);
    }

    #[test]
    fn a_new_time_namespace_needs_a_bridge() {
        let plan = Plan {
            new_namespaces: CLONE_NEWTIME,
            ..Plan::default()
        };
        assert!(is_needed(&plan) && !enters_user_namespace(&plan));
        assert_eq!(kind_names(CLONE_NEWTIME | CLONE_NEWNET), "network, time");
    }
}
