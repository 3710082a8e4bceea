//! Deployments from the first pod to the rollback.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod, ReplicationController};
use rkube_client::Patch;
use serde_json::json;

use crate::{Cluster, deployment};

fn is_rolled_out(d: &Deployment, replicas: i32) -> bool {
    let Some(status) = &d.status else {
        return false;
    };
    status.observed_generation == d.metadata.generation
        && [
            status.replicas,
            status.updated_replicas,
            status.available_replicas,
            status.ready_replicas,
        ] == [Some(replicas); 4]
}

fn condition<'a>(d: &'a Deployment, kind: &str) -> Option<&'a str> {
    let conditions = d.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|c| c.type_ == kind)?;
    condition.reason.as_deref()
}

fn images(pods: &[Pod]) -> Vec<&str> {
    let mut images: Vec<_> = pods
        .iter()
        .map(|p| {
            p.spec.as_ref().unwrap().containers[0]
                .image
                .as_deref()
                .unwrap()
        })
        .collect();
    images.sort_unstable();
    images
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_rolled_out_and_back() {
    let cluster = Cluster::start(2).await;
    let api = cluster.client.namespaced::<Deployment>("default");
    api.create(&deployment("web", 4, "v1")).await.unwrap();
    let done = |d: &[Deployment]| d.iter().all(|d| is_rolled_out(d, 4));
    let d = cluster.until::<Deployment>("the first rollout", done).await;
    assert_eq!(
        condition(&d[0], "Available"),
        Some("MinimumReplicasAvailable")
    );
    let pods = cluster.until::<Pod>("four pods", |p| p.len() == 4).await;
    let nodes: std::collections::BTreeSet<_> = pods
        .iter()
        .map(|p| p.spec.as_ref().unwrap().node_name.clone())
        .collect();
    assert_eq!(nodes.len(), 2, "spread over both nodes");

    let image = |image: &str| {
        Patch::Strategic(
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}),
        )
    };
    // A bad version stops half-way and leaves the old pods at work.
    api.patch("web", &image("never-ready")).await.unwrap();
    let stuck = |d: &[Deployment]| {
        let status = d[0].status.as_ref().unwrap();
        status.updated_replicas == Some(2)
            && status.available_replicas == Some(3)
            && status.observed_generation == d[0].metadata.generation
    };
    cluster.until::<Deployment>("the bad version", stuck).await;

    // Back, as `kubectl rollout undo` does it: by the old set's template.
    let sets = cluster
        .until::<ReplicaSet>("two sets", |s| s.len() == 2)
        .await;
    let first = sets
        .iter()
        .find(|s| {
            s.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"] == "1"
        })
        .unwrap();
    let mut template = serde_json::to_value(&first.spec.as_ref().unwrap().template).unwrap();
    template["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("pod-template-hash");
    let undo = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    api.patch("web", &Patch::Json(undo)).await.unwrap();
    let d = cluster.until::<Deployment>("the rollback", done).await;
    assert_eq!(
        condition(&d[0], "Progressing"),
        Some("NewReplicaSetAvailable")
    );
    let annotations = d[0].metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    let pods = cluster.until::<Pod>("old pods", |p| p.len() == 4).await;
    assert_eq!(images(&pods), ["v1"; 4]);

    // Down to one, and away with it: events tell.
    api.patch("web", &Patch::Merge(json!({"spec": {"replicas": 1}})))
        .await
        .unwrap();
    cluster
        .until::<Deployment>("one replica", |d| is_rolled_out(&d[0], 1))
        .await;
    cluster.until::<Pod>("one pod", |p| p.len() == 1).await;
    let told = |events: &[Event], text: &str| {
        events
            .iter()
            .any(|e| e.message.as_deref().is_some_and(|m| m.starts_with(text)))
    };
    let set = first.metadata.name.clone().unwrap();
    for text in [
        format!("Scaled up replica set {set} from 0 to 4"),
        "Created pod: web-".to_owned(),
        "Successfully assigned default/web-".to_owned(),
        format!("Scaled down replica set {set} from 4 to 1"),
        "Deleted pod: web-".to_owned(),
    ] {
        cluster.until::<Event>(&text, |e| told(e, &text)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_means_no_new_pods() {
    let cluster = Cluster::start(1).await;
    let api = cluster.client.namespaced::<Deployment>("default");
    api.create(&deployment("web", 2, "v1")).await.unwrap();
    cluster
        .until::<Deployment>("rolled out", |d| is_rolled_out(&d[0], 2))
        .await;
    let pause = |paused: bool| Patch::Merge(json!({"spec": {"paused": paused}}));
    api.patch("web", &pause(true)).await.unwrap();
    let change = json!({"spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    api.patch("web", &Patch::Strategic(change)).await.unwrap();
    // It still scales, with the old version.
    let scaled = |d: &[Deployment]| {
        let status = d[0].status.as_ref().unwrap();
        status.available_replicas == Some(3)
            && condition(&d[0], "Progressing") == Some("DeploymentPaused")
    };
    cluster
        .until::<Deployment>("scaled while paused", scaled)
        .await;
    let pods = cluster.until::<Pod>("three pods", |p| p.len() == 3).await;
    assert_eq!(images(&pods), ["v1"; 3]);
    api.patch("web", &pause(false)).await.unwrap();
    cluster
        .until::<Deployment>("resumed", |d| is_rolled_out(&d[0], 3))
        .await;
    let pods = cluster.until::<Pod>("new pods", |p| p.len() == 3).await;
    assert_eq!(images(&pods), ["v2"; 3]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_never_mixes_versions() {
    let cluster = Cluster::start(1).await;
    let api = cluster.client.namespaced::<Deployment>("default");
    let mut body = deployment("web", 3, "v1");
    body["spec"]["strategy"] = json!({"type": "Recreate"});
    api.create(&body).await.unwrap();
    cluster
        .until::<Deployment>("rolled out", |d| is_rolled_out(&d[0], 3))
        .await;
    let change =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
    api.patch("web", &Patch::Strategic(change)).await.unwrap();
    let mixed = |pods: &[Pod]| {
        let images = images(pods);
        assert!(
            !(images.contains(&"v1") && images.contains(&"v2")),
            "{images:?}"
        );
        images == ["v2"; 3]
    };
    cluster.until::<Pod>("new pods", mixed).await;
    cluster
        .until::<Deployment>("rolled out", |d| is_rolled_out(&d[0], 3))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_adopts_and_releases() {
    let cluster = Cluster::start(1).await;
    let pods = cluster.client.namespaced::<Pod>("default");
    let orphan = json!({"metadata": {"name": "orphan", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "v1"}]}});
    pods.create(&orphan).await.unwrap();
    let api = cluster
        .client
        .namespaced::<ReplicationController>("default");
    let body = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 2, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}});
    api.create(&body).await.unwrap();
    let ready = |r: &[ReplicationController]| {
        r[0].status
            .as_ref()
            .is_some_and(|s| s.available_replicas == Some(2))
    };
    cluster
        .until::<ReplicationController>("two available", ready)
        .await;
    let all = cluster.until::<Pod>("two pods", |p| p.len() == 2).await;
    assert!(
        all.iter()
            .all(|p| p.metadata.owner_references.as_ref().unwrap()[0].name == "rc")
    );
    // Another label: it is let go, and replaced.
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"a": "c"}}}));
    pods.patch("orphan", &relabel).await.unwrap();
    let all = cluster.until::<Pod>("three pods", |p| p.len() == 3).await;
    let orphan = all
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some("orphan"))
        .unwrap();
    assert!(
        orphan
            .metadata
            .owner_references
            .as_ref()
            .is_none_or(Vec::is_empty)
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_and_restarts_end_exact() {
    let mut cluster = Cluster::start(2).await;
    let api = cluster.client.namespaced::<Deployment>("default");
    api.create(&deployment("web", 3, "v0")).await.unwrap();
    for round in 1..=6 {
        let replicas = [12, 2, 9, 1, 15, 7][round - 1];
        let image = format!("v{}", round % 3);
        let change = json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
        api.patch("web", &Patch::Strategic(change)).await.unwrap();
        if round % 2 == 0 {
            cluster = cluster.restart().await;
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(120)).await;
        }
    }
    cluster
        .until::<Deployment>("the last change", |d| is_rolled_out(&d[0], 7))
        .await;
    let pods = cluster.until::<Pod>("seven pods", |p| p.len() == 7).await;
    assert_eq!(images(&pods), ["v0"; 7]);
    cluster.stop().await;
}
