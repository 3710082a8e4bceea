//! The API server: one table-driven REST engine over the store.
//!
//! **Purpose.** Serve every built-in group, version and kind of the resource table (`rkube-api`)
//! with Kubernetes' rules, over TLS and to callers in this process.
//!
//! **Boundary.** Values, tables, defaults and validation are `rkube-api`'s; revisions and
//! durability the store's. Who a request comes from and what it may ([`auth`]), what is changed
//! or refused on the way ([`admission`]) and what is not answered from the store ([`connect`])
//! are traits that others implement. Nothing here knows Linux.
//!
//! **Invariants.**
//! 1. No code is for one kind, except the named exceptions in `engine/special` (binding,
//!    eviction, scale and the like).
//! 2. HTTP and in-process callers take the same path: authorization, admission, validation.
//! 3. Objects lie in the store as bytes that reads share ([`codec`]); lists and watches parse
//!    them only for selectors, Tables and versions that differ.
//! 4. An answered write is durable. A watch event is never sent before.

pub mod admission;
pub mod auth;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod codec;
pub mod connect;
pub mod convert;
pub mod engine;
pub mod http;
pub mod inprocess;
pub mod negotiate;
pub mod objects;
pub mod openapi;
pub mod options;
mod pick;
pub mod plugins;
pub mod proxy;
pub mod request;
pub mod security;
pub mod select;
pub mod services;
pub mod streams;
pub mod testing;
pub mod tokens;
pub mod watch;

/// Longest request body, in bytes (3 MiB, upstream's `MaxRequestBodyBytes`).
pub const BODY_BYTES_MAX: usize = 3 << 20;

pub use engine::{Config, Engine};
pub use http::{Server, ServerConfig};
pub use inprocess::InProcess;
