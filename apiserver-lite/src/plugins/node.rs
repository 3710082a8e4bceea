//! NodeRestriction and TaintNodesByCondition.

use rkube_api::status::Status;
use serde_json::{Value, json};

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};
use crate::authz::node::{LEASE_NAMESPACE, node_of};

/// Keeps a node from writing about other nodes and their pods
/// (`k8s.io/kubernetes/plugin/pkg/admission/noderestriction`).
#[derive(Debug)]
pub struct NodeRestriction;

/// Labels that a node may not give to itself.
fn is_reserved(label: &str) -> bool {
    const ALLOWED: [&str; 10] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let is_ours = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if domain == "node-restriction.kubernetes.io"
        || domain.ends_with(".node-restriction.kubernetes.io")
    {
        return true;
    }
    if !is_ours("kubernetes.io") && !is_ours("k8s.io") {
        return false;
    }
    let is_free = ALLOWED.contains(&label)
        || label == "topology.kubernetes.io/region"
        || ["kubelet.kubernetes.io", "node.kubernetes.io"]
            .iter()
            .any(|root| domain == *root || domain.ends_with(&format!(".{root}")));
    !is_free
}

/// Labels that differ between two objects.
fn changed(new: &Value, old: &Value) -> Vec<String> {
    let labels = |object: &Value| {
        object["metadata"]["labels"]
            .as_object()
            .cloned()
            .unwrap_or_default()
    };
    let (new, old) = (labels(new), labels(old));
    let mut names: Vec<String> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
        .chain(old.iter().filter(|(key, _)| !new.contains_key(*key)))
        .map(|(key, _)| key.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn restrict(call: &Call) -> Result<(), Status> {
    let Some(node) = node_of(&call.user) else {
        return Ok(());
    };
    let no = |why: String| Err(forbidden(call, &why));
    match (
        call.resource.gvk.group,
        call.resource.plural,
        call.subresource,
    ) {
        ("", "pods", sub) => pods(call, node, sub),
        ("", "nodes", _) => {
            let name = match call.name.as_str() {
                "" => call.object["metadata"]["name"].as_str().unwrap_or(""),
                name => name,
            };
            if name != node {
                return no(format!(
                    "node {node:?} is not allowed to modify node {name:?}"
                ));
            }
            if call.operation == Operation::Delete {
                return no(format!("node {node:?} is not allowed to delete itself"));
            }
            let labels = changed(&call.object, &call.old);
            let reserved: Vec<String> = labels.into_iter().filter(|l| is_reserved(l)).collect();
            if !reserved.is_empty() {
                let verb = if call.old.is_null() { "set" } else { "modify" };
                return no(format!(
                    "is not allowed to {verb} the following labels: {}",
                    reserved.join(", ")
                ));
            }
            if call.operation == Operation::Update
                && call.object["spec"]["taints"] != call.old["spec"]["taints"]
            {
                return no(format!("node {node:?} is not allowed to modify taints"));
            }
            Ok(())
        }
        ("", "serviceaccounts", "token") => {
            let reference = &call.object["spec"]["boundObjectRef"];
            if reference["kind"] != "Pod" {
                return no("node requested token not bound to a pod".into());
            }
            let name = reference["name"].as_str().unwrap_or("");
            let pod = call.objects.find("", "pods", &call.namespace, name)?;
            let is_right = pod.is_some_and(|pod| {
                pod["spec"]["nodeName"] == *node && pod["metadata"]["uid"] == reference["uid"]
            });
            if is_right {
                return Ok(());
            }
            no("node requested token bound to a pod scheduled on a different node".into())
        }
        ("", "persistentvolumeclaims", "status") => {
            if beyond_what_a_node_finds(&call.object) == beyond_what_a_node_finds(&call.old) {
                return Ok(());
            }
            no(format!(
                "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
            ))
        }
        ("coordination.k8s.io", "leases", _) => {
            if call.namespace != LEASE_NAMESPACE || named(call) != node {
                return no(format!(
                    "can only access node lease with the same name as the requesting node in {LEASE_NAMESPACE}"
                ));
            }
            Ok(())
        }
        ("storage.k8s.io", "csinodes", _) => {
            if named(call) != node {
                return no(
                    "can only access CSINode with the same name as the requesting node".into(),
                );
            }
            Ok(())
        }
        ("resource.k8s.io", "resourceslices", _) => {
            let (slice, verb) = match call.operation {
                Operation::Delete => (&call.old, "delete"),
                Operation::Create => (&call.object, "create"),
                // Whose the old one is, the authorizer has asked.
                _ => (&call.object, "update"),
            };
            if slice["spec"]["nodeName"] != *node {
                return no(format!(
                    "can only {verb} ResourceSlice with the same NodeName as the requesting node"
                ));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The name that a call is about; of a new object its own.
fn named(call: &Call) -> &str {
    match call.name.as_str() {
        "" => call.object["metadata"]["name"].as_str().unwrap_or(""),
        name => name,
    }
}

/// A claim without what a node finds out about the volume: how large it is and
/// what became of a request for more (`admitPVCStatus` of upstream).
fn beyond_what_a_node_finds(claim: &Value) -> Value {
    let mut rest = claim.clone();
    let mut drop = |part: &str, fields: &[&str]| {
        if let Some(part) = rest[part].as_object_mut() {
            part.retain(|name, _| !fields.contains(&name.as_str()));
        }
    };
    drop("metadata", &["resourceVersion", "managedFields"]);
    drop(
        "status",
        &[
            "capacity",
            "conditions",
            "allocatedResources",
            "allocatedResourceStatuses",
        ],
    );
    rest
}

fn pods(call: &Call, node: &str, sub: &str) -> Result<(), Status> {
    let no = |why: &str| Err(forbidden(call, why));
    match (call.operation, sub) {
        (Operation::Create, "") => {
            if call.object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
                return no(&format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                ));
            }
            if call.object["spec"]["nodeName"] != *node {
                return no(&format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                ));
            }
            Ok(())
        }
        (Operation::Delete | Operation::Update, "" | "status")
        | (Operation::Create, "eviction") => {
            if call.operation == Operation::Update && sub.is_empty() {
                return no(&format!("unexpected operation on pods by node {node:?}"));
            }
            let pod = if call.old.is_null() {
                let found = call.objects.find("", "pods", &call.namespace, &call.name)?;
                // A pod that is gone is told by the engine.
                let Some(found) = found else { return Ok(()) };
                found
            } else {
                call.old.clone()
            };
            if pod["spec"]["nodeName"] != *node {
                let verb = if sub == "status" {
                    "update status for"
                } else {
                    "delete"
                };
                return no(&format!(
                    "node {node:?} can only {verb} pods with spec.nodeName set to itself"
                ));
            }
            if sub == "status" && !changed(&call.object, &call.old).is_empty() {
                return no(&format!(
                    "node {node:?} cannot update labels through pod status"
                ));
            }
            Ok(())
        }
        _ => no(&format!("unexpected operation on pods by node {node:?}")),
    }
}

impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_delete = call.operation == Operation::Delete;
        done(if is_delete { Ok(()) } else { restrict(call) })
    }

    /// A deletion changes nothing, so it is only checked.
    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_delete = call.operation == Operation::Delete;
        done(if is_delete { restrict(call) } else { Ok(()) })
    }
}

