//! Upstream's defaults for pods (`pkg/apis/core/v1/defaults.go` and the
//! `+default` markers of the API types, release 1.36).
//!
//! Fields that upstream holds by value take their default when they are zero
//! or empty, fields that it holds by pointer only when they are absent.

use serde_json::{Map, Value, json};

use super::resources::{sum_container_requests, supports_pod_level};
use crate::quantity::Quantity;

type Object = Map<String, Value>;

/// Fills in every default of a pod. Values of a wrong type are left alone, so
/// that validation can name them.
pub fn default(pod: &mut Value) {
    if let Some(pod) = pod.as_object_mut() {
        set(pod, "spec", json!({}));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    spec_defaults(spec);
    pod_only_defaults(spec);
}

/// Fills in every default of a pod template (`SetDefaults_PodSpec` and below).
/// What only pods get (requests from limits, host ports of the host's network,
/// service links) stays open until a pod is made from the template.
pub fn default_template(template: &mut Value) {
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        spec_defaults(spec);
    }
}

/// `Always` for images without tag and digest or with the tag `latest`, else
/// `IfNotPresent`.
#[must_use]
pub fn default_pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !image.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(Value::is_null)
}

/// Sets a field that upstream holds by pointer.
fn set(object: &mut Object, name: &str, value: Value) {
    if is_absent(object.get(name)) {
        object.insert(name.to_owned(), value);
    }
}

/// Sets a field that upstream holds by value.
fn set_zero(object: &mut Object, name: &str, value: Value) {
    let zero = match object.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(_) => false,
    };
    if zero {
        object.insert(name.to_owned(), value);
    }
}

fn child<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    object.get_mut(name)?.as_object_mut()
}

fn each<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    let items = object.get_mut(name).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn spec_defaults(spec: &mut Object) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, list).for_each(container_defaults);
    }
    if let Some(overhead) = child(spec, "overhead") {
        round_resources(overhead);
    }
    each(spec, "volumes").for_each(volume_defaults);
    set_zero(spec, "dnsPolicy", json!("ClusterFirst"));
    set_zero(spec, "restartPolicy", json!("Always"));
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set_zero(spec, "schedulerName", json!("default-scheduler"));
    // The older field is another name for the newer one, which counts.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|field| spec.get(*field)?.as_str().filter(|name| !name.is_empty()))
        .map(str::to_owned);
    if let Some(account) = account {
        spec.insert("serviceAccount".into(), account.as_str().into());
        spec.insert("serviceAccountName".into(), account.into());
    }
}

/// `SetDefaults_Pod`, and what upstream's strategy does for pods.
fn pod_only_defaults(spec: &mut Object) {
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in each(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set_zero(port, "hostPort", number);
                    }
                }
            }
        }
    }
    pod_level_requests(spec);
    set(spec, "enableServiceLinks", json!(true));
}

fn container_defaults(container: &mut Object) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = default_pull_policy(image);
    set_zero(container, "imagePullPolicy", json!(policy));
    set_zero(
        container,
        "terminationMessagePath",
        json!("/dev/termination-log"),
    );
    set_zero(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    for port in each(container, "ports") {
        set_zero(port, "protocol", json!("TCP"));
    }
    for env in each(container, "env") {
        let Some(from) = child(env, "valueFrom") else {
            continue;
        };
        field_refs(from);
        if let Some(file) = child(from, "fileKeyRef") {
            set(file, "optional", json!(false));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            handler_defaults(probe);
            set_zero(probe, "timeoutSeconds", json!(1));
            set_zero(probe, "periodSeconds", json!(10));
            set_zero(probe, "successThreshold", json!(1));
            set_zero(probe, "failureThreshold", json!(3));
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = child(lifecycle, hook) {
                handler_defaults(handler);
            }
        }
    }
    if let Some(resources) = child(container, "resources") {
        for list in ["limits", "requests"] {
            if let Some(list) = child(resources, list) {
                round_resources(list);
            }
        }
    }
}

