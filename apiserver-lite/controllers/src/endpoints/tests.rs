//! Endpoints and slices, without a server.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::slices::{self, Group};
use super::{facts, legacy};
use crate::testing::object;

fn service(spec: Value) -> Service {
    let base = json!({"metadata": {"name": "web", "namespace": "ns", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.1",
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}});
    object(rkube_api::patch::merge(base, json!({ "spec": spec })).unwrap())
}

fn pod(name: &str, extra: Value) -> Arc<Pod> {
    let base = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": format!("10.1.0.{}", name.len()), "podIPs": [{"ip": format!("10.1.0.{}", name.len())}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
    Arc::new(object(rkube_api::patch::merge(base, extra).unwrap()))
}

fn groups(service: &Service, pods: &[Arc<Pod>]) -> Vec<Group> {
    slices::desired(service, pods, |node| {
        (node == "n1").then(|| "z1".to_owned())
    })
}

fn conditions(group: &Group) -> Vec<(bool, bool, bool)> {
    let conditions = group
        .endpoints
        .iter()
        .map(|e| e.conditions.clone().unwrap());
    conditions
        .map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()))
        .collect()
}

#[test]
fn endpoints_tell_readiness_serving_and_terminating() {
    let pods = [
        pod("a", json!({})),
        pod("bb", json!({"status": {"conditions": []}})),
        pod(
            "ccc",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ),
    ];
    let plain = groups(&service(json!({})), &pods);
    assert_eq!(plain.len(), 1);
    assert_eq!(
        conditions(&plain[0]),
        [
            (true, true, false),
            (false, false, false),
            (false, true, true)
        ]
    );
    assert_eq!(plain[0].ports[0].port, Some(8080), "by name");
    assert_eq!(plain[0].endpoints[0].zone.as_deref(), Some("z1"));
    assert_eq!(plain[0].endpoints[0].node_name.as_deref(), Some("n1"));
    let all = groups(&service(json!({"publishNotReadyAddresses": true})), &pods);
    assert_eq!(
        conditions(&all[0]),
        [
            (true, true, false),
            (true, false, false),
            (true, true, true)
        ]
    );
    // Both families, a group each.
    let both = groups(
        &service(json!({"ipFamilies": ["IPv6", "IPv4"]})),
        &pods[..1],
    );
    let addresses: Vec<_> = both
        .iter()
        .map(|g| g.endpoints[0].addresses[0].as_str())
        .collect();
    assert_eq!(addresses, ["fd00::1", "10.1.0.1"]);
    // Nothing there: a slice that says so.
    let none = groups(&service(json!({})), &[]);
    assert!(none.len() == 1 && none[0].endpoints.is_empty() && none[0].ports.is_empty());
}

#[test]
fn pods_that_name_a_port_differently_are_apart() {
    let other = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]}});
    let nameless = json!({"spec": {"containers": [{"name": "c"}]}});
    let pods = [pod("a", json!({})), pod("bb", other), pod("ccc", nameless)];
    let found = groups(&service(json!({})), &pods);
    let ports: Vec<_> = found.iter().map(|g| g.ports[0].port).collect();
    assert_eq!(ports, [Some(8080), Some(9090)]);
    let number = service(json!({"ports": [{"port": 80, "targetPort": 0}]}));
    assert_eq!(groups(&number, &pods)[0].ports[0].port, Some(80));
}

#[test]
fn headless_services_name_pods_and_need_no_ports() {
    let headless = service(json!({"clusterIP": "None", "ports": null}));
    let named = pod(
        "a",
        json!({"spec": {"hostname": "db-0", "subdomain": "web"}}),
    );
    let found = groups(&headless, &[named]);
    assert_eq!(found[0].endpoints[0].hostname.as_deref(), Some("db-0"));
    let labels = slices::labels(&headless);
    assert_eq!(labels[facts::HEADLESS], "");
    assert_eq!(labels[slices::SERVICE_NAME], "web");
    assert_eq!(labels["team"], "a");
    let (subsets, _) = legacy::subsets(&headless, &[pod("a", json!({}))]);
    assert!(subsets[0].ports.is_none() && subsets[0].addresses.as_ref().unwrap().len() == 1);
}

/// The slice that a group becomes.
fn made(name: &str, service: &Service, group: &Group) -> Arc<EndpointSlice> {
    Arc::new(object(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": slices::labels(service)},
        "addressType": group.family.as_str(), "ports": group.ports, "endpoints": group.endpoints})))
}

#[test]
fn slices_change_as_little_as_possible() {
    let service = service(json!({}));
    let labels = slices::labels(&service);
    let pods: Vec<_> = (1..=150).map(|n| pod(&"x".repeat(n), json!({}))).collect();
    let first = slices::reconcile(groups(&service, &pods), &[], &labels);
    let counts: Vec<_> = first.create.iter().map(|g| g.endpoints.len()).collect();
    assert_eq!(counts, [100, 50]);
    let there: Vec<_> = first
        .create
        .iter()
        .enumerate()
        .map(|(i, g)| made(&format!("s{i}"), &service, g))
        .collect();
    let same = slices::reconcile(groups(&service, &pods), &there, &labels);
    assert!(same.create.is_empty() && same.update.is_empty() && same.delete.is_empty());
    // One pod less, one more: one slice is written, none is made.
    let mut next = pods.clone();
    next.remove(0);
    next.push(pod(&"x".repeat(200), json!({})));
    let changed = slices::reconcile(groups(&service, &next), &there, &labels);
    assert!(changed.create.is_empty() && changed.delete.is_empty());
    assert_eq!(changed.update.len(), 1);
    // No pod: the slices go and one remains that is empty.
    let empty = slices::reconcile(groups(&service, &[]), &there, &labels);
    assert_eq!((empty.create.len(), empty.delete.len()), (1, 2));
    let placeholder = [made("p", &service, &empty.create[0])];
    let still = slices::reconcile(groups(&service, &[]), &placeholder, &labels);
    assert!(still.create.is_empty() && still.update.is_empty() && still.delete.is_empty());
    let filled = slices::reconcile(groups(&service, &pods[..1]), &placeholder, &labels);
    assert_eq!((filled.create.len(), filled.delete.len()), (1, 1));
}

#[test]
fn the_older_form_keeps_those_that_are_not_ready_apart() {
    let pods = [
        pod("a", json!({})),
        pod("bb", json!({"status": {"conditions": []}})),
        pod(
            "ccc",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ),
        pod("dddd", json!({"status": {"phase": "Failed"}})),
    ];
    let (subsets, total) = legacy::subsets(&service(json!({})), &pods);
    assert_eq!((subsets.len(), total), (1, 2));
    assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.1.0.1");
    assert_eq!(
        subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip,
        "10.1.0.2"
    );
    assert_eq!(
        subsets[0].ports.as_ref().unwrap()[0].name.as_deref(),
        Some("http")
    );
    let many: Vec<_> = (1..=1100)
        .map(|n| {
            pod(
                &"x".repeat(n),
                json!({"status": {"podIP": "10.0.0.1", "podIPs": null}}),
            )
        })
        .collect();
    let (mut subsets, total) = legacy::subsets(&service(json!({})), &many);
    legacy::truncate(&mut subsets, total);
    assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1000);
}

#[test]
fn services_of_others_are_left_alone() {
    assert!(facts::selector(&service(json!({"selector": null}))).is_none());
    assert!(facts::selector(&service(json!({"type": "ExternalName"}))).is_none());
}
