//! Pods that nobody else would take away: of nodes that are gone, of no node,
//! and ended ones beyond a number.
//!
//! Rules and words: upstream's `pkg/controller/podgc`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use rkube_client::{Change, Client, Informer, ObjectKey, WorkQueue};

use super::{BY_NODE, index_by_node, remove_pod};
use crate::error::{Error, Outcome};
use crate::owner;
use crate::pods;
use crate::starter::Starter;

/// How long a node has to be missing before its pods go (`quarantineTime`).
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods.
const ENDED: &str = "ended";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The pods of a node that is missing.
    Node(String),
    /// A pod that is on its way out and has no node.
    Pod(ObjectKey),
    /// Too many ended pods.
    Ended,
}

struct PodGc {
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    client: Client,
    ended_max: usize,
    quarantine: Duration,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(PodGc {
        nodes: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        ended_max: starter.config.ended_pods_max_count,
        quarantine: QUARANTINE.min(starter.config.node_grace),
    });
    index_by_node(&controller.pods);
    controller.pods.add_index(ENDED, |pod| {
        let ended = pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none();
        if ended {
            vec![String::new()]
        } else {
            Vec::new()
        }
    });
    let own = Arc::clone(&controller);
    controller.nodes.on_change(move |change| {
        if let Change::Deleted(node) = change {
            let key = Key::Node(owner::name(&**node).to_owned());
            own.queue.add_after(key, own.quarantine);
        }
    });
    let own = Arc::clone(&controller);
    controller
        .pods
        .on_change(move |change| own.pod_changed(change));
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.nodes.synced().await;
        own.pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("pod-garbage-collector", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

impl PodGc {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let node = pods::node_of(pod);
        if node.is_empty() {
            if owner::is_deleting(&**pod) {
                self.queue.add(Key::Pod(ObjectKey::of(&**pod)));
            }
        } else if matches!(change, Change::Added(_))
            && self.nodes.store().get(&ObjectKey::new("", node)).is_none()
        {
            self.queue
                .add_after(Key::Node(node.to_owned()), self.quarantine);
        }
        if self.ended_max > 0 && pods::is_terminal(pod) {
            self.queue.add(Key::Ended);
        }
    }

    async fn sync(&self, key: Key) -> Outcome {
        match key {
            Key::Node(name) => self.empty_node(&name).await,
            Key::Pod(key) => match self.pods.store().get(&key) {
                Some(pod) if owner::is_deleting(&*pod) && pods::node_of(&pod).is_empty() => {
                    let message = "PodGC: unscheduled terminating pod";
                    remove_pod(&self.client, &pod, "DeletionByPodGC", message, true).await
                }
                _ => Ok(()),
            },
            Key::Ended => self.drop_ended().await,
        }
    }

    async fn empty_node(&self, name: &str) -> Outcome {
        if self.nodes.store().get(&ObjectKey::new("", name)).is_some() {
            return Ok(());
        }
        // The informer may be behind: only the server knows.
        let found = self.client.all::<Node>().get_opt(name).await;
        if found.map_err(Error::request("read node", name))?.is_some() {
            return Ok(());
        }
        for pod in self.pods.store().by_index(BY_NODE, name) {
            let message = "PodGC: node no longer exists";
            remove_pod(&self.client, &pod, "DeletionByPodGC", message, true).await?;
        }
        Ok(())
    }

    async fn drop_ended(&self) -> Outcome {
        let mut ended = self.pods.store().by_index(ENDED, "");
        let surplus = ended.len().saturating_sub(self.ended_max);
        ended.sort_by_key(|pod| {
            let evicted = pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
            let created = pod.metadata.creation_timestamp.as_ref();
            (!evicted, created.map(|t| t.0))
        });
        for pod in ended.into_iter().take(surplus) {
            let message = "PodGC: too many ended pods";
            remove_pod(&self.client, &pod, "DeletionByPodGC", message, true).await?;
        }
        Ok(())
    }
}
