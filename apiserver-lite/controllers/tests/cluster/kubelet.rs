//! Plays the nodes: pods that are bound run at once, pods that are on their
//! way out are gone at once. What a pod does is told by its image.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rkube_client::{Client, DeleteParams, Informers, ObjectKey, Patch, WorkQueue, clock};
use serde_json::{Value, json};

pub(crate) struct Kubelet {
    queue: Arc<WorkQueue<ObjectKey>>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Kubelet {
    pub(crate) fn start(informers: &Informers) -> Self {
        let queue = Arc::new(WorkQueue::new());
        let pods = informers.of::<Pod>();
        let adding = Arc::clone(&queue);
        pods.on_change(move |change| adding.add(ObjectKey::of(&**change.object())));
        let (working, client) = (Arc::clone(&queue), informers.client().clone());
        tokio::spawn(async move {
            working
                .work(|key: ObjectKey| {
                    let (pods, client) = (Arc::clone(&pods), client.clone());
                    async move {
                        match pods.store().get(&key) {
                            Some(pod) => sync(&client, &pod).await,
                            None => Ok(()),
                        }
                    }
                })
                .await;
        });
        Self { queue }
    }

    pub(crate) async fn add_node(&self, client: &Client, name: &str) {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        });
        let nodes = client.all::<Node>();
        nodes.create(&node).await.unwrap();
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": clock::time(clock::now()), "lastTransitionTime": clock::time(clock::now())}],
        }});
        nodes
            .patch_status(name, &Patch::Merge(status))
            .await
            .unwrap();
    }
}

async fn sync(client: &Client, pod: &Pod) -> Result<(), String> {
    let key = ObjectKey::of(pod);
    let api = client.namespaced::<Pod>(&key.namespace);
    let spec = pod.spec.as_ref().unwrap();
    if spec.node_name.as_deref().is_none_or(str::is_empty) {
        return Ok(());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let params = DeleteParams {
            grace_seconds: Some(0),
            uid: pod.metadata.uid.clone(),
            ..DeleteParams::default()
        };
        return match api.delete(&key.name, &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.to_string()),
            _ => Ok(()),
        };
    }
    let image = spec.containers[0].image.clone().unwrap_or_default();
    let status = wanted(&image);
    let phase = pod.status.as_ref().and_then(|s| s.phase.clone());
    // What has ended stays so.
    let ended = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || phase.as_deref() == status["phase"].as_str() {
        return Ok(());
    }
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    match api.patch_status(&key.name, &Patch::Strategic(patch)).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// The status that an image leads to.
fn wanted(image: &str) -> Value {
    let (phase, ready) = match image {
        "done" => ("Succeeded", "False"),
        "fails" => ("Failed", "False"),
        "never-ready" => ("Running", "False"),
        _ => ("Running", "True"),
    };
    let now = clock::time(clock::now());
    json!({
        "phase": phase,
        "startTime": now,
        "podIP": "10.1.0.1",
        "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": now},
            {"type": "ContainersReady", "status": ready, "lastTransitionTime": now},
        ],
    })
}
