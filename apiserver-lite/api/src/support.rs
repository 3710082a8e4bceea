//! Valid fields of a pod that rkube does not honour yet.
//!
//! Nothing is ignored in silence: what stands in [`TABLE`] and in a manifest
//! becomes a warning that names the field. A field leaves the table in the
//! commit that honours it.

use std::fmt;

use serde_json::Value;

use crate::field::FieldPath;
use crate::view::At;

/// When a field that stands in a manifest deserves a warning. No condition
/// holds for a value that defaulting has put there.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// Whenever it has a value: not `null`, `{}`, `[]` or "".
    Set,
    /// When it is this text.
    Is(&'static str),
    /// When it has a value other than this text.
    IsNot(&'static str),
    /// When it is `true`.
    True,
    /// When it is `false`.
    False,
    /// When it names a map key other than these.
    KeyBesides(&'static [&'static str]),
}

/// A field that is not honoured.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The field path; `[*]` stands for every element of a list.
    pub path: &'static str,
    /// Which values matter.
    pub when: When,
    /// What the user gets instead.
    pub instead: &'static str,
}

/// A warning about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The field.
    pub path: FieldPath,
    /// What the user gets instead.
    pub instead: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not honoured yet: {}", self.path, self.instead)
    }
}

const fn set(path: &'static str, instead: &'static str) -> Rule {
    Rule {
        path,
        when: When::Set,
        instead,
    }
}

const NO_SCHEDULER: &str = "a pod started here runs on this host";
const NO_VOLUME: &str = "the pod cannot start with a volume of this type";

/// The fields, for each list of containers, that are not honoured.
const CONTAINER: &[(&str, When, &str)] = &[
    (
        "resizePolicy",
        When::Set,
        "resources of a running container do not change",
    ),
    (
        "restartPolicyRules[*].action",
        When::Is("RestartAllContainers"),
        "the rule has no effect",
    ),
    (
        "volumeDevices",
        When::Set,
        "no block device is given to the container",
    ),
    ("resources.claims", When::Set, "no device is allocated"),
    (
        "resources.limits",
        When::KeyBesides(&["cpu", "memory"]),
        "only cpu and memory are limited",
    ),
    (
        "securityContext.seLinuxOptions",
        When::Set,
        "no SELinux label is set",
    ),
    (
        "securityContext.appArmorProfile",
        When::Set,
        "no AppArmor profile is applied",
    ),
    ("securityContext.windowsOptions", When::Set, "this is Linux"),
];

/// The fields of a pod that are not honoured.
pub const TABLE: &[Rule] = &[
    set("spec.affinity", NO_SCHEDULER),
    set("spec.nodeSelector", NO_SCHEDULER),
    set("spec.nodeName", NO_SCHEDULER),
    set("spec.tolerations", NO_SCHEDULER),
    set("spec.topologySpreadConstraints", NO_SCHEDULER),
    set("spec.schedulingGates", NO_SCHEDULER),
    set("spec.schedulingGroup", NO_SCHEDULER),
    Rule {
        path: "spec.schedulerName",
        when: When::IsNot("default-scheduler"),
        instead: NO_SCHEDULER,
    },
    set("spec.priorityClassName", "all pods have the same priority"),
    set("spec.preemptionPolicy", "nothing is preempted"),
    set(
        "spec.runtimeClassName",
        "the pod runs in rkube's own runtime",
    ),
    set(
        "spec.serviceAccountName",
        "no token is mounted without an API server",
    ),
    set("spec.imagePullSecrets", "images come from the local store"),
    set("spec.resourceClaims", "no device is allocated"),
    set(
        "spec.ephemeralContainers",
        "ephemeral containers are not started",
    ),
    Rule {
        path: "spec.os.name",
        when: When::Is("windows"),
        instead: "this is Linux",
    },
    set(
        "spec.securityContext.seLinuxOptions",
        "no SELinux label is set",
    ),
    set(
        "spec.securityContext.seLinuxChangePolicy",
        "no SELinux label is set",
    ),
    set(
        "spec.securityContext.appArmorProfile",
        "no AppArmor profile is applied",
    ),
    set("spec.securityContext.windowsOptions", "this is Linux"),
    set(
        "spec.volumes[*].projected.sources[*].serviceAccountToken",
        NO_VOLUME,
    ),
    set(
        "spec.volumes[*].projected.sources[*].clusterTrustBundle",
        NO_VOLUME,
    ),
    set(
        "spec.volumes[*].projected.sources[*].podCertificate",
        NO_VOLUME,
    ),
    set("spec.volumes[*].ephemeral", NO_VOLUME),
    set("spec.volumes[*].image", NO_VOLUME),
    set("spec.volumes[*].csi", NO_VOLUME),
    set("spec.volumes[*].nfs", NO_VOLUME),
    set("spec.volumes[*].iscsi", NO_VOLUME),
    set("spec.volumes[*].awsElasticBlockStore", NO_VOLUME),
    set("spec.volumes[*].azureDisk", NO_VOLUME),
    set("spec.volumes[*].azureFile", NO_VOLUME),
    set("spec.volumes[*].cephfs", NO_VOLUME),
    set("spec.volumes[*].cinder", NO_VOLUME),
    set("spec.volumes[*].fc", NO_VOLUME),
    set("spec.volumes[*].flexVolume", NO_VOLUME),
    set("spec.volumes[*].flocker", NO_VOLUME),
    set("spec.volumes[*].gcePersistentDisk", NO_VOLUME),
    set("spec.volumes[*].gitRepo", NO_VOLUME),
    set("spec.volumes[*].glusterfs", NO_VOLUME),
    set("spec.volumes[*].photonPersistentDisk", NO_VOLUME),
    set("spec.volumes[*].portworxVolume", NO_VOLUME),
    set("spec.volumes[*].quobyte", NO_VOLUME),
    set("spec.volumes[*].rbd", NO_VOLUME),
    set("spec.volumes[*].scaleIO", NO_VOLUME),
    set("spec.volumes[*].storageos", NO_VOLUME),
    set("spec.volumes[*].vsphereVolume", NO_VOLUME),
];