/// A new node is not ready until somebody says so.
#[derive(Debug)]
pub struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        if call.is("", "nodes")
            && let Some(object) = call.object.as_object_mut()
        {
            let spec = object.entry("spec").or_insert_with(|| json!({}));
            if spec.is_null() {
                *spec = json!({});
            }
            let taints = &mut spec["taints"];
            if taints.is_null() {
                *taints = json!([]);
            }
            if let Some(taints) = taints.as_array_mut() {
                let is_there =
                    |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
                if !taints.iter().any(is_there) {
                    taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
                }
            }
        }
        done(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_nodes_may_not_give_themselves() {
        for free in [
            "a",
            "example.com/a",
            "kubernetes.io/hostname",
            "node.kubernetes.io/x",
            "kubelet.kubernetes.io/x",
        ] {
            assert!(!is_reserved(free), "{free}");
        }
        for reserved in [
            "node-role.kubernetes.io/control-plane",
            "x.k8s.io/a",
            "node-restriction.kubernetes.io/a",
            "a.node-restriction.kubernetes.io/b",
        ] {
            assert!(is_reserved(reserved), "{reserved}");
        }
        let object = |labels: Value| json!({"metadata": {"labels": labels}});
        let names = changed(
            &object(json!({"a": "1", "b": "2"})),
            &object(json!({"b": "3", "c": "4"})),
        );
        assert_eq!(names, ["a", "b", "c"]);
    }
}
