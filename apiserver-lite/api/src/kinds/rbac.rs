//! Role, ClusterRole and their bindings (`rbac.authorization.k8s.io`):
//! upstream's `pkg/apis/rbac/validation` and defaults.

use serde_json::{Value, json};

use super::Rules;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::selector::LabelSelector;
use crate::view::At;
use crate::{meta, names};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) const ROLE: Rules = Rules {
    validate: |object| role(object, true),
    ..Rules::NONE
};
pub(super) const CLUSTER_ROLE: Rules = Rules {
    validate: |object| role(object, false),
    ..Rules::NONE
};
pub(super) const ROLE_BINDING: Rules = Rules {
    default: default_binding,
    validate: |object| binding(object, true),
    validate_update: update_binding,
    ..Rules::NONE
};
pub(super) const CLUSTER_ROLE_BINDING: Rules = Rules {
    default: default_binding,
    validate: |object| binding(object, false),
    validate_update: update_binding,
    ..Rules::NONE
};

/// A name that is one segment of a path, and no more is asked of it.
pub(super) fn path_segment(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text == "." || text == ".." {
        broken.push(format!("may not be '{text}'"));
    }
    for mark in ['/', '%'] {
        if text.contains(mark) {
            broken.push(format!("may not contain '{mark}'"));
        }
    }
    broken
}

fn role(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    meta::validate(&mut errors, &root.get("metadata"), namespaced, path_segment);
    for rule in root.get("rules").items() {
        policy_rule(&mut errors, &rule, namespaced);
    }
    let aggregation = root.get("aggregationRule");
    if !namespaced && aggregation.is_some() {
        let selectors = aggregation.get("clusterRoleSelectors");
        if selectors.is_empty() {
            selectors.required(
                &mut errors,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for selector in selectors.items() {
            meta::label_selector(&mut errors, &selector);
            if LabelSelector::from_value(selector.value()).is_err() {
                let rule = "invalid label selector.";
                selector.error_value(&mut errors, ErrorKind::Invalid, "\"null\"", rule);
            }
        }
    }
    errors.into_vec()
}

fn policy_rule(errors: &mut Errors, rule: &At<'_, '_>, namespaced: bool) {
    let list = |field: &'static str| {
        rule.value()[field]
            .as_array()
            .is_some_and(|l| !l.is_empty())
    };
    if !list("verbs") {
        rule.get("verbs")
            .required(errors, "verbs must contain at least one value");
    }
    if list("nonResourceURLs") {
        let urls = rule.get("nonResourceURLs");
        if namespaced {
            urls.invalid(errors, "namespaced rules cannot apply to non-resource URLs");
        }
        if list("apiGroups") || list("resources") || list("resourceNames") {
            urls.invalid(
                errors,
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if !list("apiGroups") {
        rule.get("apiGroups")
            .required(errors, "resource rules must supply at least one api group");
    }
    if !list("resources") {
        rule.get("resources")
            .required(errors, "resource rules must supply at least one resource");
    }
}

fn default_binding(object: &mut Value) {
    let is_empty = |value: &Value| value.as_str().unwrap_or("").is_empty();
    if let Some(map) = object.as_object_mut() {
        let role = map.entry("roleRef").or_insert_with(|| json!({}));
        if role.is_null() {
            *role = json!({});
        }
    }
    if let Some(role) = object.get_mut("roleRef").and_then(Value::as_object_mut)
        && role.get("apiGroup").is_none_or(is_empty)
    {
        role.insert("apiGroup".into(), GROUP.into());
    }
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        let is_named = matches!(subject["kind"].as_str(), Some("User" | "Group"));
        if let Some(subject) = subject.as_object_mut()
            && is_named
            && subject.get("apiGroup").is_none_or(is_empty)
        {
            subject.insert("apiGroup".into(), json!(GROUP));
        }
    }
}

fn binding(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    meta::validate(&mut errors, &root.get("metadata"), namespaced, path_segment);
    let reference = root.get("roleRef");
    let (group, kind, name) = (
        reference.get("apiGroup"),
        reference.get("kind"),
        reference.get("name"),
    );
    if group.str() != GROUP {
        group.unsupported(&mut errors, &[GROUP]);
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&kind.str()) {
        kind.unsupported(&mut errors, kinds);
    }
    meta::required_name(&mut errors, &name, path_segment);
    for subject in root.get("subjects").items() {
        check_subject(&mut errors, &subject, namespaced);
    }
    errors.into_vec()
}

fn check_subject(errors: &mut Errors, subject: &At<'_, '_>, namespaced: bool) {
    let (name, kind, group) = (
        subject.get("name"),
        subject.get("kind"),
        subject.get("apiGroup"),
    );
    if name.str().is_empty() {
        name.required(errors, "");
    }
    match kind.str() {
        "ServiceAccount" => {
            if !name.str().is_empty() {
                meta::rules(errors, &name, names::dns1123_subdomain(name.str()));
            }
            if !group.str().is_empty() {
                group.unsupported(errors, &[""]);
            }
            let namespace = subject.get("namespace");
            if !namespaced && namespace.str().is_empty() {
                namespace.required(errors, "");
            }
        }
        "User" | "Group" => {
            if group.str() != GROUP {
                group.unsupported(errors, &[GROUP]);
            }
        }
        _ => kind.unsupported(errors, &["ServiceAccount", "User", "Group"]),
    }
}

fn update_binding(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let role = root.get("roleRef");
    if *role.value() != old["roleRef"] {
        role.invalid(&mut errors, "cannot change roleRef");
    }
    errors.into_vec()
}
