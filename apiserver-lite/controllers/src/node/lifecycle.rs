//! Watches over nodes: one that is silent for too long is marked, tainted,
//! and its pods count as not ready.
//!
//! Upstream looks at all nodes every 5 s; here each node has a deadline that
//! every heartbeat moves, so nothing runs while all is well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use rkube_client::{
    Change, Client, EventType, Informer, ObjectKey, Patch, Recorder, WorkQueue, clock, reference,
};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::health::{Heard, readiness, silence, wanted_taints};
use super::{BY_NODE, index_by_node};
use crate::error::{Error, Outcome};
use crate::owner;
use crate::pods;
use crate::starter::Starter;

/// Where nodes renew their leases.
const LEASES: &str = "kube-node-lease";

struct Lifecycle {
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<String>>,
    heard: Mutex<HashMap<String, Heard>>,
    client: Client,
    recorder: Recorder,
    grace: Duration,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Lifecycle {
        nodes: starter.informers.of(),
        leases: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        heard: Mutex::default(),
        client: starter.client.clone(),
        recorder: starter.recorder("node-controller"),
        grace: starter.config.node_grace,
    });
    index_by_node(&controller.pods);
    let own = Arc::clone(&controller);
    controller
        .nodes
        .on_change(move |change| own.node_changed(change));
    let own = Arc::clone(&controller);
    controller.leases.on_change(move |change| {
        let lease = change.object();
        if owner::namespace(&**lease) == LEASES {
            own.lease_changed(owner::name(&**lease));
        }
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.nodes.synced().await;
        own.leases.synced().await;
        own.pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("node-lifecycle-controller", &queue, synced, move |name| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(name).await }
    });
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::new("", name)
}

impl Lifecycle {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, Heard>) -> T) -> T {
        f(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn node_changed(&self, change: &Change<Node>) {
        self.queue.add(owner::name(&**change.object()).to_owned());
        // Whether any node is ready decides about all of them.
        let turned = match change {
            Change::Added(_) => false,
            Change::Modified(old, new) => (readiness(old) == "True") != (readiness(new) == "True"),
            Change::Deleted(_) => true,
        };
        if turned {
            for node in self.nodes.store().all() {
                self.queue.add(owner::name(&*node).to_owned());
            }
        }
    }

    /// A renewed lease moves the node's deadline. Only a node that was silent
    /// has to be looked at because of it.
    fn lease_changed(&self, name: &str) {
        let Some(node) = self.nodes.store().get(&node_key(name)) else {
            return;
        };
        let known = self.note(name, &node);
        if !known || readiness(&node) == "Unknown" {
            self.queue.add(name.to_owned());
        }
    }

    /// Notes what is known of a node now; tells whether it was known before.
    fn note(&self, name: &str, node: &Node) -> bool {
        let lease = self.leases.store().get(&ObjectKey::new(LEASES, name));
        let renewal = lease.and_then(|l| l.spec.as_ref()?.renew_time.clone());
        let now = Instant::now();
        self.with(|heard| {
            let known = heard.contains_key(name);
            let entry = heard
                .entry(name.to_owned())
                .or_insert_with(|| Heard::new(now));
            entry.note(node, renewal.as_ref(), now);
            known
        })
    }

    async fn sync(&self, name: String) -> Outcome {
        let Some(mut node) = self.nodes.store().get(&node_key(&name)) else {
            self.with(|heard| heard.remove(&name));
            return Ok(());
        };
        self.note(&name, &node);
        let now = Instant::now();
        let Some(heard) = self.with(|heard| heard.get(&name).cloned()) else {
            return Ok(());
        };
        let deadline = heard.silent_at(self.grace);
        let silent = deadline <= now;
        if silent {
            let changed = silence(&node, clock::now());
            if !changed.is_empty() {
                node = Arc::new(self.mark(&name, &node, &json!(changed)).await?);
            }
        } else {
            self.queue
                .add_after(name.clone(), deadline.duration_since(now));
        }
        let ready = readiness(&node) == "True";
        if heard.was_ready && !ready {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(
                reference(&*node),
                EventType::Normal,
                "NodeNotReady",
                &message,
            );
        }
        if !ready && (silent || heard.was_ready) {
            self.mark_pods(&name).await?;
        }
        self.with(|all| {
            if let Some(entry) = all.get_mut(&name) {
                entry.was_ready = ready;
            }
        });
        self.taint(&name, &node, ready).await
    }

    async fn mark(
        &self,
        name: &str,
        node: &Node,
        conditions: &serde_json::Value,
    ) -> Result<Node, Error> {
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "status": {"conditions": conditions},
        });
        let nodes = self.client.all::<Node>();
        let marked = nodes.patch_status(name, &Patch::Strategic(patch)).await;
        marked.map_err(Error::request("mark the silent node", name))
    }

    async fn taint(&self, name: &str, node: &Node, ready: bool) -> Outcome {
        let nodes = self.nodes.store().all();
        let others = nodes
            .iter()
            .filter(|n| owner::name(&***n) != name && readiness(n) == "True");
        let evicts = ready || others.count() > 0;
        let Some(taints) = wanted_taints(node, evicts, clock::now()) else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let api = self.client.all::<Node>();
        match api.patch(name, &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer.map(|_| ()).map_err(Error::request("taint", name)),
        }
    }

    /// Takes the pods of a node that is not ready out of Services.
    async fn mark_pods(&self, node: &str) -> Outcome {
        for pod in self.pods.store().by_index(BY_NODE, node) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let key = ObjectKey::of(&*pod);
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": clock::time(clock::now()),
            }]}});
            let api = self.client.namespaced::<Pod>(&key.namespace);
            match api.patch_status(&key.name, &Patch::Strategic(patch)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => {
                    return Err(Error::request("mark the pod of a silent node", key)(error));
                }
                _ => {}
            }
            let message = "Node is not ready";
            self.recorder.event(
                reference(&*pod),
                EventType::Warning,
                "NodeNotReady",
                message,
            );
        }
        Ok(())
    }
}
