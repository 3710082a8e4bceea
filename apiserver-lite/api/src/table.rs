//! `meta.k8s.io/v1` Tables: the columns that `kubectl get` shows.
//!
//! Columns and cells are those of upstream's printers
//! (`pkg/printers/internalversion`, release 1.36); kinds without columns of
//! their own show name and age. Ages are relative to a `now` that the caller
//! gives, so a row is a pure function of the object.

mod cluster;
mod pods;
mod workloads;

use serde_json::{Map, Value, json};

use crate::time::{self, Time};

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The header, in upstream's case (kubectl prints capitals).
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: u8,
}

/// A column of text.
const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 0,
    }
}

/// A column of text for `-o wide`.
const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        priority: 1,
    }
}

/// A column of numbers.
const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        priority: 0,
    }
}

const NAME: Column = text("Name");
const AGE: Column = text("Age");
const DEFAULT: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        kind: "date",
        priority: 0,
    },
];

/// How much of each object a Table carries (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Cells only.
    Nothing,
    /// `PartialObjectMetadata`: what `kubectl get` asks for.
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Reads the query parameter; absent means metadata.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::Nothing),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The columns of a kind.
#[must_use]
pub fn columns(group: &str, kind: &str) -> &'static [Column] {
    match (group, kind) {
        ("", "Pod") => pods::COLUMNS,
        ("", "Namespace") => const { &[NAME, text("Status"), AGE] },
        ("", "ConfigMap") => const { &[NAME, text("Data"), AGE] },
        ("", "Secret") => const { &[NAME, text("Type"), text("Data"), AGE] },
        ("", "ServiceAccount") => const { &[NAME, text("Secrets"), AGE] },
        ("", "Endpoints") => const { &[NAME, text("Endpoints"), AGE] },
        ("", "PersistentVolumeClaim") => cluster::CLAIM,
        ("", "PersistentVolume") => cluster::VOLUME,
        ("", "Service") => cluster::SERVICE,
        ("", "Node") => cluster::NODE,
        ("" | "events.k8s.io", "Event") => cluster::EVENT,
        ("", "ReplicationController") | ("apps", "ReplicaSet") => workloads::REPLICA_SET,
        ("apps", "Deployment") => workloads::DEPLOYMENT,
        ("apps", "StatefulSet") => {
            const { &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")] }
        }
        ("apps", "DaemonSet") => workloads::DAEMON_SET,
        ("apps", "ControllerRevision") => {
            const { &[NAME, text("Controller"), text("Revision"), AGE] }
        }
        ("batch", "Job") => workloads::JOB,
        ("batch", "CronJob") => workloads::CRON_JOB,
        ("policy", "PodDisruptionBudget") => {
            const {
                &[
                    NAME,
                    text("Min Available"),
                    text("Max Unavailable"),
                    number("Allowed Disruptions"),
                    AGE,
                ]
            }
        }
        ("coordination.k8s.io", "Lease") => const { &[NAME, text("Holder"), AGE] },
        ("discovery.k8s.io", "EndpointSlice") => {
            const {
                &[
                    NAME,
                    text("AddressType"),
                    text("Ports"),
                    text("Endpoints"),
                    AGE,
                ]
            }
        }
        ("networking.k8s.io", "NetworkPolicy") => const { &[NAME, text("Pod-Selector"), AGE] },
        ("storage.k8s.io", "StorageClass") => {
            const {
                &[
                    NAME,
                    text("Provisioner"),
                    text("ReclaimPolicy"),
                    text("VolumeBindingMode"),
                    Column {
                        name: "AllowVolumeExpansion",
                        kind: "boolean",
                        priority: 0,
                    },
                    AGE,
                ]
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            const {
                &[
                    NAME,
                    number("Value"),
                    Column {
                        name: "Global-Default",
                        kind: "boolean",
                        priority: 0,
                    },
                    AGE,
                    text("PreemptionPolicy"),
                ]
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            const {
                &[
                    NAME,
                    text("Role"),
                    AGE,
                    wide("Users"),
                    wide("Groups"),
                    wide("ServiceAccounts"),
                ]
            }
        }
        _ => DEFAULT,
    }
}

/// The cells of one object, one for each of its kind's columns.
#[must_use]
pub fn cells(group: &str, kind: &str, object: &Value, now: Time) -> Vec<Value> {
    let name = || at(object, "/metadata/name").clone();
    let age = || age(object, now);
    let count = |pointer: &str| json!(len(object, pointer));
    match (group, kind) {
        ("", "Pod") => pods::cells(object, now),
        ("", "Namespace") => vec![name(), str_at(object, "/status/phase").into(), age()],
        ("", "ConfigMap") => {
            let total = len(object, "/data") + len(object, "/binaryData");
            vec![name(), json!(total), age()]
        }
        ("", "Secret") => {
            vec![
                name(),
                str_at(object, "/type").into(),
                count("/data"),
                age(),
            ]
        }
        ("", "ServiceAccount") => vec![name(), count("/secrets"), age()],
        ("apps", "ControllerRevision") => {
            vec![
                name(),
                workloads::controller(object).into(),
                at(object, "/revision").clone(),
                age(),
            ]
        }
        ("policy", "PodDisruptionBudget") => {
            let or_na = |pointer: &str| match at(object, pointer) {
                Value::Null => "N/A".into(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            vec![
                name(),
                or_na("/spec/minAvailable").into(),
                or_na("/spec/maxUnavailable").into(),
                int(object, "/status/disruptionsAllowed").into(),
                age(),
            ]
        }
        ("coordination.k8s.io", "Lease") => {
            vec![name(), str_at(object, "/spec/holderIdentity").into(), age()]
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            vec![
                name(),
                workloads::selector(at(object, "/spec/podSelector")).into(),
                age(),
            ]
        }
        ("storage.k8s.io", "StorageClass") => {
            let default = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";
            let mark = if str_at(object, default) == "true" {
                " (default)"
            } else {
                ""
            };
            vec![
                format!("{}{mark}", str_at(object, "/metadata/name")).into(),
                str_at(object, "/provisioner").into(),
                or(object, "/reclaimPolicy", "Delete"),
                or(object, "/volumeBindingMode", "<unset>"),
                (at(object, "/allowVolumeExpansion") == &json!(true)).into(),
                age(),
            ]
        }
        ("scheduling.k8s.io", "PriorityClass") => vec![
            name(),
            int(object, "/value").into(),
            (at(object, "/globalDefault") == &json!(true)).into(),
            age(),
            or(object, "/preemptionPolicy", ""),
        ],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            workloads::binding(object, now)
        }
        _ => workloads::cells(group, kind, object, now)
            .unwrap_or_else(|| vec![name(), at(object, "/metadata/creationTimestamp").clone()]),
    }
}

/// A whole Table. `list_meta` is the `metadata` of the list (or of the one
/// object's list form: its resourceVersion).
#[must_use]
pub fn table(
    group: &str,
    kind: &str,
    objects: &[&Value],
    list_meta: Value,
    include: Include,
    now: Time,
) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": definitions(columns(group, kind)),
        "rows": objects.iter().map(|o| row(group, kind, o, include, now)).collect::<Vec<_>>(),
    })
}

