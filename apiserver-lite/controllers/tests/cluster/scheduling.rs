//! Pods that wait for a node, and what they are told.

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use rkube_client::Patch;
use serde_json::json;

use crate::Cluster;

fn phase(pods: &[Pod]) -> Option<&str> {
    pods.first()?.status.as_ref()?.phase.as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_room() {
    let cluster = Cluster::start(1).await;
    let pods = cluster.client.namespaced::<Pod>("default");
    let large = json!({"metadata": {"name": "large"}, "spec": {"containers": [{"name": "c", "image": "v1",
        "resources": {"requests": {"cpu": "6"}}}]}});
    pods.create(&large).await.unwrap();
    let words = "0/1 nodes are available: 1 Insufficient cpu.";
    let told = |p: &[Pod]| {
        let conditions = p[0].status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|c| {
            c.iter().any(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
                    && c.message.as_deref().is_some_and(|m| m.starts_with(words))
            })
        })
    };
    cluster.until::<Pod>("told in the status", told).await;
    let events = cluster
        .until::<Event>("told in an event", |e| {
            e.iter()
                .any(|e| e.reason.as_deref() == Some("FailedScheduling"))
        })
        .await;
    let failed = events
        .iter()
        .find(|e| e.reason.as_deref() == Some("FailedScheduling"))
        .unwrap();
    assert_eq!(failed.type_.as_deref(), Some("Warning"));
    assert_eq!(
        failed.reporting_component.as_deref(),
        Some("default-scheduler")
    );
    // The node grows: the pod runs without anybody asking.
    let more = json!({"status": {"allocatable": {"cpu": "8"}, "capacity": {"cpu": "8"}}});
    let nodes = cluster.client.all::<Node>();
    nodes
        .patch_status("node-0", &Patch::Merge(more))
        .await
        .unwrap();
    cluster
        .until::<Pod>("running", |p| phase(p) == Some("Running"))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_and_other_schedulers_are_respected() {
    let cluster = Cluster::start(1).await;
    let pods = cluster.client.namespaced::<Pod>("default");
    let with = |name: &str, extra: serde_json::Value| {
        let base = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "v1"}]}});
        rkube_api::patch::merge(base, json!({ "spec": extra })).unwrap()
    };
    pods.create(&with(
        "gated",
        json!({"schedulingGates": [{"name": "example.com/wait"}]}),
    ))
    .await
    .unwrap();
    pods.create(&with("foreign", json!({"schedulerName": "other"})))
        .await
        .unwrap();
    pods.create(&with("plain", json!({}))).await.unwrap();
    let running = |pods: &[Pod]| -> Vec<String> {
        let running = pods
            .iter()
            .filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        running.map(|p| p.metadata.name.clone().unwrap()).collect()
    };
    cluster
        .until::<Pod>("the plain one runs", |p| running(p) == ["plain"])
        .await;
    let open = json!({"spec": {"schedulingGates": null}});
    pods.patch("gated", &Patch::Merge(open)).await.unwrap();
    cluster
        .until::<Pod>("the gate is open", |p| running(p) == ["gated", "plain"])
        .await;
    cluster.stop().await;
}
