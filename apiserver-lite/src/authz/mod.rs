//! Whether they may: roles and bindings ([`rbac`]), nodes ([`node`]), the
//! questions about both ([`review`]), and who may give what away
//! ([`escalation`]).

pub mod defaults;
pub mod escalation;
pub mod node;
pub mod rbac;
pub mod review;
pub mod rules;
mod uses;

pub use node::NodeAuthorizer;
pub use rbac::Rbac;
pub use rules::Rule;
