//! The default profile: what a container gets that asks for none.
//!
//! The lists are facts of the profile that the field ships: containers-common
//! (`seccomp.json`), which answers ENOSYS by default so that libc falls back.
//! That one is meant for nested containers and leaves mounts and namespaces to
//! the kernel's own checks; where moby and containerd ask for a capability,
//! [`GATES`] do so too, and the kernel's keyrings, which no namespace divides,
//! are refused as there.

use oci_spec::runtime::{
    Arch as OciArch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use crate::Arch;

/// asm-generic/errno-base.h
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
/// asm-generic/errno.h
const ENOSYS: u32 = 38;

/// Refused with EPERM whatever the capabilities: old, obsolete, about the host,
/// or without a namespace.
const REFUSED: &str = "\
    add_key bdflush io_pgetevents kexec_file_load kexec_load keyctl migrate_pages move_pages \
    nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase \
    pciconfig_read pciconfig_write request_key sgetmask ssetmask swapcontext swapoff swapon \
    sysfs uselib userfaultfd ustat vm86 vm86old vmsplice";

/// Allowed to everybody.
const ALLOWED: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk capget capset chdir \
    chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range \
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchown fchown32 fchownat fcntl fcntl64 fdatasync \
    fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
    fstatfs64 fsync ftruncate ftruncate64 futex futex_time64 futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 \
    getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid \
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy \
    io_getevents io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat \
    listen listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 \
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap msgctl msgget \
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat \
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free \
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace \
    pwrite64 pwritev pwritev2 read readahead readdir readlink readlinkat readv recv recvfrom \
    recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat renameat2 \
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
    select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 \
    sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt \
    shmget shutdown sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask \
    sigreturn sigsuspend socketcall socketpair splice stat stat64 statfs statfs64 statx \
    symlink symlinkat sync sync_file_range syncfs syscall sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64 timerfd timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
    utime utimensat utimensat_time64 utimes vfork wait4 waitid waitpid write writev";

/// Allowed to everybody, and younger than the list of containers-common: forms
/// of allowed calls with flags or `*at` descriptors, and what libc and the
/// kernel's probes call by themselves.
const ALLOWED_SINCE: &str = "\
    cachestat fchmodat2 futex_requeue futex_wait futex_wake getxattrat listxattrat \
    map_shadow_stack mseal removexattrat setxattrat uretprobe";

/// Allowed with one of the capabilities, else refused with EPERM.
struct Gate {
    any_of: &'static [Capability],
    names: &'static str,
}

const GATES: &[Gate] = &[
    Gate {
        any_of: &[Capability::SysAdmin],
        names: "\
            fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
            move_mount open_tree pivot_root quotactl quotactl_fd setdomainname sethostname setns \
            umount umount2 unshare",
    },
    Gate {
        any_of: &[Capability::Bpf, Capability::SysAdmin],
        names: "bpf",
    },
    Gate {
        any_of: &[Capability::Perfmon, Capability::SysAdmin],
        names: "perf_event_open",
    },
    Gate {
        any_of: &[Capability::Syslog, Capability::SysAdmin],
        names: "syslog",
    },
    Gate {
        any_of: &[Capability::SysBoot],
        names: "reboot",
    },
    Gate {
        any_of: &[Capability::SysNice],
        names: "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    },
    Gate {
        any_of: &[Capability::SysPtrace],
        names: "kcmp pidfd_getfd process_madvise",
    },
    Gate {
        any_of: &[Capability::DacReadSearch],
        names: "open_by_handle_at",
    },
    Gate {
        any_of: &[Capability::SysChroot],
        names: "chroot",
    },
    Gate {
        any_of: &[Capability::SysModule],
        names: "delete_module finit_module init_module query_module",
    },
    Gate {
        any_of: &[Capability::SysPacct],
        names: "acct",
    },
    Gate {
        any_of: &[Capability::SysRawio],
        names: "ioperm iopl",
    },
    Gate {
        any_of: &[Capability::SysTime],
        names: "clock_settime clock_settime64 settimeofday stime",
    },
    Gate {
        any_of: &[Capability::SysTtyConfig],
        names: "vhangup",
    },
];

/// Flags of new namespaces that `clone` may not have without CAP_SYS_ADMIN:
/// all but the time namespace, whose bit there belongs to the exit signal
/// (linux/sched.h `CLONE_NEW*`: NS, CGROUP, UTS, IPC, USER, PID, NET).
const CLONE_NAMESPACES: [u64; 7] = [
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];

/// Execution domains that `personality` may set (linux/personality.h): Linux,
/// 32-bit Linux, their forms with UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// linux/socket.h
const AF_NETLINK: u64 = 16;
const AF_VSOCK: u64 = 40;
/// linux/netlink.h
const NETLINK_AUDIT: u64 = 9;

/// The profile for a process whose bounding set is `caps`, on a machine of
/// architecture `arch` and the ones it runs besides.
#[must_use]
pub fn default_profile(caps: &Capabilities, arch: Arch) -> LinuxSeccomp {
    let mut rules = Vec::new();
    rules.push(refuse(names(REFUSED), EPERM, Vec::new()));
    for gate in GATES {
        rules.push(if gate.any_of.iter().any(|cap| caps.contains(cap)) {
            allow(names(gate.names), Vec::new())
        } else {
            refuse(names(gate.names), EPERM, Vec::new())
        });
    }
    rules.extend(clone_rules(caps.contains(&Capability::SysAdmin)));
    for domain in PERSONALITIES {
        let equal = comparison(0, LinuxSeccompOperator::ScmpCmpEq, domain, None);
        rules.push(allow(names("personality"), vec![equal]));
    }
    rules.push(allow(names(arch_names(arch)), Vec::new()));
    rules.push(allow(names(ALLOWED), Vec::new()));
    rules.push(allow(names(ALLOWED_SINCE), Vec::new()));
    // After `socketcall`, which libseccomp would else build from these.
    rules.extend(socket_rules(caps.contains(&Capability::AuditWrite)));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(architectures(arch)))
        .set_syscalls(Some(rules));
    profile
}

fn architectures(arch: Arch) -> Vec<OciArch> {
    arch.family().iter().map(|member| member.to_oci()).collect()
}

/// Calls that only some architectures have.
fn arch_names(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 | Arch::X32 => "arch_prctl modify_ldt",
        Arch::X86 => "modify_ldt",
        Arch::Aarch64 | Arch::Arm => {
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"
        }
    }
}

