//! The node in the API: its object, its status, its lease.
//!
//! The status is written when it changes and every five minutes, the lease
//! every ten seconds (KEP-589); nothing else is sent at rest.

pub mod facts;
pub mod object;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use rkube_client::{Api, ApiError, Client, Patch};
use rkube_kubelet::time::{Clock, api_micro_time};
use serde_json::{Value, json};
use tokio::sync::Notify;

use object::{Fixed, Now, Registration};

/// How often the status is written when nothing changes.
pub const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often the lease is renewed: a quarter of its duration.
pub const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How long a lease holds, in seconds.
pub const LEASE_SECONDS: i32 = 40;
/// The least time between two statuses that differ.
const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// First wait after a failed request; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest such wait (the kubelet's `maxBackoff` of leases).
const RETRY_LONGEST: Duration = Duration::from_secs(7);
/// The namespace of nodes' leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node's side of its object.
pub struct NodeKeeper {
    client: Client,
    registration: Registration,
    fixed: Fixed,
    clock: Clock,
    now: Box<dyn Fn() -> Now + Send + Sync>,
    changed: Arc<Notify>,
}

impl std::fmt::Debug for NodeKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKeeper")
            .field("name", &self.registration.name)
            .finish_non_exhaustive()
    }
}

impl NodeKeeper {
    /// A node that is not registered yet. `now` is asked whenever `changed`
    /// is notified, and every [`STATUS_PERIOD`].
    #[must_use]
    pub fn new(
        client: Client,
        registration: Registration,
        fixed: Fixed,
        clock: Clock,
        now: Box<dyn Fn() -> Now + Send + Sync>,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            client,
            registration,
            fixed,
            clock,
            now,
            changed,
        }
    }

    fn api(&self) -> Api<Node> {
        self.client.all()
    }

    /// Makes the node's object, or takes on the one that is there.
    ///
    /// # Errors
    /// The API server refuses or cannot be reached.
    pub async fn register(&self) -> Result<Node, ApiError> {
        let name = &self.registration.name;
        if let Some(node) = self.api().get_opt(name).await? {
            return self.take_on(node).await;
        }
        let new = object::new_node(&self.registration, &self.fixed.host);
        match self.api().create(&new).await {
            Err(error) if error.is_already_exists() => {
                let node = self.api().get(name).await?;
                self.take_on(node).await
            }
            other => other,
        }
    }

    /// An object that is there keeps its taints and gets our labels.
    async fn take_on(&self, node: Node) -> Result<Node, ApiError> {
        let mut wanted = object::well_known_labels(&self.fixed.host, &self.registration.name);
        wanted.extend(self.registration.labels.clone());
        let have = node.metadata.labels.clone().unwrap_or_default();
        wanted.retain(|k, v| have.get(k) != Some(v));
        if wanted.is_empty() {
            return Ok(node);
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": wanted}}));
        self.api().patch(&self.registration.name, &patch).await
    }

    /// Registers until that works.
    pub async fn registered(&self) -> Node {
        let mut wait = RETRY_FIRST;
        loop {
            match self.register().await {
                Ok(node) => return node,
                Err(error) => {
                    tracing::warn!(node = %self.registration.name, %error, "register the node");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
        }
    }

    /// Writes status and lease until it is dropped.
    pub async fn run(&self) {
        tokio::join!(self.keep_status(), self.keep_lease());
    }

    async fn keep_status(&self) {
        let mut due = tokio::time::Instant::now();
        let mut last: Option<Now> = None;
        let mut wait = RETRY_FIRST;
        loop {
            let now = (self.now)();
            let at = tokio::time::Instant::now();
            if last.as_ref() != Some(&now) || at >= due {
                match self.write_status(&now).await {
                    Ok(()) => {
                        last = Some(now);
                        due = tokio::time::Instant::now() + STATUS_PERIOD;
                        wait = RETRY_FIRST;
                    }
                    Err(error) => {
                        tracing::warn!(node = %self.registration.name, %error, "write the node's status");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY_LONGEST);
                        continue;
                    }
                }
            }
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(STATUS_PAUSE).await,
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Writes the status where it differs from the API's; heartbeats make
    /// that always so.
    ///
    /// # Errors
    /// The API server refuses or cannot be reached.
    pub async fn write_status(&self, now: &Now) -> Result<(), ApiError> {
        let name = &self.registration.name;
        let node = match self.api().get(name).await {
            // Somebody deleted it: a node that lives comes back.
            Err(error) if error.is_not_found() => self.register().await?,
            other => other?,
        };
        let wanted = object::status(&self.fixed, now, self.clock.now());
        let there = node.status.map(|s| json!(s)).unwrap_or_default();
        let patch = status_patch(&there, wanted);
        self.api()
            .patch_status(name, &Patch::Strategic(patch))
            .await
            .map(drop)
    }

    async fn keep_lease(&self) {
        let mut wait = RETRY_FIRST;
        loop {
            match self.renew_lease().await {
                Ok(()) => {
                    wait = RETRY_FIRST;
                    tokio::time::sleep(LEASE_PERIOD).await;
                }
                Err(error) => {
                    tracing::warn!(node = %self.registration.name, %error, "renew the node's lease");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    async fn renew_lease(&self) -> Result<(), ApiError> {
        let name = &self.registration.name;
        let leases = self.client.namespaced::<Lease>(LEASE_NAMESPACE);
        let time = api_micro_time(self.clock.now());
        let patch = Patch::Merge(json!({"spec": {"renewTime": time}}));
        match leases.patch(name, &patch).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        // The lease goes with the node.
        let node = self.api().get_opt(name).await?;
        let owners: Vec<Value> = node
            .and_then(|n| n.metadata.uid)
            .map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}))
            .into_iter()
            .collect();
        let lease = json!({
            "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": owners},
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": time,
            },
        });
        match leases.create(&lease).await {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The patch that makes a node's status what is `wanted`: only what differs,
/// and conditions that still hold keep their transition times.
#[must_use]
pub fn status_patch(there: &Value, mut wanted: Value) -> Value {
    let find = |kind: &Value| {
        let list = there.get("conditions").and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .find(|c| c.get("type") == Some(kind))
    };
    if let Some(list) = wanted.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in list {
            let old = condition.get("type").and_then(find);
            if let Some(old) = old.filter(|o| o.get("status") == condition.get("status")) {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
        }
    }
    let mut status = serde_json::Map::new();
    for (field, value) in wanted.as_object().into_iter().flatten() {
        if there.get(field) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        if field == "addresses" {
            // Addresses merge by type, of which there may be two: replace.
            if let Some(list) = value.as_array_mut() {
                list.insert(0, json!({"$patch": "replace"}));
            }
        }
        status.insert(field.clone(), value);
    }
    json!({"status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_sent_and_times_are_kept() {
        let condition = |status: &str, beat: &str, since: &str| {
            json!({"type": "Ready", "status": status, "lastHeartbeatTime": beat,
                "lastTransitionTime": since})
        };
        let there = json!({"capacity": {"cpu": "2"}, "addresses": [{"type": "Hostname", "address": "a"}],
            "conditions": [condition("True", "t0", "t0")]});
        let wanted = json!({"capacity": {"cpu": "2"}, "addresses": [{"type": "Hostname", "address": "b"}],
            "conditions": [condition("True", "t1", "t1")]});
        let patch = status_patch(&there, wanted);
        assert_eq!(
            patch,
            json!({"status": {
                "addresses": [{"$patch": "replace"}, {"type": "Hostname", "address": "b"}],
                "conditions": [condition("True", "t1", "t0")]}})
        );
        let wanted = json!({"conditions": [condition("False", "t1", "t1")]});
        let patch = status_patch(&there, wanted);
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "t1");
        // As the API applies it.
        let schema = rkube_api::types::by_gvk("", "v1", "Node").unwrap();
        let wanted = json!({"addresses": [{"type": "InternalIP", "address": "1"},
            {"type": "InternalIP", "address": "2"}]});
        let patch = status_patch(&there, wanted.clone());
        let merged = rkube_api::patch::strategic(json!({"status": there}), patch, schema).unwrap();
        assert_eq!(merged["status"]["addresses"], wanted["addresses"]);
    }
}
