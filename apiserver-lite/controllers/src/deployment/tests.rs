//! Rollouts, step by step, without a cluster.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{Sets, progress, revision, sizes};
use crate::testing::{at, object};

fn deployment(replicas: i32, extra: Value) -> Deployment {
    let base = json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1,
            "annotations": {"note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
    });
    object(rkube_api::patch::merge(base, extra).unwrap())
}

/// A set with its size, how many of its pods are available, and when it was
/// made.
fn set(name: &str, size: i32, available: i32, created: i64) -> Arc<ReplicaSet> {
    let created = at(created).to_string();
    Arc::new(object(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "creationTimestamp": created,
            "annotations": {sizes::DESIRED: "10", sizes::MAX: "13", revision::REVISION: "1"}},
        "spec": {"replicas": size, "selector": {},
            "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": "x"}},
                "spec": {"containers": [{"name": "c", "image": name}]}}},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available},
    })))
}

fn sizes_of(targets: &[sizes::Target]) -> Vec<(&str, i32)> {
    targets.iter().map(|t| (t.uid.as_str(), t.size)).collect()
}

#[test]
fn percentages_round_up_for_surge_and_down_for_missing() {
    let text = |t: &str| IntOrString::String(t.to_owned());
    assert_eq!(sizes::resolve(Some(&text("25%")), 10, true), 3);
    assert_eq!(sizes::resolve(Some(&text("25%")), 10, false), 2);
    assert_eq!(sizes::resolve(Some(&IntOrString::Int(4)), 10, false), 4);
    assert_eq!(sizes::fence_posts(&deployment(10, json!({}))), (3, 2));
    assert_eq!(sizes::fence_posts(&deployment(1, json!({}))), (1, 0));
    let both_nothing =
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "1%"}}}});
    assert_eq!(sizes::fence_posts(&deployment(10, both_nothing)), (0, 1));
}

#[test]
fn a_rollout_never_has_too_many_or_too_few() {
    let d = deployment(10, json!({}));
    let (mut new, mut old) = (0, 10);
    let (mut steps, mut last) = (0, (0, 0));
    while (new, old) != (10, 0) {
        assert_ne!((new, old), last, "it moves on");
        last = (new, old);
        steps += 1;
        let sets = Sets {
            new: Some(set("new", new, new, 2)),
            old: vec![set("old", old, old, 1)],
        };
        for target in sizes::roll_up(&d, &sets) {
            new = target.size;
        }
        let sets = Sets {
            new: Some(set("new", new, last.0, 2)),
            old: vec![set("old", old, old, 1)],
        };
        for target in sizes::roll_down(&d, &sets) {
            old = target.size;
        }
        assert!(new + old <= 13, "at most the surge more: {new} + {old}");
        assert!(last.0 + old >= 8, "at most a quarter less: {new} + {old}");
    }
    assert!((3..=6).contains(&steps), "{steps} steps");
}

#[test]
fn pods_that_do_not_work_go_first() {
    let d = deployment(10, json!({}));
    let sets = Sets {
        new: Some(set("new", 3, 0, 3)),
        old: vec![set("older", 4, 4, 1), set("broken", 6, 2, 2)],
    };
    // 13 pods, 8 must be there, 3 new ones are not ready: 2 may go.
    assert_eq!(sizes_of(&sizes::roll_down(&d, &sets)), [("broken", 4)]);
}

#[test]
fn recreate_empties_before_it_fills() {
    let d = deployment(
        3,
        json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
    );
    assert!(sizes::recreates(&d));
    let old = vec![set("a", 3, 3, 1), set("b", 0, 0, 2)];
    assert_eq!(sizes_of(&sizes::down_to_nothing(&old)), [("a", 0)]);
    let sets = Sets {
        new: Some(set("new", 0, 0, 3)),
        old,
    };
    assert_eq!(sizes_of(&sizes::up_to_all(&d, &sets)), [("new", 3)]);
    assert_eq!(sizes::of_new(&d, &sets.all(), None), 3);
}

