//! The plan of a container: everything that a stage does, in order, as plain
//! data. The runtime crate makes it from an OCI spec; a stage only follows it.
//!
//! File descriptors travel beside the plan, and the plan names them by their
//! index ([`FdIndex`]). What needs the host's view (bind sources, images,
//! cgroups, namespaces) was opened by whoever made the plan, so that a stage
//! resolves no path of the host.

use std::ffi::CString;

use crate::{wire_enum, wire_struct};

/// Index into the descriptors that came with a plan.
pub type FdIndex = u16;

/// Most descriptors of one plan (`SCM_MAX_FD` of `net/scm.h` less one for the
/// plan itself).
pub const MAX_PLAN_FDS: usize = 252;

/// Largest encoded plan, in bytes: room for 2 MiB of arguments and
/// environment (the kernel's own limit without a raised stack limit) and the
/// rest.
pub const MAX_PLAN_BYTES: usize = 4 << 20;

wire_struct! {
    /// A range of ids of a user namespace.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct IdRange {
        /// First id in the namespace.
        pub inside: u32,
        /// First id outside.
        pub outside: u32,
        /// How many.
        pub count: u32,
    }

    /// A namespace that exists already.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Join {
        /// `CLONE_NEW*` of its type; several with a pidfd.
        pub kind: u64,
        /// A namespace file, or a pidfd.
        pub fd: FdIndex,
    }

    /// How a process gets into its cgroups.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct CgroupEntry {
        /// A cgroup v2 directory to be cloned into.
        pub directory: Option<FdIndex>,
        /// `tasks` files of v1 hierarchies. The stage writes `0` to each
        /// itself: a single thread that moves itself is spared the RCU grace
        /// period (about 14 ms) that a write of a pid waits for.
        pub tasks: Vec<FdIndex>,
        /// A cgroup namespace of its own, made after it has got in.
        pub namespace: bool,
    }

    /// Owners in a detached mount of the plan that are mapped before anything
    /// else is done with it.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct IdMapped {
        /// A detached mount.
        pub fd: FdIndex,
        /// From user ids on the file system (inside) to those that are seen.
        pub uid_map: Vec<IdRange>,
        /// The same of groups.
        pub gid_map: Vec<IdRange>,
        /// A user namespace whose maps are taken instead.
        pub namespace: Option<FdIndex>,
        /// With all mounts below.
        pub recursive: bool,
    }

    /// How far a clock of a new time namespace is from the host's.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct TimeOffset {
        /// `CLOCK_MONOTONIC` (1) or `CLOCK_BOOTTIME` (7), `linux/time.h`.
        pub clock: u32,
        /// Seconds.
        pub seconds: i64,
        /// 0 to 999,999,999.
        pub nanoseconds: u32,
    }

    /// Who is asked about system calls of the program's filter.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct SeccompAgent {
        /// A connected stream socket.
        pub fd: FdIndex,
        /// What it gets beside the listener: the process' id on the host
        /// stands between these parts.
        pub state: Vec<CString>,
    }

    /// A resource limit (setrlimit(2)).
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Rlimit {
        /// `RLIMIT_*` number.
        pub resource: u32,
        /// Soft limit; `u64::MAX` is infinity.
        pub soft: u64,
        /// Hard limit; `u64::MAX` is infinity.
        pub hard: u64,
    }

    /// Capability sets as bit masks (bit n is capability n).
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Capabilities {
        /// Bounding set.
        pub bounding: u64,
        /// Effective set.
        pub effective: u64,
        /// Permitted set.
        pub permitted: u64,
        /// Inheritable set.
        pub inheritable: u64,
        /// Ambient set.
        pub ambient: u64,
    }

    /// A seccomp filter.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Seccomp {
        /// Instructions in the memory format of `struct sock_filter`.
        pub program: Vec<u8>,
        /// `SECCOMP_FILTER_FLAG_*`.
        pub flags: u64,
    }

    /// Scheduling attributes (sched_setattr(2)).
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Scheduler {
        /// `SCHED_*`.
        pub policy: u32,
        /// `SCHED_FLAG_*`.
        pub flags: u64,
        /// -20 to 19.
        pub nice: i32,
        /// 1 to 99 for real-time policies.
        pub priority: u32,
        /// ns, deadline policy.
        pub runtime: u64,
        /// ns, deadline policy.
        pub deadline: u64,
        /// ns, deadline policy.
        pub period: u64,
    }

    /// The program and what it runs as.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Program {
        /// Program and arguments; empty where nothing is executed (pause).
        pub argv: Vec<CString>,
        /// Environment, whole.
        pub env: Vec<CString>,
        /// Absolute working directory; made where it is missing.
        pub cwd: CString,
        /// User.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Supplementary groups.
        pub groups: Vec<u32>,
        /// File mode creation mask.
        pub umask: Option<u32>,
        /// Capability sets; `None` keeps what the stage has.
        pub capabilities: Option<Capabilities>,
        /// prctl(PR_SET_NO_NEW_PRIVS).
        pub no_new_privileges: bool,
        /// Resource limits.
        pub rlimits: Vec<Rlimit>,
        /// /proc/self/oom_score_adj.
        pub oom_score_adj: Option<i32>,
        /// Filter of system calls.
        pub seccomp: Option<Seccomp>,
        /// Scheduling attributes.
        pub scheduler: Option<Scheduler>,
        /// Class and level of ioprio_set(2).
        pub io_priority: Option<(u8, u8)>,
        /// personality(2).
        pub personality: Option<u32>,
        /// A session keyring of its own.
        pub new_keyring: bool,
    }

    /// A terminal for the program.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Terminal {
        /// Columns and rows to begin with.
        pub size: Option<(u16, u16)>,
    }

    /// What a stage does to make one process.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Plan {
        /// For messages.
        pub id: String,
        /// `CLONE_NEW*` of new namespaces, without the cgroup namespace.
        pub new_namespaces: u64,
        /// Namespaces to join; new ones are owned by a joined user namespace.
        pub joins: Vec<Join>,
        /// User ids of a new user namespace.
        pub uid_map: Vec<IdRange>,
        /// Group ids of a new user namespace.
        pub gid_map: Vec<IdRange>,
        /// Mounts with mapped owners.
        pub id_mapped: Vec<IdMapped>,
        /// Clocks of a new time namespace.
        pub time_offsets: Vec<TimeOffset>,
        /// Cgroups.
        pub cgroup: CgroupEntry,
        /// In the new process, in order.
        pub steps: Vec<Step>,
        /// What runs.
        pub program: Program,
        /// Standard input, output and error; `None` is /dev/null.
        pub stdio: Vec<Option<FdIndex>>,
        /// The program's user as the host counts, whom streams that are pipes
        /// or FIFOs are given to; needed where the program gets into a user
        /// namespace, in which a stage cannot do it.
        pub stream_owner: Option<u32>,
        /// Gets the listener of a filter that asks.
        pub seccomp_agent: Option<SeccompAgent>,
        /// A terminal instead of `stdio`; its master comes back.
        pub terminal: Option<Terminal>,
        /// Descriptors that the program gets as 3, 4, ... (`LISTEN_FDS`,
        /// `--preserve-fds`).
        pub extra_fds: Vec<FdIndex>,
        /// A detached mount of the host's /dev/null (checked to be character
        /// device 1:3), which hides files; needed with `Mask` steps.
        pub null: Option<FdIndex>,
        /// A listening socket: the program is executed when a connection to
        /// it has sent a byte. `None`: at once.
        pub start: Option<FdIndex>,
        /// Done when the start was told (or at once), as the program's user,
        /// before its filter and its last capabilities (startContainer hooks).
        pub start_steps: Vec<Step>,
    }
}

