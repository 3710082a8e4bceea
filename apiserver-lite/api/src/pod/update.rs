//! The rules for changes of a pod (`ValidatePodUpdate` and `ValidatePodStatusUpdate` of upstream's
//! `pkg/apis/core/validation`, release 1.36).

use serde_json::{Map, Value, json};

use crate::field::{ErrorKind, Errors, FieldError, FieldPath};
use crate::names;
use crate::view::At;

/// Marks the API's image of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What an update of a pod's spec may change, in upstream's words.
const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Conditions that the system sets and whose names are not checked.
const SYSTEM_CONDITIONS: [&str; 3] = ["PodScheduled", "Ready", "Initialized"];

/// Every rule that a change of a pod or of its status breaks.
#[must_use]
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    mirror(&mut errors, &root.get("metadata"), old);
    spec(&mut errors, &root.get("spec"), &old["spec"]);
    conditions(&mut errors, &root);
    let status = root.get("status");
    let addresses = status.get("podIPs");
    if old["status"]["podIPs"] != *addresses.value() {
        pod_ips(&mut errors, &addresses);
    }
    if old["spec"]["restartPolicy"] != "Always" {
        for list in ["containerStatuses", "initContainerStatuses"] {
            transitions(&mut errors, &status.get(list), old, list);
        }
    }
    errors.into_vec()
}

fn mirror(errors: &mut Errors, metadata: &At<'_, '_>, old: &Value) {
    let before = old["metadata"]["annotations"].get(MIRROR);
    let annotations = metadata.get("annotations");
    let now = annotations.key(MIRROR);
    match before {
        None if now.is_some() => now.forbidden(errors, "may not add mirror pod annotation"),
        Some(before) if before != now.value() => {
            now.forbidden(errors, "may not remove or update mirror pod annotation");
        }
        _ => {}
    }
}

fn list<'a>(spec: &'a Value, name: &str) -> &'a [Value] {
    spec[name].as_array().map_or(&[], Vec::as_slice)
}

fn spec(errors: &mut Errors, new: &At<'_, '_>, old: &Value) {
    if new.value() == old {
        return;
    }
    for name in ["containers", "initContainers"] {
        let containers = new.get(name);
        if containers.len() != list(old, name).len() {
            containers.forbidden(errors, "pod updates may not add or remove containers");
            return;
        }
        for container in containers.items() {
            let image = container.get("image");
            if image.str().is_empty() {
                image.required(errors, "");
            } else if image.str().trim() != image.str() {
                image.invalid(errors, "must not have leading or trailing whitespace");
            }
        }
    }
    if !deadline(errors, &new.get("activeDeadlineSeconds"), old) {
        return;
    }
    tolerations(errors, &new.get("tolerations"), old);
    let changed = changes(new.value(), old);
    if !changed.is_empty() {
        let rule = format!(
            "pod updates may not change fields other than {CHANGEABLE}\nchanged: {}",
            changed.join(", ")
        );
        new.forbidden(errors, rule);
    }
}

/// A deadline may be set, and made earlier. False where nothing else is checked.
fn deadline(errors: &mut Errors, new: &At<'_, '_>, old: &Value) -> bool {
    let before = old["activeDeadlineSeconds"].as_i64();
    match (new.int(), before) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            new.invalid(errors, names::range(0, i32::MAX.into()));
            false
        }
        (Some(seconds), Some(before)) if before < seconds => {
            new.invalid(errors, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            let rule = "must not update from a positive integer to nil value";
            new.error_value(errors, ErrorKind::Invalid, "null", rule);
            true
        }
        _ => true,
    }
}

