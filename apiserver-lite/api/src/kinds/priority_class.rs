//! PriorityClass (`scheduling.k8s.io`): upstream's `ValidatePriorityClass`.

use serde_json::Value;

use super::Rules;
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

/// The highest value that users may give.
const HIGHEST_USER_VALUE: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// Upstream's own classes.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];
const POLICIES: [&str; 2] = ["PreemptLowerPriority", "Never"];

pub(super) const RULES: Rules = Rules {
    default,
    validate,
    validate_update,
    ..Rules::NONE
};

fn default(object: &mut Value) {
    if let Some(map) = object.as_object_mut()
        && map.get("preemptionPolicy").is_none_or(Value::is_null)
    {
        map.insert("preemptionPolicy".into(), POLICIES[0].into());
    }
}

/// Why a class with a reserved name is not one of upstream's own.
fn unknown(name: &str, value: i64, global: bool) -> Option<String> {
    let Some((_, right)) = SYSTEM.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *right {
        return Some(format!("value of {name} PriorityClass must be {right}"));
    }
    global.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, false, names::dns1123_subdomain);
    let (name, value) = (metadata.get("name"), root.get("value"));
    let number = value.int().unwrap_or(0);
    if name.str().starts_with(SYSTEM_PREFIX) {
        let global = root.get("globalDefault").is_true();
        if let Some(why) = unknown(name.str(), number, global) {
            name.forbidden(
                &mut errors,
                format!("priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"),
            );
        }
    } else if number > HIGHEST_USER_VALUE {
        value.forbidden(
            &mut errors,
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER_VALUE}"),
        );
    }
    let policy = root.get("preemptionPolicy");
    if policy.str().is_empty() {
        policy.required(&mut errors, "");
    } else if !POLICIES.contains(&policy.str()) {
        policy.unsupported(&mut errors, &POLICIES);
    }
    errors.into_vec()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let value = root.get("value");
    if value.int().unwrap_or(0) != old["value"].as_i64().unwrap_or(0) {
        // Upstream writes this field's name so.
        value
            .renamed("Value")
            .forbidden(&mut errors, "may not be changed in an update.");
    }
    let policy = root.get("preemptionPolicy");
    if policy.str() != old["preemptionPolicy"].as_str().unwrap_or("") {
        policy.invalid(&mut errors, "field is immutable");
    }
    errors.into_vec()
}
