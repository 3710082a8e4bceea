//! Endpoints and slices follow pods.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::{DeleteParams, Patch};
use serde_json::json;

use crate::{Cluster, deployment};

fn ready(slices: &[EndpointSlice]) -> usize {
    let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
    endpoints
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
        .count()
}

fn addresses(endpoints: &[Endpoints]) -> usize {
    let subsets = endpoints.iter().flat_map(|e| e.subsets.iter().flatten());
    subsets.map(|s| s.addresses.iter().flatten().count()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_finds_its_pods() {
    let cluster = Cluster::start(2).await;
    let services = cluster.client.namespaced::<Service>("default");
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"], "type": "ClusterIP", "sessionAffinity": "None",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
    services.create(&service).await.unwrap();
    let empty = |s: &[EndpointSlice]| s.len() == 1 && s[0].endpoints.iter().flatten().count() == 0;
    cluster
        .until::<EndpointSlice>("a slice that says so", empty)
        .await;
    let api = cluster.client.namespaced::<Deployment>("default");
    api.create(&deployment("web", 3, "v1")).await.unwrap();
    let slices = cluster
        .until::<EndpointSlice>("three endpoints", |s| ready(s) == 3)
        .await;
    let labels = slices[0].metadata.labels.as_ref().unwrap();
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    assert!(slices[0].metadata.owner_references.as_ref().unwrap()[0].name == "web");
    cluster
        .until::<Endpoints>("three addresses", |e| addresses(e) == 3)
        .await;
    api.patch("web", &Patch::Merge(json!({"spec": {"replicas": 1}})))
        .await
        .unwrap();
    cluster
        .until::<EndpointSlice>("one endpoint", |s| ready(s) == 1)
        .await;
    cluster
        .until::<Endpoints>("one address", |e| addresses(e) == 1)
        .await;
    services
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    cluster
        .until::<EndpointSlice>("no slice", <[_]>::is_empty)
        .await;
    cluster
        .until::<Endpoints>("no endpoints", <[_]>::is_empty)
        .await;
    cluster.stop().await;
}
