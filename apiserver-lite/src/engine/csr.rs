//! Certificate requests: what was asked stays, an approval changes conditions alone, and a
//! status neither approves nor takes an approval back.
//!
//! Source: `pkg/registry/certificates/certificates/strategy.go` and
//! `pkg/apis/certificates/validation` of Kubernetes, release 1.36.

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::resources::Resource;
use serde_json::{Map, Value};

use super::meta::now;
use super::parts::put;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

pub(super) fn is(resource: &Resource) -> bool {
    resource.gvk.group == "certificates.k8s.io" && resource.gvk.kind == "CertificateSigningRequest"
}

fn of_kind<'a>(object: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().filter(move |c| c["type"] == kind)
}

/// Conditions of a kind are those of before, where a write names as many.
fn preserve(new: &mut Value, old: &Value, kind: &str) {
    if of_kind(new, kind).count() != of_kind(old, kind).count() {
        return;
    }
    let mut before = of_kind(old, kind);
    let all = new["status"].get_mut("conditions");
    let all = all.and_then(Value::as_array_mut).into_iter().flatten();
    for condition in all.filter(|c| c["type"] == kind) {
        if let Some(old) = before.next() {
            condition.clone_from(old);
        }
    }
}

/// Gives conditions the times that they lack: of their last update now, of their last change
/// that of the same condition before.
fn stamp(new: &mut Value, old: &Value) {
    let time = now().to_rfc3339();
    let all = new["status"].get_mut("conditions");
    for condition in all.and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = condition["type"].as_str().unwrap_or_default().to_owned();
        let Some(condition) = condition.as_object_mut() else {
            continue;
        };
        let same = of_kind(old, &kind).find(|c| c["status"] == condition["status"]);
        let before = same.and_then(|c| c.get("lastTransitionTime"));
        let before = before.filter(|t| !t.is_null()).cloned();
        for (field, value) in [
            (
                "lastTransitionTime",
                before.unwrap_or_else(|| time.as_str().into()),
            ),
            ("lastUpdateTime", time.as_str().into()),
        ] {
            let there = condition.entry(field).or_insert(Value::Null);
            if there.is_null() {
                *there = value;
            }
        }
    }
}

/// A write of the status: the request stays, and so do answers that `approval` gave.
pub(super) fn status(mut new: Value, old: &Value) -> Value {
    for kind in [APPROVED, DENIED] {
        preserve(&mut new, old, kind);
    }
    stamp(&mut new, old);
    new
}

/// A write of the approval may change conditions only.
pub(super) fn approval(mut new: Value, old: &Value) -> Value {
    preserve(&mut new, old, FAILED);
    let conditions = new["status"].get_mut("conditions").map(Value::take);
    let metadata = new.get_mut("metadata").map(Value::take);
    let mut merged = old.clone();
    put(&mut merged, "metadata", metadata);
    if !merged["status"].is_object() {
        put(&mut merged, "status", Some(Value::Object(Map::new())));
    }
    put(&mut merged["status"], "conditions", conditions);
    stamp(&mut merged, old);
    merged
}

/// What an update of a request must not do.
pub(super) fn check(part: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut forbid = |field: &str, detail: String| {
        errors.push(FieldError {
            path: FieldPath::default().field("status").field(field),
            kind: ErrorKind::Forbidden,
            value: None,
            detail: detail.into(),
        });
    };
    for kind in [APPROVED, DENIED, FAILED] {
        let (before, after) = (of_kind(old, kind).count(), of_kind(new, kind).count());
        if after < before {
            let why = format!("updates may not remove a condition of type {kind:?}");
            forbid("conditions", why);
        }
        if after > before && part == "status" && kind != FAILED {
            let why = format!("updates may not add a condition of type {kind:?}");
            forbid("conditions", why);
        }
    }
    let certificate = |object: &Value| object["status"]["certificate"].clone();
    let (before, after) = (certificate(old), certificate(new));
    let is_there = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    if is_there(&before) && before != after {
        let why = "updates may not modify existing certificate content";
        forbid("certificate", why.to_owned());
    }
    errors
}
