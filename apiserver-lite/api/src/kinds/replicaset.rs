//! ReplicaSet (`apps`): upstream's `pkg/apis/apps/v1/defaults.go` and
//! `ValidateReplicaSetSpec`; the selector does not change.

use serde_json::{Value, json};

use super::workload::{
    default_template, immutable, not_negative, running_template, selector, set, spec_mut,
};
use super::{Rules, counts};
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    default,
    validate,
    validate_update,
    ..Rules::NONE
};

fn default(object: &mut Value) {
    let Some(spec) = spec_mut(object) else { return };
    default_template(spec);
    set(spec, "replicas", json!(1));
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    meta::validate(
        &mut errors,
        &root.get("metadata"),
        true,
        names::dns1123_subdomain,
    );
    let spec = root.get("spec");
    not_negative(&mut errors, &spec.get("replicas"));
    not_negative(&mut errors, &spec.get("minReadySeconds"));
    let found = selector(
        &mut errors,
        &spec.get("selector"),
        "empty selector is invalid for deployment",
    );
    if let Some(selector) = found {
        running_template(&mut errors, &spec.get("template"), &selector, "ReplicaSet");
    }
    errors.into_vec()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    immutable(
        &mut errors,
        &root.get("spec").get("selector"),
        old.pointer("/spec/selector"),
    );
    let mut errors = errors.into_vec();
    errors.extend(counts::replicas(new, old));
    errors
}
