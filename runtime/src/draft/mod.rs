//! From a runtime-spec to a plan whose descriptors are still names.
//!
//! Nothing here looks at the host: a [`Draft`] can be printed and compared.
//! The order of its steps:
//!
//! ```text
//!   propagation ─► lo, names, kernel parameters ─► file systems made
//!   ─► host's hooks (rendezvous) ─► createContainer hooks ─► pivot_root
//!   ─► mounts attached in the spec's order (cgroups entered before theirs)
//!   ─► devices, links ─► late read-only ─► read-only and masked paths
//!   ─► root read-only, its propagation
//! ```

mod container;
mod devices;
mod exec;
mod hooks;
mod host;
mod mounts;
mod numa;
pub(crate) use mounts::normal;
pub(crate) use numa::mask as number_mask;
pub mod options;
mod process;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rkube_cgroup::{AttachFds, CgroupPath, Hierarchies};
use rkube_keeper::plan::{FdIndex, MAX_PLAN_FDS, Plan, Step};

use crate::error::{Error, Result};
pub use container::plan_container;
pub(crate) use devices::DEFAULT as DEFAULT_DEVICES;
pub use exec::plan_exec;
pub(crate) use hooks::state_value;
pub use hooks::{HookKind, hooks_of, state_text};
pub use options::Attributes;
pub(crate) use process::Lsm;

/// What a descriptor of a plan is, before it is opened.
#[derive(Debug)]
pub enum Source {
    /// A copy of the mount tree at a path of the host, detached.
    Tree {
        /// Path on the host, absolute.
        path: PathBuf,
        /// With submounts.
        recursive: bool,
        /// For the mount itself.
        attributes: Attributes,
        /// For it and everything below.
        recursive_attributes: Attributes,
        /// `MS_*` for everything in it, first; then the second with its own
        /// reach.
        propagation: (u64, Option<(u64, bool)>),
        /// It must be a directory.
        directory: bool,
    },
    /// A namespace by its path, of this type.
    Namespace {
        /// Path on the host.
        path: PathBuf,
        /// The type it must have.
        kind: LinuxNamespaceType,
    },
    /// A detached mount of /dev/null, checked to be that device.
    Null,
    /// A connection to the agent of a seccomp filter.
    Agent {
        /// Its stream socket on the host.
        path: PathBuf,
    },
    /// Open already.
    Open(OwnedFd),
}

/// A plan with names for descriptors.
#[derive(Debug, Default)]
pub struct Draft {
    /// The plan; its descriptor numbers count in `sources`.
    pub plan: Plan,
    /// What they are.
    pub sources: Vec<Source>,
    /// What is not done as asked.
    pub warnings: Vec<String>,
    /// Labels of security modules, which are refused where the module is on.
    pub(crate) labels: Vec<(String, process::Lsm)>,
}

impl Draft {
    /// Adds a descriptor.
    pub(crate) fn source(&mut self, source: Source) -> Result<FdIndex> {
        let index = self.sources.len();
        if index >= MAX_PLAN_FDS {
            return Err(Error::TooLarge {
                what: "descriptors",
                count: index + 1,
                limit: MAX_PLAN_FDS,
            });
        }
        self.sources.push(source);
        FdIndex::try_from(index).map_err(|_| Error::TooLarge {
            what: "descriptors",
            count: index,
            limit: MAX_PLAN_FDS,
        })
    }

    pub(crate) fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    pub(crate) fn warn(&mut self, field: &str, text: impl std::fmt::Display) {
        self.warnings.push(format!("{field}: {text}"));
    }
}

/// Where a container's root file system comes from.
#[derive(Debug)]
pub enum RootSource {
    /// `root.path` of the spec, relative to the bundle.
    Bundle,
    /// A detached mount (an overlay), private.
    Mount(OwnedFd),
}

/// A mount that the caller has made itself, detached; attached after the
/// spec's own, in this order.
#[derive(Debug)]
pub struct ExtraMount {
    /// The detached mount.
    pub mount: OwnedFd,
    /// Absolute path in the container.
    pub target: String,
    /// Whether its root is a directory.
    pub directory: bool,
}

/// The cgroup that a container is started in.
#[derive(Debug)]
pub struct CgroupInput {
    /// How the process gets in.
    pub attach: AttachFds,
    /// The host's hierarchies, for cgroup mounts.
    pub hierarchies: Arc<Hierarchies>,
    /// The group.
    pub path: CgroupPath,
}