fn tolerations(errors: &mut Errors, new: &At<'_, '_>, old: &Value) {
    let lasting = |toleration: &Value| {
        let mut map = toleration.as_object().cloned().unwrap_or_default();
        map.remove("tolerationSeconds");
        map
    };
    let now: Vec<Map<String, Value>> = new.items().map(|t| lasting(t.value())).collect();
    let kept = list(old, "tolerations")
        .iter()
        .all(|t| now.contains(&lasting(t)));
    if !kept {
        new.forbidden(
            errors,
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// The fields of a spec that changed and may not.
fn changes(new: &Value, old: &Value) -> Vec<String> {
    let mut new = new.clone();
    for name in ["containers", "initContainers"] {
        let images = list(old, name).iter().map(|c| c.get("image"));
        let containers = new.get_mut(name).and_then(Value::as_array_mut);
        let containers = containers.into_iter().flatten();
        for (container, image) in containers.zip(images) {
            put(container, "image", image);
        }
    }
    // Ephemeral containers have a path of their own; what comes by this one was refused there.
    for name in ["activeDeadlineSeconds", "tolerations"] {
        put(&mut new, name, old.get(name));
    }
    let grace = |spec: &Value| spec["terminationGracePeriodSeconds"].as_i64();
    if grace(old).is_some_and(|s| s < 0) && grace(&new) == Some(1) {
        put(
            &mut new,
            "terminationGracePeriodSeconds",
            old.get("terminationGracePeriodSeconds"),
        );
    }
    gates(&mut new, old);
    let mut names: Vec<&String> = new.as_object().into_iter().flat_map(Map::keys).collect();
    names.extend(old.as_object().into_iter().flat_map(Map::keys));
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| new.get(*name) != old.get(*name))
        .map(|name| format!("spec.{name}"))
        .collect()
}

fn put(object: &mut Value, name: &str, value: Option<&Value>) {
    if let Some(map) = object.as_object_mut() {
        match value {
            Some(value) => drop(map.insert(name.to_owned(), value.clone())),
            None => drop(map.remove(name)),
        }
    }
}

/// Gates may be taken away, and while there are some, a pod's place may be narrowed (KEP-3838).
fn gates(new: &mut Value, old: &Value) {
    let before = list(old, "schedulingGates");
    if before.is_empty() {
        return;
    }
    let fewer = list(new, "schedulingGates")
        .iter()
        .all(|g| before.contains(g));
    if fewer {
        put(new, "schedulingGates", old.get("schedulingGates"));
    }
    let empty = json!({});
    let (now, was) = (
        new.get("nodeSelector"),
        old.get("nodeSelector").unwrap_or(&empty),
    );
    let narrower = was
        .as_object()
        .into_iter()
        .flatten()
        .all(|(k, v)| now.and_then(|n| n.get(k)) == Some(v));
    if narrower {
        put(new, "nodeSelector", old.get("nodeSelector"));
    }
    let required = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    if old.pointer(required).is_none()
        && let Some(affinity) = new.get_mut("affinity")
    {
        put(
            affinity,
            "nodeAffinity",
            old["affinity"].get("nodeAffinity"),
        );
        if affinity.as_object().is_some_and(Map::is_empty) {
            put(new, "affinity", old.get("affinity"));
        }
    }
}

/// Names of conditions. Upstream reports them below `metadata`.
fn conditions(errors: &mut Errors, root: &At<'_, '_>) {
    for (i, condition) in root.get("status").get("conditions").items().enumerate() {
        let kind = condition.get("type");
        if SYSTEM_CONDITIONS.contains(&kind.str()) {
            continue;
        }
        for rule in names::qualified_name(kind.str()) {
            errors.push(FieldError {
                path: FieldPath::default()
                    .field("metadata")
                    .field("conditions")
                    .index(i)
                    .field("Type"),
                kind: ErrorKind::Invalid,
                value: Some(format!("{:?}", kind.str()).into()),
                detail: rule.into(),
            });
        }
    }
}

fn pod_ips(errors: &mut Errors, at: &At<'_, '_>) {
    let mut families = Vec::new();
    for address in at.items() {
        let ip = address.get("ip");
        for rule in names::ip(ip.str()) {
            address.error_value(errors, ErrorKind::Invalid, format!("{:?}", ip.str()), rule);
        }
        families.push(ip.str().contains(':'));
    }
    let (count, v6) = (families.len(), families.iter().filter(|v6| **v6).count());
    if count > 2 || (count == 2 && v6 != 1) {
        at.invalid(errors, "may specify no more than one IP for each IP family");
    }
}

/// A container that ended for good does not run again.
fn transitions(errors: &mut Errors, new: &At<'_, '_>, old: &Value, name: &str) {
    let on_failure = old["spec"]["restartPolicy"] == "OnFailure";
    for (i, before) in list(&old["status"], name).iter().enumerate() {
        let Some(ended) = before
            .pointer("/state/terminated")
            .filter(|t| t.is_object())
        else {
            continue;
        };
        if on_failure && ended["exitCode"].as_i64().unwrap_or(0) != 0 {
            continue;
        }
        let revived = new.items().any(|status| {
            *status.get("name").value() == before["name"]
                && status.get("state").get("terminated").is_none()
        });
        if revived {
            errors.push(FieldError {
                path: new.path().index(i).field("state"),
                kind: ErrorKind::Forbidden,
                value: None,
                detail: "may not be transitioned to non-terminated state".into(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    fn told(new: &Value, old: &Value) -> Vec<String> {
        let errors = validate_update(new, old);
        errors.iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn only_images_deadlines_and_tolerations_change() {
        let old = pod(json!({"containers": [{"name": "c", "image": "a"}],
            "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 5}]}));
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = json!("b");
        new["spec"]["activeDeadlineSeconds"] = json!(5);
        new["spec"]["tolerations"] = json!([{"key": "x"}, {"key": "k", "operator": "Exists"}]);
        assert!(told(&new, &old).is_empty());
        new["spec"]["nodeName"] = json!("n");
        let errors = told(&new, &old);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].starts_with("spec: Forbidden: pod updates may not change fields other than ")
        );
        assert!(
            errors[0].ends_with("\nchanged: spec.nodeName"),
            "{errors:?}"
        );
        let fewer = pod(json!({"containers": [], "tolerations": []}));
        assert_eq!(
            told(&fewer, &old),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }

    #[test]
    fn gated_pods_may_be_narrowed() {
        let old = pod(json!({"containers": [{"name": "c", "image": "a"}],
            "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}}));
        let mut new = old.clone();
        new["spec"]["nodeSelector"]["c"] = json!("d");
        new["spec"]["affinity"] =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}});
        new["spec"]["schedulingGates"] = json!([]);
        assert!(told(&new, &old).is_empty());
        new["spec"]["nodeSelector"] = json!({});
        assert_eq!(told(&new, &old).len(), 1);
    }

    #[test]
    fn a_container_that_ended_stays_ended() {
        let mut old = pod(json!({"restartPolicy": "OnFailure", "containers": []}));
        old["status"] = json!({"containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0}}},
            {"name": "b", "state": {"terminated": {"exitCode": 1}}}]});
        let mut new = old.clone();
        for i in 0..2 {
            new["status"]["containerStatuses"][i]["state"] = json!({"running": {}});
        }
        assert_eq!(
            told(&new, &old),
            [
                "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
            ]
        );
    }
}
