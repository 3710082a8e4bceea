//! Node (`v1`): upstream's `ValidateNode` and `ValidateNodeUpdate`.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::Rules;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::pod::resources;
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    default,
    validate,
    validate_update,
    ..Rules::NONE
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn default(object: &mut Value) {
    let capacity = object["status"]["capacity"].clone();
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && status.get("allocatable").is_none_or(Value::is_null)
        && !capacity.is_null()
    {
        status.insert("allocatable".into(), capacity);
    }
    // The older field is the first of the newer list.
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let one = spec.get("podCIDR").and_then(Value::as_str).unwrap_or("");
        let first = spec.get("podCIDRs").and_then(|list| list[0].as_str());
        match (one, first) {
            ("", Some(first)) => {
                let first = json!(first);
                spec.insert("podCIDR".into(), first);
            }
            // Where they differ, the older field counts.
            (one, first) if !one.is_empty() && first != Some(one) => {
                let list = json!([one]);
                spec.insert("podCIDRs".into(), list);
            }
            _ => {}
        }
    }
}

/// Whether a text is an address range without host bits, and of which family.
fn cidr(text: &str) -> Option<bool> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u32 = length.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (length <= most).then_some(address.is_ipv4())
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, false, names::dns1123_subdomain);
    let spec = root.get("spec");
    let mut seen = HashSet::new();
    // Upstream reports taints as if they were metadata.
    let taints = metadata
        .get("taints")
        .with_value(spec.get("taints").value());
    for taint in taints.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        meta::rules(&mut errors, &key, names::qualified_name(key.str()));
        if !value.str().is_empty() {
            meta::rules(&mut errors, &value, names::label_value(value.str()));
        }
        if effect.str().is_empty() {
            effect.required(&mut errors, "");
        } else if !EFFECTS.contains(&effect.str()) {
            effect.unsupported(&mut errors, &EFFECTS);
        }
        if !seen.insert((key.str().to_owned(), effect.str().to_owned())) {
            taint.error(
                &mut errors,
                ErrorKind::Duplicate,
                "taints must be unique by key and effect pair",
            );
        }
    }
    let status = root.get("status");
    for list in ["capacity", "allocatable"] {
        let amounts = status.get(list);
        for (name, amount) in amounts.entries() {
            // Upstream names a resource as a field here.
            if amount.is_some() {
                resources::validate_amount(&mut errors, &amounts.get(name), name);
            }
        }
    }
    let ranges = spec.get("podCIDRs");
    let mut families = Vec::new();
    for range in ranges.items() {
        match cidr(range.str()) {
            Some(family) => families.push(family),
            None => range.invalid(
                &mut errors,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
        }
    }
    let distinct = families.iter().collect::<HashSet<_>>().len();
    if families.len() == ranges.len() && families.len() > distinct {
        ranges.invalid(
            &mut errors,
            "may specify no more than one CIDR for each IP family",
        );
    }
    errors.into_vec()
}

/// What an update of a node's spec may not change: all but what is for everybody to change, and
/// what the old one had not yet.
fn fixed(spec: &Value, old: &Value) -> Value {
    let mut spec = spec.clone();
    let Some(map) = spec.as_object_mut() else {
        return json!({});
    };
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    for field in ["unschedulable", "taints"] {
        map.remove(field);
    }
    for (field, first) in [
        ("podCIDR", "podCIDRs"),
        ("podCIDRs", "podCIDRs"),
        ("providerID", "providerID"),
    ] {
        if is_empty(&old[first]) {
            map.remove(field);
        }
    }
    map.retain(|_, value| !is_empty(value));
    spec
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (root, old) = (At::root(new), &old["spec"]);
    let status = root.get("status");
    let mut seen = HashSet::new();
    let addresses = status.get("addresses");
    for address in addresses.items() {
        if !seen.insert(address.value().to_string()) {
            address.duplicate(&mut errors);
        }
    }
    let spec = root.get("spec");
    let is_set = |value: &Value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    for (field, word) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let at = spec.get(field);
        if is_set(&old[field]) && old[field] != *at.value() {
            let rule = format!("node updates may not change {word} except from \"\" to valid");
            at.forbidden(&mut errors, rule);
        }
    }
    if fixed(&new["spec"], old) != fixed(old, old) {
        root.key("").forbidden(
            &mut errors,
            "node updates may only change labels, taints, or capacity",
        );
    }
    errors.into_vec()
}
