//! Services: defaults, validation and what an update keeps or drops
//! (upstream's `pkg/apis/core/v1/defaults.go`, `validation.go` and
//! `pkg/registry/core/service`, release 1.36).
//!
//! What depends on the cluster (address families, allocation) is in
//! [`families`] as functions with parameters; the API server's allocators call
//! them before validation, as upstream's `BeginCreate` and `BeginUpdate` do.

mod default;
pub mod families;
mod update;
mod validate;

use std::net::IpAddr;

use serde_json::Value;

pub use default::default;
pub use update::{patch_allocated, prepare_update};
pub use validate::{validate, validate_update};

/// `spec.clusterIP` of a headless Service.
pub const CLUSTER_IP_NONE: &str = "None";

/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds`, 3 hours.
pub const AFFINITY_TIMEOUT_DEFAULT_SECONDS: i64 = 10_800;
/// The longest `sessionAffinityConfig.clientIP.timeoutSeconds`, one day.
pub const AFFINITY_TIMEOUT_MAX_SECONDS: i64 = 86_400;

/// What an API client may not set: the status.
pub fn prepare_create(service: &mut Value) {
    if let Some(object) = service.as_object_mut() {
        object.insert("status".into(), serde_json::json!({"loadBalancer": {}}));
    }
}

/// A field of `spec`; null where there is none.
#[must_use]
pub fn spec<'a>(service: &'a Value, field: &str) -> &'a Value {
    &service["spec"][field]
}

/// A text of `spec`; "" where there is none.
#[must_use]
pub fn spec_str<'a>(service: &'a Value, field: &str) -> &'a str {
    spec(service, field).as_str().unwrap_or("")
}

/// The texts of a list of `spec`.
#[must_use]
pub fn spec_strs<'a>(service: &'a Value, field: &str) -> Vec<&'a str> {
    let items = spec(service, field)
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).collect()
}

/// The ports of a Service.
#[must_use]
pub fn ports(service: &Value) -> &[Value] {
    spec(service, "ports").as_array().map_or(&[], Vec::as_slice)
}

/// An integer field of a port or of `spec`; 0 where there is none.
#[must_use]
pub fn int(holder: &Value, field: &str) -> i64 {
    holder[field].as_i64().unwrap_or(0)
}

/// Whether `clusterIPs` is exactly `None`.
#[must_use]
pub fn is_headless(service: &Value) -> bool {
    spec_strs(service, "clusterIPs") == [CLUSTER_IP_NONE]
}

/// Whether the type is one that has cluster addresses (or `None`).
#[must_use]
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(
        spec_str(service, "type"),
        "ClusterIP" | "NodePort" | "LoadBalancer"
    )
}

/// Whether the type is one that has node ports.
#[must_use]
pub fn needs_node_port(service: &Value) -> bool {
    matches!(spec_str(service, "type"), "NodePort" | "LoadBalancer")
}

/// Whether missing node ports are given.
#[must_use]
pub fn allocates_node_ports(service: &Value) -> bool {
    match spec_str(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec(service, "allocateLoadBalancerNodePorts") != &Value::Bool(false),
        _ => false,
    }
}

/// Whether a load balancer asks each node if it has endpoints.
#[must_use]
pub fn needs_health_check(service: &Value) -> bool {
    spec_str(service, "type") == "LoadBalancer"
        && spec_str(service, "externalTrafficPolicy") == "Local"
}

/// Whether anything outside of the cluster can reach it by an address of its
/// own: then `externalTrafficPolicy` has a meaning.
#[must_use]
pub fn is_externally_accessible(service: &Value) -> bool {
    match spec_str(service, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec_strs(service, "externalIPs").is_empty(),
        _ => false,
    }
}

/// All node ports that the Service names, without `healthCheckNodePort`.
#[must_use]
pub fn node_ports(service: &Value) -> Vec<i64> {
    let numbers = ports(service).iter().map(|port| int(port, "nodePort"));
    numbers.filter(|number| *number != 0).collect()
}

/// The name of an address family as the API writes it.
#[must_use]
pub fn family_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn is_absent(value: &Value) -> bool {
    value.is_null()
}

#[cfg(test)]
mod tests;
