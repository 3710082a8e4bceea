//! The exceptions: what single resources do that no table says.

mod binding;
mod eviction;
mod namespace;
mod scale;

pub(super) use binding::is_binding;
pub(super) use namespace::{is_namespace, plan as namespace_plan};
