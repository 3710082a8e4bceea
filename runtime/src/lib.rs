//! rkube's OCI runtime: from a runtime-spec to a running process.
//!
//! ```text
//!   spec ──draft──► Draft (pure, printable) ──open──► Prepared (plan + fds)
//!                                                        │
//!                          keeper (pods) ◄───────────────┴──► launch (CLI)
//! ```
//! * [`spec`] reads a runtime-spec and names what it does not know;
//! * [`draft`] turns it into a plan whose descriptors are still names, without
//!   a look at the host;
//! * [`open`] opens those names, in order, in the host's view;
//! * [`launch`] has the small program run the plan, once;
//! * [`lifecycle`] is the OCI command line's logic: containers with a record
//!   on disk, without a daemon.
//!
//! Boundary: Linux and OCI, no Kubernetes. Nothing here forks: processes are
//! made by the small program alone (crate `rkube-keeper`), which gets open
//! descriptors and no path of the host.
//!
//! Invariants: a field of the spec is honoured, refused by name, or reported
//! in the warnings; nothing is ignored in silence. A record exists on disk
//! before the first side effect, and `delete --force` works from it alone.

pub mod capability;
pub mod default;
pub mod draft;
mod error;
pub mod launch;
pub mod lifecycle;
pub mod open;
pub mod program;
pub mod spec;

pub use default::default_spec;
pub use draft::{
    CgroupInput, Draft, ExecInput, ExtraMount, PlanInput, RootSource, Source, host_user,
    plan_container, plan_exec,
};
pub use error::{Error, Result};
pub use launch::{Launched, Rendezvous, launch};
pub use open::Prepared;
pub use program::Program;
