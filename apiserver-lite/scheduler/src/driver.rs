//! The driver: informers in, bindings, conditions and events out.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodCondition};
use rkube_client::{
    ApiError, Change, Client, EventType, Informer, Informers, ObjectKey, Patch, Recorder, clock,
    reference,
};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cache::{Cache, Snapshot};
use crate::cycle::{FitError, find};
use crate::framework::{ClusterEvent, CycleState, Profile};
use crate::info::PodInfo;
use crate::plugins::default_profile;
use crate::queue::{Queue, Queued};

/// How often pods that wait for long are looked for.
const FLUSH_PERIOD: Duration = Duration::from_secs(30);

/// What can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pods whose `schedulerName` is this are ours.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
        }
    }
}

#[derive(Default)]
struct Core {
    queue: Queue,
    cache: Cache,
}

struct Shared {
    core: Mutex<Core>,
    changed: Notify,
    profile: Profile,
    client: Client,
    recorder: Recorder,
    config: Config,
}

/// A running scheduler.
#[derive(Debug)]
pub struct Scheduler {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Scheduler {
    /// Begins to schedule. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(informers: &Informers, config: Config) -> Self {
        let client = informers.client().clone();
        let shared = Arc::new(Shared {
            core: Mutex::default(),
            changed: Notify::new(),
            profile: default_profile(Some(&client)),
            recorder: Recorder::start(client.clone(), &config.scheduler_name),
            client,
            config,
        });
        let (nodes, pods) = (informers.of::<Node>(), informers.of::<Pod>());
        let namespaces = informers.of::<Namespace>();
        let (stop, stopped) = watch::channel(false);
        let task = rkube_task::spawn(run(shared, nodes, pods, namespaces, stopped));
        Self { stop, task }
    }

    /// Ends after the cycle that runs. Bindings under way are finished.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the scheduler's task");
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    namespaces: Arc<Informer<Namespace>>,
    mut stopped: watch::Receiver<bool>,
) {
    let on_node = Arc::clone(&shared);
    nodes.on_change(move |change| on_node.node_changed(change));
    let on_pod = Arc::clone(&shared);
    pods.on_change(move |change| on_pod.pod_changed(change));
    let on_namespace = Arc::clone(&shared);
    namespaces.on_change(move |change| {
        let object = change.object();
        let name = object.metadata.name.clone().unwrap_or_default();
        let gone = matches!(change, Change::Deleted(_));
        let labels = (!gone).then(|| object.metadata.labels.clone().unwrap_or_default());
        on_namespace.with(|core| core.cache.set_namespace(&name, labels));
    });
    nodes.synced().await;
    pods.synced().await;
    namespaces.synced().await;
    let mut snapshot = Snapshot::default();
    let mut start = 0_usize;
    let mut bindings = tokio::task::JoinSet::new();
    let mut flush = tokio::time::interval(FLUSH_PERIOD);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        let changed = shared.changed.notified();
        let (popped, wake) = shared.with(|core| {
            let popped = core.queue.pop(Instant::now());
            if popped.is_some() {
                core.cache.refresh(&mut snapshot);
            }
            (popped, core.queue.next_wake())
        });
        if let Some(queued) = popped {
            start = start.wrapping_add(1);
            let task = schedule(&shared, &snapshot, &queued, start);
            bindings.spawn(task);
            while bindings.try_join_next().is_some() {}
            // Others of this thread get their turn between two cycles.
            tokio::task::yield_now().await;
            continue;
        }
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = sleep => {}
            _ = flush.tick() => {
                shared.with(|core| core.queue.flush_unschedulable(Instant::now()));
            }
            _ = stopped.changed() => {}
        }
    }
    while bindings.join_next().await.is_some() {}
}

