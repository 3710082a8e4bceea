//! Objects for this crate's tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

pub(crate) fn pod_of(name: &str, spec: Value) -> Arc<Pod> {
    let object = json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

pub(crate) fn pod(name: &str, cpu: &str, memory: &str) -> Arc<Pod> {
    let requests = json!({"cpu": cpu, "memory": memory});
    pod_of(
        name,
        json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]}),
    )
}

pub(crate) fn with_node(pod: &Pod, node: &str) -> Arc<Pod> {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
    }
    Arc::new(pod)
}

pub(crate) fn node_of(name: &str, spec: Value, labels: Value) -> Arc<Node> {
    let object = json!({"metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    Arc::new(serde_json::from_value(object).unwrap())
}

pub(crate) fn node(name: &str, cpu: &str, memory: &str) -> Arc<Node> {
    let object = json!({"metadata": {"name": name}, "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "110"}}});
    Arc::new(serde_json::from_value(object).unwrap())
}
