//! The engine's vocabulary: neutral descriptions of sandboxes and containers,
//! their status, and the trait through which pod workers drive them.
//!
//! Nothing here knows Kubernetes. A *sandbox* is what a pod's containers
//! share (network, IPC and UTS namespaces, a parent cgroup); a *container* is
//! one process tree in it. Every value is plain data, so that a record of it
//! can be written before the first side effect and read after a crash.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::SystemTime;

pub use rkube_cgroup::pressure::{
    Alarm, MAX_WINDOW_USEC, MIN_WINDOW_USEC, Resource as PressureResource,
};
use rkube_image::pull::{PullError, PullFailure, PullRequest, PulledImage};
use serde::{Deserialize, Serialize};

/// Names a sandbox: the pod's UID or another string of 1 to 63 characters
/// out of `[a-z0-9-]`.
pub type SandboxId = String;

/// Names a container of one sandbox: `<name>` and the attempt that it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId {
    /// The sandbox that it belongs to.
    pub sandbox: SandboxId,
    /// The container's name, unique in its sandbox among live containers.
    pub name: String,
    /// Counts from 0; a restarted container is a new attempt.
    pub attempt: u32,
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.sandbox, self.name, self.attempt)
    }
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum NamespaceMode {
    /// One for the whole sandbox, held by its pause process.
    #[default]
    Pod,
    /// One for each container (process namespaces only).
    Container,
    /// rkube's own, which is the host's.
    Host,
}

/// A transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads into the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Only this address of the host, or every one.
    pub host_ip: Option<IpAddr>,
    /// 1 to 65535.
    pub host_port: u16,
    /// 1 to 65535.
    pub container_port: u16,
}

/// Limits of a cgroup. `None` leaves the kernel's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// CPU weight in cgroup v1 shares, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPU time in µs that may be used in each `cpu_period_us`.
    pub cpu_quota_us: Option<i64>,
    /// Length of a CPU period in µs, 1000 to 1000000.
    pub cpu_period_us: Option<u64>,
    /// CPUs to run on, in list format (`0-2,7`).
    pub cpuset_cpus: Option<String>,
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<i64>,
    /// `memory.high` in bytes (cgroup v2 only).
    pub memory_high_bytes: Option<i64>,
    /// `memory.min` in bytes (cgroup v2 only).
    pub memory_min_bytes: Option<i64>,
    /// Memory and swap together in bytes; equal to the limit means no swap.
    pub memory_swap_bytes: Option<i64>,
    /// Most processes and threads.
    pub pids_limit: Option<i64>,
    /// Kill the whole container when one of its processes is OOM-killed
    /// (`memory.oom.group`, cgroup v2 only).
    pub oom_group: bool,
    /// Hugepage limits in bytes by page size (`2MB`, `1GB`).
    pub hugepages: BTreeMap<String, u64>,
    /// Raw cgroup v2 files.
    pub unified: BTreeMap<String, String>,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Its id.
    pub id: SandboxId,
    /// For messages only: `<namespace>/<name>` of the pod.
    pub display_name: String,
    /// Host name of the UTS namespace, at most 64 bytes.
    pub hostname: String,
    /// NIS domain name of the UTS namespace.
    pub domainname: Option<String>,
    /// `Pod` or `Host`.
    pub network: NamespaceMode,
    /// `Pod` or `Host`.
    pub ipc: NamespaceMode,
    /// `Pod`, `Container` or `Host`.
    pub pid: NamespaceMode,
    /// A user namespace of the sandbox's own, with a range of ids that belongs
    /// to it alone; the other namespaces must then be its own too.
    #[serde(default)]
    pub user_namespace: bool,
    /// Ports of the host; only with `network: Pod`.
    pub ports: Vec<PortMapping>,
    /// Namespaced kernel parameters, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// Path below rkube's cgroup parent, e.g. `kubepods/burstable/pod<uid>`.
    pub cgroup: String,
    /// Limits of the sandbox's cgroup.
    pub resources: Resources,
    /// CPU shares etc. of the cgroups above, which are shared by several
    /// sandboxes (path below rkube's parent -> limits).
    pub parent_resources: BTreeMap<String, Resources>,
    /// Directory of the containers' logs.
    pub log_dir: PathBuf,
    /// Size of /dev/shm that the containers share, in bytes.
    pub shm_bytes: u64,
    /// Freely chosen labels that come back with the status.
    pub labels: BTreeMap<String, String>,
}

