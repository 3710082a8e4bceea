//! Namespace (`v1`): upstream's `ValidateNamespace` and namespace strategy.

use serde_json::{Value, json};

use super::Rules;
use crate::field::{Errors, FieldError};
use crate::view::At;
use crate::{meta, names};

/// The label that carries a namespace's name (KEP-2161).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer under which a namespace is emptied.
const FINALIZER: &str = "kubernetes";

pub(super) const RULES: Rules = Rules {
    default: name_label,
    validate,
    prepare_create,
    prepare_update,
    ..Rules::NONE
};

fn name_label(object: &mut Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    if !name.is_empty() {
        let labels = &mut object["metadata"]["labels"];
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(NAME_LABEL.into(), name.into());
        }
    }
}

fn prepare_create(object: &mut Value) {
    name_label(object);
    if object["spec"].is_null() {
        object["spec"] = json!({});
    }
    let finalizers = &mut object["spec"]["finalizers"];
    if finalizers.is_null() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == FINALIZER)
    {
        list.push(FINALIZER.into());
    }
}

/// Finalizers change through the subresource `finalize` only.
fn prepare_update(new: &mut Value, old: &Value) {
    name_label(new);
    let kept = old["spec"]["finalizers"].clone();
    if new["spec"].is_null() {
        new["spec"] = json!({});
    }
    if let Some(spec) = new["spec"].as_object_mut() {
        if kept.is_null() {
            spec.remove("finalizers");
        } else {
            spec.insert("finalizers".into(), kept);
        }
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, false, names::dns1123_label);
    let spec = root.get("spec");
    let finalizers = spec.get("finalizers");
    for item in finalizers.items() {
        // Upstream names the list, not the element.
        let finalizer = finalizers.with_value(item.value());
        let text = finalizer.str();
        meta::rules(&mut errors, &finalizer, names::qualified_name(text));
        let standard = ["kubernetes", "orphan", "foregroundDeletion"].contains(&text);
        if !text.contains('/') && !standard {
            finalizer.invalid(
                &mut errors,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    errors.into_vec()
}
