//! The process of a spec: what runs, and as whom.

use oci_spec::runtime::{
    IOPriorityClass, LinuxCapabilities, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccomp, LinuxSeccompAction, PosixRlimitType,
    Process, Scheduler,
};
use rkube_keeper::plan::{self, Program, Rlimit, Terminal};

use super::{Draft, Source, c_path, c_string};
use crate::capability;
use crate::error::{Error, Result};

/// Raises and lowers of /proc/PID/oom_score_adj (proc(5)).
const OOM_SCORE_RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Fills in the program and the terminal.
pub(super) fn add(
    draft: &mut Draft,
    process: &Process,
    home: Option<&str>,
    grantable: u64,
) -> Result<()> {
    refuse(draft, process)?;
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() || args.first().is_some_and(String::is_empty) {
        return Err(Error::spec("process.args", "it must name a program"));
    }
    let mut program = Program {
        cwd: c_path("process.cwd", process.cwd())?,
        ..Program::default()
    };
    if !process.cwd().is_absolute() {
        return Err(Error::spec("process.cwd", "it must be an absolute path"));
    }
    for arg in args {
        program.argv.push(c_string("process.args", arg.as_str())?);
    }
    for pair in process.env().iter().flatten() {
        if pair.starts_with('=') || !pair.contains('=') {
            draft.warn("process.env", format_args!("{pair:?} is no NAME=VALUE"));
        }
        program.env.push(c_string("process.env", pair.as_str())?);
    }
    // An empty one counts as none, as other runtimes take it.
    program
        .env
        .retain(|e| e.to_bytes() != b"HOME=" || home.is_none());
    let has_home = program
        .env
        .iter()
        .any(|e| e.to_bytes().starts_with(b"HOME="));
    if let Some(home) = home.filter(|_| !has_home) {
        program.env.push(c_string("HOME", format!("HOME={home}"))?);
    }
    let user = process.user();
    program.uid = user.uid();
    program.gid = user.gid();
    program.groups = user.additional_gids().clone().unwrap_or_default();
    program.umask = user.umask();
    if user.umask().is_some_and(|mask| mask > 0o777) {
        return Err(Error::spec("process.user.umask", "it must be at most 0777"));
    }
    program.capabilities = Some(capabilities(
        draft,
        process.capabilities().as_ref(),
        grantable,
    )?);
    program.no_new_privileges = process.no_new_privileges().unwrap_or(false);
    program.rlimits = rlimits(process)?;
    program.oom_score_adj = process.oom_score_adj();
    if let Some(adj) = program.oom_score_adj
        && !OOM_SCORE_RANGE.contains(&adj)
    {
        return Err(Error::spec(
            "process.oomScoreAdj",
            format!("{adj} is not within -1000 to 1000"),
        ));
    }
    program.scheduler = process.scheduler().as_ref().map(scheduler).transpose()?;
    program.io_priority = process
        .io_priority()
        .as_ref()
        .map(io_priority)
        .transpose()?;
    if process.terminal().unwrap_or(false) {
        let side = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        draft.plan.terminal = Some(Terminal {
            size: process
                .console_size()
                .map(|size| (side(size.width()), side(size.height())))
                .filter(|size| *size != (0, 0)),
        });
    }
    draft.plan.program = program;
    Ok(())
}

/// What is not honoured: refused, or with the LSM off only warned about.
fn refuse(draft: &mut Draft, process: &Process) -> Result<()> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if set(process.apparmor_profile()) {
        draft.plan_lsm("process.apparmorProfile", Lsm::AppArmor);
    }
    if set(process.selinux_label()) {
        draft.plan_lsm("process.selinuxLabel", Lsm::Selinux);
    }
    if set(process.command_line()) {
        draft.warn("process.commandLine", "it is for Windows only; ignored");
    }
    if process
        .user()
        .username()
        .as_ref()
        .is_some_and(|n| !n.is_empty())
    {
        draft.warn("process.user.username", "it is for Windows only; ignored");
    }
    Ok(())
}

/// A Linux security module that a spec may name a label of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lsm {
    AppArmor,
    Selinux,
}

impl Draft {
    /// Notes a label; the opener refuses it where the module is on.
    pub(crate) fn plan_lsm(&mut self, field: &str, lsm: Lsm) {
        self.labels.push((field.to_owned(), lsm));
    }
}