wire_enum! {
    /// One step in the new process. Paths are the container's and absolute;
    /// they are resolved inside its root, symlinks included.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Step {
        /// Changes the propagation of every mount that was copied into the new
        /// mount namespace (`MS_SLAVE` or `MS_PRIVATE`).
        1 Propagation {
            /// `MS_*`.
            flag: u64,
        }
        /// Makes the detached mount `fd` the root of the mount namespace. The
        /// old root is gone afterwards.
        2 PivotRoot {
            /// A detached mount.
            fd: FdIndex,
            /// Use chroot after moving the mount over `/`, for hosts whose
            /// root is the initial ramfs (pivot_root(2) refuses that one).
            no_pivot: bool,
        }
        /// Makes a new file system instance; it is attached by `Attach`.
        3 Filesystem {
            /// Slot that `Attach` names.
            slot: u16,
            /// File system type.
            kind: CString,
            /// Source, as mount(8) shows it.
            source: CString,
            /// Options of the file system: key and value, or a flag.
            options: Vec<(CString, Option<CString>)>,
            /// `MOUNT_ATTR_*`.
            attributes: u64,
        }
        /// Attaches the file system of a slot to a path, a directory that is
        /// made where it is missing.
        4 Attach {
            /// Slot of a `Filesystem` step.
            slot: u16,
            /// Absolute path.
            target: CString,
            /// `MS_*` propagation, or 0.
            propagation: u64,
        }
        /// Attaches a detached mount that came with the plan.
        5 AttachFd {
            /// A detached mount.
            fd: FdIndex,
            /// Absolute path; made where it is missing, as a directory or an
            /// empty file.
            target: CString,
            /// Whether the mount's root is a directory.
            directory: bool,
        }
        /// Makes a device node or FIFO, unless the same one is there.
        6 Device {
            /// Absolute path.
            path: CString,
            /// File type and permission bits (`S_IFCHR | 0666`).
            mode: u32,
            /// Device number, major.
            major: u32,
            /// Device number, minor.
            minor: u32,
            /// Owner.
            uid: u32,
            /// Group.
            gid: u32,
        }
        /// Makes a symbolic link unless something is there.
        7 Symlink {
            /// Absolute path.
            path: CString,
            /// What it points to.
            target: CString,
        }
        /// Hides a file or directory, where it exists.
        8 Mask {
            /// Absolute path.
            path: CString,
        }
        /// Makes a path read-only, where it exists.
        9 ReadOnly {
            /// Absolute path.
            path: CString,
        }
        /// Makes the root mount read-only.
        10 RootReadOnly {}
        /// Writes a kernel parameter of a namespace through a private procfs.
        11 Sysctl {
            /// Relative to /proc/sys, with slashes.
            path: CString,
            /// Value.
            value: CString,
        }
        /// sethostname(2).
        12 Hostname {
            /// At most 64 bytes.
            name: CString,
        }
        /// setdomainname(2).
        13 Domainname {
            /// At most 64 bytes.
            name: CString,
        }
        /// Sets `lo` up in the network namespace.
        14 LoopbackUp {}
        /// Propagation of the root mount, after everything else.
        15 RootPropagation {
            /// `MS_*`.
            flag: u64,
            /// With all mounts below.
            recursive: bool,
        }
        /// Moves this process into its v1 cgroups, then makes the cgroup
        /// namespace.
        16 EnterCgroup {}
        /// Runs a hook in the container (createContainer and startContainer).
        17 Hook {
            /// Absolute path in the namespace where it runs.
            path: CString,
            /// Arguments, the program's name included.
            argv: Vec<CString>,
            /// Environment, whole.
            env: Vec<CString>,
            /// Seconds, or none.
            timeout_s: Option<u32>,
            /// What it reads on standard input.
            stdin: CString,
        }
        /// Sets the propagation and attributes of what is mounted at a path.
        18 Remount {
            /// Absolute path.
            target: CString,
            /// `MOUNT_ATTR_*` to set.
            set: u64,
            /// `MOUNT_ATTR_*` to clear.
            clear: u64,
            /// `MS_*` propagation, or 0.
            propagation: u64,
            /// With all mounts below.
            recursive: bool,
        }
        /// Sends a byte over a stream socket and waits for one: whoever holds
        /// the other end does something in between (hooks of the host). Its
        /// end in place of the byte ends the stage.
        19 Rendezvous {
            /// A connected stream socket.
            fd: FdIndex,
        }
        /// Copies what a directory of the container holds into the file
        /// system of a slot, which is to cover it: nothing where it is
        /// missing.
        20 CopyUp {
            /// Slot of a `Filesystem` step.
            slot: u16,
            /// Absolute path.
            target: CString,
            /// Owner and permissions of the directory itself too.
            itself: bool,
        }
        /// Sets the NUMA memory policy (set_mempolicy(2)).
        21 MemoryPolicy {
            /// Mode and flags of `linux/mempolicy.h`.
            mode: u32,
            /// Bit mask of nodes.
            nodes: Vec<u64>,
        }
        /// Sets the processors that the process may run on
        /// (sched_setaffinity(2)).
        22 CpuAffinity {
            /// Bit mask of processors.
            cpus: Vec<u64>,
        }
    }
}

wire_enum! {
    /// What a stage tells its parent.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum StageMessage {
        /// Waiting for the id maps of its new user namespace, and to be told
        /// its process id on the host.
        1 Waiting {}
        /// Everything is set up; the terminal's master and the seccomp
        /// listener come with it, in this order, as the flags tell.
        2 Ready {
            /// A terminal's master is attached.
            terminal: bool,
            /// A seccomp notification descriptor is attached.
            listener: bool,
        }
        /// A step did not work, and the process has ended.
        3 Failed {
            /// What.
            failure: Failure,
        }
        /// Something was not possible and was done in a listed other way.
        4 Warning {
            /// What.
            text: String,
        }
        /// The stage is there; its pidfd comes with it (told by a bridge).
        5 Cloned {
            /// Its process id on the host.
            pid: i32,
        }
    }
}

wire_struct! {
    /// Why a container could not be made.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Failure {
        /// What was attempted, e.g. `mount proc`.
        pub operation: String,
        /// On what, e.g. `/proc`.
        pub object: String,
        /// errno, or 0.
        pub errno: i32,
        /// What the user can do, or empty.
        pub hint: String,
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.operation)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