/// What remains to be done after a cycle, on its own.
enum Rest {
    Bind(Arc<PodInfo>, String, CycleState),
    Tell(Arc<Pod>, &'static str, String),
    Nothing,
}

/// One cycle; answers what follows it.
fn schedule(
    shared: &Arc<Shared>,
    snapshot: &Snapshot,
    queued: &Queued,
    start: usize,
) -> impl Future<Output = ()> + Send + 'static {
    let rest = decide(shared, snapshot, queued, start);
    let shared = Arc::clone(shared);
    async move {
        match rest {
            Rest::Nothing => {}
            Rest::Bind(pod, node, mut state) => shared.bind(pod, &node, &mut state).await,
            Rest::Tell(pod, reason, message) => shared.tell_failure(&pod, reason, &message).await,
        }
    }
}

fn decide(shared: &Shared, snapshot: &Snapshot, queued: &Queued, start: usize) -> Rest {
    let pod = Arc::new(PodInfo::new(Arc::clone(&queued.pod)));
    if pod.pod.metadata.deletion_timestamp.is_some() {
        shared.with(|core| core.queue.remove(&pod.key));
        return Rest::Nothing;
    }
    let mut state = CycleState::default();
    match find(&shared.profile, &mut state, &pod, snapshot, start) {
        Ok(node) => {
            for plugin in &shared.profile.reserves {
                if let Err(rejection) = plugin.reserve(&mut state, &pod, &node.name) {
                    shared.unreserve(&mut state, &pod, &node.name);
                    shared.failed(&pod.key, [rejection.plugin].into());
                    let message = rejection.reasons.join(", ");
                    return Rest::Tell(Arc::clone(&pod.pod), "Unschedulable", message);
                }
            }
            shared.with(|core| core.cache.assume(Arc::clone(&pod), &node.name));
            tracing::debug!(pod = %pod.key, node = node.name, "found a node");
            Rest::Bind(pod, node.name.clone(), state)
        }
        Err(error) => {
            let FitError { rejected_by, .. } = &*error;
            tracing::debug!(pod = %pod.key, %error, "no node");
            shared.failed(&pod.key, rejected_by.clone());
            Rest::Tell(Arc::clone(&pod.pod), "Unschedulable", error.to_string())
        }
    }
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Core) -> T) -> T {
        f(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn happened(&self, event: ClusterEvent) {
        self.with(|core| {
            core.queue.happened(event, Instant::now(), |by, event| {
                self.profile.wakes(by, event)
            });
        });
        self.changed.notify_one();
    }

    fn failed(&self, key: &ObjectKey, rejected_by: BTreeSet<&'static str>) {
        self.with(|core| {
            let now = Instant::now();
            core.queue
                .unschedulable(key, rejected_by, now, |by, event| {
                    self.profile.wakes(by, event)
                });
        });
        self.changed.notify_one();
    }

    fn unreserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) {
        for plugin in self.profile.reserves.iter().rev() {
            plugin.unreserve(state, pod, node);
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        let name = node.metadata.name.clone().unwrap_or_default();
        match change {
            Change::Deleted(_) => self.with(|core| core.cache.remove_node(&name)),
            Change::Added(_) | Change::Modified(..) => {
                self.with(|core| core.cache.set_node(Arc::clone(node)));
            }
        }
        match change {
            Change::Added(_) => self.happened(ClusterEvent::NodeAdded),
            Change::Modified(old, new) => {
                for event in node_events(old, new) {
                    self.happened(event);
                }
            }
            Change::Deleted(_) => {}
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let key = ObjectKey::of(&**pod);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let assigned = node_of(pod).is_some();
        let gone = matches!(change, Change::Deleted(_));
        if assigned {
            self.with(|core| core.queue.remove(&key));
            if gone || is_finished(pod) {
                self.with(|core| core.cache.remove_pod(&uid));
                self.happened(ClusterEvent::PodRemoved);
            } else {
                self.with(|core| core.cache.set_pod(Arc::clone(pod)));
                if !matches!(change, Change::Modified(old, _) if node_of(old).is_some()) {
                    self.happened(ClusterEvent::PodAssigned);
                }
            }
            return;
        }
        if gone || is_finished(pod) {
            let assumed = self.with(|core| {
                core.queue.remove(&key);
                let assumed = core.cache.is_assumed(&uid);
                core.cache.forget(&uid);
                assumed
            });
            if assumed {
                self.happened(ClusterEvent::PodRemoved);
            }
        } else if self.is_ours(pod) {
            self.with(|core| core.queue.set(Arc::clone(pod), Instant::now()));
            self.changed.notify_one();
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        name.unwrap_or("default-scheduler") == self.config.scheduler_name
    }

    async fn bind(&self, pod: Arc<PodInfo>, node: &str, state: &mut CycleState) {
        match self.try_bind(&pod, node).await {
            Ok(()) => {
                let key = &pod.key;
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder.action(
                    reference(&*pod.pod),
                    EventType::Normal,
                    "Scheduled",
                    "Binding",
                    &message,
                );
            }
            Err((reason, message)) => {
                self.unreserve(state, &pod, node);
                self.with(|core| core.cache.forget(&pod.uid));
                self.happened(ClusterEvent::PodRemoved);
                self.failed(&pod.key, BTreeSet::new());
                self.tell_failure(&pod.pod, reason, &message).await;
            }
        }
    }

    async fn try_bind(&self, pod: &PodInfo, node: &str) -> Result<(), (&'static str, String)> {
        for plugin in &self.profile.permits {
            let held = plugin.permit(pod, node).await;
            held.map_err(|r| ("Unschedulable", r.reasons.join(", ")))?;
        }
        for plugin in &self.profile.pre_binds {
            let done = plugin.pre_bind(pod, node).await;
            done.map_err(|error| {
                let message = format!("running PreBind plugin {:?}: {error}", plugin.name());
                ("SchedulerError", message)
            })?;
        }
        if let Some(bind) = &self.profile.bind {
            bind.bind(pod, node)
                .await
                .map_err(|error| ("SchedulerError", format!("binding rejected: {error}")))?;
        }
        Ok(())
    }

    /// The event and the condition `PodScheduled`.
    async fn tell_failure(&self, pod: &Arc<Pod>, reason: &str, message: &str) {
        self.recorder.action(
            reference(&**pod),
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            message,
        );
        if let Err(error) = self.set_condition(pod, reason, message).await
            && !error.is_not_found()
        {
            tracing::warn!(pod = %ObjectKey::of(&**pod), %error, "write PodScheduled");
        }
    }

    async fn set_condition(&self, pod: &Pod, reason: &str, message: &str) -> Result<(), ApiError> {
        let key = ObjectKey::of(pod);
        let old = scheduled_condition(pod);
        if old.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some(reason)
                && c.message.as_deref() == Some(message)
        }) {
            return Ok(());
        }
        let kept = old.filter(|c| c.status == "False");
        let since = kept.and_then(|c| c.last_transition_time.clone());
        let since = since.unwrap_or_else(|| clock::time(clock::now()));
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": reason,
            "message": message, "lastProbeTime": null, "lastTransitionTime": since});
        if let Some(generation) = pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let patch =
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        let pods = self.client.namespaced::<Pod>(&key.namespace);
        pods.patch_status(&key.name, &Patch::Strategic(patch))
            .await?;
        Ok(())
    }
}

fn scheduled_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "PodScheduled")
}

fn node_of(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref();
    name.filter(|n| !n.is_empty())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a change of a node may be good for.
fn node_events(old: &Node, new: &Node) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(new) {
        events.push(ClusterEvent::NodeAllocatable);
    }
    if old.metadata.labels != new.metadata.labels {
        events.push(ClusterEvent::NodeLabels);
    }
    let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
    let cordoned = |n: &Node| n.spec.as_ref().and_then(|s| s.unschedulable);
    if taints(old) != taints(new) || cordoned(old) != cordoned(new) {
        events.push(ClusterEvent::NodeTaints);
    }
    events
}
