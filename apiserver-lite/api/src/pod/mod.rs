//! Pods (`v1`): defaults, validation, effective resources, QoS class.

mod container;
mod default;
mod probe;
pub mod resources;
mod scheduling;
mod security;
#[cfg(test)]
mod tests;
mod update;
mod validate;
mod volume;

pub use default::{default, default_pull_policy, default_template};
pub use resources::{Effective, Qos, effective, qos};
pub use update::validate_update;
pub use validate::{
    DNS_NAMESERVERS_MAX_COUNT, DNS_SEARCHES_MAX_BYTES, DNS_SEARCHES_MAX_COUNT, validate,
    validate_create, validate_stored, validate_template,
};