/// Every field of a pod that is set and that rkube does not honour. Works on
/// a pod before and after defaulting alike.
#[must_use]
pub fn unsupported(pod: &Value) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let root = At::root(pod);
    for rule in TABLE {
        walk(&root, rule.path, rule.when, rule.instead, &mut warnings);
    }
    let spec = root.get("spec");
    for list in ["initContainers", "containers"] {
        for container in spec.get(list).items() {
            for (path, when, instead) in CONTAINER {
                walk(&container, path, *when, instead, &mut warnings);
            }
        }
    }
    warnings
}

/// Follows `path` from `at` and tests what it leads to.
fn walk(
    at: &At<'_, '_>,
    path: &'static str,
    when: When,
    instead: &'static str,
    out: &mut Vec<Warning>,
) {
    if at.is_none() {
        return;
    }
    let (head, tail) = path.split_once('.').unwrap_or((path, ""));
    let (name, every) = match head.strip_suffix("[*]") {
        Some(name) => (name, true),
        None => (head, false),
    };
    let child = at.get(name);
    if every {
        child
            .items()
            .for_each(|item| walk(&item, tail, when, instead, out));
    } else if tail.is_empty() {
        test(&child, when, instead, out);
    } else {
        walk(&child, tail, when, instead, out);
    }
}

fn test(at: &At<'_, '_>, when: When, instead: &'static str, out: &mut Vec<Warning>) {
    let set = match at.value() {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        // A struct without fields still chooses a volume or a hook.
        Value::Object(map) => !map.is_empty() || matches!(when, When::Set),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let matters = match when {
        When::Set => set,
        When::Is(text) => at.str() == text,
        When::IsNot(text) => set && at.str() != text,
        When::True => at.is_true(),
        When::False => at.is_false(),
        When::KeyBesides(keys) => {
            for (_, entry) in at.entries().filter(|(key, _)| !keys.contains(key)) {
                out.push(Warning {
                    path: entry.path(),
                    instead,
                });
            }
            false
        }
    };
    if matters {
        out.push(Warning {
            path: at.path(),
            instead,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{self, Shape, Type};
    use serde_json::json;

    fn resolve(mut ty: &'static Type, path: &str) -> bool {
        for part in path.split('.') {
            let (name, every) = part
                .strip_suffix("[*]")
                .map_or((part, false), |n| (n, true));
            let Some(field) = ty.field(name) else {
                return false;
            };
            ty = match &field.shape {
                Shape::Struct(inner) if !every => inner,
                Shape::List(list) if every => match &**list {
                    Shape::Struct(inner) => inner,
                    _ => return false,
                },
                Shape::List(_) | Shape::Map(_) | Shape::String | Shape::Bool | Shape::Int32 => {
                    continue;
                }
                _ => return false,
            };
        }
        true
    }

    #[test]
    fn every_rule_names_a_field_of_the_api() {
        let pod = types::by_kind("v1", "Pod").unwrap();
        for rule in TABLE {
            assert!(resolve(pod, rule.path), "{}", rule.path);
        }
        let container = types::by_name("api.core.v1.Container").unwrap();
        for (path, _, _) in CONTAINER {
            assert!(resolve(container, path), "{path}");
        }
    }

    #[test]
    fn a_plain_pod_has_no_warnings_even_when_defaulted() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "x",
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "c"}}]}});
        assert_eq!(unsupported(&pod), []);
        crate::pod::default(&mut pod);
        assert_eq!(unsupported(&pod), []);
    }

    #[test]
    fn warnings_name_the_field() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeDevices": [{"name": "d", "devicePath": "/x"}],
            "resources": {"limits": {"cpu": "1", "ephemeral-storage": "1Gi"}}}],
            "volumes": [{"name": "d", "nfs": {"server": "s", "path": "/"}}], "imagePullSecrets": [{"name": "x"}], "tolerations": [],
            "schedulerName": "mine"}});
        let found: Vec<_> = unsupported(&pod)
            .iter()
            .map(|w| w.path.to_string())
            .collect();
        assert_eq!(
            found,
            [
                "spec.schedulerName",
                "spec.imagePullSecrets",
                "spec.volumes[0].nfs",
                "spec.containers[1].volumeDevices",
                "spec.containers[1].resources.limits[ephemeral-storage]",
            ]
        );
        let text = unsupported(&pod)[1].to_string();
        assert_eq!(
            text,
            "spec.imagePullSecrets: not honoured yet: images come from the local store"
        );
    }
}
