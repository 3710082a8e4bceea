#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use rkube_client::{Api, ApiError, Client, DeleteParams, Patch};
use serde_json::{Value, json};

use super::*;
use crate::admission::Chain;
use crate::engine::Engine;
use crate::testing;

fn config(small: bool) -> ServicesConfig {
    let prefix = if small { 29 } else { 16 };
    ServicesConfig {
        ranges: vec![
            ("10.96.0.0".parse().unwrap(), prefix),
            ("fd00:96::".parse().unwrap(), 112),
        ],
        node_ports: if small {
            30_000..=30_003
        } else {
            NODE_PORTS_DEFAULT
        },
    }
}

fn client(folder: &Path, config: &ServicesConfig) -> Client {
    let mut made = testing::config(folder).unwrap();
    let allocator = ServiceAllocator::new(config).unwrap();
    made.admission = Chain::new(vec![Arc::new(allocator)]);
    testing::client(&Engine::new(made))
}

struct World {
    api: Api<Service>,
    folder: tempfile::TempDir,
    config: ServicesConfig,
}

impl World {
    fn new(small: bool) -> Self {
        let (folder, config) = (tempfile::tempdir().unwrap(), config(small));
        let api = client(folder.path(), &config).namespaced("default");
        Self {
            api,
            folder,
            config,
        }
    }

    /// As after a restart of the server.
    fn restart(self) -> Self {
        let Self {
            api,
            folder,
            config,
        } = self;
        drop(api);
        let api = client(folder.path(), &config).namespaced("default");
        Self {
            api,
            folder,
            config,
        }
    }

    async fn create(&self, name: &str, spec: Value) -> Result<Value, ApiError> {
        let mut spec = spec;
        if spec.get("ports").is_none() {
            spec["ports"] = json!([{"port": 80}]);
        }
        let service = json!({"metadata": {"name": name}, "spec": spec});
        let made = self.api.create(&service).await?;
        Ok(serde_json::to_value(made).unwrap()["spec"].clone())
    }

    async fn patch(&self, name: &str, spec: Value) -> Result<Value, ApiError> {
        let patch = Patch::Merge(json!({"spec": spec}));
        let made = self.api.patch(name, &patch).await?;
        Ok(serde_json::to_value(made).unwrap()["spec"].clone())
    }

    async fn delete(&self, name: &str) {
        self.api
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }
}

