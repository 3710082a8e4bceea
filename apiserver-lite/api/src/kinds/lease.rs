//! Lease (`coordination.k8s.io`): upstream's `ValidateLease`.

use serde_json::Value;

use super::Rules;
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    validate,
    ..Rules::NONE
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate_generic(&mut errors, &metadata, true, names::dns1123_subdomain);
    let spec = root.get("spec");
    let duration = spec.get("leaseDurationSeconds");
    if duration.int().is_some_and(|seconds| seconds <= 0) {
        duration.invalid(&mut errors, "must be greater than 0");
    }
    let transitions = spec.get("leaseTransitions");
    if transitions.int().is_some_and(|count| count < 0) {
        transitions.invalid(&mut errors, "must be greater than or equal to 0");
    }
    let (holder, strategy) = (spec.get("preferredHolder"), spec.get("strategy"));
    if !holder.str().is_empty() && strategy.str().is_empty() {
        holder.forbidden(
            &mut errors,
            "may only be specified when `strategy` is defined",
        );
    }
    errors.into_vec()
}
