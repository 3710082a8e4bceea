//! Pods on this host.
//!
//! Purpose: takes validated v1 Pods and keeps them running as Kubernetes
//! says: volumes, environment, files, init containers, restarts, probes,
//! hooks, graceful ends, statuses, events and logs. The same pod workers
//! serve `rkube run`'s supervisor and the node agent.
//!
//! Boundary: containers and sandboxes are made by the engine, behind
//! [`rkube_engine::api::ContainerRuntime`]; nothing here makes a namespace or
//! a cgroup. The pods come from whoever holds the writer's lock, through
//! [`manager::Manager`].
//!
//! Invariants:
//! - Every decision is made by pure functions ([`machine`], [`status`],
//!   [`translate`], [`env`], [`probe::state`]); the worker only performs them.
//! - A pod's record is written before an action that it describes runs, so a
//!   writer killed at any moment leaves a record that the next one joins with
//!   what the engine finds alive ([`machine::recover`]).
//! - At rest a worker waits for its mailbox and holds no timer, except those
//!   of probes and deadlines that the pod asked for.
//! - Paths below a pod's directory are opened by descriptors that follow no
//!   symlink; what containers put into volumes cannot lead rkube elsewhere.

pub mod downward;
pub mod env;
pub mod events;
mod fdwait;
pub mod files;
pub mod images;
pub mod logs;
pub mod machine;
pub mod manager;
mod manager_events;
mod manager_recover;
pub mod node;
pub mod objects;
pub mod pod;
pub mod probe;
pub mod quantity;
pub mod record;
pub mod status;
pub mod surroundings;
pub mod time;
pub mod translate;
pub mod volumes;
mod worker;
