//! Namespaces from their default account to their end.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use rkube_client::{DeleteParams, ListParams, Patch};
use rkube_controllers::Config;
use serde_json::json;

use crate::{Cluster, PATIENCE, deployment};

async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_emptied() {
    let config = Config {
        root_ca_pem: Some("-----BEGIN CERTIFICATE-----".to_owned()),
        ..Config::default()
    };
    let cluster = Cluster::with(1, config).await;
    let namespaces = cluster.client.all::<Namespace>();
    namespaces
        .create(&json!({"metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}}))
        .await
        .unwrap();
    let accounts = cluster.client.namespaced::<ServiceAccount>("team");
    let maps = cluster.client.namespaced::<ConfigMap>("team");
    eventually("an account", async || {
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    eventually("the certificate", async || {
        maps.get_opt("kube-root-ca.crt").await.unwrap()
    })
    .await;
    // Both come back.
    accounts
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the account again", async || {
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    let spoilt = Patch::Merge(json!({"data": {"ca.crt": "other"}}));
    maps.patch("kube-root-ca.crt", &spoilt).await.unwrap();
    eventually("the certificate again", async || {
        let map = maps.get("kube-root-ca.crt").await.unwrap();
        (map.data.unwrap()["ca.crt"] == "-----BEGIN CERTIFICATE-----").then_some(())
    })
    .await;

    let deployments = cluster.client.namespaced::<Deployment>("team");
    deployments
        .create(&deployment("web", 2, "v1"))
        .await
        .unwrap();
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    maps.create(&held).await.unwrap();
    let pods = cluster.client.namespaced::<Pod>("team");
    eventually("pods", async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        (list.items.len() == 2).then_some(())
    })
    .await;
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    // What has a finalizer of others stays, and is told.
    eventually("the condition", async || {
        let namespace = namespaces.get("team").await.unwrap();
        let conditions = namespace.status.unwrap().conditions.unwrap_or_default();
        let told = conditions.iter().any(|c| {
            c.type_ == "NamespaceFinalizersRemaining"
                && c.status == "True"
                && c.message
                    .as_deref()
                    .is_some_and(|m| m.contains("example.com/hold in 1 resource instances"))
        });
        told.then_some(())
    })
    .await;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &free).await.unwrap();
    eventually("the end", async || {
        namespaces
            .get_opt("team")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    cluster.stop().await;
}
