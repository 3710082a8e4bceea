//! Priority and DefaultTolerationSeconds.

use rkube_api::status::Status;
use serde_json::{Value, json};

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};

/// The group of priority classes.
const SCHEDULING: &str = "scheduling.k8s.io";
/// What a class for pods without one has in its stored form.
const GLOBAL: &[u8] = b"\"globalDefault\":true";
/// What pods tolerate where they do not say, in seconds.
const TOLERATION_SECONDS: u32 = 300;

/// Turns a pod's priority class into a number.
#[derive(Debug)]
pub struct Priority;

fn pod_priority(call: &mut Call) -> Result<(), Status> {
    if call.operation == Operation::Update {
        // A pod keeps what it was created with; an update that leaves the
        // fields out means the same.
        let old = call.old["spec"].clone();
        if let Some(spec) = call.object["spec"].as_object_mut() {
            for field in ["priority", "preemptionPolicy"] {
                if spec.get(field).is_none_or(Value::is_null) && !old[field].is_null() {
                    spec.insert(field.to_owned(), old[field].clone());
                }
            }
        }
        return Ok(());
    }
    let name = call.object["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or("");
    let class = if name.is_empty() {
        let all = call
            .objects
            .list_with(SCHEDULING, "priorityclasses", "", GLOBAL)?;
        let global = all
            .into_iter()
            .filter(|class| class["globalDefault"] == true);
        global.min_by_key(|class| class["value"].as_i64())
    } else {
        let found = call.objects.find(SCHEDULING, "priorityclasses", "", name)?;
        if found.is_none() {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(forbidden(call, &why));
        }
        found
    };
    let value = class
        .as_ref()
        .and_then(|c| c["value"].as_i64())
        .unwrap_or(0);
    let policy = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str());
    let policy = policy.unwrap_or("PreemptLowerPriority").to_owned();
    let spec = &call.object["spec"];
    if spec["priority"]
        .as_i64()
        .is_some_and(|given| given != value)
    {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            spec["priority"]
        );
        return Err(forbidden(call, &why));
    }
    if spec["preemptionPolicy"]
        .as_str()
        .is_some_and(|given| given != policy)
    {
        let given = spec["preemptionPolicy"].as_str().unwrap_or("");
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(call, &why));
    }
    let class_name = class.as_ref().map(|c| c["metadata"]["name"].clone());
    if let Some(spec) = call.object["spec"].as_object_mut() {
        if let (Some(name), true) = (
            class_name,
            spec.get("priorityClassName").is_none_or(Value::is_null),
        ) {
            spec.insert("priorityClassName".into(), name);
        }
        spec.insert("priority".into(), value.into());
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

/// At most one class is the default for all.
fn one_default(call: &Call) -> Result<(), Status> {
    if call.object["globalDefault"] != true {
        return Ok(());
    }
    let all = call.objects.list(SCHEDULING, "priorityclasses", "")?;
    let own = &call.object["metadata"]["name"];
    let other = all
        .iter()
        .find(|c| c["globalDefault"] == true && c["metadata"]["name"] != *own);
    match other {
        Some(other) => {
            let name = other["metadata"]["name"].as_str().unwrap_or("");
            let why = format!(
                "PriorityClass {name} is already marked as default. Only one default can exist"
            );
            Err(forbidden(call, &why))
        }
        None => Ok(()),
    }
}

impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let answer = if call.is("", "pods") {
            pod_priority(call)
        } else {
            Ok(())
        };
        done(answer)
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_class = call.is(SCHEDULING, "priorityclasses");
        done(if is_class { one_default(call) } else { Ok(()) })
    }
}

/// Lets a pod stay on a node that is not ready for a while (five minutes).
#[derive(Debug)]
pub struct DefaultTolerationSeconds {
    /// On a node that says that it is not ready, in seconds
    /// (`--default-not-ready-toleration-seconds`).
    pub not_ready: u32,
    /// On a node that is silent, in seconds
    /// (`--default-unreachable-toleration-seconds`).
    pub unreachable: u32,
}

impl Default for DefaultTolerationSeconds {
    fn default() -> Self {
        Self {
            not_ready: TOLERATION_SECONDS,
            unreachable: TOLERATION_SECONDS,
        }
    }
}

const CONDITIONS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// Whether a list of tolerations speaks of a NoExecute taint of this key.
fn tolerates(tolerations: &[Value], key: &str) -> bool {
    tolerations.iter().any(|toleration| {
        let text = |field: &str| toleration[field].as_str().unwrap_or("");
        matches!(text("key"), "" ) || text("key") == key
    } && matches!(toleration["effect"].as_str().unwrap_or(""), "" | "NoExecute"))
}

fn add_tolerations(spec: &mut serde_json::Map<String, Value>, seconds: [u32; 2]) {
    let list = spec
        .entry("tolerations")
        .or_insert_with(|| Value::Array(Vec::new()));
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    let missing = CONDITIONS.map(|key| !tolerates(list, key));
    for ((key, missing), seconds) in CONDITIONS.iter().zip(missing).zip(seconds) {
        if missing {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds,
            }));
        }
    }
    if list.is_empty() {
        spec.remove("tolerations");
    }
}

impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        if call.is("", "pods")
            && let Some(spec) = call.object["spec"].as_object_mut()
        {
            add_tolerations(spec, [self.not_ready, self.unreachable]);
        }
        done(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tolerations(given: Value) -> Value {
        let mut spec = json!({"tolerations": given});
        add_tolerations(spec.as_object_mut().unwrap(), [300, 600]);
        spec["tolerations"].clone()
    }

    #[test]
    fn tolerations_are_added_where_none_speaks() {
        let added = tolerations(Value::Null);
        assert_eq!(added.as_array().unwrap().len(), 2);
        assert_eq!(added[0]["tolerationSeconds"], 300);
        assert_eq!(added[1]["tolerationSeconds"], 600);
        let all = json!([{"operator": "Exists"}]);
        assert_eq!(tolerations(all.clone()), all);
        let own = json!([{"key": CONDITIONS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        let added = tolerations(own.clone());
        assert_eq!(added[0], own[0]);
        assert_eq!(added[1]["key"], CONDITIONS[1]);
        let other = tolerations(json!([{"key": CONDITIONS[0], "effect": "NoSchedule"}]));
        assert_eq!(other.as_array().unwrap().len(), 3);
        assert_eq!(tolerations(added.clone()), added);
    }
}
