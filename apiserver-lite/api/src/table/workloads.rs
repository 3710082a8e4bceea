//! The columns of workloads and bindings, and the way to all other kinds.

use serde_json::{Value, json};

use super::cluster;
use super::{AGE, Column, NAME, age, at, int, items, joined, number, or, str_at, text, wide};
use crate::selector::LabelSelector;
use crate::time::{self, Time, human_duration};

const CONTAINERS: Column = wide("Containers");
const IMAGES: Column = wide("Images");
const SELECTOR: Column = wide("Selector");

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready"),
    text("Up-to-date"),
    text("Available"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Node Selector"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const JOB: &[Column] = &[
    NAME,
    text("Status"),
    text("Completions"),
    text("Duration"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule"),
    text("Timezone"),
    Column {
        name: "Suspend",
        kind: "boolean",
        priority: 0,
    },
    number("Active"),
    text("Last Schedule"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn cells(group: &str, kind: &str, object: &Value, now: Time) -> Option<Vec<Value>> {
    let name = at(object, "/metadata/name").clone();
    let age = || age(object, now);
    let n = |pointer: &str| Value::from(int(object, pointer));
    let mut row = match (group, kind) {
        ("apps", "Deployment") => {
            let ready = ratio(object, "/status/readyReplicas", "/spec/replicas");
            vec![
                name,
                ready,
                n("/status/updatedReplicas"),
                n("/status/availableReplicas"),
                age(),
            ]
        }
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            vec![
                name,
                n("/spec/replicas"),
                n("/status/replicas"),
                n("/status/readyReplicas"),
                age(),
            ]
        }
        ("apps", "StatefulSet") => {
            let ready = ratio(object, "/status/readyReplicas", "/spec/replicas");
            let mut row = vec![name, ready, age()];
            row.extend(template(at(object, "/spec/template")));
            return Some(row);
        }
        ("apps", "DaemonSet") => vec![
            name,
            n("/status/desiredNumberScheduled"),
            n("/status/currentNumberScheduled"),
            n("/status/numberReady"),
            n("/status/updatedNumberScheduled"),
            n("/status/numberAvailable"),
            labels(at(object, "/spec/template/spec/nodeSelector")).into(),
            age(),
        ],
        ("batch", "Job") => {
            vec![
                name,
                job_status(object).into(),
                completions(object),
                duration(object, now),
                age(),
            ]
        }
        ("batch", "CronJob") => {
            let last = match str_at(object, "/status/lastScheduleTime") {
                "" => "<none>".to_owned(),
                text => time::age(text, now),
            };
            vec![
                name,
                str_at(object, "/spec/schedule").into(),
                or(object, "/spec/timeZone", "<none>"),
                (at(object, "/spec/suspend") == &json!(true)).into(),
                items(object, "/status/active").count().into(),
                last.into(),
                age(),
            ]
        }
        ("", "Service") => return Some(cluster::service(object, now)),
        ("", "Node") => return Some(cluster::node(object, now)),
        ("" | "events.k8s.io", "Event") => return Some(cluster::event(object, now)),
        ("", "Endpoints") => return Some(vec![name, cluster::endpoints(object).into(), age()]),
        ("discovery.k8s.io", "EndpointSlice") => return Some(cluster::slice(object, now)),
        ("", "PersistentVolumeClaim") => return Some(cluster::claim(object, now)),
        ("", "PersistentVolume") => return Some(cluster::volume(object, now)),
        _ => return None,
    };
    let pod = if kind == "CronJob" {
        "/spec/jobTemplate/spec/template"
    } else {
        "/spec/template"
    };
    row.extend(template(at(object, pod)));
    row.push(match (kind, at(object, "/spec/selector")) {
        ("CronJob", _) => selector(at(object, "/spec/jobTemplate/spec/selector")).into(),
        ("ReplicationController", map) => labels(map).into(),
        (_, value) => selector(value).into(),
    });
    Some(row)
}

fn ratio(object: &Value, part: &str, whole: &str) -> Value {
    format!("{}/{}", int(object, part), int(object, whole)).into()
}

/// Names and images of a template's containers.
fn template(pod: &Value) -> [Value; 2] {
    let all = |field: &str| {
        let texts: Vec<&str> = items(pod, "/spec/containers")
            .map(|c| str_at(c, field))
            .collect();
        Value::from(texts.join(","))
    };
    [all("/name"), all("/image")]
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
        .collect();
    pairs.sort_unstable();
    joined(pairs.iter().map(String::as_str))
}

/// A `LabelSelector` as text.
pub(super) fn selector(value: &Value) -> String {
    match LabelSelector::from_value(value) {
        Ok(selector) if selector.nothing || selector.is_everything() => "<none>".to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// `deployment.apps/web`: the owner that controls an object.
pub(super) fn controller(object: &Value) -> String {
    let owner = items(object, "/metadata/ownerReferences")
        .find(|o| at(o, "/controller") == &Value::Bool(true));
    let Some(owner) = owner else {
        return "<none>".to_owned();
    };
    let (group, _) = crate::types::split_api_version(str_at(owner, "/apiVersion"));
    let kind = str_at(owner, "/kind").to_lowercase();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", str_at(owner, "/name"))
}

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| {
        items(job, "/status/conditions")
            .any(|c| str_at(c, "/type") == kind && str_at(c, "/status") == "True")
    };
    for (kind, word) in [
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ] {
        if holds(kind) {
            return word;
        }
    }
    let deleted = at(job, "/metadata/deletionTimestamp").is_string();
    if deleted { "Terminating" } else { "Running" }
}

fn completions(job: &Value) -> Value {
    let done = int(job, "/status/succeeded");
    match (
        at(job, "/spec/completions").as_i64(),
        int(job, "/spec/parallelism"),
    ) {
        (Some(all), _) => format!("{done}/{all}").into(),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}").into(),
        (None, _) => format!("{done}/1").into(),
    }
}

fn duration(job: &Value, now: Time) -> Value {
    let Some(start) = Time::parse(str_at(job, "/status/startTime")) else {
        return "".into();
    };
    let end = Time::parse(str_at(job, "/status/completionTime")).unwrap_or(now);
    human_duration(end.seconds - start.seconds).into()
}

pub(super) fn binding(object: &Value, now: Time) -> Vec<Value> {
    let subjects = |kind: &str| {
        let of_kind = items(object, "/subjects").filter(|s| str_at(s, "/kind") == kind);
        let names: Vec<String> = of_kind
            .map(|s| match (kind, str_at(s, "/name")) {
                ("ServiceAccount", name) => format!("{}/{name}", str_at(s, "/namespace")),
                (_, name) => name.to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    let role = format!(
        "{}/{}",
        str_at(object, "/roleRef/kind"),
        str_at(object, "/roleRef/name")
    );
    vec![
        at(object, "/metadata/name").clone(),
        role.into(),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
