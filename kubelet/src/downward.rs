//! The downward API: what a pod may learn about itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::node::NodeFacts;
use crate::pod;
use crate::quantity;

/// What a field may be read from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The host.
    pub node: &'a NodeFacts,
    /// The pod's addresses, as far as they are known.
    pub addresses: &'a [String],
}

/// The value of a `fieldPath`. `None` for a path that there is not; a known
/// path without a value is the empty string.
#[must_use]
pub fn field(facts: Facts<'_>, path: &str) -> Option<String> {
    let meta = &facts.pod.metadata;
    let spec = pod::spec(facts.pod);
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return None,
        };
        return Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let join = |list: &[String]| list.join(",");
    let host: Vec<String> = facts
        .node
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    Some(match path {
        "metadata.name" => pod::name(facts.pod).to_owned(),
        "metadata.namespace" => pod::namespace(facts.pod).to_owned(),
        "metadata.uid" => pod::uid(facts.pod).to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec
            .node_name
            .clone()
            .unwrap_or_else(|| facts.node.name.clone()),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => host.first().cloned().unwrap_or_default(),
        "status.hostIPs" => join(&host),
        "status.podIP" => facts.addresses.first().cloned().unwrap_or_default(),
        "status.podIPs" => join(facts.addresses),
        _ => return None,
    })
}

/// `metadata.labels['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let inner = path.strip_suffix("']")?;
    inner.split_once("['")
}

/// One `key="value"` line for each entry, in the order of the keys, with
/// quotes, backslashes and control characters escaped.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (key, value) in map.into_iter().flatten() {
        let mut quoted = String::with_capacity(value.len() + 2);
        for c in value.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '\n' => quoted.push_str("\\n"),
                '\t' => quoted.push_str("\\t"),
                '\r' => quoted.push_str("\\r"),
                c if c.is_control() => {
                    // Writing into a String cannot fail.
                    let _ = write!(quoted, "\\x{:02x}", u32::from(c));
                }
                c => quoted.push(c),
            }
        }
        let _ = writeln!(text, "{key}=\"{quoted}\"");
    }
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// The value of a `resourceFieldRef` in units of its divisor, rounded up.
/// A missing limit is the host's capacity; a missing request is the limit,
/// and 0 without one. `None` for a resource that there is not.
#[must_use]
pub fn resource(
    facts: Facts<'_>,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Option<String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => pod::container(facts.pod, name)?.1,
        None => own?,
    };
    let (side, key) = selector.resource.split_once('.')?;
    let needs = container.resources.as_ref();
    let limits = needs.and_then(|r| r.limits.as_ref());
    let requests = needs.and_then(|r| r.requests.as_ref());
    let find = |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|m| m.get(key)).cloned();
    let found = match side {
        "limits" => find(limits),
        "requests" => find(requests).or_else(|| find(limits)),
        _ => return None,
    };
    let known =
        matches!(key, "cpu" | "memory" | "ephemeral-storage") || key.starts_with("hugepages-");
    if !known {
        return None;
    }
    let value = found.unwrap_or_else(|| match (side, key) {
        ("limits", "cpu") => Quantity(format!("{}m", facts.node.cpu_millis)),
        ("limits", "memory") => Quantity(facts.node.memory_bytes.to_string()),
        _ => Quantity("0".to_owned()),
    });
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|d| quantity::millis(d).is_some_and(|v| v > 0));
    let one = Quantity("1".to_owned());
    let divisor = divisor.unwrap_or(&one);
    let quotient = if key == "cpu" {
        quantity::millis(&value)?.div_ceil(quantity::millis(divisor)?.max(1))
    } else {
        quantity::units(&value)?.div_ceil(quantity::units(divisor)?.max(1))
    };
    Some(quotient.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let mut pod = pod_of(json!({"containers": [{"name": "a",
            "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}}, {"name": "b"}]}));
        pod.metadata.labels = Some(
            [
                ("k".to_owned(), "a\"b\n".to_owned()),
                ("z".to_owned(), "1".to_owned()),
            ]
            .into(),
        );
        let node = NodeFacts {
            single_process_oom_kill: false,
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            cpu_millis: 2000,
            memory_bytes: 1024,
            cluster_dns: vec![],
            cluster_domain: "c".into(),
        };
        let addresses = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let facts = Facts {
            pod: &pod,
            node: &node,
            addresses: &addresses,
        };
        let get = |path: &str| field(facts, path);
        assert_eq!(get("metadata.labels['z']").as_deref(), Some("1"));
        assert_eq!(
            get("metadata.labels").as_deref(),
            Some("k=\"a\\\"b\\n\"\nz=\"1\"")
        );
        assert_eq!(get("metadata.annotations['x']").as_deref(), Some(""));
        assert_eq!(get("status.podIPs").as_deref(), Some("10.0.0.1,fd00::1"));
        assert_eq!(get("spec.nodeName").as_deref(), Some("n1"));
        assert_eq!(get("spec.nothing"), None);
        let ask = |container: Option<&str>, resource_name: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                container_name: container.map(str::to_owned),
                divisor: divisor.map(|d| Quantity(d.to_owned())),
                resource: resource_name.to_owned(),
            };
            resource(facts, pod::container(&pod, "a").map(|(_, c)| c), &selector)
        };
        assert_eq!(ask(None, "limits.cpu", None).as_deref(), Some("2"));
        assert_eq!(ask(None, "limits.cpu", Some("1m")).as_deref(), Some("1500"));
        assert_eq!(
            ask(None, "requests.memory", Some("1Mi")).as_deref(),
            Some("64")
        );
        assert_eq!(
            ask(Some("b"), "limits.memory", None).as_deref(),
            Some("1024")
        );
        assert_eq!(
            ask(Some("b"), "limits.cpu", Some("1m")).as_deref(),
            Some("2000")
        );
        assert_eq!(ask(Some("b"), "requests.cpu", None).as_deref(), Some("0"));
        assert_eq!(ask(None, "limits.beer", None), None);
    }
}
