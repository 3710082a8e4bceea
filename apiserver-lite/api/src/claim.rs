//! PersistentVolumeClaims (`v1`): defaults and validation.

use serde_json::{Value, json};

use crate::field::{Errors, FieldError};
use crate::meta::{self, rules};
use crate::names;
use crate::quantity::Quantity;
use crate::view::At;

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// Fills in `spec.volumeMode`.
pub fn default(claim: &mut Value) {
    if let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("volumeMode").is_none_or(Value::is_null)
    {
        spec.insert("volumeMode".into(), json!("Filesystem"));
    }
}

/// Every rule that a (defaulted) claim breaks.
#[must_use]
pub fn validate(claim: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(claim);
    meta::validate(
        &mut errors,
        &root.get("metadata"),
        true,
        names::dns1123_subdomain,
    );
    validate_spec(&mut errors, &root.get("spec"));
    errors.into_vec()
}

/// The rules for a claim's spec, which ephemeral volumes hold too.
pub(crate) fn validate_spec(errors: &mut Errors, spec: &At<'_, '_>) {
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        modes.required(errors, "at least 1 access mode is required");
    }
    for mode in modes.items() {
        if !ACCESS_MODES.contains(&mode.str()) {
            mode.unsupported(errors, &ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.items().any(|m| m.str() == "ReadWriteOncePod") {
        modes.forbidden(
            errors,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
    let selector = spec.get("selector");
    if selector.is_some() {
        meta::label_selector(errors, &selector);
    }
    let requests = spec.get("resources");
    let requests = requests.get("requests");
    let storage = requests.key("storage");
    match Quantity::from_json(storage.value()) {
        Err(_) if storage.is_none() => storage.required(errors, ""),
        Ok(amount) if amount.sign() <= 0 => storage.invalid(errors, "must be greater than zero"),
        _ => {}
    }
    let class = spec.get("storageClassName");
    if !class.str().is_empty() {
        rules(errors, &class, names::dns1123_subdomain(class.str()));
    }
    let mode = spec.get("volumeMode");
    if mode.is_some() && !["Block", "Filesystem"].contains(&mode.str()) {
        mode.unsupported(errors, &["Block", "Filesystem"]);
    }
    let source = spec.get("dataSource");
    if source.is_some() {
        for name in ["name", "kind"] {
            if source.get(name).str().is_empty() {
                source.get(name).required(errors, "");
            }
        }
        let core = source.get("apiGroup").str().is_empty();
        if core && source.get("kind").str() != "PersistentVolumeClaim" {
            source.invalid(
                errors,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
    }
}
