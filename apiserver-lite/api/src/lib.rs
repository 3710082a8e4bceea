//! Kubernetes API values for rkube, release 1.36.
//!
//! Purpose: everything about API objects that is a pure function of bytes and
//! values: reading manifests with positions, type and resource tables, strict
//! field checks, defaulting and validation, quantities, selectors, patches.
//!
//! Boundary: no input or output, no clock, no Linux. Objects are
//! [`serde_json::Value`] trees; nothing here drops a field it does not know.
//!
//! Invariants:
//! - Bytes from outside meet decoders with budgets (bytes, nodes, depth,
//!   copies by alias); reaching one is an error, never a slow success.
//! - Every error names the field by its path, so that a position in the source
//!   can be found for it ([`decode::Document::locate`]).
//! - Tables are data (`data/*.txt`), made by `tools/tables.rs`, borrowed in
//!   place and parsed type by type on first use.

pub mod claim;
pub mod config;
pub mod decode;
pub mod discovery;
pub mod encoding;
pub mod field;
pub mod kinds;
pub mod manifest;
pub mod meta;
pub mod names;
pub mod patch;
pub mod pod;
pub mod printed;
pub mod proto;
pub mod quantity;
pub mod resources;
pub mod revision;
pub mod selector;
pub mod status;
pub mod strict;
pub mod support;
pub mod syntax;
pub mod table;
pub mod time;
pub mod types;
mod value;
pub mod view;

pub use value::{typed, value_of};
