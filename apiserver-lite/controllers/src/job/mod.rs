//! Jobs: pods that run to their end, so many of them.

mod decide;
mod indexes;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use rkube_client::{
    Change, Client, DeleteParams, Informer, ObjectKey, Patch, WorkQueue, clock, reference,
};
use serde_json::{Value, json};

use self::decide::{INDEX, Leave, Step, TRACKING};
use crate::error::{Error, Outcome};
use crate::expect::Expectations;
use crate::owner::{self, Selector};
use crate::pods::{self, PodControl};
use crate::starter::Starter;
use crate::status;

/// First wait for a new pod after one failed (`DefaultJobPodFailureBackOff`),
/// in seconds.
const FAILURE_BACKOFF_SECONDS: i64 = 10;
/// Longest wait (`MaxJobPodFailureBackOff`), in seconds.
const FAILURE_BACKOFF_MAX_SECONDS: i64 = 600;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Job(ObjectKey),
    /// A pod with our finalizer whose Job is gone.
    Orphan(ObjectKey),
}

/// Failures without a success between them.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u32,
    last: Timestamp,
}

struct Jobs {
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    expectations: Expectations,
    failures: Mutex<HashMap<ObjectKey, Failures>>,
    control: PodControl,
}

/// Starts the controller.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let recorder = starter.recorder("job-controller");
    let controller = Arc::new(Jobs {
        jobs: starter.informers.of(),
        pods: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        expectations: Expectations::default(),
        failures: Mutex::default(),
        control: PodControl {
            client: starter.client.clone(),
            recorder,
        },
    });
    owner::index_owners(&controller.pods);
    let own = Arc::clone(&controller);
    controller
        .jobs
        .on_change(move |change| own.job_changed(change));
    let own = Arc::clone(&controller);
    controller
        .pods
        .on_change(move |change| own.pod_changed(change));
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.jobs.synced().await;
        own.pods.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("job-controller", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move {
            match key {
                Key::Job(key) => controller.sync(key).await,
                Key::Orphan(key) => controller.free_orphan(&key).await,
            }
        }
    });
}

fn selector(job: &Job) -> Selector {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.map_or_else(Selector::nothing, Selector::new)
}

