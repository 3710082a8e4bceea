//! PodDisruptionBudget (`policy`): upstream's `ValidatePodDisruptionBudgetSpec`.

use serde_json::Value;

use super::rbac::path_segment;
use super::workload::{at_most_100_percent, int_or_percent};
use super::{Rules, counts};
use crate::field::{Errors, FieldError};
use crate::meta;
use crate::view::At;

pub(super) const RULES: Rules = Rules {
    validate,
    validate_update: counts::budget,
    ..Rules::NONE
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    meta::validate_generic(&mut errors, &root.get("metadata"), true, path_segment);
    let spec = root.get("spec");
    let bounds = [spec.get("minAvailable"), spec.get("maxUnavailable")];
    if bounds.iter().all(At::is_some) {
        spec.invalid(
            &mut errors,
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
    for bound in &bounds {
        int_or_percent(&mut errors, bound);
        at_most_100_percent(&mut errors, bound);
    }
    meta::label_selector(&mut errors, &spec.get("selector"));
    let policy = spec.get("unhealthyPodEvictionPolicy");
    let supported = ["AlwaysAllow", "IfHealthyBudget"];
    if policy.is_some() && !supported.contains(&policy.str()) {
        policy.unsupported(&mut errors, &supported);
    }
    errors.into_vec()
}
