//! The rules for one container: names, image, ports, environment, mounts.

use std::collections::HashSet;

use super::validate::{one_of, one_of_opt};
use super::volume::Volumes;
use super::{probe, resources, security};
use crate::field::{ErrorKind, Errors};
use crate::meta::{required_name, rules};
use crate::names;
use crate::quantity::Quantity;
use crate::view::{At, supported_values};

/// Which list a container stands in; sidecars are init containers that
/// restart always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Main,
    Init,
    Sidecar,
    Ephemeral,
}

pub(super) fn validate(
    errors: &mut Errors,
    at: &At<'_, '_>,
    kind: Kind,
    spec: &At<'_, '_>,
    volumes: &Volumes<'_>,
) {
    required_name(errors, &at.get("name"), names::dns1123_label);
    let image = at.get("image");
    // Pod templates may leave the image to something that fills it in; a pod may not.
    if image.str().is_empty() {
        image.required(errors, "");
    } else if image.str().trim() != image.str() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
    one_of(
        errors,
        &at.get("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    one_of(
        errors,
        &at.get("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    if kind == Kind::Ephemeral {
        ephemeral(errors, at);
    }
    // The spec of a pod lies right below the object's root.
    let is_pod = spec.depth() == 1;
    ports(errors, at, spec.get("hostNetwork").is_true(), is_pod);
    env(errors, &at.get("env"), volumes);
    env_from(errors, &at.get("envFrom"));
    mounts(errors, at, volumes);
    devices(errors, at, volumes);
    resources::validate(errors, &at.get("resources"), false);
    security::container(errors, &at.get("securityContext"), spec);
    probe::validate(errors, at, kind, spec);
    restart(errors, at, kind);
    let mut resized = HashSet::new();
    for policy in at.get("resizePolicy").items() {
        let name = policy.get("resourceName");
        one_of(errors, &name, &["cpu", "memory"]);
        one_of(
            errors,
            &policy.get("restartPolicy"),
            &["NotRequired", "RestartContainer"],
        );
        if !resized.insert(name.str()) {
            policy.duplicate(errors);
        }
    }
}

/// An ephemeral container has no ports, probes, hooks or resources.
fn ephemeral(errors: &mut Errors, at: &At<'_, '_>) {
    const FORBIDDEN: [&str; 8] = [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resources",
        "resizePolicy",
        "restartPolicy",
    ];
    for name in FORBIDDEN {
        let field = at.get(name);
        let set = match field.value() {
            serde_json::Value::Null => false,
            serde_json::Value::Array(items) => !items.is_empty(),
            serde_json::Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        if set {
            field.forbidden(errors, "cannot be set for an Ephemeral Container");
        }
    }
}

fn restart(errors: &mut Errors, at: &At<'_, '_>, kind: Kind) {
    let policy = at.get("restartPolicy");
    one_of_opt(errors, &policy, &["Always", "Never", "OnFailure"]);
    let rules_at = at.get("restartPolicyRules");
    if !rules_at.is_empty() && policy.is_none() {
        policy.required(
            errors,
            "must specify restartPolicy when restart rules are used",
        );
    }
    if !rules_at.is_empty() && kind == Kind::Sidecar {
        rules_at.forbidden(
            errors,
            "may not be set for init containers with restartPolicy=Always",
        );
    }
    for rule in rules_at.items() {
        one_of(
            errors,
            &rule.get("action"),
            &["Restart", "RestartAllContainers"],
        );
        let codes = rule.get("exitCodes");
        if codes.is_none() {
            codes.required(errors, "must be specified");
            continue;
        }
        one_of(errors, &codes.get("operator"), &["In", "NotIn"]);
        if codes.get("values").is_empty() {
            codes
                .get("values")
                .required(errors, "must specify at least one exit code");
        }
    }
}

fn ports(errors: &mut Errors, at: &At<'_, '_>, host_network: bool, is_pod: bool) {
    let mut seen = HashSet::new();
    for port in at.get("ports").items() {
        let name = port.get("name");
        if !name.str().is_empty() {
            let broken = names::port_name(name.str());
            if broken.is_empty() && !seen.insert(name.str()) {
                name.duplicate(errors);
            }
            rules(errors, &name, broken);
        }
        let number = port.get("containerPort");
        let host = port.get("hostPort");
        match number.int() {
            None | Some(0) => number.required(errors, ""),
            Some(n) => rules(errors, &number, names::port_number(n)),
        }
        if let Some(n) = host.int().filter(|n| *n != 0) {
            rules(errors, &host, names::port_number(n));
        }
        // A template's host ports are filled in when a pod is made of it.
        let open = !is_pod && host.int().unwrap_or(0) == 0;
        if host_network && !open && host.int() != number.int() {
            let shown = host.int().unwrap_or(0).to_string();
            let rule = "must match `containerPort` when `hostNetwork` is true";
            host.error_value(errors, ErrorKind::Invalid, shown, rule);
        }
        one_of(errors, &port.get("protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

fn env(errors: &mut Errors, list: &At<'_, '_>, volumes: &Volumes<'_>) {
    for variable in list.items() {
        required_name(errors, &variable.get("name"), names::env_name);
        let from = variable.get("valueFrom");
        if from.is_none() {
            continue;
        }
        let mut sources = 0;
        let field = from.get("fieldRef");
        if field.is_some() {
            sources += 1;
            field_ref(errors, &field, &ENV_FIELDS);
        }
        let resource = from.get("resourceFieldRef");
        if resource.is_some() {
            sources += 1;
            resource_field_ref(errors, &resource, false);
        }
        for name in ["configMapKeyRef", "secretKeyRef"] {
            let reference = from.get(name);
            if reference.is_some() {
                sources += 1;
                let object = reference.get("name");
                rules(errors, &object, names::dns1123_subdomain(object.str()));
                required_name(errors, &reference.get("key"), names::config_key);
            }
        }
        let file = from.get("fileKeyRef");
        if file.is_some() {
            sources += 1;
            required_name(errors, &file.get("key"), names::env_name);
            let volume = file.get("volumeName");
            if volume.str().is_empty() {
                volume.required(errors, "");
            } else if volumes.is_some_kind(volume.str(), "emptyDir") != Some(true) {
                volume.not_found(errors);
            }
            if file.get("path").str().is_empty() {
                file.get("path").required(errors, "");
            } else {
                descending_path(errors, &file.get("path"));
            }
        }
        let detail = if sources == 0 {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        } else if !variable.get("value").str().is_empty() {
            "may not be specified when `value` is not empty"
        } else if sources > 1 {
            "may not have more than one field specified at a time"
        } else {
            continue;
        };
        from.error_value(errors, ErrorKind::Invalid, "\"\"", detail);
    }
}

fn env_from(errors: &mut Errors, list: &At<'_, '_>) {
    for source in list.items() {
        let prefix = source.get("prefix");
        if !prefix.str().is_empty() {
            rules(errors, &prefix, names::env_name(prefix.str()));
        }
        let mut count = 0;
        for name in ["configMapRef", "secretRef"] {
            let reference = source.get(name);
            if reference.is_some() {
                count += 1;
                required_name(errors, &reference.get("name"), names::dns1123_subdomain);
            }
        }
        let detail = match count {
            1 => continue,
            0 => "must specify one of: `configMapRef` or `secretRef`",
            _ => "may not have more than one field specified at a time",
        };
        // Upstream names the list, not the element.
        list.error_value(errors, ErrorKind::Invalid, "\"\"", detail);
    }
}

/// A `fieldRef`: of env where `supported` has no labels as a whole, else of a
/// downward API file.
pub(super) fn field_ref(errors: &mut Errors, at: &At<'_, '_>, supported: &[&str]) {
    if at.get("apiVersion").str().is_empty() {
        at.get("apiVersion").required(errors, "");
        return;
    }
    let path = at.get("fieldPath");
    if path.str().is_empty() {
        path.required(errors, "");
        return;
    }
    let version = at.get("apiVersion").str();
    if version != "v1" {
        let rule = format!("error converting fieldPath: unsupported pod version: {version}");
        path.invalid(errors, rule);
        return;
    }
    let subscript = path
        .str()
        .strip_suffix("']")
        .and_then(|p| p.split_once("['"));
    if let Some((base, key)) = subscript {
        let key_rule = match base {
            "metadata.annotations" => names::qualified_name(&key.to_lowercase()),
            "metadata.labels" => names::qualified_name(key),
            _ => {
                let shown = format!("{base:?}");
                at.error_value(
                    errors,
                    ErrorKind::Invalid,
                    shown,
                    "does not support subscript",
                );
                return;
            }
        };
        // Upstream names the reference, not its path.
        for rule in key_rule {
            at.error_value(errors, ErrorKind::Invalid, format!("{key:?}"), rule);
        }
        return;
    }
    let known = ENV_FIELDS.contains(&path.str()) || VOLUME_FIELDS.contains(&path.str());
    if !known {
        let rule = format!(
            "error converting fieldPath: field label not supported: {}",
            path.str()
        );
        path.invalid(errors, rule);
    } else if !supported.contains(&path.str()) {
        path.unsupported(errors, supported);
    }
}

/// A `fieldRef` of a downward API file.
pub(super) fn volume_field_ref(errors: &mut Errors, at: &At<'_, '_>) {
    field_ref(errors, at, &VOLUME_FIELDS);
}

pub(super) fn resource_field_ref(errors: &mut Errors, at: &At<'_, '_>, in_volume: bool) {
    const FIELDS: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = at.get("resource");
    let name = resource.str();
    let huge = ["limits.hugepages-", "requests.hugepages-"]
        .iter()
        .any(|p| name.starts_with(p));
    if in_volume && at.get("containerName").str().is_empty() {
        at.get("containerName").required(errors, "");
    } else if name.is_empty() {
        resource.required(errors, "");
    } else if !FIELDS.contains(&name) && !huge {
        resource.error(errors, ErrorKind::NotSupported, supported_values(&FIELDS));
    }
    let divisor = at.get("divisor");
    let Ok(amount) = Quantity::from_json(divisor.value()) else {
        return;
    };
    if amount.is_zero() {
        return;
    }
    const BYTES: [&str; 13] = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let (allowed, words, kind): (&[&str], _, _) = match name.split_once('.') {
        Some((_, "cpu")) => (&["1m", "1"], "1m and 1".to_owned(), "cpu"),
        Some((_, "memory")) => (&BYTES, BYTES.join(", "), "memory"),
        Some((_, "ephemeral-storage")) => (&BYTES, BYTES.join(", "), "local ephemeral storage"),
        _ if huge => (&BYTES, BYTES.join(", "), "hugepages"),
        _ => return,
    };
    if !allowed.contains(&amount.to_string().as_str()) {
        let rule = format!("only divisor's values {words} are supported with the {kind} resource");
        divisor.error_value(errors, ErrorKind::Invalid, format!("{name:?}"), rule);
    }
}

/// A relative path without `..` elements.
pub(super) fn descending_path(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().starts_with('/') {
        at.invalid(errors, "must be a relative path");
    }
    no_backsteps(errors, at);
}

fn has_backsteps(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

pub(super) fn no_backsteps(errors: &mut Errors, at: &At<'_, '_>) {
    if has_backsteps(at.str()) {
        at.invalid(errors, "must not contain '..'");
    }
}

fn mounts(errors: &mut Errors, at: &At<'_, '_>, volumes: &Volumes<'_>) {
    let mut paths = HashSet::new();
    let devices = at.get("volumeDevices");
    let of = |field: &'static str| -> HashSet<&str> {
        let texts = devices.items().map(|d| d.get(field).str());
        texts.filter(|text| !text.is_empty()).collect()
    };
    let (device_names, device_paths) = (of("name"), of("devicePath"));
    let list = at.get("volumeMounts");
    for mount in list.items() {
        let name = mount.get("name");
        let path = mount.get("mountPath");
        if name.str().is_empty() {
            name.required(errors, "");
        }
        if !volumes.has(name.str()) {
            name.not_found(errors);
        }
        if path.str().is_empty() {
            path.required(errors, "");
        }
        if !paths.insert(path.str()) {
            path.invalid(errors, "must be unique");
        }
        if device_names.contains(name.str()) {
            name.invalid(errors, "must not already exist in volumeDevices");
        }
        if device_paths.contains(path.str()) {
            path.invalid(errors, "must not already exist as a path in volumeDevices");
        }
        let (sub, expr) = (mount.get("subPath"), mount.get("subPathExpr"));
        // What follows is reported for the list, not for the element.
        let aside = |field: &'static str| list.get(field).with_value(mount.get(field).value());
        if volumes.is_some_kind(name.str(), "image") == Some(true) {
            for field in [&sub, &expr] {
                if !field.str().is_empty() {
                    field.invalid(errors, "not allowed in image volume sources");
                }
            }
        }
        if !sub.str().is_empty() {
            descending_path(errors, &aside("subPath"));
        }
        if !expr.str().is_empty() {
            if !sub.str().is_empty() {
                expr.invalid(errors, "subPathExpr and subPath are mutually exclusive");
            }
            descending_path(errors, &aside("subPathExpr"));
        }
        let modes = [aside("mountPropagation"), aside("recursiveReadOnly")];
        propagation(errors, &mount, modes, at);
    }
}

fn propagation(
    errors: &mut Errors,
    mount: &At<'_, '_>,
    [mode, recursive]: [At<'_, '_>; 2],
    container: &At<'_, '_>,
) {
    one_of_opt(errors, &mode, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = container.get("securityContext");
    let privileged = privileged.get("privileged").is_true();
    if mode.str() == "Bidirectional" && !privileged {
        mode.forbidden(
            errors,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
    one_of_opt(errors, &recursive, &["Disabled", "Enabled", "IfPossible"]);
    if matches!(recursive.str(), "Enabled" | "IfPossible") {
        if !mount.get("readOnly").is_true() {
            recursive.forbidden(errors, "may only be specified when readOnly is true");
        }
        if !matches!(mode.str(), "" | "None") {
            recursive.forbidden(
                errors,
                "may only be specified when mountPropagation is None or not specified",
            );
        }
    }
}

fn devices(errors: &mut Errors, at: &At<'_, '_>, volumes: &Volumes<'_>) {
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    let mounts = at.get("volumeMounts");
    let of = |field: &'static str| -> HashSet<&str> {
        mounts.items().map(|m| m.get(field).str()).collect()
    };
    let (mount_names, mount_paths) = (of("name"), of("mountPath"));
    for device in at.get("volumeDevices").items() {
        let name = device.get("name");
        if name.str().is_empty() {
            name.required(errors, "");
        }
        if !name.str().is_empty() && !names.insert(name.str()) {
            name.invalid(errors, "must be unique");
        }
        let claims = ["persistentVolumeClaim", "ephemeral"];
        if !volumes.has(name.str()) {
            name.not_found(errors);
        } else if !claims
            .iter()
            .any(|c| volumes.is_some_kind(name.str(), c) == Some(true))
        {
            name.invalid(
                errors,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            );
        }
        let path = device.get("devicePath");
        if path.str().is_empty() {
            path.required(errors, "");
        }
        if paths.contains(path.str()) {
            path.invalid(errors, "must be unique");
        }
        if has_backsteps(path.str()) {
            path.invalid(errors, "can not contain backsteps ('..')");
        } else {
            paths.insert(path.str());
        }
        if mount_names.contains(name.str()) {
            name.invalid(errors, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(path.str()) {
            path.invalid(errors, "must not already exist as a path in volumeMounts");
        }
    }
}
