//! Deltas against making everything anew: pure, over random changes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use rkube_client::ObjectKey;
use rkube_proxy::NodeFacts;
use rkube_proxy::compile::compile;
use rkube_proxy::model::{Data, Key};
use rkube_proxy::state::State;
use serde_json::json;

/// A Service as a few numbers: small ranges, so that they meet each other.
#[derive(Debug, Clone)]
struct Sketch {
    kind: usize,
    affinity: bool,
    internal_local: bool,
    external_local: bool,
    external_ip: u8,
    node_port: u16,
    endpoints: BTreeSet<(u8, bool, bool)>,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let endpoints = proptest::collection::btree_set((1_u8..6, any::<bool>(), any::<bool>()), 0..5);
    (
        0_usize..4,
        any::<[bool; 3]>(),
        0_u8..3,
        32000_u16..32002,
        endpoints,
    )
        .prop_map(
            |(kind, [a, i, e], external_ip, node_port, endpoints)| Sketch {
                kind,
                affinity: a,
                internal_local: i,
                external_local: e,
                external_ip,
                node_port,
                endpoints,
            },
        )
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn entries(number: usize, sketch: &Sketch) -> BTreeMap<Key, Data> {
    let kind = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][sketch.kind];
    let ip = format!("10.96.0.{number}");
    let external: Vec<String> = (0..sketch.external_ip)
        .map(|n| format!("198.51.100.{n}"))
        .collect();
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": format!("s{number}"), "namespace": "n"},
        "spec": {"type": kind, "clusterIP": ip, "clusterIPs": [ip], "externalIPs": external,
            "sessionAffinity": if sketch.affinity { "ClientIP" } else { "None" },
            "internalTrafficPolicy": policy(sketch.internal_local),
            "externalTrafficPolicy": policy(sketch.external_local),
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": sketch.node_port}]},
    }))
    .unwrap();
    let endpoints: Vec<_> = sketch
        .endpoints
        .iter()
        .map(|(last, ready, here)| {
            json!({"addresses": [format!("10.0.0.{last}")], "conditions": {"ready": ready},
                "nodeName": if *here { "me" } else { "you" }})
        })
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "x", "namespace": "n"}, "addressType": "IPv4",
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }))
    .unwrap();
    let node = NodeFacts {
        name: "me".into(),
        zone: None,
    };
    compile(&service, &[&slice], &node, &BTreeSet::new()).entries
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn deltas_lead_where_a_new_start_leads(
        steps in proptest::collection::vec((0_usize..4, proptest::option::of(sketch()), any::<bool>()), 1..40)
    ) {
        let mut state = State::default();
        let mut kernel: BTreeMap<Key, Data> = BTreeMap::new();
        let mut services: BTreeMap<usize, BTreeMap<Key, Data>> = BTreeMap::new();
        for (number, sketch, program) in steps {
            let new = sketch.map(|s| entries(number, &s)).unwrap_or_default();
            state.set(&ObjectKey::new("n", &format!("s{number}")), &new);
            services.insert(number, new);
            if !program {
                continue;
            }
            let delta = state.take_delta();
            // As the kernel does it: all deletions must hit, all additions must be new.
            for (key, data) in &delta.remove {
                prop_assert_eq!(kernel.remove(key), Some(*data));
            }
            for (key, data) in &delta.add {
                prop_assert_eq!(kernel.insert(*key, *data), None);
            }
            // In another order, from nothing.
            let mut anew = State::default();
            for (number, entries) in services.iter().rev() {
                anew.set(&ObjectKey::new("n", &format!("s{number}")), entries);
            }
            let all: Vec<_> = kernel.iter().map(|(k, d)| (*k, *d)).collect();
            prop_assert_eq!(&anew.all(), &all);
            prop_assert_eq!(&state.all(), &all);
            prop_assert_eq!(anew.choices(), state.choices());
        }
    }
}

#[test]
fn what_two_services_ask_for_is_the_first_ones() {
    let sketch = Sketch {
        kind: 0,
        affinity: false,
        internal_local: false,
        external_local: false,
        external_ip: 1,
        node_port: 32000,
        endpoints: BTreeSet::from([(1, true, true)]),
    };
    let two = Sketch {
        endpoints: BTreeSet::from([(2, true, true), (3, true, true)]),
        ..sketch.clone()
    };
    let mut state = State::default();
    let (a, b) = (ObjectKey::new("n", "s1"), ObjectKey::new("n", "s2"));
    state.set(&b, &entries(2, &two));
    let _ = state.take_delta();
    state.set(&a, &entries(1, &sketch));
    let delta = state.take_delta();
    let shared: std::net::IpAddr = "198.51.100.0".parse().unwrap();
    let front = |key: &Key| matches!(key, Key::Front(rkube_proxy::model::Front::Address(ip, ..)) if *ip == shared);
    assert!(delta.remove.iter().any(|(key, _)| front(key)));
    state.set(&a, &BTreeMap::new());
    let back = state.take_delta();
    assert_eq!(
        back.add.iter().find(|(key, _)| front(key)),
        delta.remove.iter().find(|(key, _)| front(key)),
        "the second has it once the first is gone"
    );
}
