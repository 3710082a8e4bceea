//! What nodes need: addresses for their pods, an eye on whether they live,
//! and an end for the pods of those that do not.

mod eviction;
mod health;
mod ipam;
mod lifecycle;
mod podgc;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use rkube_client::{Client, DeleteParams, Informer, ObjectKey, Patch, clock};
use serde_json::{Value, json};

use crate::error::{Error, Outcome};
use crate::owner;
use crate::pods;
use crate::starter::Starter;

pub use ipam::{CidrError, ClusterCidr};

/// Pods by the node that they are bound to.
const BY_NODE: &str = "node";

/// Starts the controllers of this folder.
pub(crate) fn start(starter: &mut Starter<'_>) {
    ipam::start(starter);
    lifecycle::start(starter);
    eviction::start(starter);
    podgc::start(starter);
}

fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(BY_NODE, |pod| {
        let node = pods::node_of(pod);
        if node.is_empty() {
            Vec::new()
        } else {
            vec![node.to_owned()]
        }
    });
}

fn taints(node: &Node) -> &[Taint] {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref());
    taints.unwrap_or_default()
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind)
}

/// Says in a pod's status why it is taken away, then deletes it. With a reason
/// to `fail`, the pod has ended already and goes at once.
async fn remove_pod(
    client: &Client,
    pod: &Pod,
    reason: &str,
    message: &str,
    fail: bool,
) -> Outcome {
    let key = ObjectKey::of(pod);
    let api = client.namespaced::<Pod>(&key.namespace);
    let gone = |error: &rkube_client::ApiError| error.is_not_found() || error.is_conflict();
    if pods::condition(pod, "DisruptionTarget").is_none_or(|c| c.status != "True") {
        let mut status: Value = json!({"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": clock::time(clock::now()),
        }]});
        if fail && !pods::is_terminal(pod) {
            status["phase"] = "Failed".into();
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        match api.patch_status(&key.name, &Patch::Strategic(patch)).await {
            Err(error) if gone(&error) => return Ok(()),
            answer => answer.map_err(Error::request("mark the pod", &key))?,
        };
    }
    let params = DeleteParams {
        uid: pod.metadata.uid.clone(),
        grace_seconds: fail.then_some(0),
        ..DeleteParams::default()
    };
    match api.delete(owner::name(pod), &params).await {
        Err(error) if gone(&error) => Ok(()),
        answer => answer
            .map(|_| ())
            .map_err(Error::request("delete the pod", key)),
    }
}
