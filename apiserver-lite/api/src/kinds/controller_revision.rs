//! ControllerRevision (`apps`): upstream's `ValidateControllerRevision`.

use serde_json::Value;

use super::Rules;
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    validate,
    validate_update,
    ..Rules::NONE
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    let data = root.get("data");
    if data.is_none() {
        data.required(&mut errors, "data is mandatory");
    }
    let revision = root.get("revision");
    if revision.int().is_some_and(|number| number < 0) {
        revision.invalid(&mut errors, "must be greater than or equal to 0");
    }
    errors.into_vec()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let data = root.get("data");
    if *data.value() != old["data"] {
        data.invalid(&mut errors, "field is immutable");
    }
    errors.into_vec()
}
