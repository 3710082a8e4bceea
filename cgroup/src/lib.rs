//! Control groups of containers, on cgroup v1, hybrid and v2 hosts alike.
//!
//! # Purpose
//! Find out where each controller lives ([`Hierarchies`]), make one group of
//! processes across all of them ([`Cgroup`]), limit it from an OCI
//! `linux.resources` object ([`Cgroup::apply`]), measure it
//! ([`Cgroup::stats`]), hear of its events ([`OomWatch`],
//! [`PopulatedWatch`]), stop it ([`Cgroup::freeze`], [`Cgroup::kill_all`])
//! and remove it.
//!
//! # Boundary
//! Knows Linux and OCI; no Kubernetes, no processes beyond their ids, no
//! state of its own: everything it must remember stands in the cgroup file
//! system, so a crashed caller opens the same path again and goes on.
//!
//! # Invariants
//! * Mount points are looked up once; every file below them is reached by
//!   descriptor, never by an absolute path, and never through a symbolic
//!   link or `..`.
//! * What the kernel of this host cannot express is an error that names the
//!   controller, the file and the mode. Nothing is dropped silently: the few
//!   values that may be ignored come back as [`Warning`]s.
//! * Nothing here kills or moves a process unless the method says so.
//! * Waiting is done on descriptors (pidfds, `cgroup.events`), with a
//!   deadline. The only timed retry is v1's freezer, which has no event.
//!
//! # Joining without the RCU wait
//! Writing another task's id to a v1 `cgroup.procs` takes the global
//! `cgroup_threadgroup_rwsem` for writing, and the first such write after a
//! pause waits for an RCU grace period (5 to 15 ms). A *single-threaded task
//! that writes `0` to `tasks` for itself* takes no such lock
//! (`cgroup_attach_lock` in kernel/cgroup/cgroup.c, since Linux 5.6): 0.15 ms
//! for nine hierarchies, cold. So [`Cgroup::attach_fds`] hands out open
//! `tasks` files for the new process to write by itself, and on v2 the
//! directory for `CLONE_INTO_CGROUP`, which is free.
//!
//! # systemd
//! Under systemd on v2 a scope made over D-Bus ([`systemd`]) takes the place
//! of the `mkdir`s in [`Cgroup::create`]; everything else works on an existing
//! directory.

mod apply;
mod convert;
mod device;
mod error;
mod event;
mod file;
mod group;
mod hierarchy;
mod layout;
mod needs;
mod path;
pub mod pressure;
mod signal;
mod stats;
pub mod systemd;
mod tree;

pub use apply::Extras;
pub use convert::{
    MAX_SHARES, MIN_SHARES, blkio_weight_to_io_weight, milli_cpu_to_quota, milli_cpu_to_shares,
    shares_to_weight, swap_to_v2,
};
pub use device::{Access, DeviceKind, DeviceRule, DeviceRules, filter_program, rules_allow};
pub use error::{Error, Result, Warning};
pub use event::{OomCount, OomWatch, PopulatedWatch, parse_oom_count};
pub use group::{AttachFds, Cgroup, JOIN_SELF};
pub use hierarchy::{Controller, Hierarchies, Hierarchy, Mode, Version};
pub use layout::{Layout, MountedHierarchy};
pub use needs::{Needs, Select};
pub use path::CgroupPath;
pub use stats::{
    CpuStats, HugetlbStats, IoDeviceStats, MemoryStats, PidsStats, Pressure, PressureLine, Stats,
};
