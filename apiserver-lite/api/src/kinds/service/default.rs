//! Defaults that do not depend on the cluster.

use serde_json::{Map, Value, json};

use super::{AFFINITY_TIMEOUT_DEFAULT_SECONDS, is_externally_accessible, spec_str};

/// Fills in the static defaults of a Service.
pub fn default(service: &mut Value) {
    if let Some(map) = service.as_object_mut() {
        map.entry("spec").or_insert_with(|| serde_json::json!({}));
    }
    let accessible = {
        // The type's default decides about others.
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
            return;
        };
        set_empty(spec, "sessionAffinity", "None");
        set_empty(spec, "type", "ClusterIP");
        affinity(spec);
        ports(spec);
        is_externally_accessible(service)
    };
    let kind = spec_str(service, "type").to_owned();
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        if accessible {
            set_empty(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
            set(spec, "internalTrafficPolicy", json!("Cluster"));
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", json!(true));
        }
    }
    if kind == "LoadBalancer" {
        ip_modes(service);
    }
}

/// Sets a field that is absent.
fn set(object: &mut Map<String, Value>, name: &str, value: Value) {
    if object.get(name).is_none_or(Value::is_null) {
        object.insert(name.to_owned(), value);
    }
}

/// Sets a text that is absent or empty.
fn set_empty(object: &mut Map<String, Value>, name: &str, value: &str) {
    let empty = match object.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if empty {
        object.insert(name.to_owned(), value.into());
    }
}

fn affinity(spec: &mut Map<String, Value>) {
    match spec.get("sessionAffinity").and_then(Value::as_str) {
        Some("None") => {
            spec.remove("sessionAffinityConfig");
        }
        Some("ClientIP") => {
            let config = spec.get("sessionAffinityConfig");
            let timeout = config.and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if timeout.is_none_or(Value::is_null) {
                spec.insert(
                    "sessionAffinityConfig".to_owned(),
                    json!({"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_DEFAULT_SECONDS}}),
                );
            }
        }
        _ => {}
    }
}

fn ports(spec: &mut Map<String, Value>) {
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        set_empty(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::Number(number)) => number.as_i64() == Some(0),
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".to_owned(), number);
        }
    }
}

/// An address of a load balancer is its own unless it says otherwise.
fn ip_modes(service: &mut Value) {
    let ingress = service.pointer_mut("/status/loadBalancer/ingress");
    let ingress = ingress.and_then(Value::as_array_mut);
    for entry in ingress
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        let has_ip = entry.get("ip").and_then(Value::as_str);
        if has_ip.is_some_and(|ip| !ip.is_empty()) {
            set(entry, "ipMode", json!("VIP"));
        }
    }
}
