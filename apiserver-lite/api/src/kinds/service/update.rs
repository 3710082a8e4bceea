//! What an update keeps of the old Service, and what a change of type drops.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    int, is_externally_accessible, needs_cluster_ip, needs_health_check, needs_node_port, ports,
    spec, spec_str,
};

fn spec_mut(service: &mut Value) -> Option<&mut Map<String, Value>> {
    service.get_mut("spec").and_then(Value::as_object_mut)
}

fn remove(service: &mut Value, field: &str) {
    if let Some(spec) = spec_mut(service) {
        spec.remove(field);
    }
}

/// Puts allocated values into an update that does not name them, so that the
/// manifest of the creation can be written again.
pub fn patch_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if spec_str(new, "clusterIP").is_empty() {
            keep(new, old, "clusterIP");
        }
        if super::spec_strs(new, "clusterIPs").is_empty()
            && spec_str(new, "clusterIP") == spec_str(old, "clusterIP")
        {
            keep(new, old, "clusterIPs");
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        patch_node_ports(new, old);
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && int(&new["spec"], "healthCheckNodePort") == 0
    {
        keep(new, old, "healthCheckNodePort");
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    let value = spec(old, field);
    if !value.is_null()
        && let Some(spec) = spec_mut(new)
    {
        spec.insert(field.to_owned(), value.clone());
    }
}

/// Node ports by the names of their ports, where the new Service does not use
/// them otherwise.
fn patch_node_ports(new: &mut Value, old: &Value) {
    let named: BTreeSet<i64> = super::node_ports(new).into_iter().collect();
    let mut used: BTreeSet<i64> = super::node_ports(old)
        .into_iter()
        .filter(|number| named.contains(number))
        .collect();
    let by_name: BTreeMap<String, i64> = ports(old)
        .iter()
        .map(|port| {
            let name = port["name"].as_str().unwrap_or("");
            (name.to_owned(), int(port, "nodePort"))
        })
        .collect();
    let list = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten() {
        if int(port, "nodePort") != 0 {
            continue;
        }
        let name = port["name"].as_str().unwrap_or("");
        let number = by_name.get(name).copied().unwrap_or(0);
        if number != 0
            && used.insert(number)
            && let Some(port) = port.as_object_mut()
        {
            port.insert("nodePort".to_owned(), number.into());
        }
    }
}

/// Drops what a change of type made meaningless, if the change did not touch
/// it: what it did touch is validation's business.
pub fn prepare_update(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if spec(old, "clusterIPs") == spec(new, "clusterIPs") {
            remove(new, "clusterIP");
            remove(new, "clusterIPs");
        }
        drop_same(new, old, "ipFamilies");
        drop_same(new, old, "ipFamilyPolicy");
    }
    if needs_node_port(old) && !needs_node_port(new) && same_node_ports(new, old) {
        let list = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in list.into_iter().flatten().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    if needs_health_check(old) && !needs_health_check(new) {
        drop_same(new, old, "healthCheckNodePort");
    }
    let balanced = |service: &Value| spec_str(service, "type") == "LoadBalancer";
    if balanced(old) && !balanced(new) {
        drop_same(new, old, "allocateLoadBalancerNodePorts");
        drop_same(new, old, "loadBalancerClass");
    }
    if is_externally_accessible(old) && !is_externally_accessible(new) {
        drop_same(new, old, "externalTrafficPolicy");
    }
    if !balanced(new)
        && let Some(status) = new.get_mut("status").and_then(Value::as_object_mut)
    {
        status.insert("loadBalancer".to_owned(), json!({}));
    }
}

fn drop_same(new: &mut Value, old: &Value, field: &str) {
    if spec(new, field) == spec(old, field) {
        remove(new, field);
    }
}

fn same_node_ports(new: &Value, old: &Value) -> bool {
    let set = |service| {
        super::node_ports(service)
            .into_iter()
            .collect::<BTreeSet<_>>()
    };
    set(new) == set(old)
}
