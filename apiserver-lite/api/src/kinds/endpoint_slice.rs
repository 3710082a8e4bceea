//! EndpointSlices (`discovery.k8s.io/v1`): defaults and validation
//! (`pkg/apis/discovery/validation` of release 1.36).

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::address;
use super::endpoints::protocol_and_app;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::meta::{self, rules};
use crate::names;
use crate::view::At;

/// Most endpoints of one slice.
pub const ENDPOINTS_MAX_COUNT: usize = 1000;
/// Most ports of one slice.
pub const PORTS_MAX_COUNT: usize = 100;
/// Most addresses of one endpoint.
pub const ADDRESSES_MAX_COUNT: usize = 100;
/// Most labels of `deprecatedTopology`.
pub const TOPOLOGY_MAX_COUNT: usize = 16;
/// Most zones, and most nodes, that an endpoint hints at.
pub const HINTS_MAX_COUNT: usize = 8;

/// Ports have the name "" and TCP unless they say otherwise.
pub fn default(slice: &mut Value) {
    let ports = slice.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        for (field, value) in [("name", ""), ("protocol", "TCP")] {
            if port.get(field).is_none_or(Value::is_null) {
                port.insert(field.to_owned(), json!(value));
            }
        }
    }
}

/// Every rule that a slice breaks.
#[must_use]
pub fn validate(slice: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(slice);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    let kind = root.get("addressType");
    if kind.str().is_empty() {
        kind.required(&mut errors, "");
    } else if !["IPv4", "IPv6", "FQDN"].contains(&kind.str()) {
        kind.unsupported(&mut errors, &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = root.get("endpoints");
    if !too_many(&mut errors, &endpoints, ENDPOINTS_MAX_COUNT) {
        for at in endpoints.items() {
            endpoint(&mut errors, &at, kind.str());
        }
    }
    let list = root.get("ports");
    if !too_many(&mut errors, &list, PORTS_MAX_COUNT) {
        ports(&mut errors, &list);
    }
    errors.into_vec()
}

/// The address type stays.
#[must_use]
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if new["addressType"] != old["addressType"] {
        let root = At::root(new);
        let kind = root.get("addressType");
        kind.invalid(&mut errors, "field is immutable");
    }
    errors.into_vec()
}

fn too_many(errors: &mut Errors, at: &At<'_, '_>, most: usize) -> bool {
    let count = at.len();
    if count > most {
        let rule = format!("must have at most {most} items");
        at.error_value(errors, ErrorKind::TooMany, count.to_string(), rule);
    }
    count > most
}

fn endpoint(errors: &mut Errors, at: &At<'_, '_>, kind: &str) {
    let addresses = at.get("addresses");
    if addresses.is_empty() {
        addresses.required(errors, "must contain at least 1 address");
    } else {
        too_many(errors, &addresses, ADDRESSES_MAX_COUNT);
    }
    for item in addresses.items() {
        match kind {
            "IPv4" | "IPv6" => ip(errors, &item, kind),
            "FQDN" => fqdn(errors, &item),
            _ => {}
        }
    }
    let node = at.get("nodeName");
    if node.is_some() {
        rules(errors, &node, names::dns1123_subdomain(node.str()));
    }
    let topology = at.get("deprecatedTopology");
    too_many(errors, &topology, TOPOLOGY_MAX_COUNT);
    meta::labels(errors, &topology);
    let hostname = at.get("hostname");
    if hostname.is_some() {
        rules(errors, &hostname, names::dns1123_label(hostname.str()));
    }
    let hints = at.get("hints");
    hint(errors, &hints.get("forZones"), names::label_value);
    hint(errors, &hints.get("forNodes"), names::dns1123_subdomain);
}

fn ip(errors: &mut Errors, at: &At<'_, '_>, kind: &str) {
    match (at.str().parse::<IpAddr>(), kind) {
        (Ok(IpAddr::V4(_)), "IPv4") | (Ok(IpAddr::V6(_)), "IPv6") => {}
        (_, "IPv4") => at.invalid(errors, "must be a valid IPv4 address"),
        _ => at.invalid(errors, "must be a valid IPv6 address"),
    }
    address::not_special(errors, at);
}

fn fqdn(errors: &mut Errors, at: &At<'_, '_>) {
    let bare = at.str().strip_suffix('.').unwrap_or(at.str());
    if bare.is_empty() {
        return at.required(errors, "");
    }
    let broken = names::dns1123_subdomain(bare);
    let fine = broken.is_empty();
    rules(errors, at, broken);
    if fine && bare.split('.').count() < 2 {
        at.invalid(
            errors,
            "should be a domain with at least two segments separated by dots",
        );
    }
}

fn hint(errors: &mut Errors, list: &At<'_, '_>, rule: fn(&str) -> Vec<String>) {
    if too_many(errors, list, HINTS_MAX_COUNT) {
        return;
    }
    let mut seen = HashSet::new();
    for item in list.items() {
        let name = item.get("name");
        if !seen.insert(name.str()) {
            item.error_value(
                errors,
                ErrorKind::Duplicate,
                format!("{:?}", name.str()),
                "",
            );
        }
        rules(errors, &name, rule(name.str()));
    }
}

fn ports(errors: &mut Errors, list: &At<'_, '_>) {
    let mut seen = HashSet::new();
    for port in list.items() {
        let name = port.get("name");
        if !name.str().is_empty() {
            rules(errors, &name, names::dns1123_label(name.str()));
        }
        if !seen.insert(name.str()) {
            name.error_value(
                errors,
                ErrorKind::Duplicate,
                format!("{:?}", name.str()),
                "",
            );
        }
        protocol_and_app(errors, &port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice() -> Value {
        json!({
            "metadata": {"name": "a-x", "namespace": "b"},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "hostname": "h", "hints": {"forZones": [{"name": "z"}]}}],
            "ports": [{"port": 80}],
        })
    }

    #[test]
    fn slices_are_defaulted_and_checked() {
        let mut good = slice();
        default(&mut good);
        assert_eq!(
            good["ports"][0],
            json!({"name": "", "protocol": "TCP", "port": 80})
        );
        assert_eq!(validate(&good), []);
        assert_eq!(validate_update(&good, &good), []);

        let mut other = good.clone();
        other["addressType"] = json!("IPv6");
        let text: Vec<String> = validate(&other)
            .iter()
            .chain(&validate_update(&other, &good))
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            text,
            [
                r#"endpoints[0].addresses[0]: Invalid value: "10.0.0.1": must be a valid IPv6 address"#,
                r#"addressType: Invalid value: "IPv6": field is immutable"#,
            ]
        );
    }

    #[test]
    fn slices_have_limits() {
        let mut big = slice();
        default(&mut big);
        big["endpoints"] = vec![json!({"addresses": ["10.0.0.1"]}); ENDPOINTS_MAX_COUNT + 1].into();
        big["ports"][0]["name"] = json!("A_");
        let text: Vec<String> = validate(&big).iter().map(ToString::to_string).collect();
        assert_eq!(
            text[0],
            "endpoints: Too many: 1001: must have at most 1000 items"
        );
        assert!(text[1].starts_with("ports[0].name: Invalid value"));
        assert_eq!(text.len(), 2);
    }
}
