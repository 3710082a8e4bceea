//! Nodes that fall silent, and nodes that are removed.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use rkube_client::{Client, DeleteParams, ListParams, Patch, clock};
use rkube_controllers::Config;
use serde_json::json;
use tokio::task::AbortHandle;

use crate::{Cluster, deployment};

/// Renews the lease of a node until it is aborted.
async fn beat(client: &Client, node: &'static str) -> AbortHandle {
    let leases = client.namespaced::<Lease>("kube-node-lease");
    let lease = json!({"metadata": {"name": node}, "spec": {"holderIdentity": node, "leaseDurationSeconds": 40}});
    leases.create(&lease).await.unwrap();
    let task = tokio::spawn(async move {
        loop {
            let renewal = json!({"spec": {"renewTime": clock::micro_time(clock::now())}});
            leases.patch(node, &Patch::Merge(renewal)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    task.abort_handle()
}

fn on(pods: &[Pod], node: &str) -> usize {
    let there = pods.iter().filter(|p| {
        p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
            && p.metadata.deletion_timestamp.is_none()
    });
    there.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_loses_its_pods() {
    let config = Config {
        node_grace: Duration::from_secs(5),
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        ..Config::default()
    };
    let cluster = Cluster::with(2, config).await;
    let client = &cluster.client;
    let _alive = beat(client, "node-0").await;
    let dying = beat(client, "node-1").await;
    let mut body = deployment("web", 4, "v1");
    body["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
    ]);
    client
        .namespaced::<Deployment>("default")
        .create(&body)
        .await
        .unwrap();
    cluster
        .until::<Pod>("both nodes", |p| {
            on(p, "node-0") == 2 && on(p, "node-1") == 2
        })
        .await;
    dying.abort();
    cluster
        .until::<Pod>("all on the one that lives", |p| on(p, "node-0") == 4)
        .await;
    let nodes = client.all::<Node>();
    let dead = nodes.get("node-1").await.unwrap();
    let ready = dead.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let ready = ready.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("Unknown", Some("NodeStatusUnknown"))
    );
    let taints = dead.spec.as_ref().unwrap().taints.clone().unwrap();
    let effects: Vec<_> = taints
        .iter()
        .map(|t| (t.key.as_str(), t.effect.as_str()))
        .collect();
    assert!(
        effects.contains(&("node.kubernetes.io/unreachable", "NoExecute")),
        "{effects:?}"
    );
    assert!(effects.contains(&("node.kubernetes.io/unreachable", "NoSchedule")));
    // Every node has its own range of addresses.
    let list = nodes.list(&ListParams::default()).await.unwrap();
    let mut ranges: Vec<_> = list
        .items
        .iter()
        .map(|n| n.spec.as_ref().unwrap().pod_cidr.clone().unwrap())
        .collect();
    ranges.sort();
    assert_eq!(ranges, ["10.42.0.0/24", "10.42.1.0/24"]);
    // It is heard of again: its taints go.
    let _again = {
        let leases = client.namespaced::<Lease>("kube-node-lease");
        leases
            .delete("node-1", &DeleteParams::default())
            .await
            .unwrap();
        beat(client, "node-1").await
    };
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True",
        "lastHeartbeatTime": clock::time(clock::now()), "lastTransitionTime": clock::time(clock::now())}]}});
    nodes
        .patch_status("node-1", &Patch::Strategic(status))
        .await
        .unwrap();
    loop {
        let node = nodes.get("node-1").await.unwrap();
        let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
        if taints.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_removed_node_go() {
    let config = Config {
        node_grace: Duration::from_secs(2),
        ..Config::default()
    };
    let cluster = Cluster::with(1, config).await;
    let client = &cluster.client;
    let pods = client.namespaced::<Pod>("default");
    let stray = json!({"metadata": {"name": "stray", "finalizers": ["example.com/x"]}, "spec": {"nodeName": "gone",
        "containers": [{"name": "c", "image": "v1"}]}});
    pods.create(&stray).await.unwrap();
    let marked = |p: &[Pod]| {
        let status = p[0].status.as_ref().unwrap();
        let conditions = status.conditions.as_ref();
        p[0].metadata.deletion_timestamp.is_some()
            && status.phase.as_deref() == Some("Failed")
            && conditions.is_some_and(|c| {
                c.iter()
                    .any(|c| c.reason.as_deref() == Some("DeletionByPodGC"))
            })
    };
    cluster.until::<Pod>("taken away", marked).await;
    cluster.stop().await;
}
