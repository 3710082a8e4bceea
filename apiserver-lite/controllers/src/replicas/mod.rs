//! ReplicaSets and ReplicationControllers: so many pods of one template.
//!
//! Both kinds share everything but their types; [`Replicated`] is what they
//! have in common. Rules: upstream's `pkg/controller/replicaset`.

mod decide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use rkube_client::{Change, Informer, Object, ObjectKey, WorkQueue, clock};
use serde_json::json;

use crate::error::{Error, Outcome};
use crate::expect::Expectations;
use crate::owner::{self, BY_CONTROLLER, Labels, Selector};
use crate::pods::{self, PodControl};
use crate::starter::Starter;
use crate::status;

/// A kind that keeps so many pods of one template.
pub(crate) trait Replicated: Object {
    /// The name in events.
    const CONTROLLER: &'static str;
    /// Whether the status tells terminating pods.
    const TELLS_TERMINATING: bool;

    /// What the spec says.
    fn parts(&self) -> Parts<'_>;

    /// The status, in the form of a ReplicaSet's.
    fn status(&self) -> ReplicaSetStatus;
}

/// What matters of a spec.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) replicas: i32,
    pub(crate) min_ready_seconds: i32,
    pub(crate) selector: Selector,
    pub(crate) template: Option<&'a PodTemplateSpec>,
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const TELLS_TERMINATING: bool = true;

    fn parts(&self) -> Parts<'_> {
        let spec = self.spec.as_ref();
        Parts {
            replicas: spec.and_then(|s| s.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|s| s.min_ready_seconds).unwrap_or(0),
            selector: spec.map_or_else(Selector::nothing, |s| Selector::new(&s.selector)),
            template: spec.and_then(|s| s.template.as_ref()),
        }
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";
    const TELLS_TERMINATING: bool = false;

    fn parts(&self) -> Parts<'_> {
        let spec = self.spec.as_ref();
        let labels = spec.and_then(|s| s.selector.as_ref());
        Parts {
            replicas: spec.and_then(|s| s.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|s| s.min_ready_seconds).unwrap_or(0),
            selector: labels.map_or_else(Selector::nothing, Selector::of_labels),
            template: spec.and_then(|s| s.template.as_ref()),
        }
    }

    fn status(&self) -> ReplicaSetStatus {
        // The same fields with the same names.
        let value = rkube_api::value_of(&self.status).unwrap_or_default();
        rkube_api::typed(&value).unwrap_or_default()
    }
}

struct Replicas<K> {
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    expectations: Expectations,
    control: PodControl,
}