fn text(result: Result<Value, ApiError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn every_type_gets_what_it_needs() {
    let world = World::new(false);
    let plain = world.create("plain", json!({})).await.unwrap();
    let ip: std::net::Ipv4Addr = plain["clusterIP"].as_str().unwrap().parse().unwrap();
    assert_eq!(ip.octets()[..2], [10, 96]);
    assert!(ip.octets()[2] >= 1, "not of the part for named ones: {ip}");
    assert_eq!(plain["clusterIPs"], json!([ip]));
    assert_eq!(plain["ipFamilies"], json!(["IPv4"]));
    assert_eq!(plain["ipFamilyPolicy"], "SingleStack");

    let both = world
        .create("both", json!({"ipFamilyPolicy": "RequireDualStack"}))
        .await
        .unwrap();
    assert!(
        both["clusterIPs"][1]
            .as_str()
            .unwrap()
            .starts_with("fd00:96::")
    );
    let node = world
        .create("node", json!({"type": "NodePort", "ports": [
            {"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "protocol": "TCP"},
            {"name": "c", "port": 80, "nodePort": 30080}]}))
        .await
        .unwrap();
    let ports: Vec<i64> = (0..3)
        .map(|i| node["ports"][i]["nodePort"].as_i64().unwrap())
        .collect();
    assert_eq!(ports[0], ports[1], "one port for both protocols");
    assert_eq!(ports[2], 30080);
    assert!((30_086..=32_767).contains(&ports[0]));
    let balanced = world
        .create(
            "balanced",
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
        )
        .await
        .unwrap();
    assert!(balanced["healthCheckNodePort"].as_i64().unwrap() >= 30_000);
    let without = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let without = world.create("without", without).await.unwrap();
    assert!(without["ports"][0].get("nodePort").is_none());
    let headless = world
        .create("headless", json!({"clusterIP": "None"}))
        .await
        .unwrap();
    assert_eq!(headless["clusterIPs"], json!(["None"]));
    let external = json!({"type": "ExternalName", "externalName": "a.b"});
    let external = world.create("external", external).await.unwrap();
    assert!(external.get("clusterIP").is_none());
}

#[tokio::test]
async fn what_is_asked_for_by_name_is_checked() {
    let world = World::new(false);
    world
        .create(
            "a",
            json!({"type": "NodePort", "clusterIP": "10.96.0.9",
        "ports": [{"port": 80, "nodePort": 30001}]}),
        )
        .await
        .unwrap();
    assert_eq!(
        text(world.create("b", json!({"clusterIP": "10.96.0.9"})).await),
        r#"Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.9"]: failed to allocate IP 10.96.0.9: provided IP is already allocated"#
    );
    assert!(
        text(world.create("b", json!({"clusterIP": "10.97.0.9"})).await).ends_with(
            "failed to allocate IP 10.97.0.9: the provided network does not match the current range"
        )
    );
    let port = |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    assert_eq!(
        text(world.create("b", port(30001)).await),
        r#"Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"#
    );
    assert!(text(world.create("b", port(80)).await).ends_with(
        "provided port is not in the valid range. The range of valid ports is 30000-32767"
    ));
    // A refused write keeps nothing, whoever comes next.
    let mut bad = port(30002);
    bad["sessionAffinity"] = json!("Sometimes");
    assert!(world.create("b", bad).await.is_err());
    world.create("c", port(30002)).await.unwrap();
    // What was deleted is free at once.
    world.delete("c").await;
    world.create("d", port(30002)).await.unwrap();
    world.delete("a").await;
    let again = json!({"clusterIP": "10.96.0.9"});
    assert_eq!(
        world.create("e", again).await.unwrap()["clusterIP"],
        "10.96.0.9"
    );
}

#[tokio::test]
async fn changes_of_type_allocate_and_release() {
    let world = World::new(false);
    let first = world.create("a", json!({})).await.unwrap();
    let node = world.patch("a", json!({"type": "NodePort"})).await.unwrap();
    assert_eq!(node["clusterIP"], first["clusterIP"]);
    let port = node["ports"][0]["nodePort"].as_i64().unwrap();
    // The manifest of the creation, written again, keeps what was given.
    let whole =
        json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let same = serde_json::to_value(world.api.update("a", &whole).await.unwrap()).unwrap();
    assert_eq!(same["spec"]["clusterIP"], first["clusterIP"]);
    assert_eq!(same["spec"]["ports"][0]["nodePort"], port);

    let back = world
        .patch("a", json!({"type": "ClusterIP"}))
        .await
        .unwrap();
    assert!(back["ports"][0].get("nodePort").is_none());
    let taken = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    world.create("b", taken).await.unwrap();

    let external = json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": null, "clusterIPs": null});
    let external = world.patch("a", external).await.unwrap();
    assert!(external.get("clusterIP").is_none());
    let named = json!({"clusterIP": first["clusterIP"]});
    world.create("c", named).await.unwrap();
    let again = world
        .patch("a", json!({"type": "ClusterIP", "externalName": null}))
        .await
        .unwrap();
    assert_ne!(again["clusterIP"], first["clusterIP"], "that is c's now");

    let two = world
        .patch("a", json!({"ipFamilyPolicy": "PreferDualStack"}))
        .await
        .unwrap();
    assert_eq!(two["clusterIPs"][0], again["clusterIP"]);
    let second = two["clusterIPs"][1].clone();
    let one = world
        .patch("a", json!({"ipFamilyPolicy": "SingleStack"}))
        .await
        .unwrap();
    assert_eq!(one["clusterIPs"], json!([again["clusterIP"]]));
    world
        .create("d", json!({"clusterIP": second}))
        .await
        .unwrap();
    assert!(
        text(world.patch("a", json!({"clusterIP": "10.96.0.77"})).await)
            .contains("may not change once set")
    );
}

#[tokio::test]
async fn a_restart_knows_what_is_taken_and_full_is_full() {
    // Six addresses and four ports.
    let mut world = World::new(true);
    let mut got = BTreeSet::new();
    for i in 0..4 {
        let spec = world
            .create(&format!("s{i}"), json!({"type": "NodePort"}))
            .await
            .unwrap();
        got.insert((
            spec["clusterIP"].clone().to_string(),
            spec["ports"][0]["nodePort"].to_string(),
        ));
    }
    assert_eq!(got.len(), 4);
    world = world.restart();
    assert_eq!(
        text(world.create("x", json!({"type": "NodePort"})).await),
        "Internal error occurred: failed to allocate a nodePort: range is full"
    );
    for i in 4..6 {
        world.create(&format!("s{i}"), json!({})).await.unwrap();
    }
    assert_eq!(
        text(world.create("x", json!({})).await),
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
    world.delete("s2").await;
    world
        .create("x", json!({"type": "NodePort"}))
        .await
        .unwrap();
    world
        .create("y", json!({"clusterIP": "None"}))
        .await
        .unwrap();
}

#[tokio::test]
async fn concurrent_writes_never_share() {
    let world = Arc::new(World::new(false));
    let ask = |i: usize| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            world
                .create(&format!("s{i}"), json!({"type": "NodePort"}))
                .await
                .unwrap()
        })
    };
    let mut ips = BTreeSet::new();
    let mut ports = BTreeSet::new();
    let all: Vec<_> = (0..60).map(ask).collect();
    for one in all {
        let spec = one.await.unwrap();
        ips.insert(spec["clusterIP"].to_string());
        ports.insert(spec["ports"][0]["nodePort"].to_string());
    }
    assert_eq!((ips.len(), ports.len()), (60, 60));
}

