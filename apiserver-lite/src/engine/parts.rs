//! Which part of an object a write through a path may change: the split of spec and status.

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::resources::Resource;
use serde_json::Value;

use super::csr;
use super::policy::{self, Generation};

/// Keeps of the old object what a write to `part` ("" is the object itself) may not touch.
pub(crate) fn keep(resource: &Resource, part: &str, new: Value, old: &Value) -> Value {
    match part {
        "status" => status(resource, new, old),
        "approval" => csr::approval(new, old),
        "ephemeralcontainers" => one_field(new, old, &["spec", "ephemeralContainers"]),
        "resize" => resize(&new, old),
        // `finalize` is about the spec of a namespace.
        _ => main(resource, new, old),
    }
}

fn main(resource: &Resource, mut new: Value, old: &Value) -> Value {
    if policy::has_status(resource) {
        put(&mut new, "status", old.get("status").cloned());
    }
    if csr::is(resource) {
        put(&mut new, "spec", old.get("spec").cloned());
    }
    new
}

pub(super) fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(map) = object.as_object_mut() {
        match value {
            Some(value) => drop(map.insert(field.to_owned(), value)),
            None => drop(map.remove(field)),
        }
    }
}

fn status(resource: &Resource, mut new: Value, old: &Value) -> Value {
    let status = new.get_mut("status").map(Value::take);
    let mut metadata = new.get_mut("metadata").map(Value::take).unwrap_or_default();
    let gvk = &resource.gvk;
    match (gvk.group, gvk.kind) {
        ("apps", "Deployment") => put(
            &mut metadata,
            "labels",
            old["metadata"].get("labels").cloned(),
        ),
        ("", "Pod") => {
            let owners = old["metadata"].get("ownerReferences").cloned();
            put(&mut metadata, "ownerReferences", owners);
        }
        _ => {}
    }
    let mut merged = old.clone();
    put(&mut merged, "metadata", Some(metadata));
    put(&mut merged, "status", status);
    if csr::is(resource) {
        return csr::status(merged, old);
    }
    merged
}

fn one_field(mut new: Value, old: &Value, path: &[&str; 2]) -> Value {
    let [outer, inner] = path;
    let field = new[*outer].get_mut(*inner).map(Value::take);
    let revision = new["metadata"].get("resourceVersion").cloned();
    let mut merged = old.clone();
    put(&mut merged["metadata"], "resourceVersion", revision);
    put(&mut merged[*outer], inner, field);
    merged
}

/// `pods/resize` may change the resources of containers and their resize policy.
fn resize(new: &Value, old: &Value) -> Value {
    let mut merged = old.clone();
    let revision = new["metadata"].get("resourceVersion").cloned();
    put(&mut merged["metadata"], "resourceVersion", revision);
    for list in ["containers", "initContainers"] {
        let Some(containers) = merged["spec"].get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            let same = new["spec"][list]
                .as_array()
                .into_iter()
                .flatten()
                .find(|c| c["name"] == container["name"]);
            if let Some(same) = same {
                put(container, "resources", same.get("resources").cloned());
                put(container, "resizePolicy", same.get("resizePolicy").cloned());
            }
        }
    }
    if let Some(resources) = new["spec"].get("resources") {
        put(&mut merged["spec"], "resources", Some(resources.clone()));
    }
    merged
}

/// Rules about a part that the kind's own rules do not know.
pub(crate) fn check(resource: &Resource, part: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    if csr::is(resource) {
        return csr::check(part, new, old);
    }
    if part != "ephemeralcontainers" {
        return Vec::new();
    }
    let list = |object: &Value| {
        let list = object["spec"]["ephemeralContainers"].as_array();
        list.cloned().unwrap_or_default()
    };
    let (new, old) = (list(new), list(old));
    let path = FieldPath::default()
        .field("spec")
        .field("ephemeralContainers");
    let mut errors = Vec::new();
    for container in &old {
        let name = container["name"].as_str().unwrap_or("");
        let why = match new.iter().find(|c| c["name"] == container["name"]) {
            None => format!("existing ephemeral containers {name:?} may not be removed"),
            Some(same) if same != container => {
                format!("existing ephemeral containers {name:?} may not be changed")
            }
            Some(_) => continue,
        };
        errors.push(FieldError {
            path: path.clone(),
            kind: ErrorKind::Forbidden,
            value: None,
            detail: why.into(),
        });
    }
    errors
}