/// How mount events travel between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// Where the content of a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host, bound with its submounts. With
    /// `sub_path`, what lies there below `path`, resolved so that it cannot
    /// leave `path` (symlinks included).
    Bind {
        /// Absolute path on the host.
        path: PathBuf,
        /// Relative path below it; created as a directory when missing.
        sub_path: Option<String>,
    },
    /// A tmpfs of this container alone.
    Tmpfs {
        /// Limit in bytes; `None` is the kernel's default (half of memory).
        size_bytes: Option<u64>,
        /// Permission bits of its root.
        mode: u32,
    },
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container; resolved inside its root.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// Read-only for submounts too (`mount_setattr` with AT_RECURSIVE).
    pub recursive_read_only: bool,
    /// The source belongs to the sandbox alone and goes with it: where its
    /// owners cannot be mapped for a user namespace, they may be changed.
    #[serde(default)]
    pub of_sandbox: bool,
    /// Mount propagation.
    pub propagation: Propagation,
}

/// Which seccomp filter a container gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub enum Seccomp {
    /// The field's default profile.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile in the OCI format.
    Profile(Box<oci_spec::runtime::LinuxSeccomp>),
}

/// Whom and with what rights a container runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SecurityConfig {
    /// User id; `None` takes the image's user.
    pub uid: Option<u32>,
    /// Group id; `None` takes the image's, or the user's primary group.
    pub gid: Option<u32>,
    /// Groups beyond those of the image's /etc/group.
    pub supplemental_groups: Vec<u32>,
    /// Ignore the image's /etc/group for the user (policy `Strict`).
    pub strict_groups: bool,
    /// Refuse to run as uid 0.
    pub run_as_non_root: bool,
    /// All devices, all capabilities, no masks, no seccomp.
    pub privileged: bool,
    /// Capabilities to add, without `CAP_`; `ALL` is allowed.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop, without `CAP_`; `ALL` is allowed.
    pub drop_capabilities: Vec<String>,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// `no_new_privs` for the process.
    pub no_new_privileges: bool,
    /// No masked or read-only paths in /proc (`procMount: Unmasked`).
    pub unmasked_proc: bool,
    /// The seccomp filter.
    pub seccomp: Seccomp,
}

/// What a container is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its id.
    pub id: ContainerId,
    /// An image reference or image id that is in the store.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments.
    pub args: Option<Vec<String>>,
    /// Added to the image's environment; later ones win.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Mounts, in order.
    pub mounts: Vec<MountConfig>,
    /// User, capabilities, seccomp.
    pub security: SecurityConfig,
    /// Limits of the container's cgroup.
    pub resources: Resources,
    /// -1000 to 1000; clamped to what the host allows, with one warning.
    pub oom_score_adj: i32,
    /// A terminal.
    pub tty: bool,
    /// Keeps standard input open for `attach`.
    pub stdin: bool,
    /// Closes standard input after the first attach ends.
    pub stdin_once: bool,
    /// Replaces the image's stop signal.
    pub stop_signal: Option<i32>,
    /// When [`Event::Pressure`] tells of it.
    #[serde(default)]
    pub pressure_alarms: Vec<Alarm>,
    /// Freely chosen labels that come back with the status.
    pub labels: BTreeMap<String, String>,
}

/// How a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, its program not started.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited(Exit),
    /// It is gone and the kernel no longer tells how.
    Unknown {
        /// When that was noticed.
        finished_at: SystemTime,
    },
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + signal.
    pub code: i32,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// When.
    pub finished_at: SystemTime,
    /// Whether the kernel's OOM killer killed a process of it, and it died of
    /// SIGKILL.
    pub oom_killed: bool,
}

/// One container as the engine knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// How it stands.
    pub state: ContainerState,
    /// Process id on the host while it lives.
    pub pid: Option<u32>,
    /// When its program was started.
    pub started_at: Option<SystemTime>,
    /// Digest of the image's manifest or configuration.
    pub image_id: String,
    /// The log file, absolute.
    pub log_path: PathBuf,
    /// The labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// One sandbox as the engine knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// Whether its pause process lives and its network is whole.
    pub ready: bool,
    /// Process id of pause on the host.
    pub pause_pid: Option<u32>,
    /// Process id of its keeper on the host.
    pub keeper_pid: Option<u32>,
    /// Its addresses, IPv4 first; the host's with the host's network: empty.
    pub addresses: Vec<IpAddr>,
    /// When it was made.
    pub created_at: SystemTime,
    /// Its containers, all attempts that are not removed.
    pub containers: Vec<ContainerStatus>,
    /// The labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// Something that happened by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A container's program ended.
    Exited {
        /// Which.
        id: ContainerId,
        /// How; `None` when the kernel no longer tells.
        exit: Option<Exit>,
    },
    /// The kernel's OOM killer killed a process in a container (the container
    /// may live on).
    Oom {
        /// Which.
        id: ContainerId,
        /// Kills counted so far.
        kills: u64,
        /// Limit in bytes.
        limit_bytes: Option<i64>,
        /// The culprit: pid and command, where the kernel tells.
        culprit: Option<(u32, String)>,
    },
    /// The tasks of a container have waited for longer than it was to be told
    /// of; at most once in each window.
    Pressure {
        /// Which.
        id: ContainerId,
        /// The alarm that went off.
        alarm: Alarm,
    },
    /// The pause process or the network of a sandbox is lost: the sandbox
    /// must be made anew.
    SandboxLost {
        /// Which.
        id: SandboxId,
    },
}

