//! Garbage collection and disruption budgets.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rkube_client::DeleteParams;
use serde_json::json;

use crate::{Cluster, deployment};

fn policy(propagation: &'static str) -> DeleteParams {
    DeleteParams {
        propagation: Some(propagation),
        ..DeleteParams::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_propagation() {
    let cluster = Cluster::start(1).await;
    let api = cluster.client.namespaced::<Deployment>("default");
    for propagation in ["Background", "Foreground"] {
        api.create(&deployment("web", 2, "v1")).await.unwrap();
        cluster.until::<Pod>("pods", |p| p.len() == 2).await;
        api.delete("web", &policy(propagation)).await.unwrap();
        if propagation == "Foreground" {
            // It is there until everything below it has gone.
            cluster
                .until::<Deployment>("the end", |d| {
                    d.is_empty() || d[0].metadata.deletion_timestamp.is_some()
                })
                .await;
        }
        cluster
            .until::<Deployment>("no deployment", <[_]>::is_empty)
            .await;
        cluster.until::<ReplicaSet>("no set", <[_]>::is_empty).await;
        cluster.until::<Pod>("no pod", <[_]>::is_empty).await;
    }
    api.create(&deployment("web", 2, "v1")).await.unwrap();
    cluster.until::<Pod>("pods", |p| p.len() == 2).await;
    api.delete("web", &policy("Orphan")).await.unwrap();
    cluster
        .until::<Deployment>("no deployment", <[_]>::is_empty)
        .await;
    let sets = cluster
        .until::<ReplicaSet>("an orphan", |s| s.len() == 1)
        .await;
    assert!(
        sets[0]
            .metadata
            .owner_references
            .as_ref()
            .is_none_or(Vec::is_empty)
    );
    // The same again takes it back.
    api.create(&deployment("web", 2, "v1")).await.unwrap();
    let adopted = |s: &[ReplicaSet]| {
        s.len() == 1
            && s[0]
                .metadata
                .owner_references
                .as_ref()
                .is_some_and(|o| o.len() == 1)
    };
    let again = cluster.until::<ReplicaSet>("adopted", adopted).await;
    assert_eq!(again[0].metadata.uid, sets[0].metadata.uid);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_told_by_uid() {
    let cluster = Cluster::start(0).await;
    let maps = cluster.client.namespaced::<ConfigMap>("default");
    let owner = maps
        .create(&json!({"metadata": {"name": "owner"}}))
        .await
        .unwrap();
    let owned = |name: &str, uid: &str| {
        json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}})
    };
    let uid = owner.metadata.uid.unwrap();
    maps.create(&owned("kept", &uid)).await.unwrap();
    maps.create(&owned(
        "of-a-former-owner",
        "00000000-0000-0000-0000-000000000000",
    ))
    .await
    .unwrap();
    let names = |maps: &[ConfigMap]| -> Vec<String> {
        maps.iter()
            .map(|m| m.metadata.name.clone().unwrap())
            .collect()
    };
    cluster
        .until::<ConfigMap>("the foreign one goes", |m| names(m) == ["kept", "owner"])
        .await;
    maps.delete("owner", &policy("Background")).await.unwrap();
    cluster.until::<ConfigMap>("all go", <[_]>::is_empty).await;
    // A circle that is deleted in the foreground goes as a whole.
    let a = maps
        .create(&json!({"metadata": {"name": "a"}}))
        .await
        .unwrap();
    let reference = |name: &str, uid: &Option<String>| json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}]);
    let b = json!({"metadata": {"name": "b", "ownerReferences": reference("a", &a.metadata.uid)}});
    let b = maps.create(&b).await.unwrap();
    let back = json!({"metadata": {"ownerReferences": reference("b", &b.metadata.uid)}});
    maps.patch("a", &rkube_client::Patch::Merge(back))
        .await
        .unwrap();
    maps.delete("a", &policy("Foreground")).await.unwrap();
    cluster
        .until::<ConfigMap>("the circle goes", <[_]>::is_empty)
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_holds_evictions_back() {
    let cluster = Cluster::start(2).await;
    let budgets = cluster.client.namespaced::<PodDisruptionBudget>("default");
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "web"}}}});
    budgets.create(&budget).await.unwrap();
    let api = cluster.client.namespaced::<Deployment>("default");
    api.create(&deployment("web", 3, "v1")).await.unwrap();
    let allowed = |b: &[PodDisruptionBudget], count: i32| {
        let status = b[0].status.clone().unwrap_or_default();
        status.disruptions_allowed == Some(count) && status.current_healthy == Some(3)
    };
    cluster
        .until::<PodDisruptionBudget>("none may go", |b| allowed(b, 0))
        .await;
    let listed = cluster.until::<Pod>("pods", |p| p.len() == 3).await;
    let pods = cluster.client.namespaced::<Pod>("default");
    let evict = async |name: &str| {
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        pods.create_sub(name, "eviction", &eviction).await
    };
    for pod in &listed {
        let name = pod.metadata.name.as_deref().unwrap();
        let refused = evict(name).await.unwrap_err();
        assert_eq!(refused.code(), 429, "{refused}");
    }
    let fewer = rkube_client::Patch::Merge(json!({"spec": {"minAvailable": 2}}));
    budgets.patch("web", &fewer).await.unwrap();
    let one_allowed = |b: &[PodDisruptionBudget]| allowed(b, 1);
    cluster
        .until::<PodDisruptionBudget>("one may go", one_allowed)
        .await;
    for pod in &listed {
        let name = pod.metadata.name.as_deref().unwrap();
        match evict(name).await {
            Ok(_) => {}
            // Another one may go once the first one's place is taken.
            Err(error) => assert_eq!(error.code(), 429, "{error}"),
        }
        let running = cluster.until::<Pod>("pods", |_| true).await;
        let ready = running.iter().filter(|p| {
            p.metadata.deletion_timestamp.is_none()
                && p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        });
        assert!(ready.count() >= 2, "the budget is kept");
    }
    cluster
        .until::<PodDisruptionBudget>("one may go again", one_allowed)
        .await;
    cluster.stop().await;
}
