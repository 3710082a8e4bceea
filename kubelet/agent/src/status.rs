//! A pod's status in the API: which patch makes it what the node knows.
//!
//! Conditions and fields that are not the node's stay as they are: only what
//! differs is in the patch, and lists are merged by their keys (strategic
//! merge patch). What did not change keeps its times, also over a restart of
//! the agent.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

/// Fields of a status that the node owns; any other is left alone.
const OWN_FIELDS: [&str; 12] = [
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "qosClass",
    "reason",
    "resize",
    "startTime",
];
/// Lists with an address as the key of their entries.
const ADDRESS_LISTS: [&str; 2] = ["hostIPs", "podIPs"];

/// The patch of `pods/NAME/status` that turns what the API has into what the
/// node knows; `None` where that is the same. The uid in it makes the API
/// refuse it for another pod of the name.
#[must_use]
pub fn patch(uid: &str, api: &PodStatus, known: &PodStatus) -> Option<Value> {
    let mut known = known.clone();
    keep_times(api, &mut known);
    let old = object(api);
    let new = object(&known);
    let mut status = Map::new();
    for field in OWN_FIELDS {
        match (old.get(field), new.get(field)) {
            (a, b) if a == b => {}
            (_, Some(value)) => {
                status.insert(field.to_owned(), value.clone());
            }
            // QoS class and start time are for ever.
            (_, None) if matches!(field, "qosClass" | "startTime") => {}
            (_, None) => {
                status.insert(field.to_owned(), Value::Null);
            }
        }
    }
    for field in ADDRESS_LISTS {
        let (a, b) = (old.get(field), new.get(field));
        if a == b {
            continue;
        }
        let entries = |list: Option<&Value>| -> Vec<String> {
            let list = list.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|e| Some(e.get("ip")?.as_str()?.to_owned()))
                .collect()
        };
        let (a, b) = (entries(a), entries(b));
        let mut list: Vec<Value> = b.iter().map(|ip| json!({"ip": ip})).collect();
        let gone = a.iter().filter(|ip| !b.contains(ip));
        list.extend(gone.map(|ip| json!({"$patch": "delete", "ip": ip})));
        status.insert(field.to_owned(), list.into());
        status.insert(format!("$setElementOrder/{field}"), order("ip", &b));
    }
    let conditions = conditions(api, &known);
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), conditions.into());
    }
    if status.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": uid}, "status": status}))
}

fn order(key: &str, values: &[String]) -> Value {
    values.iter().map(|v| json!({key: v})).collect()
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match rkube_api::value_of(status) {
        Ok(Value::Object(map)) => map,
        // A status is always an object.
        _ => Map::new(),
    }
}

/// The conditions that differ, whole.
fn conditions(api: &PodStatus, known: &PodStatus) -> Vec<Value> {
    let there = api.conditions.as_deref().unwrap_or_default();
    known
        .conditions
        .iter()
        .flatten()
        .filter(|c| !there.contains(c))
        .map(|c| {
            let mut value = json!(c);
            // What it said before must not stay.
            if there.iter().any(|t| t.type_ == c.type_) {
                for field in ["reason", "message"] {
                    if value.get(field).is_none() {
                        value[field] = Value::Null;
                    }
                }
            }
            value
        })
        .collect()
}

/// A condition that still holds has held since the API's time, and a pod has
/// its first start time for ever.
fn keep_times(api: &PodStatus, known: &mut PodStatus) {
    if api.start_time.is_some() {
        known.start_time.clone_from(&api.start_time);
    }
    let there = api.conditions.as_deref().unwrap_or_default();
    for condition in known.conditions.iter_mut().flatten() {
        let same = |c: &&PodCondition| c.type_ == condition.type_ && c.status == condition.status;
        if let Some(old) = there.iter().find(same) {
            condition
                .last_transition_time
                .clone_from(&old.last_transition_time);
            if condition.last_probe_time.is_none() {
                condition.last_probe_time.clone_from(&old.last_probe_time);
            }
            // The scheduler's verdict may say more.
            if condition.type_ == "PodScheduled" {
                *condition = old.clone();
            }
        }
    }
}

/// The status of a pod that this node does not take.
#[must_use]
pub fn rejected(reason: &str, message: &str, now: std::time::SystemTime) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        start_time: Some(rkube_kubelet::time::api_time(now)),
        ..PodStatus::default()
    }
}

/// Whether a status says that the pod is over.
#[must_use]
pub fn is_terminal(status: Option<&PodStatus>) -> bool {
    let phase = status.and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    fn ready(state: &str, time: &str) -> Value {
        json!({"type": "Ready", "status": state, "lastTransitionTime": time})
    }

    const T0: &str = "2026-01-01T00:00:00Z";
    const T1: &str = "2026-01-01T00:00:01Z";

    #[test]
    fn only_what_differs_is_sent() {
        let api = status(json!({
            "phase": "Pending", "startTime": T0, "qosClass": "BestEffort", "nominatedNodeName": "x",
            "reason": "Old", "podIPs": [{"ip": "10.0.0.1"}], "podIP": "10.0.0.1",
            "conditions": [ready("False", T0), {"type": "example.com/gate", "status": "True"},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": T0}],
        }));
        let known = status(json!({
            "phase": "Running", "startTime": T1, "qosClass": "BestEffort",
            "podIPs": [{"ip": "10.0.0.2"}], "podIP": "10.0.0.2",
            "conditions": [ready("True", T1),
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": T1}],
        }));
        let found = patch("u", &api, &known).unwrap();
        let expected = json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running", "reason": null, "podIP": "10.0.0.2",
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
            "$setElementOrder/podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": T1,
                "reason": null, "message": null}],
        }});
        assert_eq!(found, expected);
        // A restarted agent knows other times, and says nothing.
        let again = status(
            json!({"phase": "Pending", "startTime": T1, "qosClass": "BestEffort",
            "reason": "Old", "podIPs": [{"ip": "10.0.0.1"}], "podIP": "10.0.0.1",
            "conditions": [ready("False", T1)]}),
        );
        assert_eq!(patch("u", &api, &again), None);
    }

    /// The patch means to the API what it means here.
    #[test]
    fn the_patch_makes_the_status() {
        let api = json!({"status": {"phase": "Running", "podIPs": [{"ip": "a"}, {"ip": "b"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "x", "lastTransitionTime": T0},
                {"type": "mine", "status": "True"}]}});
        let known = json!({"phase": "Running", "podIPs": [{"ip": "c"}, {"ip": "a"}],
            "conditions": [ready("True", T1)]});
        let sent = patch("u", &status(api["status"].clone()), &status(known.clone())).unwrap();
        let mut object = api.clone();
        object["metadata"] = json!({"uid": "u"});
        let schema = rkube_api::types::by_gvk("", "v1", "Pod").unwrap();
        let merged = rkube_api::patch::strategic(object, sent, schema).unwrap();
        assert_eq!(merged["status"]["podIPs"], known["podIPs"]);
        let conditions = merged["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert!(conditions.contains(&ready("True", T1)));
    }

    #[test]
    fn ends_are_known() {
        assert!(is_terminal(Some(&status(json!({"phase": "Failed"})))));
        assert!(!is_terminal(Some(&status(json!({"phase": "Running"})))));
        assert!(!is_terminal(None));
    }
}