/// The `columnDefinitions` of a Table. A watch sends them with its first event only.
#[must_use]
pub fn definitions(columns: &[Column]) -> Value {
    let definition = |c: &Column| {
        let format = if c.name == "Name" { "name" } else { "" };
        json!({"name": c.name, "type": c.kind, "format": format, "description": "", "priority": c.priority})
    };
    columns.iter().map(definition).collect()
}

/// One row of a Table.
#[must_use]
pub fn row(group: &str, kind: &str, object: &Value, include: Include, now: Time) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), cells(group, kind, object, now).into());
    match include {
        Include::Nothing => {}
        Include::Metadata => {
            let partial = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": at(object, "/metadata"),
            });
            row.insert("object".into(), partial);
        }
        Include::Object => drop(row.insert("object".into(), object.clone())),
    }
    Value::Object(row)
}

static NULL: Value = Value::Null;

/// The value at a JSON pointer, or null.
fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or(&NULL)
}

fn str_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).as_str().unwrap_or("")
}

/// The text at a pointer, or another where it is absent.
fn or(object: &Value, pointer: &str, other: &str) -> Value {
    at(object, pointer).as_str().unwrap_or(other).into()
}

fn int(object: &Value, pointer: &str) -> i64 {
    at(object, pointer).as_i64().unwrap_or(0)
}

/// Elements or entries at a pointer.
fn len(object: &Value, pointer: &str) -> usize {
    match at(object, pointer) {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

/// The elements of the list at a pointer.
fn items<'a>(object: &'a Value, pointer: &str) -> impl DoubleEndedIterator<Item = &'a Value> {
    at(object, pointer)
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
}

fn age(object: &Value, now: Time) -> Value {
    time::age(str_at(object, "/metadata/creationTimestamp"), now).into()
}

/// Texts with commas between, or `<none>`.
fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let list: Vec<&str> = texts.collect();
    if list.is_empty() {
        "<none>".to_owned()
    } else {
        list.join(",")
    }
}

#[cfg(test)]
mod tests;
