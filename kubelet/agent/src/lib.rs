//! The node agent: pods of the API on this host.
//!
//! Purpose: what an API server wants of a node goes to the pod workers of
//! `rkube-kubelet`, and what they know goes back: the node's object and
//! lease, pods' statuses, events, logs, exec, attach and port-forward.
//!
//! Boundary: pods are run by the kubelet crate, containers by the engine;
//! the API is reached through the client, and it does not matter whether the
//! server is in this process. Which pods exist is the API's to say, but for
//! those of `rkube run`, which are seen here only as what they take away.
//!
//! Invariants:
//! - One task at a time works on a pod; what it writes is in order.
//! - A pod's object goes only after everything of it has gone from the host.
//! - Secrets and tokens are in memory and in the volumes that show them,
//!   nowhere else.
//! - An API server that cannot be reached changes nothing about what runs.

pub mod admit;
mod agent;
pub mod events;
pub mod http;
pub mod images;
pub mod node;
pub mod pods;
pub mod references;
pub mod services;
pub mod status;
pub mod streams;
pub mod tokens;
pub mod watched;

pub use agent::{Agent, AgentConfig};
