//! Pods of an API: what they refer to changes, and is not kept.

use super::*;
use crate::objects::Objects;
use crate::record::Source;
use crate::worker::Update;

fn api_bundle(name: &str, spec: Value, objects: Value) -> Bundle {
    Bundle {
        source: Source::Api,
        objects: serde_json::from_value(objects).unwrap(),
        ..bundle(name, spec)
    }
}

fn with_map(value: &str) -> Objects {
    serde_json::from_value(json!({"config_maps": {"m": {"data": {"k": value}}}})).unwrap()
}

async fn file_says(path: &Path, text: &str) {
    for _ in 0..10_000 {
        if std::fs::read_to_string(path).is_ok_and(|t| t == text) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {text:?} in {}", path.display());
}

#[tokio::test]
async fn volumes_follow_what_they_show() {
    let host = Host::new(Clock::system());
    let manager = host.manager().await;
    let mut one = api_bundle(
        "a",
        json!({"containers": [{"name": "c", "image": "serve"}], "volumes": [
            {"name": "v", "configMap": {"name": "m"}},
            {"name": "d", "downwardAPI": {"items": [
                {"path": "l", "fieldRef": {"fieldPath": "metadata.labels['x']"}}]}}]}),
        json!({}),
    );
    one.objects = with_map("1");
    let pod = one.pod.clone();
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    let paths = Paths::new(host.dir.path());
    let map = paths
        .volume("u-a", "kubernetes.io~configmap", "v")
        .join("k");
    let label = paths
        .volume("u-a", "kubernetes.io~downward-api", "d")
        .join("l");
    file_says(&map, "1").await;
    file_says(&label, "").await;
    let mut changed = pod.clone();
    changed.metadata.labels = Some([("x".to_owned(), "y".to_owned())].into());
    for value in ["2", "3"] {
        let update = Update {
            pod: changed.clone(),
            objects: with_map(value),
        };
        manager.update("u-a", update).await.unwrap();
    }
    file_says(&map, "3").await;
    file_says(&label, "y").await;
    // One that has gone leaves what was there, and is told.
    let update = Update {
        pod: changed,
        objects: Objects::default(),
    };
    manager.update("u-a", update).await.unwrap();
    while !reasons(&manager, "u-a").contains(&"FailedMount".to_owned()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    file_says(&map, "3").await;
    manager.delete("u-a", Some(0)).await.unwrap();
    manager.gone("u-a").await;
}

#[tokio::test(start_paused = true)]
async fn another_image_restarts_its_container_alone() {
    let host = Host::paused();
    let manager = host.manager().await;
    let spec = |image: &str| {
        json!({"containers": [
            {"name": "c", "image": image}, {"name": "d", "image": "serve"}]})
    };
    let one = api_bundle("a", spec("run:100:1"), json!({}));
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    host.fake.calls();
    let update = Update {
        pod: api_bundle("a", spec("serve"), json!({})).pod,
        objects: Objects::default(),
    };
    manager.update("u-a", update).await.unwrap();
    let view = until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    assert_eq!(state(&view)["containerStatuses"][1]["restartCount"], 0);
    let killing = manager.journal().list(Some("u-a"));
    let killing = killing
        .iter()
        .find(|e| e.reason.as_deref() == Some("Killing"));
    assert_eq!(
        killing.and_then(|e| e.message.as_deref()),
        Some("Container c definition changed, will be restarted")
    );
    assert!(host.fake.calls().contains(&"start c/1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_new_writer_waits_for_secrets_that_are_in_no_record() {
    let host = Host::paused();
    let manager = host.manager().await;
    let objects = json!({"secrets": {"s": {"stringData": {"k": "top-secret"}}}});
    let one = api_bundle(
        "a",
        json!({"containers": [{"name": "c", "image": "run:60:1", "env": [{"name": "S",
            "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}]}]}),
        objects,
    );
    let (pod, objects) = (one.pod.clone(), one.objects.clone());
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    let record = Paths::new(host.dir.path()).pod("u-a").join("pod.json");
    let text = std::fs::read_to_string(record).unwrap();
    assert!(!text.contains("top-secret"), "{text}");
    manager.leave().await;
    drop(manager);
    let manager = host.manager().await;
    host.fake.calls();
    // The container ends and is to start again, but with its Secret.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!host.fake.calls().contains(&"start c/1".to_owned()));
    let update = Update { pod, objects };
    manager.update("u-a", update).await.unwrap();
    until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let configs = lock(&host.fake.inner).configs.clone();
    let last = configs.last().unwrap();
    assert!(
        last.env
            .contains(&("S".to_owned(), "top-secret".to_owned()))
    );
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_objects_can_be_deleted() {
    let host = Host::paused();
    let manager = host.manager().await;
    let one = api_bundle(
        "a",
        json!({"containers": [{"name": "c", "image": "run:60:1"}]}),
        json!({}),
    );
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    manager.leave().await;
    drop(manager);
    let manager = host.manager().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    manager.delete("u-a", None).await.unwrap();
    manager.gone("u-a").await;
    assert_eq!(host.pods(), 0);
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_api_are_told_apart_by_uid() {
    let host = Host::paused();
    let manager = host.manager().await;
    let spec = || json!({"containers": [{"name": "c", "image": "serve"}]});
    manager
        .apply(api_bundle("a", spec(), json!({})), IfExists::Attach)
        .await
        .unwrap();
    let mut again = api_bundle("a", spec(), json!({}));
    again.pod.metadata.uid = Some("u-a2".to_owned());
    let applied = manager.apply(again, IfExists::Attach).await.unwrap();
    assert!(matches!(applied, Applied::Created(_)));
    // `rkube run` cannot take the name.
    let mut file = bundle(
        "a",
        json!({"containers": [{"name": "x", "image": "serve"}]}),
    );
    file.pod.metadata.uid = None;
    let refused = manager.apply(file, IfExists::Attach).await;
    assert!(matches!(refused, Err(ManagerError::OfApi { .. })));
}
