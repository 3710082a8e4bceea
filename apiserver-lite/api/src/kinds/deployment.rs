//! Deployment (`apps`): upstream's `pkg/apis/apps/v1/defaults.go`,
//! `validation.go` and `pkg/registry/apps/deployment/strategy.go`.

use serde_json::{Value, json};

use super::workload::{
    at_most_100_percent, default_template, immutable, int_or_percent, not_negative, number,
    running_template, selector, set, set_text, spec_mut,
};
use super::{Rules, counts};
use crate::field::{ErrorKind, Errors, FieldError};
use crate::view::{At, supported_values};
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
    set(spec, "strategy", json!({}));
    if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
        set_text(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
            set(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy
                .get_mut("rollingUpdate")
                .and_then(Value::as_object_mut)
            {
                set(rolling, "maxUnavailable", json!("25%"));
                set(rolling, "maxSurge", json!("25%"));
            }
        }
    }
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
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
    let found = selector(
        &mut errors,
        &spec.get("selector"),
        "empty selector is invalid for deployment",
    );
    if let Some(selector) = found {
        running_template(&mut errors, &spec.get("template"), &selector, "ReplicaSet");
    }
    strategy(&mut errors, &spec.get("strategy"));
    let ready = spec.get("minReadySeconds");
    not_negative(&mut errors, &ready);
    not_negative(&mut errors, &spec.get("revisionHistoryLimit"));
    let deadline = spec.get("progressDeadlineSeconds");
    not_negative(&mut errors, &deadline);
    if deadline
        .int()
        .is_some_and(|s| s <= ready.int().unwrap_or(0))
    {
        deadline.invalid(&mut errors, "must be greater than minReadySeconds");
    }
    errors.into_vec()
}

fn strategy(errors: &mut Errors, at: &At<'_, '_>) {
    let (kind, rolling) = (at.get("type"), at.get("rollingUpdate"));
    match kind.str() {
        "Recreate" => {
            if rolling.is_some() {
                rolling.forbidden(
                    errors,
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(errors, &unavailable);
            int_or_percent(errors, &surge);
            if number(&unavailable) == 0 && number(&surge) == 0 {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
            at_most_100_percent(errors, &unavailable);
        }
        _ => {
            // Upstream shows the whole strategy, as its own code has it.
            let rolling = match rolling.value() {
                Value::Object(_) => json!({
                    "MaxUnavailable": rolling.get("maxUnavailable").value(),
                    "MaxSurge": rolling.get("maxSurge").value(),
                }),
                _ => Value::Null,
            };
            let shown = json!({"Type": kind.str(), "RollingUpdate": rolling});
            at.error_value(
                errors,
                ErrorKind::NotSupported,
                crate::field::shown(&shown),
                supported_values(&["Recreate", "RollingUpdate"]),
            );
        }
    }
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
    errors.extend(counts::deployment(new, old));
    errors
}
