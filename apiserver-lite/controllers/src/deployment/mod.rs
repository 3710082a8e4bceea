//! Deployments: a ReplicaSet for each version of a template, and rollouts
//! from one to the next.
//!
//! Rules, words and constants: upstream's `pkg/controller/deployment`.
//! `revision` finds and makes the sets, `sizes` decides how large each shall
//! be, `progress` what the status says; all three are pure.

mod progress;
mod revision;
mod sizes;
#[cfg(test)]
mod tests;

pub(crate) use self::sizes::resolve;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use rkube_client::{
    Change, Client, DeleteParams, EventType, Informer, ObjectKey, Patch, Recorder, WorkQueue,
    clock, reference,
};
use serde_json::json;

use crate::error::{Error, Outcome};
use crate::owner::{self, BY_CONTROLLER, Selector};
use crate::pods;
use crate::replicas::scale_patch;
use crate::starter::Starter;
use crate::status;

const CONTROLLER: &str = "deployment-controller";

struct Deployments {
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    client: Client,
    recorder: Recorder,
}

/// The sets of a Deployment: that of its template, if there is one, and the
/// others.
#[derive(Debug, Clone)]
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.new.iter().chain(&self.old).cloned().collect()
    }
}

/// Starts the controller.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Deployments {
        deployments: starter.informers.of(),
        sets: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        recorder: starter.recorder(CONTROLLER),
    });
    owner::index_owners(&controller.sets);
    owner::index_owners(&controller.pods);
    let own = Arc::clone(&controller);
    controller.deployments.on_change(move |change| {
        own.queue.add(ObjectKey::of(&**change.object()));
    });
    let own = Arc::clone(&controller);
    controller
        .sets
        .on_change(move |change| own.set_changed(change));
    let own = Arc::clone(&controller);
    controller
        .pods
        .on_change(move |change| own.pod_changed(change));
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.deployments.synced().await;
        own.sets.synced().await;
        own.pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work(CONTROLLER, &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

impl Deployments {
    fn owner_of(&self, set: &ReplicaSet) -> Option<ObjectKey> {
        let owner = owner::controller_of(&set.metadata)?;
        let key = ObjectKey::new(owner::namespace(set), &owner.name);
        let found = self.deployments.store().get(&key)?;
        (owner.kind == "Deployment" && owner::uid(&*found) == owner.uid).then_some(key)
    }

    fn set_changed(&self, change: &Change<ReplicaSet>) {
        if let Change::Modified(old, _) = change
            && let Some(key) = self.owner_of(old)
        {
            self.queue.add(key);
        }
        let set = change.object();
        if let Some(key) = self.owner_of(set) {
            self.queue.add(key);
        } else if owner::controller_of(&set.metadata).is_none()
            && !matches!(change, Change::Deleted(_))
        {
            for deployment in self
                .deployments
                .store()
                .of_namespace(owner::namespace(&**set))
            {
                if selector(&deployment).matches(set.metadata.labels.as_ref()) {
                    self.queue.add(ObjectKey::of(&*deployment));
                }
            }
        }
    }

    /// A Deployment that recreates waits for its last old pod.
    fn pod_changed(&self, change: &Change<Pod>) {
        let Change::Deleted(pod) = change else { return };
        let set = owner::controller_of(&pod.metadata).and_then(|owner| {
            let key = ObjectKey::new(owner::namespace(&**pod), &owner.name);
            let set = self.sets.store().get(&key)?;
            (owner::uid(&*set) == owner.uid).then_some(set)
        });
        if let Some(key) = set.and_then(|s| self.owner_of(&s)) {
            let found = self.deployments.store().get(&key);
            if found.is_some_and(|d| sizes::recreates(&d)) {
                self.queue.add(key);
            }
        }
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(deployment) = self.deployments.store().get(&key) else {
            return Ok(());
        };
        let selector = selector(&deployment);
        if selector.is_everything() {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.tell(&deployment, EventType::Warning, "SelectingAll", message);
            return Ok(());
        }
        let owned = owner::claim(&self.client, &*deployment, &selector, &self.sets, None).await?;
        if owner::is_deleting(&*deployment) {
            let sets = revision::split(&deployment, owned);
            return self.sync_status(&deployment, &sets).await;
        }
        let deployment = self.check_paused(deployment).await?;
        if sizes::is_paused(&deployment) {
            return self.sync_paused(deployment, owned).await;
        }
        if sizes::is_scaling(&deployment, &owned) {
            return self.sync_scale(deployment, owned).await;
        }
        if sizes::recreates(&deployment) {
            self.recreate(deployment, owned).await
        } else {
            self.roll(deployment, owned).await
        }
    }

    fn tell(&self, deployment: &Deployment, kind: EventType, reason: &str, message: &str) {
        let about = reference(deployment);
        self.recorder.event(about, kind, reason, message);
    }

    /// Tells in the status that a Deployment was paused or resumed, so that
    /// its deadline does not run meanwhile.
    async fn check_paused(&self, deployment: Arc<Deployment>) -> Result<Arc<Deployment>, Error> {
        let Some(new) = progress::paused(&deployment, clock::now()) else {
            return Ok(deployment);
        };
        let old = deployment.status.clone().unwrap_or_default();
        let written = status::write(&self.client, &*deployment, &old, &new).await?;
        Ok(written.map_or(deployment, Arc::new))
    }

    async fn sync_scale(
        &self,
        deployment: Arc<Deployment>,
        owned: Vec<Arc<ReplicaSet>>,
    ) -> Outcome {
        let (deployment, sets) = self.sync_revision(deployment, owned, false).await?;
        let sets = self.scale(&deployment, sets).await?;
        self.sync_status(&deployment, &sets).await
    }

    async fn sync_paused(
        &self,
        deployment: Arc<Deployment>,
        owned: Vec<Arc<ReplicaSet>>,
    ) -> Outcome {
        let (deployment, sets) = self.sync_revision(deployment, owned, false).await?;
        let sets = self.scale(&deployment, sets).await?;
        self.clean_up(&deployment, &sets).await?;
        self.sync_status(&deployment, &sets).await
    }

    async fn scale(&self, deployment: &Deployment, sets: Sets) -> Result<Sets, Error> {
        let all = sets.all();
        let targets = sizes::scale(deployment, &sets);
        let all = self.resize(deployment, all, &targets).await?;
        Ok(again(&sets, all))
    }

    async fn roll(&self, deployment: Arc<Deployment>, owned: Vec<Arc<ReplicaSet>>) -> Outcome {
        let (deployment, sets) = self.sync_revision(deployment, owned, true).await?;
        let mut changed = false;
        let mut sets = sets;
        for decide in [sizes::roll_up, sizes::roll_down] {
            let targets = decide(&deployment, &sets);
            if !targets.is_empty() {
                let all = self.resize(&deployment, sets.all(), &targets).await?;
                sets = again(&sets, all);
                changed = true;
                break;
            }
        }
        if !changed && progress::is_complete(&deployment, &status_of(&deployment)) {
            self.clean_up(&deployment, &sets).await?;
        }
        self.sync_rollout(&deployment, &sets).await
    }

    async fn recreate(&self, deployment: Arc<Deployment>, owned: Vec<Arc<ReplicaSet>>) -> Outcome {
        let (deployment, sets) = self.sync_revision(deployment, owned.clone(), false).await?;
        let down = sizes::down_to_nothing(&sets.old);
        if !down.is_empty() {
            let all = self.resize(&deployment, sets.all(), &down).await?;
            return self.sync_rollout(&deployment, &again(&sets, all)).await;
        }
        if self.old_pods_run(&sets) {
            return self.sync_rollout(&deployment, &sets).await;
        }
        let (deployment, sets) = if sets.new.is_none() {
            self.sync_revision(deployment, owned, true).await?
        } else {
            (deployment, sets)
        };
        let up = sizes::up_to_all(&deployment, &sets);
        let all = self.resize(&deployment, sets.all(), &up).await?;
        let sets = again(&sets, all);
        if progress::is_complete(&deployment, &status_of(&deployment)) {
            self.clean_up(&deployment, &sets).await?;
        }
        self.sync_rollout(&deployment, &sets).await
    }

    fn old_pods_run(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| {
            let pods = self
                .pods
                .store()
                .by_index(BY_CONTROLLER, owner::uid(&**set));
            pods.iter().any(|pod| !pods::is_terminal(pod))
        })
    }

    /// Finds the set of the template, brings its annotations up to date, or
    /// makes it.
    async fn sync_revision(
        &self,
        deployment: Arc<Deployment>,
        owned: Vec<Arc<ReplicaSet>>,
        make: bool,
    ) -> Result<(Arc<Deployment>, Sets), Error> {
        let mut sets = revision::split(&deployment, owned);
        let next = revision::next(&sets);
        let mut told = None;
        if let Some(set) = sets.new.clone() {
            if let Some(patch) = revision::refresh(&deployment, &set, next) {
                let api = self
                    .client
                    .namespaced::<ReplicaSet>(owner::namespace(&*set));
                let written = api.patch(owner::name(&*set), &Patch::Merge(patch)).await;
                let written = written.map_err(Error::request("annotate", ObjectKey::of(&*set)))?;
                sets.new = Some(Arc::new(written));
            }
            told = progress::found(&deployment, owner::name(&*set), clock::now());
        } else if make {
            let (set, made) = self.make_set(&deployment, &sets, next).await?;
            if made {
                told = progress::created(&deployment, owner::name(&set), clock::now());
                let size = sizes::replicas(&set);
                if size > 0 {
                    self.tell_scaled(&deployment, "up", &set, 0, size);
                }
            }
            sets.new = Some(Arc::new(set));
        }
        let mut deployment = deployment;
        if let Some(new) = told {
            let old = status_of(&deployment);
            let written = status::write(&self.client, &*deployment, &old, &new).await?;
            deployment = written.map_or(deployment, Arc::new);
        }
        if let Some(set) = &sets.new
            && let Some(patch) = revision::annotate(&deployment, set)
        {
            let key = ObjectKey::of(&*deployment);
            let api = self.client.namespaced::<Deployment>(&key.namespace);
            let written = api.patch(&key.name, &Patch::Merge(patch)).await;
            deployment = Arc::new(written.map_err(Error::request("annotate", key))?);
        }
        Ok((deployment, sets))
    }

    /// Makes the set of the template; tells whether it is new.
    async fn make_set(
        &self,
        deployment: &Arc<Deployment>,
        sets: &Sets,
        next: i64,
    ) -> Result<(ReplicaSet, bool), Error> {
        let size = sizes::of_new(deployment, &sets.all(), None);
        let body = revision::new_set(deployment, next, size);
        let name = body["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key = ObjectKey::new(owner::namespace(&**deployment), &name);
        let api = self.client.namespaced::<ReplicaSet>(&key.namespace);
        let error = match api.create(&body).await {
            Ok(set) => return Ok((set, true)),
            Err(error) => error,
        };
        if error.is_already_exists() {
            let there = api.get(&name).await;
            let there = there.map_err(Error::request("read", &key))?;
            let ours = owner::is_controlled_by(&there.metadata, owner::uid(&**deployment));
            if ours && revision::is_of_template(deployment, &there) {
                return Ok((there, false));
            }
            // Another set has the name: the next hash is a different one.
            let old = status_of(deployment);
            let mut new = old.clone();
            new.collision_count = Some(old.collision_count.unwrap_or(0).saturating_add(1));
            status::write(&self.client, &**deployment, &old, &new).await?;
        } else if !error.is_namespace_terminating() {
            let message = format!("Failed to create new replica set {name:?}: {error}");
            let old = status_of(deployment);
            let new = progress::failed(deployment, &message, clock::now());
            status::write(&self.client, &**deployment, &old, &new).await?;
            self.tell(
                deployment,
                EventType::Warning,
                "ReplicaSetCreateError",
                &message,
            );
        }
        Err(Error::request("create", key)(error))
    }

    /// Gives sets other sizes; answers all sets as they are then.
    async fn resize(
        &self,
        deployment: &Deployment,
        sets: Vec<Arc<ReplicaSet>>,
        targets: &[sizes::Target],
    ) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let mut all = Vec::with_capacity(sets.len());
        for set in sets {
            let target = targets.iter().find(|t| t.uid == owner::uid(&*set));
            let Some(target) = target else {
                all.push(set);
                continue;
            };
            let annotations = sizes::annotations(deployment);
            let patch = Patch::Merge(scale_patch(&*set, target.size, &annotations));
            let key = ObjectKey::of(&*set);
            let api = self.client.namespaced::<ReplicaSet>(&key.namespace);
            let scaled = api.patch(&key.name, &patch).await;
            let scaled = scaled.map_err(Error::request("scale", key))?;
            let before = sizes::replicas(&set);
            if target.size != before {
                let direction = if target.size > before { "up" } else { "down" };
                self.tell_scaled(deployment, direction, &set, before, target.size);
            }
            all.push(Arc::new(scaled));
        }
        Ok(all)
    }

    fn tell_scaled(
        &self,
        deployment: &Deployment,
        direction: &str,
        set: &ReplicaSet,
        from: i32,
        to: i32,
    ) {
        let name = owner::name(set);
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.tell(deployment, EventType::Normal, "ScalingReplicaSet", &message);
    }

    async fn sync_status(&self, deployment: &Deployment, sets: &Sets) -> Outcome {
        let old = status_of(deployment);
        let new = progress::status(deployment, sets, clock::now());
        status::write(&self.client, deployment, &old, &new).await?;
        Ok(())
    }

    async fn sync_rollout(&self, deployment: &Deployment, sets: &Sets) -> Outcome {
        let old = status_of(deployment);
        let now = clock::now();
        let new = progress::rollout(deployment, sets, now);
        status::write(&self.client, deployment, &old, &new).await?;
        if let Some(seconds) = progress::deadline_in(deployment, &new, now) {
            let wait = Duration::from_secs(seconds);
            self.queue.add_after(ObjectKey::of(deployment), wait);
        }
        Ok(())
    }

    /// Removes the oldest sets beyond the history's limit.
    async fn clean_up(&self, deployment: &Deployment, sets: &Sets) -> Outcome {
        for set in revision::outdated(deployment, &sets.old) {
            let key = ObjectKey::of(&*set);
            let api = self.client.namespaced::<ReplicaSet>(&key.namespace);
            let params = DeleteParams {
                uid: set.metadata.uid.clone(),
                ..DeleteParams::default()
            };
            match api.delete(&key.name, &params).await {
                Err(error) if !error.is_not_found() => {
                    return Err(Error::request("remove the old set", key)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The same division of sets that have been written meanwhile.
fn again(sets: &Sets, all: Vec<Arc<ReplicaSet>>) -> Sets {
    let new = sets.new.as_ref().map(|s| owner::uid(&**s).to_owned());
    let (mut fresh, old): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|s| Some(owner::uid(&**s)) == new.as_deref());
    Sets {
        new: fresh.pop(),
        old,
    }
}

fn selector(deployment: &Deployment) -> Selector {
    let spec = deployment.spec.as_ref();
    spec.map_or_else(Selector::nothing, |s| Selector::new(&s.selector))
}

fn status_of(deployment: &Deployment) -> DeploymentStatus {
    deployment.status.clone().unwrap_or_default()
}

/// The part of a patch that refuses objects that have changed meanwhile.
fn metadata_patch(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> serde_json::Value {
    json!({"uid": meta.uid, "resourceVersion": meta.resource_version})
}
