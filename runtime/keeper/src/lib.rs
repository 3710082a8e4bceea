//! Keeper, stages and pause: the tiny program that is the parent of a pod's
//! processes, and the vocabulary in which it is told what to do.
//!
//! Boundary: this crate runs plans. It knows no OCI, no Kubernetes and no
//! cgroup layout; whoever sends a plan has opened everything that needs the
//! host's view. The big program links this library for the vocabulary alone;
//! the code that makes processes runs only in the small program, which
//! `rkube-runtime` embeds and starts from a sealed memory file.
//!
//! Invariants: one thread; every descriptor close-on-exec; no path of the
//! host is opened after a stage was cloned.

pub mod attach;
pub mod bridge;
pub mod copyup;
pub mod error;
pub mod files;
pub mod hook;
pub mod identity;
pub mod idmap;
pub mod inroot;
pub mod launch;
pub mod log;
pub mod mounts;
pub mod plan;
pub mod process;
pub mod program;
pub mod protocol;
pub mod server;
pub mod socket;
pub mod stage;
pub mod terminal;
pub mod wire;
