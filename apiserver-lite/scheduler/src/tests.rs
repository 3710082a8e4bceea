//! Whole cycles over the default plugins.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cache::{Cache, Snapshot};
use crate::cycle::{FitError, find};
use crate::framework::{ClusterEvent, CycleState};
use crate::info::PodInfo;
use crate::plugins::default_profile;
use crate::testing::{node, node_of, pod, pod_of, with_node};

fn snapshot(nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>) -> Snapshot {
    let mut cache = Cache::default();
    nodes.into_iter().for_each(|n| cache.set_node(n));
    pods.into_iter().for_each(|p| cache.set_pod(p));
    let mut snapshot = Snapshot::default();
    cache.refresh(&mut snapshot);
    snapshot
}

fn schedule(pod: Arc<Pod>, snapshot: &Snapshot) -> Result<String, Box<FitError>> {
    let profile = default_profile(None);
    let mut state = CycleState::default();
    find(&profile, &mut state, &PodInfo::new(pod), snapshot, 0).map(|n| n.name.clone())
}

fn refusal(pod: Arc<Pod>, snapshot: &Snapshot) -> String {
    schedule(pod, snapshot).unwrap_err().to_string()
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[test]
fn refusals_in_upstreams_words() {
    let none = Snapshot::default();
    assert_eq!(
        refusal(pod("p", "1", "1"), &none),
        "no nodes available to schedule pods"
    );
    let one = snapshot(
        vec![node("n", "4", "8Gi")],
        vec![with_node(&pod("x", "3", "1Gi"), "n")],
    );
    assert_eq!(
        refusal(pod("p", "2", "16Gi"), &one),
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    );
    let labelled = snapshot(
        vec![
            node_of("a", json!({"unschedulable": true}), json!({})),
            node_of(
                "b",
                json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}),
                json!({}),
            ),
            node_of("c", json!({}), json!({"disk": "hdd"})),
            node_of("d", json!({}), json!({})),
        ],
        vec![],
    );
    assert_eq!(
        refusal(
            pod_of("p", spec(json!({"nodeSelector": {"disk": "ssd"}}))),
            &labelled
        ),
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, \
         2 node(s) didn't match Pod's node affinity/selector."
    );
    let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["a"]},
            {"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}});
    assert_eq!(
        refusal(pod_of("p", spec(affinity)), &labelled),
        "0/4 nodes are available: pod affinity terms conflict."
    );
    let gpu = json!({"containers": [{"name": "c", "image": "i",
        "resources": {"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}}}]});
    assert_eq!(
        refusal(pod_of("p", gpu), &one),
        "0/1 nodes are available: 1 Insufficient example.com/gpu."
    );
}

#[test]
fn host_ports_meet_on_an_address() {
    let with_port = |name: &str, ip: &str, protocol: &str| {
        pod_of(
            name,
            json!({"containers": [{"name": "c", "image": "i",
                "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]}),
        )
    };
    let taken = snapshot(
        vec![node("n", "4", "8Gi")],
        vec![with_node(&with_port("x", "127.0.0.1", "TCP"), "n")],
    );
    let busy =
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(refusal(with_port("p", "", "TCP"), &taken), busy);
    assert_eq!(refusal(with_port("p", "127.0.0.1", "TCP"), &taken), busy);
    assert!(schedule(with_port("p", "127.0.0.2", "TCP"), &taken).is_ok());
    assert!(schedule(with_port("p", "", "UDP"), &taken).is_ok());
}

#[test]
fn overhead_and_pod_count_are_counted() {
    let overhead = json!({"overhead": {"cpu": "1"}, "containers": [{"name": "c", "image": "i",
        "resources": {"requests": {"cpu": "3500m"}}}]});
    let one = snapshot(vec![node("n", "4", "8Gi")], vec![]);
    assert_eq!(
        refusal(pod_of("p", overhead), &one),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    let mut small = (*node("n", "4", "8Gi")).clone();
    let allocatable = small.status.as_mut().unwrap().allocatable.as_mut().unwrap();
    allocatable.get_mut("pods").unwrap().0 = "1".into();
    let full = snapshot(
        vec![Arc::new(small)],
        vec![with_node(&pod("x", "1m", "1"), "n")],
    );
    assert_eq!(
        refusal(pod("p", "1m", "1"), &full),
        "0/1 nodes are available: 1 Too many pods."
    );
}

#[test]
fn preferences_decide_between_nodes_that_fit() {
    // The emptier node.
    let two = snapshot(
        vec![node("a", "4", "8Gi"), node("b", "4", "8Gi")],
        vec![with_node(&pod("x", "2", "4Gi"), "a")],
    );
    assert_eq!(schedule(pod("p", "1", "1Gi"), &two).unwrap(), "b");
    // A taint that is only disliked.
    let soft = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
    let tainted = snapshot(
        vec![
            node_of("a", soft, json!({})),
            node_of("b", json!({}), json!({})),
        ],
        vec![],
    );
    assert_eq!(schedule(pod("p", "1", "1Gi"), &tainted).unwrap(), "b");
    // A label that is liked.
    let liked = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "fast", "operator": "Exists"}]}}]}}});
    let fast = snapshot(
        vec![
            node_of("a", json!({}), json!({})),
            node_of("b", json!({}), json!({"fast": ""})),
        ],
        vec![],
    );
    assert_eq!(schedule(pod_of("p", spec(liked)), &fast).unwrap(), "b");
    // A large image that is there.
    let mut having = (*node("b", "4", "8Gi")).clone();
    having.status.as_mut().unwrap().images = Some(
        serde_json::from_value(json!([{"names": ["big:latest"], "sizeBytes": 2_000_000_000}]))
            .unwrap(),
    );
    let images = snapshot(vec![node("a", "4", "8Gi"), Arc::new(having)], vec![]);
    let big = json!({"containers": [{"name": "c", "image": "big"}]});
    assert_eq!(schedule(pod_of("p", big), &images).unwrap(), "b");
}

#[test]
fn pods_of_one_owner_spread() {
    let owned = |name: &str| {
        let mut pod = (*pod(name, "10m", "1Mi")).clone();
        pod.metadata.owner_references = Some(
            serde_json::from_value(json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "rs", "uid": "rs-uid", "controller": true}]))
            .unwrap(),
        );
        Arc::new(pod)
    };
    let nodes = vec![
        node("a", "4", "8Gi"),
        node("b", "4", "8Gi"),
        node("c", "4", "8Gi"),
    ];
    let mut pods = Vec::new();
    let mut places = Vec::new();
    for name in ["p1", "p2", "p3"] {
        let chosen = schedule(owned(name), &snapshot(nodes.clone(), pods.clone())).unwrap();
        pods.push(with_node(&owned(name), &chosen));
        places.push(chosen);
    }
    places.sort();
    assert_eq!(places, ["a", "b", "c"]);
}

