//! The graph and the verdicts, without a server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use rkube_api::resources::{Resource, by_plural};
use rkube_client::Partial;
use serde_json::{Value, json};

use super::graph::{Graph, Work};
use super::{Owners, Verdict, judge};
use crate::testing::object;

fn pods() -> &'static Resource {
    by_plural("", "v1", "pods").unwrap()
}

fn sets() -> &'static Resource {
    by_plural("apps", "v1", "replicasets").unwrap()
}

fn partial(uid: &str, owner: Option<&str>, extra: Value) -> Partial {
    let owners = owner.map(|uid| {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": uid,
        "uid": uid, "controller": true, "blockOwnerDeletion": true}])
    });
    let base = json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid, "ownerReferences": owners}});
    object(rkube_api::patch::merge(base, extra).unwrap())
}

fn check(uid: &str) -> Work {
    Work::Check(uid.to_owned())
}

#[test]
fn dependents_are_looked_at_when_their_owner_goes() {
    let mut graph = Graph::default();
    assert!(
        graph
            .set(sets(), &partial("rs", None, json!({})))
            .is_empty()
    );
    for pod in ["a", "b"] {
        assert!(
            graph
                .set(pods(), &partial(pod, Some("rs"), json!({})))
                .is_empty()
        );
    }
    assert_eq!(graph.gone("rs"), [check("a"), check("b")]);
}

#[test]
fn an_owner_that_nobody_saw_is_asked_for_once() {
    let mut graph = Graph::default();
    let verify = Work::Verify("rs".to_owned());
    assert_eq!(
        graph.set(pods(), &partial("a", Some("rs"), json!({}))),
        [verify]
    );
    assert!(
        graph
            .set(pods(), &partial("b", Some("rs"), json!({})))
            .is_empty()
    );
    assert!(!graph.get("rs").unwrap().observed);
    graph.set(sets(), &partial("rs", None, json!({})));
    let owner = graph.get("rs").unwrap();
    assert!(owner.observed && owner.dependents.len() == 2);
    // The last dependent of one that was never seen takes it along.
    let mut graph = Graph::default();
    graph.set(pods(), &partial("a", Some("rs"), json!({})));
    graph.gone("a");
    assert!(graph.get("rs").is_none());
}

#[test]
fn foreground_looks_at_dependents_and_then_at_the_owner() {
    let mut graph = Graph::default();
    graph.set(sets(), &partial("rs", None, json!({})));
    graph.set(pods(), &partial("a", Some("rs"), json!({})));
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}});
    assert_eq!(
        graph.set(sets(), &partial("rs", None, going.clone())),
        [check("a"), check("rs")]
    );
    assert!(
        graph.set(sets(), &partial("rs", None, going)).is_empty(),
        "only once"
    );
    assert_eq!(graph.blocking("rs"), ["a"]);
    // One that comes meanwhile goes too.
    assert_eq!(
        graph.set(pods(), &partial("b", Some("rs"), json!({}))),
        [check("b")]
    );
    assert_eq!(graph.gone("a"), [check("rs")]);
    graph.gone("b");
    assert!(graph.blocking("rs").is_empty());
}

#[test]
fn orphaning_and_lists() {
    let mut graph = Graph::default();
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]}});
    assert_eq!(
        graph.set(sets(), &partial("rs", None, going)),
        [Work::Orphan("rs".to_owned())]
    );
    graph.set(pods(), &partial("a", Some("rs"), json!({})));
    // A reference that is taken off.
    graph.set(pods(), &partial("a", None, json!({})));
    assert!(graph.get("rs").unwrap().dependents.is_empty());
    // A new list without the set: it is gone, pods stay as they are.
    graph.set(pods(), &partial("b", Some("rs"), json!({})));
    assert_eq!(graph.replace(sets(), &[]), [check("b")]);
    assert!(graph.get("a").is_some());
}

#[test]
fn verdicts() {
    let reference = |uid: &str| -> OwnerReference {
        object(json!({"apiVersion": "v1", "kind": "X", "name": uid, "uid": uid}))
    };
    let owners = |solid: &[&str], dangling: &[&str], waiting: &[&str]| {
        let of = |uids: &[&str]| uids.iter().map(|u| reference(u)).collect();
        Owners {
            solid: of(solid),
            dangling: of(dangling),
            waiting: of(waiting),
        }
    };
    let drop = |uids: &[&str]| Verdict::Drop(uids.iter().map(|u| (*u).to_owned()).collect());
    let none: [String; 0] = [];
    for (owners, dependents, expected) in [
        (owners(&["a"], &[], &[]), true, Verdict::Keep),
        (owners(&[], &[], &[]), true, Verdict::Keep),
        (owners(&["a"], &["b"], &["c"]), true, drop(&["b", "c"])),
        (
            owners(&[], &["b"], &[]),
            true,
            Verdict::Delete("Background"),
        ),
        (owners(&[], &[], &["c"]), true, Verdict::Foreground),
        (
            owners(&[], &["b"], &["c"]),
            false,
            Verdict::Delete("Background"),
        ),
    ] {
        assert_eq!(judge(&owners, dependents, &none), expected, "{owners:?}");
    }
    let kept = [super::ORPHAN.to_owned()];
    assert_eq!(
        judge(&owners(&[], &["b"], &[]), true, &kept),
        Verdict::Delete("Orphan")
    );
}