#[test]
fn scaling_during_a_rollout_keeps_proportions() {
    // 10 with surge 3 was 8 + 5; it becomes 20 with surge 5.
    let d = deployment(20, json!({}));
    let sets = Sets {
        new: Some(set("new", 5, 5, 2)),
        old: vec![set("old", 8, 8, 1)],
    };
    assert!(sizes::is_scaling(&d, &sets.all()));
    let mut targets = sizes::scale(&d, &sets);
    targets.sort_by(|a, b| a.uid.cmp(&b.uid));
    assert_eq!(sizes_of(&targets), [("new", 10), ("old", 15)]);
    // Down to 5 (surge 2).
    let d = deployment(5, json!({}));
    let total: i32 = sizes::scale(&d, &sets).iter().map(|t| t.size).sum();
    assert_eq!(total, 7);
    // Alone and of the right size already: it must not scale for ever.
    let d = deployment(20, json!({}));
    let alone = Sets {
        new: Some(set("new", 20, 20, 2)),
        old: vec![set("old", 0, 0, 1)],
    };
    assert!(sizes::is_scaling(&d, &alone.all()));
    assert_eq!(sizes_of(&sizes::scale(&d, &alone)), [("new", 20)]);
    // To nothing.
    let d = deployment(0, json!({}));
    assert!(sizes::scale(&d, &sets).iter().all(|t| t.size == 0));
    // A single set simply gets the size.
    let one = Sets {
        new: Some(set("new", 10, 10, 1)),
        old: vec![set("old", 0, 0, 0)],
    };
    assert_eq!(
        sizes_of(&sizes::scale(&deployment(4, json!({})), &one)),
        [("new", 4)]
    );
}

