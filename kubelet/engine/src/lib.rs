//! Sandboxes and containers for pods, without Kubernetes.
//!
//! Purpose: join runtime, network, images and cgroups into the two things
//! that pod workers ask for, and keep them true across crashes.
//!
//! Boundary: Linux and OCI below, plain configurations above ([`api`]). The
//! engine never forks: processes are made by keepers, tiny programs that also
//! hold the containers' output and ends while no engine runs.
//!
//! Invariants: one engine per root (its caller holds the writer's lock); a
//! record is on disk before the first side effect; every removal works from
//! the record and may be repeated; nothing is attached in the host's mount
//! namespace; at rest no system call is made.

pub mod api;
mod attach;
mod container;
mod control;
mod engine;
mod error;
mod exec;
mod identity;
mod ids;
mod images;
pub mod instance;
mod keeper;
mod link;
mod mounts;
pub mod needs;
mod oom;
mod orphan;
mod pressure;
mod proc;
pub mod record;
mod recover;
mod reset;
mod runtime;
mod sandbox;
pub mod spec;
pub mod tree;
mod view;

pub use attach::{Attached, Files};
pub use engine::{Engine, EngineConfig, LOG_MAX_BYTES, LOG_MAX_FILES, Sink};
pub use error::{Error, Result, chain};
pub use ids::{IDS_PER_SANDBOX, Ids, SANDBOXES_PER_INSTANCE};
pub use instance::Instance;
pub use runtime::RuntimeError;
pub use view::{ContainerStats, NamespaceEntry};
