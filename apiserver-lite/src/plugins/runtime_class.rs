//! RuntimeClass.

use rkube_api::quantity::Quantity;
use rkube_api::status::Status;
use serde_json::{Map, Value};

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};

/// The group of runtime classes.
const NODE: &str = "node.k8s.io";
const OTHER_OVERHEAD: &str =
    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Gives a pod what its runtime class says of its overhead and its nodes.
#[derive(Debug)]
pub struct RuntimeClass;

/// The class of a pod; null for a pod without one.
fn class(call: &Call) -> Result<Value, Status> {
    let Some(name) = call.object["spec"]["runtimeClassName"].as_str() else {
        return Ok(Value::Null);
    };
    let found = if name.is_empty() {
        None
    } else {
        call.objects.find(NODE, "runtimeclasses", "", name)?
    };
    found.ok_or_else(|| {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        forbidden(call, &why)
    })
}

/// Whether two lists of resources say the same.
fn is_same_overhead(a: &Value, b: &Value) -> bool {
    let plain = |value: &Value| -> Map<String, Value> {
        let entries = value.as_object().into_iter().flatten();
        entries
            .map(|(name, amount)| {
                let amount = Quantity::from_json(amount)
                    .map_or_else(|_| amount.clone(), |amount| amount.to_string().into());
                (name.clone(), amount)
            })
            .collect()
    };
    plain(a) == plain(b)
}

/// Whether one toleration lets pass all that another does.
fn is_wider(wide: &Value, other: &Value) -> bool {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or("").to_owned();
    let of = |field: &str| (text(wide, field), text(other, field));
    let ((key, other_key), (effect, other_effect)) = (of("key"), of("effect"));
    let (operator, other_operator) = of("operator");
    if wide == other {
        return true;
    }
    if key != other_key && !(key.is_empty() && operator == "Exists") {
        return false;
    }
    if effect != other_effect && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = wide["tolerationSeconds"].as_i64()
        && other["tolerationSeconds"]
            .as_i64()
            .is_none_or(|other| other > seconds)
    {
        return false;
    }
    match operator.as_str() {
        "" | "Equal" => other_operator == "Equal" && wide["value"] == other["value"],
        "Exists" => true,
        _ => false,
    }
}

/// Two lists of tolerations as one, without those that others make needless.
fn merged(first: &Value, second: &Value) -> Vec<Value> {
    let lists = [first, second].into_iter().filter_map(Value::as_array);
    let all: Vec<&Value> = lists.flatten().collect();
    let mut kept: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let before = kept.iter().any(|other| is_wider(other, one));
        let behind = all[at + 1..]
            .iter()
            .any(|other| other != one && is_wider(other, one));
        if !before && !behind {
            kept.push((*one).clone());
        }
    }
    kept
}

fn schedule(call: &mut Call, scheduling: &Value) -> Result<(), Status> {
    let spec = &call.object["spec"];
    let mut nodes = spec["nodeSelector"].as_object().cloned();
    if let Some(wanted) = scheduling["nodeSelector"].as_object() {
        let nodes = nodes.get_or_insert_default();
        for (key, value) in wanted {
            if let Some(own) = nodes.get(key)
                && own != value
            {
                let [value, own] = [value, own].map(|v| v.as_str().unwrap_or(""));
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
                );
                return Err(forbidden(call, &why));
            }
            nodes.insert(key.clone(), value.clone());
        }
    }
    let tolerations = merged(&spec["tolerations"], &scheduling["tolerations"]);
    if let Some(spec) = call.object["spec"].as_object_mut() {
        if let Some(nodes) = nodes {
            spec.insert("nodeSelector".into(), nodes.into());
        }
        if !tolerations.is_empty() {
            spec.insert("tolerations".into(), tolerations.into());
        }
    }
    Ok(())
}

fn admit(call: &mut Call) -> Result<(), Status> {
    let class = class(call)?;
    let overhead = &class["overhead"]["podFixed"];
    if !class["overhead"].is_null() {
        let own = &call.object["spec"]["overhead"];
        if !own.is_null() && !is_same_overhead(own, overhead) {
            return Err(forbidden(call, OTHER_OVERHEAD));
        }
        if let Some(spec) = call.object["spec"].as_object_mut()
            && !overhead.is_null()
        {
            spec.insert("overhead".into(), overhead.clone());
        }
    }
    if class["scheduling"].is_null() {
        return Ok(());
    }
    schedule(call, &class["scheduling"])
}

fn validate(call: &Call) -> Result<(), Status> {
    let class = class(call)?;
    let own = &call.object["spec"]["overhead"];
    let why = if class["overhead"].is_null() {
        "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
    } else {
        OTHER_OVERHEAD
    };
    let broken = match class["overhead"].is_null() {
        true => !own.is_null(),
        false => !is_same_overhead(own, &class["overhead"]["podFixed"]),
    };
    if broken {
        return Err(forbidden(call, why));
    }
    Ok(())
}

impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_pod = call.is("", "pods");
        done(if is_pod { admit(call) } else { Ok(()) })
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_pod = call.is("", "pods");
        done(if is_pod { validate(call) } else { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_that_others_make_needless_go() {
        let a = json!({"key": "a", "operator": "Equal", "value": "1", "effect": "NoSchedule"});
        let all = json!({"operator": "Exists"});
        let short = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        let one = |first: Value, second: Value| json!(merged(&first, &second));
        assert_eq!(one(json!([a]), json!([a])), json!([a]));
        assert_eq!(one(json!([a]), json!([all])), json!([all]));
        assert_eq!(one(json!([all]), json!([a])), json!([all]));
        assert_eq!(one(json!([short]), json!([long])), json!([long]));
        assert_eq!(one(json!([a, long]), Value::Null), json!([a, long]));
    }

    #[test]
    fn amounts_are_compared_and_not_their_texts() {
        let same = |a, b| is_same_overhead(&a, &b);
        assert!(same(json!({"cpu": "1000m"}), json!({"cpu": 1})));
        assert!(!same(json!({"cpu": "2"}), json!({"cpu": 1})));
        assert!(!same(Value::Null, json!({"cpu": 1})));
        assert!(same(Value::Null, json!({})));
    }
}
