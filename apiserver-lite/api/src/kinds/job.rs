//! Job (`batch`): upstream's `pkg/apis/batch/v1/defaults.go`, `validation.go`
//! and `pkg/registry/batch/job/strategy.go`.

use serde_json::{Map, Value, json};

use super::workload::{
    default_template, has_no_labels, immutable, not_negative, set, set_labels, spec_mut,
    template_labels, template_matches,
};
use super::{Rules, counts};
use crate::field::{ErrorKind, Errors, FieldError};
use crate::selector::LabelSelector;
use crate::view::At;
use crate::{meta, names, pod};

pub(super) const RULES: Rules = Rules {
    default,
    validate,
    validate_update,
    prepare_create,
    ..Rules::NONE
};

/// Most pods of an Indexed Job at once (`maxParallelismForIndexedJob`).
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
/// Most rules of a pod failure policy.
const FAILURE_RULES_MAX_COUNT: usize = 20;

/// Labels by which a Job's pods are told, each in its old form too.
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

pub(super) fn default(object: &mut Value) {
    let labels = template_labels(object);
    let Some(spec) = spec_mut(object) else { return };
    default_template(spec);
    let absent = |spec: &Map<String, Value>, name: &str| spec.get(name).is_none_or(Value::is_null);
    if absent(spec, "completions") && absent(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    set(spec, "parallelism", json!(1));
    let per_index = !absent(spec, "backoffLimitPerIndex");
    let limit = if per_index { i32::MAX } else { 6 };
    set(spec, "backoffLimit", json!(limit));
    set(spec, "completionMode", json!("NonIndexed"));
    set(spec, "suspend", json!(false));
    let policy = if absent(spec, "podFailurePolicy") {
        "TerminatingOrFailed"
    } else {
        "Failed"
    };
    set(spec, "podReplacementPolicy", json!(policy));
    set(spec, "manualSelector", json!(false));
    let rules = spec
        .get_mut("podFailurePolicy")
        .and_then(|p| p.get_mut("rules")?.as_array_mut());
    for rule in rules.into_iter().flatten() {
        let patterns = rule
            .get_mut("onPodConditions")
            .and_then(Value::as_array_mut);
        for pattern in patterns
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            set(pattern, "status", json!("True"));
        }
    }
    if let Some(labels) = labels
        && has_no_labels(object)
    {
        set_labels(object, labels);
    }
}

/// Makes the selector and the template's labels. The object has its name and
/// uid by now.
fn prepare_create(object: &mut Value) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or_default().to_owned();
    let uid = text("/metadata/uid").unwrap_or_default().to_owned();
    // Upstream's default gives a job the very labels of its template, so that what is added to
    // one is added to both.
    let shared = object["metadata"]["labels"].is_object()
        && template_labels(object).as_ref() == Some(&object["metadata"]["labels"]);
    let Some(spec) = spec_mut(object) else { return };
    if spec.get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    set(spec, "template", json!({}));
    let labels = spec
        .get_mut("template")
        .and_then(Value::as_object_mut)
        .and_then(|t| child(t, "metadata"))
        .and_then(|m| child(m, "labels"));
    if let Some(labels) = labels {
        for key in NAME_LABELS {
            set(labels, key, name.as_str().into());
        }
        for key in UID_LABELS {
            set(labels, key, uid.as_str().into());
        }
    }
    let matching = child(spec, "selector").and_then(|s| child(s, "matchLabels"));
    if let Some(matching) = matching {
        set(matching, UID_LABELS[1], uid.into());
    }
    // Upstream's defaults run once more on what the store gives back.
    if let Some(labels) = template_labels(object)
        && (shared || has_no_labels(object))
    {
        set_labels(object, labels);
    }
}

/// The object in a field, made where there is none.
fn child<'a>(object: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    set(object, name, json!({}));
    object.get_mut(name)?.as_object_mut()
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
    generated_selector(&mut errors, &root);
    job_spec(&mut errors, &spec);
    let selector = spec.get("selector");
    if selector.is_none() {
        selector.required(&mut errors, "");
    } else {
        meta::label_selector(&mut errors, &selector);
    }
    if let Ok(selector) = LabelSelector::from_value(selector.value()) {
        template_matches(&mut errors, &spec.get("template"), &selector);
    }
    let completions = spec.get("completions").int().unwrap_or(0);
    if spec.get("completionMode").str() == "Indexed" && completions > 0 {
        // A pod's host name is the Job's name and the index.
        let name = root.get("metadata");
        let name = name.get("name");
        let hostname = format!("{}-{}", name.str(), completions - 1);
        for rule in names::dns1123_label(&hostname) {
            let rule =
                format!("will not able to create pod with invalid DNS label {hostname:?}: {rule}");
            name.invalid(&mut errors, rule);
        }
    }
    errors.into_vec()
}

fn generated_selector(errors: &mut Errors, root: &At<'_, '_>) {
    let spec = root.get("spec");
    let selector = spec.get("selector");
    if spec.get("manualSelector").is_true() || selector.is_none() {
        return;
    }
    let metadata = root.get("metadata");
    let (uid, name) = (metadata.get("uid"), metadata.get("name"));
    if uid.str().is_empty() {
        uid.required(errors, "");
    }
    let template = spec.get("template");
    let template = template.get("metadata");
    let labels = template.get("labels");
    let mut expected = Map::new();
    for (keys, value) in [(UID_LABELS, uid.str()), (NAME_LABELS, name.str())] {
        for key in keys {
            expected.insert(key.to_owned(), value.into());
            let label = labels.key(key);
            let rule = format!("must be '{value}'");
            if label.is_none() {
                label.required(errors, rule);
            } else if label.str() != value {
                label.invalid(errors, rule);
            }
        }
    }
    let matches = LabelSelector::from_value(selector.value());
    if matches.is_ok_and(|s| !s.matches(Some(&expected))) {
        selector.invalid(errors, "`selector` not auto-generated");
    }
}