/// A program to run in a running container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ExecConfig {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// A terminal.
    pub tty: bool,
    /// Its columns and rows, where they are known.
    pub size: Option<(u16, u16)>,
    /// Runs as this user instead of the container's.
    pub user: Option<String>,
    /// Runs here instead of the container's working directory.
    pub working_dir: Option<String>,
    /// All capabilities, as a privileged container.
    pub privileged: bool,
}

/// Standard streams of an exec: pipes or sockets without a name, since a
/// container can open what it is given anew; anything else is refused. With a
/// terminal they are ignored, and its master comes back.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input; `None` is the container's own /dev/null.
    pub stdin: Option<OwnedFd>,
    /// Standard output; `None` as above.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `None` as above.
    pub stderr: Option<OwnedFd>,
}

/// A program that runs in a container beside its first one.
#[derive(Debug)]
pub struct ExecHandle {
    /// Process id on the host.
    pub pid: u32,
    /// Becomes readable when the program has ended (a pidfd).
    pub pidfd: OwnedFd,
    /// The terminal's master where one was asked for.
    pub terminal: Option<OwnedFd>,
    /// Names it in [`ContainerRuntime::exec_wait`].
    pub token: u64,
}

/// What pod workers ask of the engine. Calls block (milliseconds) and are
/// made from blocking threads; each is idempotent from the record.
pub trait ContainerRuntime: Send + Sync + 'static {
    /// The error of every call: `Display` tells the whole chain in one line.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Whether an error says that a configuration cannot be used as it is:
    /// nothing was tried with it.
    fn refuses(_error: &Self::Error) -> bool {
        false
    }

    /// Whether an error says that an image's name is none.
    fn invalid_image(_error: &Self::Error) -> bool {
        false
    }

    /// Whether an error says that the answer was lost with a keeper: what it
    /// began is ended, and may be tried again.
    fn lost(_error: &Self::Error) -> bool {
        false
    }

    /// Makes the sandbox; one that exists with the same configuration is
    /// returned as it is.
    fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus, Self::Error>;
    /// Kills what still runs in it and releases network and cgroup.
    fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Self::Error>;
    /// Makes a container and starts its program: returns when the kernel has
    /// executed it, or says why not.
    fn start_container(&self, config: &ContainerConfig) -> Result<ContainerStatus, Self::Error>;
    /// Sends a signal to the container's first process (`all`: to each).
    fn signal(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), Self::Error>;
    /// The signal that asks the container to stop: its configuration's, its
    /// image's, or SIGTERM.
    fn stop_signal(&self, id: &ContainerId) -> Result<i32, Self::Error>;
    /// Kills and removes a container; its logs stay.
    fn remove_container(&self, id: &ContainerId) -> Result<(), Self::Error>;
    /// One sandbox.
    fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, Self::Error>;
    /// All sandboxes, re-adopted ones included.
    fn sandboxes(&self) -> Result<Vec<SandboxStatus>, Self::Error>;
    /// Runs a program in a running container.
    fn exec(
        &self,
        id: &ContainerId,
        config: &ExecConfig,
        stdio: Stdio,
    ) -> Result<ExecHandle, Self::Error>;
    /// Waits for the end of an exec: exit code, or 128 + signal; -1 when its
    /// keeper has died and the kernel does not tell either.
    fn exec_wait(&self, id: &ContainerId, handle: &ExecHandle) -> Result<i32, Self::Error>;
    /// Changes the limits of a running container; -1 takes one away, and what
    /// is absent stays.
    fn update(&self, id: &ContainerId, resources: &Resources) -> Result<(), Self::Error>;
    /// Changes the limits of a sandbox, likewise.
    fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<(), Self::Error>;
    /// Whether the image is in the store; its id.
    fn image_id(&self, reference: &str) -> Result<Option<String>, Self::Error>;
    /// Brings an image from its registry into the store; takes as long as the
    /// network does.
    ///
    /// # Errors
    /// As [`rkube_image::pull::Puller::pull`]; an engine that was given no
    /// registry client says so.
    fn pull_image(&self, _request: &PullRequest) -> Result<PulledImage, PullError> {
        Err(PullError {
            kind: PullFailure::Other,
            message: "this engine has no registry client".into(),
        })
    }
}
