//! ReplicationController (`v1`): upstream's `pkg/apis/core/v1/defaults.go`
//! and `ValidateReplicationControllerSpec`.

use serde_json::{Value, json};

use super::workload::{
    default_given_template, has_no_labels, not_negative, running_template, set, set_labels,
    spec_mut, template_labels,
};
use super::{Rules, counts};
use crate::field::{Errors, FieldError};
use crate::selector::LabelSelector;
use crate::view::At;
use crate::{meta, names};

pub(super) const RULES: Rules = Rules {
    default,
    validate,
    validate_update: counts::replicas,
    ..Rules::NONE
};

fn default(object: &mut Value) {
    let labels = template_labels(object);
    let Some(spec) = spec_mut(object) else { return };
    default_given_template(spec);
    set(spec, "replicas", json!(1));
    if let Some(labels) = labels {
        let empty = spec
            .get("selector")
            .is_none_or(|s| s.as_object().is_some_and(|s| s.is_empty()) || s.is_null());
        if empty {
            spec.insert("selector".into(), labels.clone());
        }
        if has_no_labels(object) {
            set_labels(object, labels);
        }
    }
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
    not_negative(&mut errors, &spec.get("minReadySeconds"));
    let selector = spec.get("selector");
    if selector.is_empty() {
        selector.required(&mut errors, "");
    }
    not_negative(&mut errors, &spec.get("replicas"));
    let template = spec.get("template");
    if template.is_none() {
        template.required(&mut errors, "");
    } else if let Ok(selector) =
        LabelSelector::from_value(&json!({"matchLabels": selector.value()}))
    {
        running_template(&mut errors, &template, &selector, "ReplicationController");
    }
    errors.into_vec()
}