/// `validateJobSpec`, for Jobs and the templates of CronJobs.
pub(super) fn job_spec(errors: &mut Errors, spec: &At<'_, '_>) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        not_negative(errors, &spec.get(name));
    }
    let (mode, parallelism) = (spec.get("completionMode"), spec.get("parallelism"));
    let per_index = spec.get("backoffLimitPerIndex");
    match mode.str() {
        "Indexed" => {
            let completions = spec.get("completions");
            if completions.is_none() {
                completions.required(errors, "when completion mode is Indexed");
            }
            if parallelism
                .int()
                .is_some_and(|n| n > INDEXED_PARALLELISM_MAX)
            {
                let rule = format!(
                    "must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed"
                );
                parallelism.invalid(errors, rule);
            }
        }
        "NonIndexed" | "" => {
            if per_index.is_some() {
                per_index.invalid(errors, "requires indexed completion mode");
            }
        }
        _ => mode.unsupported(errors, &["Indexed", "NonIndexed"]),
    }
    if spec.get("maxFailedIndexes").is_some() && per_index.is_none() {
        per_index.required(errors, "when maxFailedIndexes is specified");
    }
    let replacement = spec.get("podReplacementPolicy");
    let failure = spec.get("podFailurePolicy");
    let supported: &[&str] = if failure.is_some() {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    if replacement.is_some() && !supported.contains(&replacement.str()) {
        replacement.unsupported(errors, supported);
    }
    failure_policy(errors, spec, &failure);
    let template = spec.get("template");
    pod::validate_template(errors, &template);
    let pod_spec = template.get("spec");
    let policy = pod_spec.get("restartPolicy");
    match policy.str() {
        "" | "Always" => policy.required(errors, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if failure.is_some() => policy.invalid(
            errors,
            "only \"Never\" is supported when podFailurePolicy is specified",
        ),
        "OnFailure" | "Never" => {}
        _ => policy.unsupported(errors, &["Never", "OnFailure"]),
    }
}

fn failure_policy(errors: &mut Errors, spec: &At<'_, '_>, policy: &At<'_, '_>) {
    let list = policy.get("rules");
    if list.len() > FAILURE_RULES_MAX_COUNT {
        let rule = format!("must have at most {FAILURE_RULES_MAX_COUNT} items");
        list.error_value(errors, ErrorKind::TooMany, list.len().to_string(), rule);
    }
    for rule in list.items() {
        let action = rule.get("action");
        match action.str() {
            "" => action.required(
                errors,
                "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"",
            ),
            "FailIndex" if spec.get("backoffLimitPerIndex").is_none() => {
                action.invalid(errors, "requires the backoffLimitPerIndex to be set");
            }
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            _ => action.unsupported(errors, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_some() && !conditions.is_empty() {
            rule.invalid(
                errors,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            );
        }
        if codes.is_none() && conditions.is_empty() {
            rule.invalid(
                errors,
                "specifying one of OnExitCodes and OnPodConditions is required",
            );
        }
        if codes.is_some() {
            exit_codes(errors, &codes);
        }
    }
}

fn exit_codes(errors: &mut Errors, codes: &At<'_, '_>) {
    let (operator, values) = (codes.get("operator"), codes.get("values"));
    if !matches!(operator.str(), "In" | "NotIn") {
        operator.unsupported(errors, &["In", "NotIn"]);
    }
    if values.is_empty() {
        values.invalid(errors, "at least one value is required");
    }
    for value in values.items() {
        if operator.str() == "In" && value.int() == Some(0) {
            value.invalid(errors, "must not be 0 for the In operator");
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let spec = root.get("spec");
    let before = |name: &str| old.get("spec").and_then(|s| s.get(name));
    for name in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(&mut errors, &spec.get(name), before(name));
    }
    let completions = spec.get("completions");
    // An Indexed Job is elastic: both numbers change together.
    let elastic = spec.get("completionMode").str() == "Indexed"
        && completions.is_some()
        && completions.value() == spec.get("parallelism").value()
        && before("completions").is_some_and(|c| !c.is_null())
        && before("completions") == before("parallelism");
    if !elastic {
        immutable(&mut errors, &completions, before("completions"));
    }
    let template = spec.get("template");
    let old_template = before("template").cloned().unwrap_or_default();
    let suspended = before("suspend") == Some(&Value::Bool(true));
    let started = old
        .pointer("/status/startTime")
        .is_some_and(|t| !t.is_null());
    if suspended && !started {
        let (mut kept, mut was) = (template.value().clone(), old_template);
        without_directives(&mut kept);
        without_directives(&mut was);
        if kept != was {
            immutable(&mut errors, &template, None);
        }
    } else {
        immutable(&mut errors, &template, Some(&old_template));
    }
    let mut errors = errors.into_vec();
    errors.extend(counts::job(new, old));
    errors
}

/// Takes from a template what may still change before a suspended Job starts.
fn without_directives(template: &mut Value) {
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("labels");
        metadata.remove("annotations");
    }
    let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for name in ["nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(name);
    }
    if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
        if affinity.is_empty() {
            spec.remove("affinity");
        }
    }
}