/// Whether a change raises the generation.
pub(crate) fn raises_generation(kind: Generation, new: &Value, old: &Value) -> bool {
    let differs = |field: &str| new.get(field) != old.get(field);
    match kind {
        Generation::None | Generation::Created => false,
        Generation::Spec => differs("spec"),
        Generation::SpecAndAnnotations => {
            differs("spec")
                || new["metadata"].get("annotations") != old["metadata"].get("annotations")
        }
        Generation::Body => {
            let body = |object: &Value| {
                let mut map = object.as_object().cloned().unwrap_or_default();
                map.remove("metadata");
                map.remove("status");
                map
            };
            body(new) != body(old)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_api::resources::by_plural;
    use serde_json::json;

    #[test]
    fn spec_and_status_are_apart() {
        let deployments = by_plural("apps", "v1", "deployments").unwrap();
        let old = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let new = json!({"metadata": {"labels": {"a": "2"}, "annotations": {"b": "c"}}, "spec": {"replicas": 2}, "status": {"replicas": 2}});
        let main = keep(deployments, "", new.clone(), &old);
        assert_eq!(
            (&main["spec"]["replicas"], &main["status"]["replicas"]),
            (&json!(2), &json!(1))
        );
        let status = keep(deployments, "status", new, &old);
        assert_eq!(
            (&status["spec"]["replicas"], &status["status"]["replicas"]),
            (&json!(1), &json!(2))
        );
        assert_eq!(
            status["metadata"],
            json!({"labels": {"a": "1"}, "annotations": {"b": "c"}})
        );
        let maps = by_plural("", "v1", "configmaps").unwrap();
        assert_eq!(
            keep(maps, "", json!({"data": {}}), &json!({"data": {"a": "b"}})),
            json!({"data": {}})
        );
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let pods = by_plural("", "v1", "pods").unwrap();
        let old = json!({"metadata": {}, "spec": {"nodeName": "n", "ephemeralContainers": [{"name": "a", "image": "x"}]}});
        let more = json!({"metadata": {}, "spec": {"nodeName": "m", "ephemeralContainers": [{"name": "a", "image": "x"}, {"name": "b"}]}});
        let merged = keep(pods, "ephemeralcontainers", more, &old);
        assert_eq!(merged["spec"]["nodeName"], "n");
        assert!(check(pods, "ephemeralcontainers", &merged, &old).is_empty());
        for bad in [json!([]), json!([{"name": "a", "image": "y"}])] {
            let bad = json!({"spec": {"ephemeralContainers": bad}});
            assert_eq!(check(pods, "ephemeralcontainers", &bad, &old).len(), 1);
        }
    }

    #[test]
    fn what_raises_the_generation() {
        let old =
            json!({"metadata": {"annotations": {"a": "1"}}, "spec": {"x": 1}, "status": {"y": 1}});
        let status =
            json!({"metadata": {"annotations": {"a": "1"}}, "spec": {"x": 1}, "status": {"y": 2}});
        let annotated =
            json!({"metadata": {"annotations": {"a": "2"}}, "spec": {"x": 1}, "status": {"y": 1}});
        for (kind, object, expected) in [
            (Generation::Spec, &status, false),
            (Generation::Body, &status, false),
            (Generation::Spec, &annotated, false),
            (Generation::SpecAndAnnotations, &annotated, true),
            (Generation::None, &annotated, false),
        ] {
            assert_eq!(raises_generation(kind, object, &old), expected, "{kind:?}");
        }
        assert!(raises_generation(
            Generation::Body,
            &json!({"endpoints": []}),
            &json!({})
        ));
    }
}