/// Starts the controller of a kind.
pub(crate) fn start<K: Replicated>(starter: &mut Starter<'_>) {
    let recorder = starter.recorder(K::CONTROLLER);
    let controller = Arc::new(Replicas::<K> {
        sets: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        expectations: Expectations::default(),
        control: PodControl {
            client: starter.client.clone(),
            recorder,
        },
    });
    owner::index_owners(&controller.pods);
    owner::index_owners(&controller.sets);
    let own = Arc::clone(&controller);
    controller
        .sets
        .on_change(move |change| own.set_changed(change));
    let own = Arc::clone(&controller);
    controller
        .pods
        .on_change(move |change| own.pod_changed(change));
    let (sets, pods) = (Arc::clone(&controller.sets), Arc::clone(&controller.pods));
    let synced = Box::pin(async move {
        sets.synced().await;
        pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work(K::CONTROLLER, &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

impl<K: Replicated> Replicas<K> {
    fn set_changed(&self, change: &Change<K>) {
        let key = ObjectKey::of(&**change.object());
        if matches!(change, Change::Deleted(_)) {
            self.expectations.forget(&key);
        }
        self.queue.add(key);
    }

    /// The set that controls a pod, by the pod's reference.
    fn owner_of(&self, pod: &Pod) -> Option<Arc<K>> {
        let owner = owner::controller_of(&pod.metadata)?;
        if owner.kind != K::KIND {
            return None;
        }
        let key = ObjectKey::new(owner::namespace(pod), &owner.name);
        let set = self.sets.store().get(&key)?;
        (owner::uid(&*set) == owner.uid).then_some(set)
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if let Change::Modified(old, new) = change {
            let before = owner::controller_of(&old.metadata).map(|o| &o.uid);
            if before != owner::controller_of(&new.metadata).map(|o| &o.uid)
                && let Some(set) = self.owner_of(old)
            {
                self.queue.add(ObjectKey::of(&*set));
            }
        }
        let Some(set) = self.owner_of(pod) else {
            if owner::controller_of(&pod.metadata).is_none() {
                self.wake_matching(pod, change);
            }
            return;
        };
        let key = ObjectKey::of(&*set);
        let going = matches!(change, Change::Deleted(_)) || owner::is_deleting(&**pod);
        if going {
            self.expectations.deleted(&key, &ObjectKey::of(&**pod));
        }
        if matches!(change, Change::Added(_)) {
            self.expectations.created(&key);
        }
        self.queue.add(key.clone());
        let wait = set.parts().min_ready_seconds;
        if let Some(seconds) = pods::available_in(pod, wait, clock::now()) {
            self.queue.add_after(key, Duration::from_secs(seconds));
        }
    }

    /// An orphan may be taken by any set that matches it.
    fn wake_matching(&self, pod: &Pod, change: &Change<Pod>) {
        if matches!(change, Change::Deleted(_)) || owner::is_deleting(pod) {
            return;
        }
        for set in self.sets.store().of_namespace(owner::namespace(pod)) {
            let selector = set.parts().selector;
            if !selector.is_everything() && selector.matches(pod.metadata.labels.as_ref()) {
                self.queue.add(ObjectKey::of(&*set));
            }
        }
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(set) = self.sets.store().get(&key) else {
            self.expectations.forget(&key);
            return Ok(());
        };
        let may_manage = self.expectations.are_met(&key);
        let parts = set.parts();
        let client = &self.control.client;
        let owned = owner::claim(client, &*set, &parts.selector, &self.pods, None).await?;
        let active: Vec<Arc<Pod>> = owned
            .iter()
            .filter(|p| pods::is_active(p))
            .cloned()
            .collect();
        let terminating = owned.iter().filter(|p| pods::is_terminating(p)).count();
        let mut failure = None;
        let mut outcome = Ok(());
        if may_manage && !owner::is_deleting(&*set) {
            let ranks = self.ranks(&set);
            let step = decide::step(parts.replicas, &active, &ranks, clock::now());
            if let Err((reason, error)) = self.perform(&key, &set, &parts, step).await {
                failure = Some((reason, error.to_string()));
                outcome = Err(Error::request("manage the pods of", &key)(error));
            }
        }
        let old = set.status();
        let facts = decide::Facts {
            generation: set.metadata().generation,
            template_labels: template_labels(parts.template),
            min_ready_seconds: parts.min_ready_seconds,
            terminating: K::TELLS_TERMINATING.then_some(terminating),
        };
        let new = decide::status(&old, &active, &facts, failure, clock::now());
        status::write(client, &*set, &old, &new).await?;
        // A pod that is ready and not yet available is looked at in time.
        let soonest = active
            .iter()
            .filter_map(|p| pods::available_in(p, parts.min_ready_seconds, clock::now()));
        if let Some(seconds) = soonest.min() {
            self.queue.add_after(key, Duration::from_secs(seconds));
        }
        outcome
    }

    async fn perform(
        &self,
        key: &ObjectKey,
        set: &Arc<K>,
        parts: &Parts<'_>,
        step: decide::Step,
    ) -> Result<(), (&'static str, rkube_client::ApiError)> {
        if step.create > 0 {
            let Some(template) = parts.template else {
                return Ok(());
            };
            self.expectations.expect(key, step.create, []);
            let bodies = vec![pods::from_template(template, &**set); step.create];
            let created = self
                .control
                .create_all(&**set, bodies, || self.expectations.created(key));
            match created.await {
                Err(error) if error.is_namespace_terminating() => Ok(()),
                answer => answer.map_err(|e| ("FailedCreate", e)),
            }
        } else if !step.delete.is_empty() {
            let keys = step.delete.iter().map(|p| ObjectKey::of(&**p));
            self.expectations.expect(key, 0, keys);
            let deleted = self.control.delete_all(&**set, step.delete, |pod| {
                self.expectations.deleted(key, pod)
            });
            deleted.await.map_err(|e| ("FailedDelete", e))
        } else {
            Ok(())
        }
    }

    /// How many active pods of all sets of the same owner each node has.
    fn ranks(&self, set: &K) -> HashMap<String, usize> {
        let family: Vec<String> = match owner::controller_of(set.metadata()) {
            None => vec![owner::uid(set).to_owned()],
            Some(owner) => {
                let sets = self.sets.store().by_index(BY_CONTROLLER, &owner.uid);
                sets.iter().map(|s| owner::uid(&**s).to_owned()).collect()
            }
        };
        let mut ranks = HashMap::new();
        for uid in family {
            for pod in self.pods.store().by_index(BY_CONTROLLER, &uid) {
                if pods::is_active(&pod) {
                    *ranks.entry(pods::node_of(&pod).to_owned()).or_insert(0) += 1;
                }
            }
        }
        ranks
    }
}

fn template_labels(template: Option<&PodTemplateSpec>) -> Labels {
    let meta = template.and_then(|t| t.metadata.as_ref());
    meta.and_then(|m| m.labels.clone()).unwrap_or_default()
}

/// The body that scales a set, at the revision that was decided on.
pub(crate) fn scale_patch<K: Object>(
    set: &K,
    replicas: i32,
    annotations: &Labels,
) -> serde_json::Value {
    let meta = set.metadata();
    json!({
        "metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "annotations": annotations,
        },
        "spec": {"replicas": replicas},
    })
}
