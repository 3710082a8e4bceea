//! The engine through the client's in-process transport.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use rkube_apiserver::testing;
use rkube_client::{Client, DeleteParams, Event, ListParams, Patch, WatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;

fn client() -> (TempDir, Client) {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = testing::engine(folder.path()).expect("an engine");
    (folder, testing::client(&engine))
}

fn config_map(name: &str, labels: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}})
}

#[tokio::test]
async fn objects_come_and_go() {
    let (_folder, client) = client();
    let maps = client.namespaced::<ConfigMap>("default");
    let made = maps.create(&config_map("a", &json!({}))).await.unwrap();
    let metadata = made.metadata;
    assert_eq!(metadata.namespace.as_deref(), Some("default"));
    assert!(metadata.uid.is_some() && metadata.creation_timestamp.is_some());
    let again = maps.create(&config_map("a", &json!({}))).await.unwrap_err();
    assert!(again.is_already_exists(), "{again}");
    let merged = maps
        .patch("a", &Patch::Merge(json!({"data": {"k": null, "l": "w"}})))
        .await
        .unwrap();
    assert_eq!(
        serde_json::to_value(&merged.data).unwrap(),
        json!({"l": "w"})
    );
    assert_ne!(merged.metadata.resource_version, metadata.resource_version);
    // The revision of the first answer is not the newest any more.
    let mut stale = serde_json::to_value(&merged).unwrap();
    stale["metadata"]["resourceVersion"] = metadata.resource_version.unwrap().into();
    assert!(maps.update("a", &stale).await.unwrap_err().is_conflict());
    stale["metadata"]["resourceVersion"] = Value::Null;
    maps.update("a", &stale).await.unwrap();
    let invalid = json!({"metadata": {"name": "A"}});
    assert!(maps.create(&invalid).await.unwrap_err().is_invalid());
    let gone = maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(
        (&gone["kind"], &gone["status"]),
        (&json!("Status"), &json!("Success"))
    );
    assert!(maps.get("a").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn pages_show_one_revision() {
    let (_folder, client) = client();
    let maps = client.namespaced::<ConfigMap>("default");
    for i in 0..10 {
        let name = format!("m{i}");
        maps.create(&config_map(
            &name,
            &json!({"even": (i % 2 == 0).to_string()}),
        ))
        .await
        .unwrap();
    }
    let params = |continue_token| ListParams {
        limit: Some(4),
        continue_token,
        ..ListParams::default()
    };
    let first = maps.list(&params(None)).await.unwrap();
    assert_eq!(first.items.len(), 4);
    assert_eq!(first.metadata.remaining_item_count, Some(6));
    maps.delete("m9", &DeleteParams::default()).await.unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut page = first;
    loop {
        names.extend(page.items.iter().filter_map(|m| m.metadata.name.clone()));
        let Some(token) = page.metadata.continue_.filter(|t| !t.is_empty()) else {
            break;
        };
        page = maps.list(&params(Some(token))).await.unwrap();
    }
    assert_eq!(
        names.len(),
        10,
        "the deleted one is on the page of its time"
    );
    let even = ListParams {
        labels: Some("even=true".into()),
        limit: Some(3),
        ..ListParams::default()
    };
    let page = maps.list(&even).await.unwrap();
    assert_eq!(page.items.len(), 3);
    assert!(page.metadata.continue_.is_some());
}

#[tokio::test]
async fn a_watch_follows_its_selection() {
    let (_folder, client) = client();
    let maps = client.namespaced::<ConfigMap>("default");
    maps.create(&config_map("old", &json!({"a": "b"})))
        .await
        .unwrap();
    let params = WatchParams {
        labels: Some("a=b".into()),
        ..WatchParams::default()
    };
    let mut watch = maps.watch(&params).await.unwrap();
    let name = |event: Event<ConfigMap>| match event {
        Event::Added(m) => ("added", m.metadata.name.unwrap()),
        Event::Modified(m) => ("modified", m.metadata.name.unwrap()),
        Event::Deleted(m) => ("deleted", m.metadata.name.unwrap()),
        Event::Bookmark(revision) => ("bookmark", revision),
    };
    assert_eq!(
        name(watch.next().await.unwrap().unwrap()),
        ("added", "old".into())
    );
    maps.create(&config_map("other", &json!({}))).await.unwrap();
    let label = |value: Value| Patch::Merge(json!({"metadata": {"labels": {"a": value}}}));
    maps.patch("other", &label("b".into())).await.unwrap();
    assert_eq!(
        name(watch.next().await.unwrap().unwrap()),
        ("added", "other".into())
    );
    maps.patch("other", &label("c".into())).await.unwrap();
    assert_eq!(
        name(watch.next().await.unwrap().unwrap()),
        ("deleted", "other".into())
    );
    maps.patch("old", &Patch::Merge(json!({"data": {"x": "y"}})))
        .await
        .unwrap();
    assert_eq!(
        name(watch.next().await.unwrap().unwrap()),
        ("modified", "old".into())
    );
    maps.delete("old", &DeleteParams::default()).await.unwrap();
    assert_eq!(
        name(watch.next().await.unwrap().unwrap()),
        ("deleted", "old".into())
    );
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let (_folder, client) = client();
    let deployments = client.namespaced::<Deployment>("default");
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let body = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template},
        "status": {"replicas": 9}});
    let made = deployments.create(&body).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(made.status.unwrap().replicas, None);
    let status = Patch::Merge(json!({"spec": {"replicas": 5}, "status": {"replicas": 1}}));
    let told = deployments.patch_status("d", &status).await.unwrap();
    assert_eq!(told.spec.as_ref().unwrap().replicas, Some(1));
    assert_eq!(told.status.unwrap().replicas, Some(1));
    assert_eq!(told.metadata.generation, Some(1));
    let spec = Patch::Strategic(
        json!({"spec": {"replicas": 5, "template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}}),
    );
    let scaled = deployments.patch("d", &spec).await.unwrap();
    assert_eq!(scaled.metadata.generation, Some(2));
    assert_eq!(scaled.status.unwrap().replicas, Some(1));
    let unchanged = deployments.patch("d", &spec).await.unwrap();
    assert_eq!(
        unchanged.metadata.resource_version,
        scaled.metadata.resource_version
    );
}

#[tokio::test]
async fn a_pod_is_bound_and_ends() {
    let (_folder, client) = client();
    let pods = client.namespaced::<Pod>("default");
    let pod = json!({"metadata": {"generateName": "p-"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let made = pods.create(&pod).await.unwrap();
    let name = made.metadata.name.unwrap();
    assert!(name.starts_with("p-") && name.len() == 7, "{name}");
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    let bound = pods.create_sub(&name, "binding", &binding).await.unwrap();
    assert_eq!(bound["status"], "Success");
    let twice = pods
        .create_sub(&name, "binding", &binding)
        .await
        .unwrap_err();
    assert!(twice.is_conflict(), "{twice}");
    let on_node = ListParams {
        fields: Some("spec.nodeName=n".into()),
        ..ListParams::default()
    };
    let all = client.all::<Pod>();
    assert_eq!(all.list(&on_node).await.unwrap().items.len(), 1);
    let marked = pods.delete(&name, &DeleteParams::default()).await.unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    pods.get(&name).await.unwrap();
    let now = DeleteParams {
        grace_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete(&name, &now).await.unwrap();
    assert!(pods.get(&name).await.unwrap_err().is_not_found());
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn a_watch_replayed_is_the_list() {
    use std::collections::BTreeMap;
    let (_folder, client) = client();
    let maps = client.namespaced::<ConfigMap>("default");
    let selected = || Some("on=yes".to_owned());
    let mut watch = maps
        .watch(&WatchParams {
            labels: selected(),
            ..WatchParams::default()
        })
        .await
        .unwrap();
    let mut numbers = Numbers(7);
    for _ in 0..300 {
        let name = format!("m{}", numbers.below(8));
        let label = if numbers.below(2) == 0 { "yes" } else { "no" };
        // Half of these meet an object that is not there, or is: that is part of it.
        let _ = match numbers.below(4) {
            0 => maps
                .create(&config_map(&name, &json!({"on": label})))
                .await
                .map(drop),
            1 => maps.delete(&name, &DeleteParams::default()).await.map(drop),
            _ => {
                let patch = json!({"metadata": {"labels": {"on": label}}, "data": {"n": numbers.below(9).to_string()}});
                maps.patch(&name, &Patch::Merge(patch)).await.map(drop)
            }
        };
    }
    let last = maps
        .create(&config_map("last", &json!({"on": "yes"})))
        .await
        .unwrap();
    let mut replayed: BTreeMap<String, ConfigMap> = BTreeMap::new();
    let mut revision = 0;
    loop {
        let (object, there) = match watch.next().await.unwrap().unwrap() {
            Event::Added(object) => {
                let name = object.metadata.name.clone().unwrap();
                assert!(!replayed.contains_key(&name), "{name} was there already");
                (object, true)
            }
            Event::Modified(object) => (object, true),
            Event::Deleted(object) => (object, false),
            Event::Bookmark(_) => continue,
        };
        let name = object.metadata.name.clone().unwrap();
        let own: u64 = object
            .metadata
            .resource_version
            .as_ref()
            .unwrap()
            .parse()
            .unwrap();
        assert!(own > revision, "revisions rise");
        revision = own;
        if there {
            replayed.insert(name.clone(), object);
        } else {
            replayed
                .remove(&name)
                .expect("only what is there is deleted");
        }
        if name == "last" {
            break;
        }
    }
    let list = maps
        .list(&ListParams {
            labels: selected(),
            ..ListParams::default()
        })
        .await
        .unwrap();
    assert_eq!(
        list.metadata.resource_version,
        last.metadata.resource_version
    );
    let listed: BTreeMap<String, ConfigMap> = list
        .items
        .into_iter()
        .map(|m| (m.metadata.name.clone().unwrap(), m))
        .collect();
    assert_eq!(replayed, listed);
}

#[tokio::test]
async fn patches_of_many_at_once_all_count() {
    let (_folder, client) = client();
    let maps = client.namespaced::<ConfigMap>("default");
    maps.create(&config_map("a", &json!({}))).await.unwrap();
    let patches = (0..40).map(|i| {
        let maps = maps.clone();
        async move {
            let patch = Patch::Merge(json!({"data": {format!("k{i}"): "v"}}));
            maps.patch("a", &patch).await.unwrap();
        }
    });
    futures_util::future::join_all(patches).await;
    let data = maps.get("a").await.unwrap().data.unwrap();
    assert_eq!(data.len(), 41);
}
