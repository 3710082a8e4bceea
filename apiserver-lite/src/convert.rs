//! Versions of one object: the few pairs that differ in more than their name.

use rkube_api::resources::Resource;
use serde_json::{Map, Value, json};

/// An object of one version as the same object of another. Versions without a rule here have
/// the same fields.
#[must_use]
pub fn convert(mut object: Value, from: &Resource, to: &Resource) -> Value {
    if from.gvk == to.gvk {
        return object;
    }
    let Some(map) = object.as_object_mut() else {
        return object;
    };
    map.insert("apiVersion".into(), to.gvk.api_version().into());
    map.insert("kind".into(), to.gvk.kind.into());
    match (from.gvk.group, to.gvk.group, to.gvk.kind) {
        ("", "events.k8s.io", "Event") => {
            rename(map, EVENT_FIELDS, false);
            // The older API writes these where they are empty, the newer one does not.
            for field in ["reportingController", "reportingInstance"] {
                if map.get(field).is_some_and(|value| value == "") {
                    map.remove(field);
                }
            }
        }
        ("events.k8s.io", "", "Event") => rename(map, EVENT_FIELDS, true),
        ("autoscaling", "autoscaling", "HorizontalPodAutoscaler") => {
            match (from.gvk.version, to.gvk.version) {
                ("v2", "v1") => autoscaler_to_v1(map),
                ("v1", "v2") => autoscaler_to_v2(map),
                _ => {}
            }
        }
        _ => {}
    }
    object
}

/// Whether two versions have the same fields, so that only the type's name differs.
#[must_use]
pub fn is_same_form(from: &Resource, to: &Resource) -> bool {
    from.gvk.group == to.gvk.group
        && (from.gvk.version == to.gvk.version || from.gvk.kind != "HorizontalPodAutoscaler")
}

/// Fields of `core/v1` and `events.k8s.io/v1` events with the same meaning
/// (`pkg/apis/events/v1/conversion.go` of upstream).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(map: &mut Map<String, Value>, pairs: &[(&str, &str)], back: bool) {
    for (a, b) in pairs {
        let (from, to) = if back { (b, a) } else { (a, b) };
        if let Some(value) = map.remove(*from) {
            map.insert((*to).to_owned(), value);
        }
    }
}

/// Where v1 keeps the metrics that it has no field for.
const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

/// A list or map kept as JSON text in an annotation, for the fields that v1 lacks.
fn keep(map: &mut Map<String, Value>, annotation: &str, value: &Value) {
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(annotation.into(), value.to_string().into());
        }
    }
}

fn kept(map: &mut Map<String, Value>, annotation: &str) -> Option<Value> {
    let metadata = map.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(annotation)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn autoscaler_to_v1(map: &mut Map<String, Value>) {
    let mut others = Vec::new();
    let mut behavior = Value::Null;
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        behavior = spec.remove("behavior").unwrap_or_default();
        let mut target = Value::Null;
        if let Some(Value::Array(metrics)) = spec.remove("metrics") {
            for metric in metrics {
                if target.is_null() && is_cpu_utilization(&metric) {
                    target = metric["resource"]["target"]["averageUtilization"].clone();
                } else {
                    others.push(metric);
                }
            }
        }
        if !target.is_null() {
            spec.insert("targetCPUUtilizationPercentage".into(), target);
        }
    }
    let mut current = Vec::new();
    let mut conditions = Value::Null;
    if let Some(status) = map.get_mut("status").and_then(Value::as_object_mut) {
        conditions = status.remove("conditions").unwrap_or_default();
        if let Some(Value::Array(metrics)) = status.remove("currentMetrics") {
            for metric in metrics {
                let cpu = metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
                let percent = metric["resource"]["current"]["averageUtilization"].clone();
                if cpu && !percent.is_null() {
                    status.insert("currentCPUUtilizationPercentage".into(), percent);
                }
                current.push(metric);
            }
        }
    }
    if !others.is_empty() {
        keep(map, METRICS_ANNOTATION, &others.into());
    }
    if !behavior.is_null() {
        keep(map, BEHAVIOR_ANNOTATION, &behavior);
    }
    if conditions.as_array().is_some_and(|c| !c.is_empty()) {
        keep(map, CONDITIONS_ANNOTATION, &conditions);
    }
    if !current.is_empty() {
        keep(map, CURRENT_METRICS_ANNOTATION, &current.into());
    }
}

fn autoscaler_to_v2(map: &mut Map<String, Value>) {
    let mut metrics = match kept(map, METRICS_ANNOTATION) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    let behavior = kept(map, BEHAVIOR_ANNOTATION);
    let conditions = kept(map, CONDITIONS_ANNOTATION);
    let current = kept(map, CURRENT_METRICS_ANNOTATION);
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            metrics.insert(
                0,
                json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}),
            );
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = map.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.remove("currentCPUUtilizationPercentage");
        if let Some(current) = current {
            status.insert("currentMetrics".into(), current);
        } else if let Some(percent) = percent {
            let current = json!({"averageUtilization": percent});
            let metric =
                json!({"type": "Resource", "resource": {"name": "cpu", "current": current}});
            status.insert("currentMetrics".into(), vec![metric].into());
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".into(), conditions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_api::resources::by_plural;

    #[test]
    fn events_have_two_views() {
        let core = by_plural("", "v1", "events").unwrap();
        let new = by_plural("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod"}, "message": "m", "reason": "r", "count": 2, "source": {"component": "c"}});
        let view = convert(event.clone(), core, new);
        assert_eq!(
            view,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod"}, "note": "m", "reason": "r", "deprecatedCount": 2, "deprecatedSource": {"component": "c"}})
        );
        assert_eq!(convert(view, new, core), event);
        let silent = json!({"reportingComponent": "", "reportingInstance": ""});
        let view = convert(silent, core, new);
        assert!(view.get("reportingController").is_none());
        assert!(view.get("reportingInstance").is_none());
    }

    #[test]
    fn autoscalers_survive_the_older_version() {
        let v1 = by_plural("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let v2 = by_plural("autoscaling", "v2", "horizontalpodautoscalers").unwrap();
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        let object = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [cpu, memory], "behavior": {"scaleDown": {}}},
            "status": {"desiredReplicas": 1, "conditions": [{"type": "AbleToScale"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7}}}]}});
        let old = convert(object.clone(), v2, v1);
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 7);
        assert!(old["spec"].get("metrics").is_none());
        assert_eq!(convert(old, v1, v2), object);
        let plain = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        assert_eq!(convert(convert(plain.clone(), v1, v2), v2, v1), plain);
    }
}