#[test]
fn tolerations_open_nodes() {
    let taints = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"},
        {"key": "n", "value": "5", "effect": "NoExecute"}]});
    let one = snapshot(vec![node_of("n", taints, json!({}))], vec![]);
    for (tolerations, fits) in [
        (json!([{"operator": "Exists"}]), true),
        (
            json!([{"key": "k", "value": "v"}, {"key": "n", "operator": "Gt", "value": "7"}]),
            false,
        ),
        (
            json!([{"key": "k", "value": "v"}, {"key": "n", "operator": "Exists"}]),
            true,
        ),
        (
            json!([{"key": "k", "value": "w"}, {"key": "n", "operator": "Exists"}]),
            false,
        ),
        (
            json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}, {"key": "n", "operator": "Exists"}]),
            false,
        ),
    ] {
        let pod = pod_of("p", spec(json!({"tolerations": tolerations})));
        assert_eq!(schedule(pod, &one).is_ok(), fits, "{tolerations}");
    }
}

#[test]
fn rejections_wake_on_what_helps() {
    let profile = default_profile(None);
    let wakes = |plugin, event| profile.wakes(&[plugin].into(), event);
    assert!(wakes("NodeResourcesFit", ClusterEvent::PodRemoved));
    assert!(!wakes("NodeAffinity", ClusterEvent::PodRemoved));
    assert!(wakes("NodeAffinity", ClusterEvent::NodeLabels));
    assert!(wakes("TaintToleration", ClusterEvent::NodeTaints));
    assert!(wakes("NodeAffinity", ClusterEvent::Timeout));
}

fn labelled(name: &str, labels: Value, spec: Value) -> Arc<Pod> {
    let mut pod = (*pod_of(name, spec)).clone();
    pod.metadata.labels = Some(serde_json::from_value(labels).unwrap());
    Arc::new(pod)
}

fn zones() -> Vec<Arc<Node>> {
    [("a", "z1"), ("b", "z1"), ("c", "z2")]
        .map(|(name, zone)| {
            let labels =
                json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
            node_of(name, json!({}), labels)
        })
        .into()
}

