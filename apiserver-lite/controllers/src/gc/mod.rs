//! Garbage collection: what has owners goes when the last of them has gone.
//!
//! Rules: upstream's `pkg/controller/garbagecollector`. Before anything is
//! deleted, the server itself is asked: for the object, and for each owner by
//! name, whose uid has to be that of the reference.

mod graph;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rkube_client::{Client, DeleteParams, Partial, Seen, Target, Verb, WorkQueue};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::graph::{FOREGROUND, Graph, Node, ORPHAN, Place, Work, place_of};
use crate::error::{Error, Outcome};
use crate::monitor::{self, Monitors};
use crate::starter::Starter;

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<WorkQueue<Work>>,
}

/// Prepares the collector: it listens to the monitors, and works once they
/// have told everything.
pub(crate) struct Prepared {
    collector: Arc<Collector>,
}

pub(crate) fn prepare(starter: &Starter<'_>, monitors: &mut Monitors) -> Prepared {
    let collector = Arc::new(Collector {
        client: starter.client.clone(),
        graph: Mutex::default(),
        queue: Arc::new(WorkQueue::new()),
    });
    let own = Arc::clone(&collector);
    monitors.listen(move |resource, seen| {
        let work = own.with(|graph| match seen {
            Seen::All(objects) => graph.replace(resource, objects),
            Seen::Set(object) => graph.set(resource, object),
            Seen::Gone(object) => graph.gone(object.metadata.uid.as_deref().unwrap_or_default()),
        });
        own.add(work);
    });
    Prepared { collector }
}

/// Starts the workers.
pub(crate) fn start(
    starter: &mut Starter<'_>,
    prepared: Prepared,
    mut synced: watch::Receiver<bool>,
) {
    let collector = prepared.collector;
    let queue = Arc::clone(&collector.queue);
    let ready = Box::pin(async move {
        // An error means that the monitors have ended, and so will we.
        let _ = synced.wait_for(|s| *s).await;
    });
    starter.work("garbage-collector", &queue, ready, move |work| {
        let collector = Arc::clone(&collector);
        async move {
            match work {
                Work::Verify(uid) => collector.verify(&uid).await,
                Work::Check(uid) => collector.check(&uid).await,
                Work::Orphan(uid) => collector.orphan(&uid).await,
            }
        }
    });
}

/// What a dependent's owners are like.
#[derive(Debug, Default)]
struct Owners {
    /// There, and not on their way out in the foreground.
    solid: Vec<OwnerReference>,
    /// Gone.
    dangling: Vec<OwnerReference>,
    /// They wait for their dependents.
    waiting: Vec<OwnerReference>,
}

/// What becomes of a dependent.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It stays as it is.
    Keep,
    /// It stays, without the owners that are gone.
    Drop(Vec<String>),
    /// It goes, and its dependents before it.
    Foreground,
    /// It goes, by this policy.
    Delete(&'static str),
}

fn judge(owners: &Owners, has_dependents: bool, finalizers: &[String]) -> Verdict {
    if !owners.solid.is_empty() {
        let gone = owners.dangling.iter().chain(&owners.waiting);
        let gone: Vec<String> = gone.map(|o| o.uid.clone()).collect();
        return if gone.is_empty() {
            Verdict::Keep
        } else {
            Verdict::Drop(gone)
        };
    }
    if !owners.waiting.is_empty() && has_dependents {
        return Verdict::Foreground;
    }
    if owners.waiting.is_empty() && owners.dangling.is_empty() {
        return Verdict::Keep;
    }
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    Verdict::Delete(if has(ORPHAN) {
        "Orphan"
    } else if has(FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    })
}

fn is_waiting(meta: &ObjectMeta) -> bool {
    let mut finalizers = meta.finalizers.iter().flatten();
    meta.deletion_timestamp.is_some() && finalizers.any(|f| f == FOREGROUND)
}

fn target(place: &Place) -> Target {
    monitor::object(place.resource, &place.namespace, &place.name)
}