/// `clone3` has its flags behind a pointer: ENOSYS makes libc take `clone`.
fn clone_rules(admin: bool) -> Vec<LinuxSyscall> {
    if admin {
        return vec![allow(names("clone clone3"), Vec::new())];
    }
    let masked = |mask, value| {
        let operator = LinuxSeccompOperator::ScmpCmpMaskedEq;
        vec![comparison(0, operator, mask, Some(value))]
    };
    let all = CLONE_NAMESPACES.iter().fold(0, |all, flag| all | flag);
    let mut rules = vec![allow(names("clone"), masked(all, 0))];
    for flag in CLONE_NAMESPACES {
        rules.push(refuse(names("clone"), EPERM, masked(flag, flag)));
    }
    rules.push(refuse(names("clone3"), ENOSYS, Vec::new()));
    rules
}

/// Not to the hypervisor, and to the audit system only with its capability:
/// EINVAL is what a kernel without audit answers.
///
/// No two of these rules match the same call: runtimes differ in the order in
/// which they try rules.
fn socket_rules(audit: bool) -> Vec<LinuxSyscall> {
    use LinuxSeccompOperator as Op;
    let family = |operator, value| comparison(0, operator, value, None);
    let protocol = |operator| comparison(2, operator, NETLINK_AUDIT, None);
    let allowed = |args| allow(names("socket"), args);
    let vsock = comparison(0, Op::ScmpCmpMaskedEq, u64::MAX, Some(AF_VSOCK));
    let mut rules = vec![refuse(names("socket"), EPERM, vec![vsock])];
    if audit {
        rules.push(allowed(vec![family(Op::ScmpCmpNe, AF_VSOCK)]));
        return rules;
    }
    let netlink = family(Op::ScmpCmpEq, AF_NETLINK);
    let to_audit = vec![netlink, protocol(Op::ScmpCmpEq)];
    rules.push(refuse(names("socket"), EINVAL, to_audit));
    rules.push(allowed(vec![netlink, protocol(Op::ScmpCmpNe)]));
    rules.push(allowed(vec![family(Op::ScmpCmpLt, AF_NETLINK)]));
    for between in AF_NETLINK + 1..AF_VSOCK {
        rules.push(allowed(vec![family(Op::ScmpCmpEq, between)]));
    }
    rules.push(allowed(vec![family(Op::ScmpCmpGt, AF_VSOCK)]));
    rules
}

fn names(list: &str) -> Vec<String> {
    list.split_ascii_whitespace().map(str::to_owned).collect()
}

fn comparison(
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value);
    let arg = match value_two {
        Some(value) => arg.value_two(value),
        None => arg,
    };
    arg.build().expect("every field has a default")
}

fn allow(names: Vec<String>, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names)
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_args((!args.is_empty()).then_some(args));
    rule
}

fn refuse(names: Vec<String>, errno: u32, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = allow(names, args);
    rule.set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(errno));
    rule
}
