//! What single kinds add to the generic engine: defaults, validation, and
//! what a write may not touch. One file a kind; the table below joins them.
//!
//! Everything else (status split, generation, names, metadata, finalizers) is
//! the engine's and the same for all kinds.

mod address;
mod controller_revision;
mod counts;
mod deployment;
pub mod endpoint_slice;
pub mod endpoints;
mod event;
mod job;
mod lease;
mod namespace;
mod node;
mod poddisruptionbudget;
mod priority_class;
mod rbac;
mod replicaset;
mod replicationcontroller;
#[cfg(test)]
mod security_tests;
pub mod service;
mod service_account;
#[cfg(test)]
mod tests;
mod workload;

use serde_json::Value;

use crate::field::FieldError;
use crate::{claim, config, pod};

/// The rules of one kind: pure functions over whole objects.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Fills in defaults, as upstream's `SetDefaults` functions do.
    pub default: fn(&mut Value),
    /// Every rule that a defaulted object breaks.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// Every rule that a new object breaks besides.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// Every rule that an update breaks besides: `(new, old)`.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// What a create sets or clears before validation (a strategy's
    /// `PrepareForCreate`), besides `metadata` and `status`.
    pub prepare_create: fn(&mut Value),
    /// What an update keeps of the old object before validation (a strategy's
    /// `PrepareForUpdate`), besides `metadata` and `status`: `(new, old)`.
    pub prepare_update: fn(&mut Value, &Value),
}

impl Rules {
    /// A kind without rules of its own.
    pub const NONE: Self = Self {
        default: |_| {},
        validate: |_| Vec::new(),
        validate_create: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        prepare_create: |_| {},
        prepare_update: |_, _| {},
    };
}

/// The rules of a kind, the same in all versions of its group. `None`: rkube
/// has none yet, so a write of it is stored as its type allows.
#[must_use]
pub fn rules(group: &str, kind: &str) -> Option<&'static Rules> {
    TABLE
        .iter()
        .find(|(g, k, _)| *g == group && *k == kind)
        .map(|(_, _, rules)| rules)
}

/// What rkube does not do for a kind yet, beside storing what its type allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Objects are checked, and no controller works on them.
    Controller,
    /// What works on them is there; defaults and validation are not.
    Rules,
    /// Neither.
    Both,
}

/// What a kind lacks; `None` for those that are as upstream's.
#[must_use]
pub fn lack(group: &str, kind: &str) -> Option<Lack> {
    match (group, kind) {
        ("", "PersistentVolumeClaim") => Some(Lack::Controller),
        // Nodes' requests are signed, classes are admission's, templates need nobody.
        ("", "PodTemplate")
        | ("certificates.k8s.io", "CertificateSigningRequest")
        | ("node.k8s.io", "RuntimeClass") => Some(Lack::Rules),
        _ => rules(group, kind).is_none().then_some(Lack::Both),
    }
}

/// Group, kind, rules.
const TABLE: &[(&str, &str, Rules)] = &[
    (
        "",
        "ConfigMap",
        Rules {
            default: config::default_config_map,
            validate: config::validate_config_map,
            validate_update: config::validate_update_config_map,
            ..Rules::NONE
        },
    ),
    (
        "",
        "Endpoints",
        Rules {
            default: endpoints::default,
            validate: endpoints::validate,
            ..Rules::NONE
        },
    ),
    (
        "discovery.k8s.io",
        "EndpointSlice",
        Rules {
            default: endpoint_slice::default,
            validate: endpoint_slice::validate,
            validate_update: endpoint_slice::validate_update,
            ..Rules::NONE
        },
    ),
    (
        "",
        "Service",
        Rules {
            default: service::default,
            validate: service::validate,
            validate_create: |_| Vec::new(),
            validate_update: service::validate_update,
            prepare_create: service::prepare_create,
            prepare_update: service::prepare_update,
        },
    ),
    (
        "",
        "PersistentVolumeClaim",
        Rules {
            default: claim::default,
            validate: claim::validate,
            ..Rules::NONE
        },
    ),
    (
        "",
        "Pod",
        Rules {
            default: pod::default,
            validate: pod::validate_stored,
            validate_create: pod::validate_create,
            validate_update: pod::validate_update,
            ..Rules::NONE
        },
    ),
    (
        "",
        "Secret",
        Rules {
            default: config::default_secret,
            validate: config::validate_secret,
            validate_update: config::validate_update_secret,
            ..Rules::NONE
        },
    ),
    ("", "ReplicationController", replicationcontroller::RULES),
    ("apps", "Deployment", deployment::RULES),
    ("apps", "ReplicaSet", replicaset::RULES),
    ("batch", "Job", job::RULES),
    ("policy", "PodDisruptionBudget", poddisruptionbudget::RULES),
    ("", "Namespace", namespace::RULES),
    ("", "Node", node::RULES),
    ("", "ServiceAccount", service_account::RULES),
    ("", "Event", event::RULES),
    ("events.k8s.io", "Event", event::RULES_EVENTS),
    ("coordination.k8s.io", "Lease", lease::RULES),
    ("rbac.authorization.k8s.io", "Role", rbac::ROLE),
    (
        "rbac.authorization.k8s.io",
        "ClusterRole",
        rbac::CLUSTER_ROLE,
    ),
    (
        "rbac.authorization.k8s.io",
        "RoleBinding",
        rbac::ROLE_BINDING,
    ),
    (
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        rbac::CLUSTER_ROLE_BINDING,
    ),
    ("scheduling.k8s.io", "PriorityClass", priority_class::RULES),
    ("apps", "ControllerRevision", controller_revision::RULES),
];
