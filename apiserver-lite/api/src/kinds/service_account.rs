//! ServiceAccount (`v1`): upstream's `ValidateServiceAccount` and strategy.

use serde_json::{Value, json};

use super::Rules;
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    validate,
    prepare_create,
    prepare_update,
    ..Rules::NONE
};

/// Of the references to Secrets only the names are kept.
fn prepare_create(object: &mut Value) {
    let secrets = object.get_mut("secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        *secret = match secret.get("name") {
            Some(name) => json!({"name": name}),
            None => json!({}),
        };
    }
}

fn prepare_update(new: &mut Value, _: &Value) {
    prepare_create(new);
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    errors.into_vec()
}