fn handler_defaults(handler: &mut Object) {
    if let Some(http) = child(handler, "httpGet") {
        set_zero(http, "path", json!("/"));
        set_zero(http, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = child(handler, "grpc") {
        set(grpc, "service", json!(""));
    }
}

/// `fieldRef.apiVersion` and `resourceFieldRef.divisor` of env and downward API.
fn field_refs(holder: &mut Object) {
    if let Some(reference) = child(holder, "fieldRef") {
        set_zero(reference, "apiVersion", json!("v1"));
    }
    if let Some(reference) = child(holder, "resourceFieldRef") {
        set(reference, "divisor", json!("0"));
    }
}

/// Quantities of resource lists are kept in canonical form and to thousandths.
fn round_resources(list: &mut Object) {
    for (_, value) in list.iter_mut() {
        if let Ok(quantity) = Quantity::from_json(value) {
            *value = quantity.round_up_to_milli().to_string().into();
        }
    }
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = child(container, "resources") else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    set(resources, "requests", json!({}));
    if let Some(requests) = child(resources, "requests") {
        for (name, limit) in limits {
            set(requests, &name, limit);
        }
    }
}

/// Pod-level requests where only pod-level limits are given: what the
/// containers ask for together, else the limit.
fn pod_level_requests(spec: &mut Object) {
    let whole = Value::Object(std::mem::take(spec));
    let sums = sum_container_requests(&whole);
    if let Value::Object(map) = whole {
        *spec = map;
    }
    let Some(resources) = child(spec, "resources") else {
        return;
    };
    for list in ["limits", "requests"] {
        if let Some(list) = child(resources, list) {
            round_resources(list);
        }
    }
    let limits = resources
        .get("limits")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    set(resources, "requests", json!({}));
    let Some(requests) = child(resources, "requests") else {
        return;
    };
    for (name, sum) in sums {
        if supports_pod_level(&name) && !name.starts_with("hugepages-") {
            set(requests, &name, sum.to_string().into());
        }
    }
    for (name, limit) in limits {
        if supports_pod_level(&name) {
            set(requests, &name, limit);
        }
    }
}

/// The sources that a volume can have, one of which makes it no emptyDir.
fn has_source(volume: &Object) -> bool {
    volume
        .iter()
        .any(|(name, value)| name != "name" && !value.is_null())
}

/// Sources of storage that somebody else runs.
fn storage_defaults(volume: &mut Object) {
    for (source, defaults) in [
        (
            "rbd",
            json!({"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"}),
        ),
        (
            "scaleIO",
            json!({"storageMode": "ThinProvisioned", "fsType": "xfs"}),
        ),
        (
            "azureDisk",
            json!({"cachingMode": "ReadWrite", "kind": "Shared", "fsType": "ext4", "readOnly": false}),
        ),
    ] {
        let (Some(source), Value::Object(defaults)) = (child(volume, source), defaults) else {
            continue;
        };
        for (name, value) in defaults {
            set_zero(source, &name, value);
        }
    }
}

fn volume_defaults(volume: &mut Object) {
    const MODE_0644: i64 = 0o644;
    if !has_source(volume) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = child(volume, source) else {
            continue;
        };
        set(source, "defaultMode", json!(MODE_0644));
        each(source, "items").for_each(field_refs);
        for part in each(source, "sources") {
            if let Some(downward) = child(part, "downwardAPI") {
                each(downward, "items").for_each(field_refs);
            }
            if let Some(token) = child(part, "serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
        }
    }
    if let Some(path) = child(volume, "hostPath") {
        set(path, "type", json!(""));
    }
    if let Some(iscsi) = child(volume, "iscsi") {
        set_zero(iscsi, "iscsiInterface", json!("default"));
    }
    storage_defaults(volume);
    if let Some(image) = child(volume, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or("");
        let policy = default_pull_policy(reference);
        set_zero(image, "pullPolicy", json!(policy));
    }
    let template = child(volume, "ephemeral").and_then(|e| child(e, "volumeClaimTemplate"));
    if let Some(spec) = template.and_then(|t| child(t, "spec")) {
        set(spec, "volumeMode", json!("Filesystem"));
    }
}
