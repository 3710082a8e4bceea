//! What the kinds that make pods from a template have in common.

use serde_json::{Map, Value, json};

use crate::field::{ErrorKind, Errors};
use crate::meta;
use crate::pod;
use crate::selector::LabelSelector;
use crate::view::At;

/// Rule of a number or percentage that is a text without `%`.
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// Sets a field that is absent or `null`.
pub(super) fn set(object: &mut Map<String, Value>, name: &str, value: Value) {
    if object.get(name).is_none_or(Value::is_null) {
        object.insert(name.to_owned(), value);
    }
}

/// Sets a text that is absent or empty.
pub(super) fn set_text(object: &mut Map<String, Value>, name: &str, value: &str) {
    if object
        .get(name)
        .is_none_or(|v| v.is_null() || v.as_str() == Some(""))
    {
        object.insert(name.to_owned(), value.into());
    }
}

/// The spec of an object, made where there is none.
pub(super) fn spec_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let spec = object.as_object_mut()?.entry("spec");
    let spec = spec.or_insert_with(|| json!({}));
    if spec.is_null() {
        *spec = json!({});
    }
    spec.as_object_mut()
}

/// Whether an object's labels are absent or empty.
pub(super) fn has_no_labels(object: &Value) -> bool {
    object
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .is_none_or(Map::is_empty)
}

/// The labels of `spec.template`, if there are any.
pub(super) fn template_labels(object: &Value) -> Option<Value> {
    let labels = object.pointer("/spec/template/metadata/labels")?;
    let some = labels.as_object().is_some_and(|l| !l.is_empty());
    some.then(|| labels.clone())
}

/// Sets `metadata.labels`.
pub(super) fn set_labels(object: &mut Value, labels: Value) {
    if let Some(object) = object.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("labels".into(), labels);
        }
    }
}

/// The defaults of `spec.template` where upstream holds it by value: there always is one.
pub(super) fn default_template(spec: &mut Map<String, Value>) {
    set(spec, "template", json!({}));
    default_given_template(spec);
}

/// The defaults of `spec.template` where upstream holds it by pointer.
pub(super) fn default_given_template(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(template)) = spec.get_mut("template") {
        set(template, "spec", json!({}));
    }
    if let Some(template) = spec.get_mut("template") {
        pod::default_template(template);
    }
}

/// An integer that may be absent and is not negative.
pub(super) fn not_negative(errors: &mut Errors, at: &At<'_, '_>) {
    if at.int().is_some_and(|n| n < 0) {
        at.invalid(errors, "must be greater than or equal to 0");
    }
}

/// A number that is not negative, or a percentage.
pub(super) fn int_or_percent(errors: &mut Errors, at: &At<'_, '_>) {
    match at.value() {
        Value::String(text) if percent(text).is_none() => at.invalid(errors, PERCENT),
        Value::Number(_) => not_negative(errors, at),
        _ => {}
    }
}

/// A percentage is at most 100%.
pub(super) fn at_most_100_percent(errors: &mut Errors, at: &At<'_, '_>) {
    if percent(at.str()).is_some_and(|n| n > 100) {
        at.invalid(errors, "must not be greater than 100%");
    }
}

/// The number of `12%`.
fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().unwrap_or(i64::MAX))
}

/// The number in a number or percentage.
pub(super) fn number(at: &At<'_, '_>) -> i64 {
    at.int().or_else(|| percent(at.str())).unwrap_or(0)
}

/// A required label selector that is not empty, and the selector if it reads.
pub(super) fn selector(errors: &mut Errors, at: &At<'_, '_>, empty: &str) -> Option<LabelSelector> {
    if at.is_none() {
        at.required(errors, "");
        return LabelSelector::from_value(at.value()).ok();
    }
    meta::label_selector(errors, at);
    if at.get("matchLabels").is_empty() && at.get("matchExpressions").is_empty() {
        at.invalid(errors, empty);
    }
    let selector = LabelSelector::from_value(at.value()).ok();
    if selector.is_none() {
        at.invalid(errors, "invalid label selector");
    }
    selector
}

/// A pod template whose labels a selector matches.
pub(super) fn template_matches(
    errors: &mut Errors,
    template: &At<'_, '_>,
    selector: &LabelSelector,
) {
    let metadata = template.get("metadata");
    let labels = metadata.get("labels");
    if !selector.is_everything() && !selector.matches(labels.map()) {
        let shown = if labels.is_none() {
            "null".into()
        } else {
            crate::field::shown(labels.value())
        };
        let rule = "`selector` does not match template `labels`";
        labels.error_value(errors, ErrorKind::Invalid, shown, rule);
    }
}

/// A pod template of pods that always run: `owner` is the kind's name.
pub(super) fn running_template(
    errors: &mut Errors,
    template: &At<'_, '_>,
    selector: &LabelSelector,
    owner: &str,
) {
    template_matches(errors, template, selector);
    pod::validate_template(errors, template);
    let spec = template.get("spec");
    let policy = spec.get("restartPolicy");
    if policy.str() != "Always" {
        policy.unsupported(errors, &["Always"]);
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.is_some() {
        deadline.forbidden(
            errors,
            format!("activeDeadlineSeconds in {owner} is not Supported"),
        );
    }
}

/// A field that an update leaves as it was.
pub(super) fn immutable(errors: &mut Errors, new: &At<'_, '_>, old: Option<&Value>) {
    if *new.value() != *old.unwrap_or(&Value::Null) {
        // Upstream prints a pointer to nothing as a text.
        let shown = match new.value() {
            Value::Null => crate::field::shown(&json!("null")),
            value => crate::field::shown(value),
        };
        new.error_value(errors, ErrorKind::Invalid, shown, "field is immutable");
    }
}
