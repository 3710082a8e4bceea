//! Event (`v1` and `events.k8s.io`): upstream's `ValidateEventCreate` and
//! `ValidateEventUpdate`.

use serde_json::Value;

use super::Rules;
use super::rbac::path_segment;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

/// Longest `reason`, `action` and `reportingInstance`, in characters.
const WORD_CHARS_MAX: usize = 128;
/// Longest note of a new-style event, in characters.
const NOTE_CHARS_MAX: usize = 1024;

/// The core view.
pub(super) const RULES: Rules = Rules {
    validate: validate_core,
    ..Rules::NONE
};

/// The view of `events.k8s.io`.
pub(super) const RULES_EVENTS: Rules = Rules {
    validate: validate_new,
    validate_update: validate_update_new,
    ..Rules::NONE
};

fn namespace(errors: &mut Errors, root: &At<'_, '_>, object: &str) {
    let metadata = root.get("metadata");
    let own = metadata.get("namespace").str();
    let reference = root.get(object);
    let theirs = reference.get("namespace").value();
    let is_new = root.get("eventTime").is_some();
    let fits = match theirs.as_str().unwrap_or("") {
        // Events about cluster-wide objects live in "default".
        "" => own.is_empty() || own == "default" || is_new && own == "kube-system",
        theirs => is_new || own == theirs,
    };
    if !fits {
        // Both views have the core's name for it.
        let reference = root.get("involvedObject");
        let place = reference.get("namespace").with_value(theirs);
        place.invalid(errors, "does not match event.namespace");
    }
}

fn word(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().is_empty() {
        at.required(errors, "");
    } else if at.str().chars().count() > WORD_CHARS_MAX {
        let rule = format!("can have at most {WORD_CHARS_MAX} characters");
        at.error_value(errors, crate::field::ErrorKind::Invalid, "\"\"", rule);
    }
}

fn new_style(errors: &mut Errors, root: &At<'_, '_>, controller: &str, note: &str) {
    let controller = root.get(controller);
    if controller.str().is_empty() {
        controller.required(errors, "");
    }
    meta::rules(errors, &controller, names::qualified_name(controller.str()));
    for field in ["reportingInstance", "action", "reason"] {
        word(errors, &root.get(field));
    }
    let note = root.get(note);
    if note.str().chars().count() > NOTE_CHARS_MAX {
        let rule = format!("can have at most {NOTE_CHARS_MAX} characters");
        note.error_value(errors, crate::field::ErrorKind::Invalid, "\"\"", rule);
    }
}

fn validate_core(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    namespace(&mut errors, &root, "involvedObject");
    if root.get("eventTime").is_some() {
        new_style(&mut errors, &root, "reportingComponent", "message");
    }
    // Upstream looks at the metadata of what is right otherwise.
    if errors.is_empty() {
        meta::validate_generic(&mut errors, &root.get("metadata"), true, path_segment);
    }
    errors.into_vec()
}

fn validate_new(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    namespace(&mut errors, &root, "regarding");
    let time = root.get("eventTime");
    if time.is_none() {
        time.required(&mut errors, "");
    } else {
        new_style(&mut errors, &root, "reportingController", "note");
    }
    let kind = root.get("type");
    // Upstream shows no value in these, and the core's names.
    let mut broken = |at: At<'_, '_>, rule: &str| {
        at.error_value(&mut errors, ErrorKind::Invalid, "\"\"", rule);
    };
    if !["Normal", "Warning"].contains(&kind.str()) {
        broken(kind, &format!("has invalid value: {}", kind.str()));
    }
    for (field, core) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        let at = root.get(field);
        let set = match at.value() {
            Value::Object(map) => !map.is_empty(),
            value => !value.is_null() && value.as_i64() != Some(0),
        };
        if set {
            broken(at.renamed(core), "needs to be unset");
        }
    }
    let series = root.get("series");
    if series.is_some() {
        let repeated = series.get("count");
        if repeated.int().unwrap_or(0) < 2 {
            let shown = format!("{:?}", repeated.int().unwrap_or(0).to_string());
            repeated.error_value(
                &mut errors,
                ErrorKind::Invalid,
                shown,
                "should be at least 2",
            );
        }
        if series.get("lastObservedTime").is_none() {
            series.get("lastObservedTime").required(&mut errors, "");
        }
    }
    errors.into_vec()
}

fn validate_update_new(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let fixed = [
        "regarding",
        "reason",
        "note",
        "type",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
        "eventTime",
    ];
    for field in fixed {
        let at = root.get(field);
        let before = old.get(field).unwrap_or(&Value::Null);
        if at.value() != before {
            at.invalid(&mut errors, "field is immutable");
        }
    }
    errors.into_vec()
}