#[test]
fn the_set_of_the_template_is_told_by_the_template() {
    let d = deployment(
        1,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}}),
    );
    let sets = revision::split(&d, vec![set("b", 1, 1, 5), set("a", 1, 1, 9)]);
    assert_eq!(
        sets.new.as_ref().unwrap().metadata.name.as_deref(),
        Some("b")
    );
    assert_eq!(sets.old.len(), 1);
    let body = revision::new_set(&d, 7, 3);
    let name = body["metadata"]["name"].as_str().unwrap();
    let hash = name.strip_prefix("web-").unwrap();
    assert!(
        hash.len() > 3
            && hash
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    );
    assert_eq!(
        body["spec"]["selector"]["matchLabels"]["pod-template-hash"],
        *hash
    );
    assert_eq!(
        body["spec"]["template"]["metadata"]["labels"]["pod-template-hash"],
        *hash
    );
    let annotations = &body["metadata"]["annotations"];
    assert_eq!(annotations["note"], "kept");
    assert_eq!(annotations[revision::REVISION], "7");
    assert!(
        annotations
            .get("kubectl.kubernetes.io/last-applied-configuration")
            .is_none()
    );
    // A collision makes another name.
    let other = deployment(
        1,
        json!({"status": {"collisionCount": 1}, "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}}),
    );
    assert_ne!(
        revision::new_set(&other, 7, 3)["metadata"]["name"],
        body["metadata"]["name"]
    );
    // What was made from the template is found again by it.
    let mut made = body.clone();
    made["metadata"]["uid"] = "made".into();
    assert!(revision::is_of_template(&d, &object(made)));
}

#[test]
fn a_rollback_gets_a_new_number_and_remembers_the_old() {
    let d = deployment(1, json!({}));
    let old_number_three = |name: &str| {
        let mut set = (*set(name, 0, 0, 1)).clone();
        set.metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert(revision::REVISION.into(), "3".into());
        Arc::new(set)
    };
    let again = set("v1", 1, 1, 0);
    let sets = Sets {
        new: Some(again.clone()),
        old: vec![old_number_three("v2")],
    };
    let next = revision::next(&sets);
    assert_eq!(next, 4);
    let patch = revision::refresh(&d, &again, next).unwrap();
    let annotations = &patch["metadata"]["annotations"];
    assert_eq!(annotations[revision::REVISION], "4");
    assert_eq!(
        annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert!(
        annotations.get(sizes::MAX).is_none(),
        "each set's share is of the size that it was sized for"
    );
    let fresh: ReplicaSet =
        object(rkube_api::patch::merge(serde_json::to_value(&*again).unwrap(), patch).unwrap());
    assert!(revision::refresh(&d, &fresh, next).is_none(), "it stays so");
    assert_eq!(
        revision::annotate(&d, &fresh).unwrap()["metadata"]["annotations"][revision::REVISION],
        "4"
    );
}

#[test]
fn history_has_its_limit() {
    let d = deployment(1, json!({}));
    let numbered = |n: i64, size: i32| {
        let mut set = (*set(&format!("s{n}"), size, 0, n)).clone();
        set.metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert(revision::REVISION.into(), n.to_string());
        Arc::new(set)
    };
    let old = [
        numbered(4, 0),
        numbered(1, 0),
        numbered(3, 0),
        numbered(2, 1),
    ];
    let gone: Vec<_> = revision::outdated(&d, &old)
        .iter()
        .map(|s| revision::of_set(s))
        .collect();
    assert_eq!(gone, [1], "the limit is 2, and number 2 still has pods");
}

#[test]
fn progress_in_upstreams_words() {
    let d = deployment(2, json!({}));
    let now = at(1000);
    let progress_of = |status: &k8s_openapi::api::apps::v1::DeploymentStatus| {
        let conditions = status.conditions.as_ref().unwrap();
        let c = conditions
            .iter()
            .find(|c| c.type_ == "Progressing")
            .unwrap()
            .clone();
        (c.status, c.reason.unwrap(), c.message.unwrap())
    };
    let with = |status: k8s_openapi::api::apps::v1::DeploymentStatus| Deployment {
        status: Some(status),
        ..d.clone()
    };
    let created = progress::created(&d, "web-x", now).unwrap();
    assert_eq!(progress_of(&created).2, "Created new replica set \"web-x\"");
    let sets = |available: i32| Sets {
        new: Some(set("web-x", 2, available, 1)),
        old: vec![],
    };
    let one = progress::rollout(&with(created), &sets(1), now);
    assert_eq!(
        progress_of(&one),
        (
            "True".into(),
            "ReplicaSetUpdated".into(),
            "ReplicaSet \"web-x\" is progressing.".into()
        )
    );
    assert_eq!(
        (one.available_replicas, one.unavailable_replicas),
        (Some(1), Some(1))
    );
    assert_eq!(
        progress::deadline_in(&with(one.clone()), &one, now),
        Some(601)
    );
    // Nothing moves: the deadline passes.
    let late = progress::rollout(&with(one.clone()), &sets(1), at(1601));
    assert_eq!(
        progress_of(&late),
        (
            "False".into(),
            "ProgressDeadlineExceeded".into(),
            "ReplicaSet \"web-x\" has timed out progressing.".into()
        )
    );
    let done = progress::rollout(&with(one), &sets(2), at(1100));
    assert_eq!(progress_of(&done).1, "NewReplicaSetAvailable");
    assert!(progress::is_complete(&d, &done));
    assert_eq!(progress::deadline_in(&d, &done, at(1100)), None);
    let conditions = done.conditions.as_ref().unwrap();
    let available = conditions.iter().find(|c| c.type_ == "Available").unwrap();
    assert_eq!(
        available.reason.as_deref(),
        Some("MinimumReplicasAvailable")
    );
    // It stays complete whatever time passes.
    assert_eq!(
        progress::rollout(&with(done.clone()), &sets(2), at(99_999)),
        done
    );
    let paused = deployment(2, json!({"spec": {"paused": true}}));
    let told = progress::paused(
        &Deployment {
            status: Some(done),
            ..paused
        },
        now,
    )
    .unwrap();
    assert_eq!(
        progress_of(&told),
        (
            "Unknown".into(),
            "DeploymentPaused".into(),
            "Deployment is paused".into()
        )
    );
    assert_eq!(
        progress_of(&progress::paused(&with(told), now).unwrap()).1,
        "DeploymentResumed"
    );
}