#[tokio::test]
async fn every_cluster_has_its_own_services() {
    let world = World::new(false);
    let client = world.api.client().clone();
    let address = "192.0.2.7".parse().unwrap();
    for _ in 0..2 {
        ensure(&client, &world.config, address, 6443).await.unwrap();
    }
    let service = world.api.get("kubernetes").await.unwrap().spec.unwrap();
    assert_eq!(service.cluster_ip.as_deref(), Some("10.96.0.1"));
    let dns = client.namespaced::<Service>("kube-system");
    let dns = dns.get("kube-dns").await.unwrap().spec.unwrap();
    assert_eq!(dns.cluster_ips.unwrap(), ["10.96.0.10", "fd00:96::a"]);
    let ips = world.config.dns_addresses();
    assert_eq!(
        ips,
        [
            "10.96.0.10".parse::<IpAddr>().unwrap(),
            "fd00:96::a".parse().unwrap()
        ]
    );
    // A server that moved says so.
    ensure(&client, &world.config, "192.0.2.8".parse().unwrap(), 7443)
        .await
        .unwrap();
    let slices = client.namespaced::<k8s_openapi::api::discovery::v1::EndpointSlice>("default");
    let slice = serde_json::to_value(slices.get("kubernetes").await.unwrap()).unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.8"]));
    assert_eq!(slice["ports"][0]["port"], 7443);
}

#[test]
fn configurations_that_cannot_be() {
    let with = |ranges: &[(&str, u8)], ports: RangeInclusive<u16>| {
        let ranges = ranges
            .iter()
            .map(|(ip, prefix)| (ip.parse().unwrap(), *prefix));
        ServiceAllocator::new(&ServicesConfig {
            ranges: ranges.collect(),
            node_ports: ports,
        })
        .map(drop)
        .map_err(|e| e.to_string())
    };
    assert!(with(&[("10.0.0.0", 24), ("fd00::", 64)], 1..=65535).is_ok());
    assert!(with(&[], 1..=2).is_err());
    assert!(with(&[("10.0.0.0", 24), ("10.1.0.0", 24)], 1..=2).is_err());
    assert!(with(&[("10.0.0.0", 31)], 1..=2).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "that is the case")]
    let empty = 5..=4;
    assert!(with(&[("10.0.0.0", 24)], empty).is_err());
}
