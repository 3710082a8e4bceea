//! What kinds differ in beyond their tables: the strategies of upstream's registry as data.
//!
//! Source: `pkg/registry/*/*/strategy.go` and `storage.go` of Kubernetes, release 1.36.

use rkube_api::names;
use rkube_api::pod::resources::qos;
use rkube_api::resources::{Gvk, Resource};
use serde_json::{Value, json};

/// What a change must touch to raise `metadata.generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// The kind has none.
    None,
    /// The spec.
    Spec,
    /// The spec or an annotation.
    SpecAndAnnotations,
    /// Anything but metadata and status.
    Body,
    /// Nothing: it stays what it was at first.
    Created,
}

pub(crate) fn generation(gvk: &Gvk) -> Generation {
    match (gvk.group, gvk.kind) {
        ("apps", "Deployment") => Generation::SpecAndAnnotations,
        ("scheduling.k8s.io", "PriorityClass") => Generation::Created,
        ("", "Pod" | "ReplicationController")
        | ("apps", "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job" | "CronJob")
        | ("networking.k8s.io", "Ingress" | "IngressClass" | "NetworkPolicy")
        | ("policy", "PodDisruptionBudget")
        | ("flowcontrol.apiserver.k8s.io", _)
        | ("apiextensions.k8s.io", "CustomResourceDefinition") => Generation::Spec,
        ("discovery.k8s.io", "EndpointSlice") | ("admissionregistration.k8s.io", _) => {
            Generation::Body
        }
        ("resource.k8s.io", "DeviceClass" | "ResourceSlice") => Generation::Spec,
        _ => Generation::None,
    }
}

/// Whether a write through the main resource leaves the status alone.
pub(crate) fn has_status(resource: &Resource) -> bool {
    resource.subresource("status").is_some()
}

/// The status of a new object; `None` keeps what the body has.
pub(crate) fn initial_status(resource: &'static Resource, object: &Value) -> Option<Value> {
    if !has_status(resource) {
        return None;
    }
    match (resource.gvk.group, resource.gvk.kind) {
        // A kubelet registers its node with a status.
        ("", "Node") => None,
        ("", "Pod") => Some(json!({"phase": "Pending", "qosClass": qos(object).as_str()})),
        ("", "Namespace") => Some(json!({"phase": "Active"})),
        ("", "PersistentVolumeClaim" | "PersistentVolume") => Some(json!({"phase": "Pending"})),
        ("", "Service") | ("networking.k8s.io", "Ingress") => Some(json!({"loadBalancer": {}})),
        _ => Some(json!({})),
    }
}

/// Whether PUT may make an object that is not there.
pub(crate) fn creates_on_update(gvk: &Gvk) -> bool {
    matches!(
        (gvk.group, gvk.kind),
        ("", "Endpoints" | "Event" | "LimitRange" | "Service")
            | ("events.k8s.io", "Event")
            | ("coordination.k8s.io", "Lease")
            | (
                "rbac.authorization.k8s.io",
                "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding"
            )
    )
}

/// Whether PUT must say which revision it replaces.
pub(crate) fn needs_revision(gvk: &Gvk) -> bool {
    matches!(
        (gvk.group, gvk.kind),
        ("coordination.k8s.io", "Lease" | "LeaseCandidate")
            | ("policy", "PodDisruptionBudget")
            | ("admissionregistration.k8s.io", _)
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
            | ("apiregistration.k8s.io", "APIService")
            | ("node.k8s.io", "RuntimeClass")
            | ("flowcontrol.apiserver.k8s.io", _)
            | (
                "storage.k8s.io",
                "CSIDriver" | "CSINode" | "CSIStorageCapacity" | "VolumeAttachment"
            )
    )
}

/// Whether a deletion answers the object instead of a `Status`.
pub(crate) fn returns_deleted(gvk: &Gvk) -> bool {
    matches!(
        (gvk.group, gvk.kind),
        (
            "",
            "Pod"
                | "Service"
                | "ServiceAccount"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "PodTemplate"
                | "ResourceQuota"
        ) | ("policy", "PodSecurityPolicy")
            | (
                "storage.k8s.io",
                "StorageClass" | "VolumeAttachment" | "CSIDriver" | "CSINode"
            )
    )
}

/// Why an object of its kind may not be deleted by name, whoever asks.
pub(crate) fn stays(gvk: &Gvk, name: &str) -> Option<&'static str> {
    const CRITICAL: [&str; 2] = ["system-node-critical", "system-cluster-critical"];
    let class = (gvk.group, gvk.kind) == ("scheduling.k8s.io", "PriorityClass");
    (class && CRITICAL.contains(&name))
        .then_some("this is a system priority class and cannot be deleted")
}

/// Whether dependents stay where a deletion does not say.
pub(crate) fn orphans_by_default(gvk: &Gvk) -> bool {
    matches!(
        (gvk.group, gvk.kind),
        ("", "ReplicationController") | ("batch", "Job")
    )
}

/// Seconds that Events live (`--event-ttl` of upstream).
pub(crate) const EVENT_TTL_S: u32 = 3600;

/// Seconds after which the store removes an object of a kind.
pub(crate) fn ttl_s(gvk: &Gvk) -> Option<u32> {
    (gvk.kind == "Event").then_some(EVENT_TTL_S)
}

/// The rule for names of a kind that has no validation of its own.
pub(crate) fn name_rule(gvk: &Gvk) -> fn(&str) -> Vec<String> {
    match gvk.group {
        "rbac.authorization.k8s.io" => path_segment,
        _ => names::dns1123_subdomain,
    }
}

/// A name that stands alone in a path (`path.IsValidPathSegmentName` of upstream).
fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ['/', '%']
        .iter()
        .filter(|c| name.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}