/// What makes a container besides its spec.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// For messages and hooks.
    pub id: &'a str,
    /// What it is to be.
    pub spec: &'a Spec,
    /// Relative paths of the spec begin here.
    pub bundle: &'a Path,
    /// Its root file system.
    pub rootfs: RootSource,
    /// Mounts beyond the spec's.
    pub mounts: Vec<ExtraMount>,
    /// Namespaces to join, instead of what the spec says of that type.
    pub joins: Vec<(LinuxNamespaceType, OwnedFd)>,
    /// Its cgroup; `None` leaves it in the caller's.
    pub cgroup: Option<CgroupInput>,
    /// Standard input, output, error; `None` is /dev/null.
    pub stdio: [Option<OwnedFd>; 3],
    /// Descriptors 3, 4, ... of the program.
    pub extra_fds: Vec<OwnedFd>,
    /// Listening socket on which the program's start is told; `None`: at once.
    pub start: Option<OwnedFd>,
    /// One end of a stream socket pair: the stage stops before the root file
    /// system is entered, until a byte has come (prestart and createRuntime
    /// hooks run meanwhile).
    pub rendezvous: Option<OwnedFd>,
    /// `HOME` for an environment without it.
    pub home: Option<String>,
    /// Leave pivot_root(2) out (a host whose root is the initial ramfs).
    pub no_pivot: bool,
    /// Share the caller's session keyring.
    pub no_new_keyring: bool,
    /// Capabilities that this process can grant, as a mask.
    pub grantable: u64,
    /// Where compiled filters are kept; `None` compiles each time.
    pub seccomp_cache: Option<&'a rkube_seccomp::Cache>,
}

impl<'a> PlanInput<'a> {
    /// With defaults for everything that may be left out.
    #[must_use]
    pub fn new(id: &'a str, spec: &'a Spec, bundle: &'a Path) -> Self {
        Self {
            id,
            spec,
            bundle,
            rootfs: RootSource::Bundle,
            mounts: Vec::new(),
            joins: Vec::new(),
            cgroup: None,
            stdio: [None, None, None],
            extra_fds: Vec::new(),
            start: None,
            rendezvous: None,
            home: None,
            no_pivot: false,
            no_new_keyring: false,
            grantable: u64::MAX,
            seccomp_cache: None,
        }
    }
}

/// What makes a further process in a running container.
#[derive(Debug)]
pub struct ExecInput<'a> {
    /// The container, for messages.
    pub id: &'a str,
    /// What runs.
    pub process: &'a Process,
    /// The container's first process (a pidfd).
    pub target: OwnedFd,
    /// `CLONE_NEW*` of the namespaces that it has of its own
    /// ([`crate::spec::own_namespaces`]).
    pub namespaces: u64,
    /// The same namespaces one by one, for a container with a user namespace.
    pub joins: Vec<(LinuxNamespaceType, OwnedFd)>,
    /// The program's user as the host counts, for a container with a user
    /// namespace.
    pub stream_owner: Option<u32>,
    /// The container's state, for a seccomp agent.
    pub state: serde_json::Value,
    /// The container's seccomp profile.
    pub seccomp: Option<&'a oci_spec::runtime::LinuxSeccomp>,
    /// The container's personality.
    pub personality: Option<&'a oci_spec::runtime::LinuxPersonality>,
    /// The container's cgroup.
    pub attach: Option<AttachFds>,
    /// Standard input, output, error; `None` is /dev/null.
    pub stdio: [Option<OwnedFd>; 3],
    /// Descriptors 3, 4, ... of the program.
    pub extra_fds: Vec<OwnedFd>,
    /// `HOME` for an environment without it.
    pub home: Option<String>,
    /// Capabilities that this process can grant, as a mask.
    pub grantable: u64,
    /// Where compiled filters are kept; `None` compiles each time.
    pub seccomp_cache: Option<&'a rkube_seccomp::Cache>,
}

/// A user of a container as the host counts, where its spec has maps that
/// tell.
#[must_use]
pub fn host_user(spec: &Spec, uid: u32) -> Option<u32> {
    host::on_host(spec.linux().as_ref()?, uid)
}

/// A C string of the spec.
pub(crate) fn c_string(field: &str, text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Error::spec(field, "holds a NUL byte"))
}

/// A path of the spec as a C string.
pub(crate) fn c_path(field: &str, path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    c_string(field, path.as_os_str().as_bytes())
}

/// Puts cgroup descriptors into a plan.
pub(crate) fn attach(draft: &mut Draft, attach: AttachFds) -> Result<()> {
    if let Some(directory) = attach.clone_into {
        draft.plan.cgroup.directory = Some(draft.source(Source::Open(directory))?);
    }
    for file in attach.tasks {
        let index = draft.source(Source::Open(file))?;
        draft.plan.cgroup.tasks.push(index);
    }
    Ok(())
}

/// Puts standard streams and further descriptors into a plan.
pub(crate) fn streams(
    draft: &mut Draft,
    stdio: [Option<OwnedFd>; 3],
    extra: Vec<OwnedFd>,
) -> Result<()> {
    for stream in stdio {
        let index = match stream {
            Some(fd) => Some(draft.source(Source::Open(fd))?),
            None => None,
        };
        draft.plan.stdio.push(index);
    }
    for fd in extra {
        let index = draft.source(Source::Open(fd))?;
        draft.plan.extra_fds.push(index);
    }
    Ok(())
}
