//! `metav1.ObjectMeta` and label selectors: validation.

use crate::field::{ErrorKind, Errors, FieldError};
use crate::names;
use crate::view::At;

/// Most bytes of all annotation keys and values of one object.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

/// Reports every broken rule as `Invalid value`.
pub(crate) fn rules(errors: &mut Errors, at: &At<'_, '_>, broken: Vec<String>) {
    for rule in broken {
        at.invalid(errors, rule);
    }
}

/// A text that must be there and obey a rule.
pub(crate) fn required_name(errors: &mut Errors, at: &At<'_, '_>, rule: fn(&str) -> Vec<String>) {
    if at.str().is_empty() {
        at.required(errors, "");
    } else {
        rules(errors, at, rule(at.str()));
    }
}

/// Rules for `metadata`: names, labels, annotations, owners, finalizers.
/// `name_rule` is the kind's own rule for names.
pub fn validate(
    errors: &mut Errors,
    meta: &At<'_, '_>,
    namespaced: bool,
    name_rule: fn(&str) -> Vec<String>,
) {
    validate_generic(errors, meta, namespaced, name_rule);
    standard_finalizers(errors, &meta.get("finalizers"));
}

/// The rules of the machinery alone: kinds that upstream keeps outside of `core` and its like let
/// finalizers have any qualified name.
pub fn validate_generic(
    errors: &mut Errors,
    meta: &At<'_, '_>,
    namespaced: bool,
    name_rule: fn(&str) -> Vec<String>,
) {
    let name = meta.get("name");
    let generate = meta.get("generateName");
    if !generate.str().is_empty() {
        // What follows the prefix starts with a letter or digit, so a final
        // dash is fine.
        let prefix = generate.str();
        let masked = prefix.strip_suffix('-').map(|p| format!("{p}a"));
        rules(
            errors,
            &generate,
            name_rule(masked.as_deref().unwrap_or(prefix)),
        );
    }
    if name.str().is_empty() {
        name.required(errors, "name or generateName is required");
    } else {
        rules(errors, &name, name_rule(name.str()));
    }
    let namespace = meta.get("namespace");
    if namespaced {
        required_name(errors, &namespace, names::dns1123_label);
    } else if !namespace.str().is_empty() {
        namespace.forbidden(errors, "not allowed on this type");
    }
    labels(errors, &meta.get("labels"));
    annotations(errors, &meta.get("annotations"));
    owners(errors, &meta.get("ownerReferences"));
    finalizers(errors, &meta.get("finalizers"));
}

/// Owners; upstream reports them without an index.
fn owners(errors: &mut Errors, at: &At<'_, '_>) {
    let mut controller = String::new();
    for owner in at.items() {
        let fields = [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ];
        for (field, rule) in fields {
            let text = owner.get(field).str();
            // `a/b/c` is no version either.
            let version = if field == "apiVersion" && text.matches('/').count() > 1 {
                ""
            } else {
                text
            };
            if version.is_empty() {
                let shown = format!("{text:?}");
                let path = at.path().field(field);
                errors.push(FieldError {
                    path,
                    kind: ErrorKind::Invalid,
                    value: Some(shown.into()),
                    detail: rule.into(),
                });
            }
        }
        let (version, kind) = (owner.get("apiVersion"), owner.get("kind"));
        if (version.str(), kind.str()) == ("v1", "Event") {
            let shown = crate::field::shown(owner.value());
            let rule = "/v1, Kind=Event is disallowed from being an owner";
            at.error_value(errors, ErrorKind::Invalid, shown, rule);
        }
        if owner.get("controller").is_true() {
            let this = format!("{}/{}", kind.str(), owner.get("name").str());
            if controller.is_empty() {
                controller = this;
            } else {
                at.invalid(errors, format!("Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {this}"));
            }
        }
    }
}

/// Finalizers: qualified names.
fn finalizers(errors: &mut Errors, at: &At<'_, '_>) {
    let mut texts = Vec::new();
    for finalizer in at.items() {
        let text = finalizer.str();
        for rule in names::qualified_name(text) {
            at.error_value(errors, ErrorKind::Invalid, format!("{text:?}"), rule);
        }
        texts.push(text);
    }
    if texts.contains(&"orphan") && texts.contains(&"foregroundDeletion") {
        let rule = "finalizer orphan and foregroundDeletion cannot be both set";
        at.invalid(errors, rule);
    }
}

/// Finalizers: a standard one, or one with a domain.
fn standard_finalizers(errors: &mut Errors, at: &At<'_, '_>) {
    for finalizer in at.items() {
        let text = finalizer.str();
        let standard = ["kubernetes", "orphan", "foregroundDeletion"].contains(&text);
        if !standard && !text.contains('/') {
            finalizer.invalid(
                errors,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

/// A map of labels.
pub fn labels(errors: &mut Errors, at: &At<'_, '_>) {
    for (key, value) in at.entries() {
        for rule in names::qualified_name(key) {
            at.error_value(errors, ErrorKind::Invalid, format!("{key:?}"), rule);
        }
        for rule in names::label_value(value.str()) {
            at.error_value(
                errors,
                ErrorKind::Invalid,
                format!("{:?}", value.str()),
                rule,
            );
        }
    }
}

/// A map of annotations.
pub fn annotations(errors: &mut Errors, at: &At<'_, '_>) {
    let mut bytes = 0;
    for (key, value) in at.entries() {
        for rule in names::qualified_name(&key.to_lowercase()) {
            at.error_value(errors, ErrorKind::Invalid, format!("{key:?}"), rule);
        }
        bytes += key.len() + value.str().len();
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        let rule = format!("may not be more than {ANNOTATIONS_MAX_BYTES} bytes");
        at.error(errors, ErrorKind::TooLong, rule);
    }
}

/// A `metav1.LabelSelector`.
pub fn label_selector(errors: &mut Errors, at: &At<'_, '_>) {
    labels(errors, &at.get("matchLabels"));
    for expression in at.get("matchExpressions").items() {
        let key = expression.get("key");
        let values = expression.get("values");
        let operator = expression.get("operator");
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                values.required(
                    errors,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.forbidden(
                    errors,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid(errors, "not a valid selector operator"),
        }
        rules(errors, &key, names::qualified_name(key.str()));
        for value in values.items() {
            rules(errors, &value, names::label_value(value.str()));
        }
    }
}