fn capabilities(
    draft: &mut Draft,
    sets: Option<&LinuxCapabilities>,
    grantable: u64,
) -> Result<plan::Capabilities> {
    let Some(sets) = sets else {
        return Ok(plan::Capabilities::default());
    };
    let field = |name: &str| format!("process.capabilities.{name}");
    let out = plan::Capabilities {
        bounding: capability::mask(&field("bounding"), sets.bounding().as_ref())?,
        effective: capability::mask(&field("effective"), sets.effective().as_ref())?,
        permitted: capability::mask(&field("permitted"), sets.permitted().as_ref())?,
        inheritable: capability::mask(&field("inheritable"), sets.inheritable().as_ref())?,
        ambient: capability::mask(&field("ambient"), sets.ambient().as_ref())?,
    };
    let wanted = out.bounding | out.effective | out.permitted | out.inheritable | out.ambient;
    let missing = wanted & !grantable;
    if missing != 0 {
        draft.warn(
            "process.capabilities",
            format_args!(
                "{} not granted, since the runtime itself lacks it",
                capability::names(missing).join(", ")
            ),
        );
    }
    Ok(out)
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let mut out: Vec<Rlimit> = Vec::new();
    for (n, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{n}]");
        let resource = rlimit_number(limit.typ());
        if out.iter().any(|l| l.resource == resource) {
            return Err(Error::spec(field, format!("a second {:?}", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::spec(field, "soft is above hard"));
        }
        out.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(out)
}

/// Numbers of `asm-generic/resource.h`.
fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

/// Numbers of `linux/sched.h` and `linux/sched/types.h`.
fn scheduler(s: &Scheduler) -> Result<plan::Scheduler> {
    let field = "process.scheduler";
    let policy = match s.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(Error::unsupported(
                field,
                "SCHED_ISO, which Linux never had,",
            ));
        }
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let mut flags = 0;
    for flag in s.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin
            | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(Error::unsupported(
                    format!("{field}.flags"),
                    "utilisation clamping, for which the spec has no values,",
                ));
            }
        };
    }
    let priority = s.priority().unwrap_or(0);
    Ok(plan::Scheduler {
        policy,
        flags,
        nice: s.nice().unwrap_or(0),
        priority: u32::try_from(priority)
            .map_err(|_| Error::spec(format!("{field}.priority"), "it is negative"))?,
        runtime: s.runtime().unwrap_or(0),
        deadline: s.deadline().unwrap_or(0),
        period: s.period().unwrap_or(0),
    })
}

/// Class (`linux/ioprio.h`) and level.
fn io_priority(p: &LinuxIOPriority) -> Result<(u8, u8)> {
    let class = match p.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u8::try_from(p.priority()) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(Error::spec(
            "process.ioPriority.priority",
            "it must be within 0 to 7",
        )),
    }
}

/// `PER_LINUX` and `PER_LINUX32` of `linux/personality.h`.
pub(super) fn personality(p: Option<&LinuxPersonality>) -> Result<Option<u32>> {
    let Some(p) = p else { return Ok(None) };
    if p.flags().as_ref().is_some_and(|f| !f.is_empty()) {
        return Err(Error::unsupported(
            "linux.personality.flags",
            "a flag (the spec defines none)",
        ));
    }
    Ok(Some(match p.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

/// Stands for the process' id on the host, which only its parent learns.
const PID_HERE: &str = "@rkube-pid@";

/// Compiles the filter, or takes it from the cache. `state` is what its agent
/// is told of the container.
pub(super) fn seccomp(
    draft: &mut Draft,
    profile: Option<&LinuxSeccomp>,
    cache: Option<&rkube_seccomp::Cache>,
    state: &dyn Fn() -> serde_json::Value,
) -> Result<()> {
    let Some(profile) = profile else {
        return Ok(());
    };
    let Some(native) = rkube_seccomp::Arch::native() else {
        return Err(Error::unsupported(
            "linux.seccomp",
            "a filter on this architecture",
        ));
    };
    let program = match cache {
        // One that could not be stored is compiled the next time again.
        Some(cache) => cache.program(profile, native).map(|cached| cached.program),
        None => rkube_seccomp::Program::compile(profile, native),
    };
    let program = program.map_err(|source| Error::Seccomp { source })?;
    if program.notifies() {
        agent(draft, profile, state())?;
    }
    for warning in &program.warnings {
        draft.warn("linux.seccomp", warning);
    }
    draft.plan.program.seccomp = Some(plan::Seccomp {
        program: program.to_bytes(),
        flags: program.flags,
    });
    Ok(())
}

/// The agent of a filter that asks (runtime-spec, config-linux.md, Seccomp,
/// The Container Process State).
fn agent(draft: &mut Draft, profile: &LinuxSeccomp, mut state: serde_json::Value) -> Result<()> {
    let path = profile.listener_path().as_ref();
    let path = path.filter(|p| !p.as_os_str().is_empty()).ok_or_else(|| {
        Error::spec(
            "linux.seccomp.listenerPath",
            "SCMP_ACT_NOTIFY needs the socket of an agent",
        )
    })?;
    if !path.is_absolute() {
        return Err(Error::spec(
            "linux.seccomp.listenerPath",
            "it must be absolute",
        ));
    }
    let asks = |action| action == LinuxSeccompAction::ScmpActNotify;
    let asked = |name: &str| {
        let rules = profile.syscalls().iter().flatten();
        rules
            .filter(|rule| asks(rule.action()))
            .any(|rule| rule.names().iter().any(|n| n == name))
    };
    if asks(profile.default_action()) || asked("sendmsg") {
        return Err(Error::unsupported(
            "linux.seccomp",
            "SCMP_ACT_NOTIFY for sendmsg, by which the agent gets its descriptor,",
        ));
    }
    state["pid"] = PID_HERE.into();
    let text = serde_json::json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": PID_HERE,
        "metadata": profile.listener_metadata().as_deref().unwrap_or_default(),
        "state": state,
    })
    .to_string();
    let here = format!("\"{PID_HERE}\"");
    let state = text
        .split(&here)
        .map(|part| c_string("linux.seccomp", part))
        .collect::<Result<_>>()?;
    let fd = draft.source(Source::Agent { path: path.clone() })?;
    draft.plan.seccomp_agent = Some(plan::SeccompAgent { fd, state });
    Ok(())
}