impl Collector {
    fn with<T>(&self, f: impl FnOnce(&mut Graph) -> T) -> T {
        f(&mut self.graph.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, work: Vec<Work>) {
        for work in work {
            self.queue.add(work);
        }
    }

    fn node(&self, uid: &str) -> Option<Node> {
        self.with(|graph| graph.get(uid).cloned())
    }

    /// The object as the server has it; `None` where it is gone or another
    /// has its name.
    async fn read(&self, place: &Place, uid: &str) -> Result<Option<ObjectMeta>, Error> {
        let request = Client::request(Verb::Get, target(place));
        let answer = match self.client.call(request).await {
            Err(error) if error.is_not_found() => return Ok(None),
            answer => answer.map_err(Error::request("read", target(place)))?,
        };
        let object: Partial = rkube_api::typed(&answer).unwrap_or_default();
        Ok(Some(object.metadata).filter(|m| m.uid.as_deref() == Some(uid)))
    }

    async fn patch(&self, place: &Place, patch: &Value) -> Outcome {
        let mut request = Client::request(Verb::Patch, target(place));
        request.content_type = "application/merge-patch+json";
        request.body = Some(patch.to_string().into());
        match self.client.call(request).await {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer
                .map(|_| ())
                .map_err(Error::request("patch", target(place))),
        }
    }

    async fn delete(&self, place: &Place, meta: &ObjectMeta, policy: &'static str) -> Outcome {
        let params = DeleteParams {
            propagation: Some(policy),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            grace_seconds: None,
        };
        let mut request = Client::request(Verb::Delete, target(place));
        request.body = Some(params.body().to_string().into());
        tracing::debug!(object = %target(place), policy, "collect");
        match self.client.call(request).await {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer
                .map(|_| ())
                .map_err(Error::request("delete", target(place))),
        }
    }

    fn is_gone(&self, uid: &str) {
        let work = self.with(|graph| graph.gone(uid));
        self.add(work);
    }

    async fn verify(&self, uid: &str) -> Outcome {
        let Some(node) = self.node(uid).filter(|n| !n.observed) else {
            return Ok(());
        };
        if self.read(&node.place, uid).await?.is_none() {
            self.is_gone(uid);
        }
        Ok(())
    }

    async fn check(&self, uid: &str) -> Outcome {
        let Some(node) = self.node(uid) else {
            return Ok(());
        };
        if node.deleting && !node.waits {
            return Ok(());
        }
        let Some(meta) = self.read(&node.place, uid).await? else {
            self.is_gone(uid);
            return Ok(());
        };
        if is_waiting(&meta) {
            return self.wait_for_dependents(uid, &node, &meta).await;
        }
        if meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        let owners = self.owners(&node.place, &meta).await?;
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        match judge(&owners, !node.dependents.is_empty(), finalizers) {
            Verdict::Keep => Ok(()),
            Verdict::Drop(uids) => {
                let kept = meta.owner_references.iter().flatten();
                let kept: Vec<_> = kept.filter(|o| !uids.contains(&o.uid)).collect();
                self.patch(&node.place, &owners_patch(&meta, &json!(kept)))
                    .await
            }
            Verdict::Foreground => {
                if self.with(|graph| graph.has_waiting_dependent(uid)) {
                    // A circle of owners would wait for itself for ever.
                    let owners = meta.owner_references.clone().unwrap_or_default();
                    let freed: Vec<_> = owners
                        .into_iter()
                        .map(|o| OwnerReference {
                            block_owner_deletion: Some(false),
                            ..o
                        })
                        .collect();
                    self.patch(&node.place, &owners_patch(&meta, &json!(freed)))
                        .await?;
                    let fresh = ObjectMeta {
                        resource_version: None,
                        ..meta
                    };
                    return self.delete(&node.place, &fresh, "Foreground").await;
                }
                self.delete(&node.place, &meta, "Foreground").await
            }
            Verdict::Delete(policy) => self.delete(&node.place, &meta, policy).await,
        }
    }

    /// Lets an owner go once nothing blocks it, else looks at what does.
    async fn wait_for_dependents(&self, uid: &str, node: &Node, meta: &ObjectMeta) -> Outcome {
        let blocking = self.with(|graph| graph.blocking(uid));
        if blocking.is_empty() {
            return self.remove_finalizer(&node.place, meta, FOREGROUND).await;
        }
        for dependent in blocking {
            let waits = self.node(&dependent).is_some_and(|n| n.deleting);
            if !waits {
                self.queue.add(Work::Check(dependent));
            }
        }
        Ok(())
    }

    async fn remove_finalizer(&self, place: &Place, meta: &ObjectMeta, name: &str) -> Outcome {
        let kept = meta.finalizers.iter().flatten();
        let kept: Vec<_> = kept.filter(|f| *f != name).collect();
        let patch = json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": kept,
        }});
        self.patch(place, &patch).await
    }

    /// Sorts an object's owners by what the server says of them.
    async fn owners(&self, place: &Place, meta: &ObjectMeta) -> Result<Owners, Error> {
        let mut owners = Owners::default();
        for reference in meta.owner_references.iter().flatten() {
            let Some(owner_place) = place_of(reference, place) else {
                // Nobody can tell, so nothing is lost.
                owners.solid.push(reference.clone());
                continue;
            };
            match self.read(&owner_place, &reference.uid).await? {
                None => owners.dangling.push(reference.clone()),
                Some(owner) if is_waiting(&owner) => owners.waiting.push(reference.clone()),
                Some(_) => owners.solid.push(reference.clone()),
            }
        }
        Ok(owners)
    }

    /// Takes the references to an owner from its dependents, then lets it go.
    async fn orphan(&self, uid: &str) -> Outcome {
        let Some(node) = self.node(uid) else {
            return Ok(());
        };
        for dependent in &node.dependents {
            let Some(child) = self.node(dependent).filter(|c| c.observed) else {
                continue;
            };
            let Some(meta) = self.read(&child.place, dependent).await? else {
                continue;
            };
            let owners = meta.owner_references.iter().flatten();
            let kept: Vec<_> = owners.filter(|o| o.uid != uid).collect();
            self.patch(&child.place, &owners_patch(&meta, &json!(kept)))
                .await?;
        }
        let Some(meta) = self.read(&node.place, uid).await? else {
            return Ok(());
        };
        self.remove_finalizer(&node.place, &meta, ORPHAN).await
    }
}

fn owners_patch(meta: &ObjectMeta, owners: &Value) -> Value {
    json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": owners,
    }})
}