impl Jobs {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<ObjectKey, Failures>) -> T) -> T {
        f(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn job_changed(&self, change: &Change<Job>) {
        let job = change.object();
        let key = ObjectKey::of(&**job);
        if matches!(change, Change::Deleted(_)) {
            self.expectations.forget(&key);
            self.with(|failures| failures.remove(&key));
            for pod in self
                .pods
                .store()
                .by_index(owner::BY_CONTROLLER, owner::uid(&**job))
            {
                self.queue.add(Key::Orphan(ObjectKey::of(&*pod)));
            }
        }
        self.queue.add(Key::Job(key));
    }

    fn owner_of(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = owner::controller_of(&pod.metadata).filter(|o| o.kind == "Job")?;
        let key = ObjectKey::new(owner::namespace(pod), &owner.name);
        let job = self.jobs.store().get(&key)?;
        (owner::uid(&*job) == owner.uid).then_some(key)
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        if let Change::Modified(old, _) = change
            && let Some(key) = self.owner_of(old)
        {
            self.queue.add(Key::Job(key));
        }
        if let Some(key) = self.owner_of(pod) {
            if matches!(change, Change::Deleted(_)) || owner::is_deleting(&**pod) {
                self.expectations.deleted(&key, &ObjectKey::of(&**pod));
            }
            if matches!(change, Change::Added(_)) {
                self.expectations.created(&key);
            }
            self.queue.add(Key::Job(key));
            return;
        }
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        if decide::is_tracked(pod) {
            self.queue.add(Key::Orphan(ObjectKey::of(&**pod)));
        }
        if owner::controller_of(&pod.metadata).is_none() {
            for job in self.jobs.store().of_namespace(owner::namespace(&**pod)) {
                if selector(&job).matches(pod.metadata.labels.as_ref()) {
                    self.queue.add(Key::Job(ObjectKey::of(&*job)));
                }
            }
        }
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(job) = self.jobs.store().get(&key) else {
            return Ok(());
        };
        let others = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if others.is_some_and(|m| m != "kubernetes.io/job-controller") {
            return Ok(());
        }
        let client = &self.control.client;
        let pods = owner::claim(client, &*job, &selector(&job), &self.pods, Some(TRACKING)).await?;
        let now = clock::now();
        let leave = Leave {
            may_manage: self.expectations.are_met(&key),
            not_before: self.not_before(&key),
        };
        let step = decide::step(&job, &pods, leave, now);
        self.remember(&key, &step, now);
        let outcome = self.perform(&key, &job, &step).await;
        let old = job.status.clone().unwrap_or_default();
        status::write(client, &*job, &old, &step.status).await?;
        for (kind, reason, message) in &step.events {
            let about = reference(&*job);
            self.control.recorder.event(about, *kind, reason, message);
        }
        for pod in &step.release {
            self.free(pod).await?;
        }
        if let Some(at) = step.again_at {
            let wait = at.as_second().saturating_sub(now.as_second());
            let wait = Duration::from_secs(u64::try_from(wait).unwrap_or(0).max(1));
            self.queue.add_after(Key::Job(key.clone()), wait);
        }
        if decide::is_finished(&step.status) && step.release.is_empty() {
            self.expire(&key, &job, now).await?;
        }
        outcome
    }

    fn not_before(&self, key: &ObjectKey) -> Option<Timestamp> {
        let failures = self.with(|f| f.get(key).copied())?;
        Timestamp::from_second(failures.last.as_second() + backoff(failures.count)).ok()
    }

    fn remember(&self, key: &ObjectKey, step: &Step, now: Timestamp) {
        self.with(|failures| {
            if step.new_success || decide::is_finished(&step.status) {
                failures.remove(key);
            }
            if step.new_failures > 0 {
                let entry = failures.entry(key.clone()).or_default();
                let more = u32::try_from(step.new_failures).unwrap_or(u32::MAX);
                entry.count = entry.count.saturating_add(more);
                entry.last = now;
            }
        });
    }

    async fn perform(&self, key: &ObjectKey, job: &Arc<Job>, step: &Step) -> Outcome {
        let fail = |source| Error::Request {
            action: "manage the pods of",
            object: key.to_string(),
            source,
        };
        let leaving: Vec<_> = step.surplus.iter().chain(&step.end).cloned().collect();
        if step.create.is_empty() && leaving.is_empty() {
            return Ok(());
        }
        let keys = leaving.iter().map(|p| ObjectKey::of(&**p));
        self.expectations.expect(key, step.create.len(), keys);
        for pod in &step.surplus {
            self.free(pod).await?;
        }
        let deleted = self
            .control
            .delete_all(&**job, leaving, |pod| self.expectations.deleted(key, pod));
        deleted.await.map_err(fail)?;
        let bodies = step
            .create
            .iter()
            .map(|index| new_pod(job, *index))
            .collect();
        let created = self
            .control
            .create_all(&**job, bodies, || self.expectations.created(key));
        match created.await {
            Err(error) if error.is_namespace_terminating() => Ok(()),
            answer => answer.map_err(fail),
        }
    }

    /// Takes our finalizer from a pod.
    async fn free(&self, pod: &Pod) -> Outcome {
        if !decide::is_tracked(pod) {
            return Ok(());
        }
        let key = ObjectKey::of(pod);
        let patch = Patch::Strategic(json!({"metadata": {
            "uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [TRACKING],
        }}));
        let api = self.control.client.namespaced::<Pod>(&key.namespace);
        match api.patch(&key.name, &patch).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                Err(Error::request("take the finalizer from", key)(error))
            }
            _ => Ok(()),
        }
    }

    async fn free_orphan(&self, key: &ObjectKey) -> Outcome {
        let Some(pod) = self.pods.store().get(key) else {
            return Ok(());
        };
        if self.owner_of(&pod).is_some() {
            return Ok(());
        }
        // The informer of Jobs may be behind.
        if let Some(owner) = owner::controller_of(&pod.metadata).filter(|o| o.kind == "Job") {
            let api = self.control.client.namespaced::<Job>(&key.namespace);
            let job = api.get_opt(&owner.name).await;
            let job = job.map_err(Error::request("read job", &owner.name))?;
            if job.is_some_and(|j| owner::uid(&j) == owner.uid) {
                return Ok(());
            }
        }
        self.free(&pod).await
    }

    /// Removes a Job whose time after its end is over.
    async fn expire(&self, key: &ObjectKey, job: &Job, now: Timestamp) -> Outcome {
        let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
        let Some(at) = ttl.and_then(|ttl| finished_at(job)?.checked_add(ttl.into())) else {
            return Ok(());
        };
        if owner::is_deleting(job) {
            return Ok(());
        }
        if let Ok(wait @ 1..) = u64::try_from(at.saturating_sub(now.as_second())) {
            let wait = Duration::from_secs(wait);
            self.queue.add_after(Key::Job(key.clone()), wait);
            return Ok(());
        }
        let params = DeleteParams {
            propagation: Some("Foreground"),
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
            grace_seconds: None,
        };
        let api = client_of(&self.control.client, key);
        match api.delete(&key.name, &params).await {
            Err(error) if !error.is_not_found() => {
                Err(Error::request("remove the finished job", key)(error))
            }
            _ => Ok(()),
        }
    }
}

fn client_of(client: &Client, key: &ObjectKey) -> rkube_client::Api<Job> {
    client.namespaced(&key.namespace)
}

/// Seconds to wait after so many failures in a row.
fn backoff(failures: u32) -> i64 {
    let doubled = 1_i64.checked_shl(failures.saturating_sub(1).min(30));
    FAILURE_BACKOFF_SECONDS
        .saturating_mul(doubled.unwrap_or(i64::MAX))
        .min(FAILURE_BACKOFF_MAX_SECONDS)
}

/// When a Job ended, in seconds since 1970.
fn finished_at(job: &Job) -> Option<i64> {
    let status = job.status.as_ref()?;
    let end = decide::condition(status, "Complete").or_else(|| decide::condition(status, "Failed"));
    Some(end?.last_transition_time.as_ref()?.0.as_second())
}

/// The body of a pod of a Job.
fn new_pod(job: &Job, index: Option<u32>) -> Value {
    let Some(spec) = job.spec.as_ref() else {
        return Value::Null;
    };
    let mut body = pods::from_template(&spec.template, job);
    if let Some(finalizers) = body["metadata"]["finalizers"].as_array_mut() {
        finalizers.push(TRACKING.into());
    }
    let Some(index) = index else { return body };
    let name = owner::name(job);
    let hostname = format!("{name}-{index}");
    body["metadata"]["generateName"] = format!("{hostname}-").into();
    body["metadata"]["annotations"][INDEX] = index.to_string().into();
    body["metadata"]["labels"][INDEX] = index.to_string().into();
    if body["spec"]["hostname"].is_null() {
        body["spec"]["hostname"] = hostname.into();
    }
    let variable = json!({
        "name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}},
    });
    for list in ["initContainers", "containers"] {
        for container in body["spec"][list].as_array_mut().into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let env = container.entry("env").or_insert_with(|| json!([]));
            if let Some(env) = env.as_array_mut()
                && !env.iter().any(|v| v["name"] == variable["name"])
            {
                env.push(variable.clone());
            }
        }
    }
    body
}