#[test]
fn pods_keep_to_others_and_away_from_them() {
    let term = |key: &str, app: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let near = |key: &str| spec(json!({"affinity": {"podAffinity": {required: term(key, "db")}}}));
    let away =
        |key: &str| spec(json!({"affinity": {"podAntiAffinity": {required: term(key, "db")}}}));
    let zone = "topology.kubernetes.io/zone";
    let host = "kubernetes.io/hostname";
    let db = with_node(&labelled("db", json!({"app": "db"}), spec(json!({}))), "a");
    let there = snapshot(zones(), vec![Arc::clone(&db)]);
    assert_eq!(schedule(pod_of("p", near(host)), &there).unwrap(), "a");
    assert_ne!(schedule(pod_of("p", near(zone)), &there).unwrap(), "c");
    assert_eq!(schedule(pod_of("p", away(zone)), &there).unwrap(), "c");
    // Nobody is there: only one of the same kind may begin.
    let empty = snapshot(zones(), vec![]);
    assert_eq!(
        refusal(pod_of("p", near(host)), &empty),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    assert!(schedule(labelled("p", json!({"app": "db"}), near(host)), &empty).is_ok());
    // Those that are there do not want it either.
    let lonely = with_node(&labelled("l", json!({"app": "x"}), away(zone)), "c");
    let both = snapshot(zones(), vec![db, lonely]);
    let third = labelled("p", json!({"app": "db"}), away(zone));
    assert_eq!(
        refusal(third, &both),
        "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, \
         2 node(s) didn't match pod anti-affinity rules."
    );
    // A wish.
    let preferred = json!([{"weight": 5, "podAffinityTerm": term(host, "db")[0]}]);
    let wish = spec(
        json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}),
    );
    assert_eq!(schedule(pod_of("p", wish), &there).unwrap(), "a");
}

#[test]
fn namespaces_are_told_by_their_labels() {
    let mut cache = Cache::default();
    zones().into_iter().for_each(|n| cache.set_node(n));
    cache.set_namespace("other", Some([("team".to_owned(), "x".to_owned())].into()));
    let mut db = (*labelled("db", json!({"app": "db"}), spec(json!({})))).clone();
    db.metadata.namespace = Some("other".to_owned());
    cache.set_pod(with_node(&db, "c"));
    let mut all = Snapshot::default();
    cache.refresh(&mut all);
    let with = |selector: Value| {
        spec(
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": selector}]}}}),
        )
    };
    let team = json!({"matchLabels": {"team": "x"}});
    assert_eq!(schedule(pod_of("p", with(team)), &all).unwrap(), "c");
    assert!(
        schedule(
            pod_of("p", with(json!({"matchLabels": {"team": "y"}}))),
            &all
        )
        .is_err()
    );
}

#[test]
fn spreading_is_demanded_within_its_skew() {
    let constraint = |extra: Value| {
        let mut one = json!({"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "w"}}});
        for (key, value) in extra.as_object().unwrap() {
            one[key] = value.clone();
        }
        spec(json!({"topologySpreadConstraints": [one]}))
    };
    let worker = |name: &str, extra: Value| labelled(name, json!({"app": "w"}), constraint(extra));
    let mut pods = vec![with_node(&worker("1", json!({})), "a")];
    assert_eq!(
        schedule(worker("2", json!({})), &snapshot(zones(), pods.clone())).unwrap(),
        "c"
    );
    pods.push(with_node(&worker("2", json!({})), "a"));
    assert_eq!(
        schedule(worker("3", json!({})), &snapshot(zones(), pods.clone())).unwrap(),
        "c"
    );
    // Too few zones: the emptiest one counts as empty.
    let few = json!({"minDomains": 3});
    assert_eq!(
        refusal(
            worker("3", few),
            &snapshot(
                zones(),
                vec![
                    with_node(&worker("1", json!({})), "a"),
                    with_node(&worker("2", json!({})), "c")
                ]
            )
        ),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."
    );
    let nowhere = json!({"topologyKey": "rack"});
    assert_eq!(
        refusal(worker("3", nowhere), &snapshot(zones(), vec![])),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
    );
    // As a wish it only prefers.
    let soft = json!({"whenUnsatisfiable": "ScheduleAnyway"});
    assert_eq!(
        schedule(worker("3", soft), &snapshot(zones(), pods)).unwrap(),
        "c"
    );
}
