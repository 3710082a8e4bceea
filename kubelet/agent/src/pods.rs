//! Pods of the API on this node: what is wanted goes to the pod workers, what
//! they tell goes back as statuses.
//!
//! ```text
//! watch on spec.nodeName ─► wanted ─┐                 ┌─► patch of status
//! watch on each object  ────────────┼─► queue of uids ┤
//! token due for renewal ────────────┤   (one worker   ├─► worker: apply, update, stop
//! worker's news         ────────────┘    a pod)       └─► DELETE with grace 0
//! ```
//!
//! One task at a time works on a pod, so its statuses are written in order.
//! The pod's object is deleted only after everything of it has ended and its
//! last status is written; what the workers have and the API does not is
//! ended as soon as the first list is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, PodStatus, Secret};
use rkube_client::informer::Change as Known;
use rkube_client::{
    Api, ApiError, Client, DeleteParams, Informer, ListParams, ObjectKey, Patch, WorkQueue,
};
use rkube_engine::api::ContainerRuntime;
use rkube_kubelet::manager::{
    Bundle, Change, IfExists, Manager, ManagerError, PodView, Source, Update,
};
use rkube_kubelet::objects::Objects;
use rkube_kubelet::pod;
use rkube_kubelet::time::Clock;
use tokio::sync::broadcast::error::RecvError;

use crate::admit::{self, Budget};
use crate::references::{References, only};
use crate::status;
use crate::tokens::Tokens;
use crate::watched::{NotTold, Wake, Watched};

/// Pods that are worked on at a time.
pub const POD_WORKERS: usize = 16;
/// The annotation that tells where a pod comes from; mirrors of static pods
/// have another value (see ARCHITECTURE.md).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// Why a pod is not as the API wants it yet; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// A request failed.
    #[error("{attempt} of pod {pod}")]
    Api {
        /// What was tried.
        attempt: &'static str,
        /// `<namespace>/<name>`.
        pod: String,
        /// Why.
        source: ApiError,
    },
    /// What the pod refers to is not known.
    #[error("what pod {pod} refers to")]
    References {
        /// `<namespace>/<name>`.
        pod: String,
        /// Why.
        source: NotTold,
    },
    /// The pod workers refuse.
    #[error("run pod {pod}")]
    Manager {
        /// `<namespace>/<name>`.
        pod: String,
        /// Why.
        source: ManagerError,
    },
}

/// A pod that the API wants here, or wanted.
#[derive(Debug, Clone)]
struct Wanted {
    pod: Arc<Pod>,
    /// What was last written, where it is newer than `pod`.
    written: Option<PodStatus>,
    rejected: bool,
}

/// The pods of this node.
pub struct Pods<R> {
    client: Client,
    manager: Manager<R>,
    clock: Clock,
    node_name: String,
    budget: Arc<dyn Fn() -> Budget + Send + Sync>,
    queue: Arc<WorkQueue<String>>,
    wanted: Arc<Mutex<BTreeMap<String, Wanted>>>,
    informer: Informer<Pod>,
    config_maps: Watched<ConfigMap>,
    secrets: Watched<Secret>,
    claims: Watched<PersistentVolumeClaim>,
    tokens: Tokens,
    /// When pods are looked at for a token's renewal, by uid.
    timers: Mutex<BTreeMap<String, SystemTime>>,
}

impl<R> std::fmt::Debug for Pods<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods")
            .field("node", &self.node_name)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The map is whole between calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: ContainerRuntime> Pods<R> {
    /// Begins to follow the node's pods; [`Pods::run`] works on them. Must be
    /// called inside a tokio runtime.
    #[must_use]
    pub fn new(
        client: Client,
        manager: Manager<R>,
        clock: Clock,
        node_name: &str,
        budget: Arc<dyn Fn() -> Budget + Send + Sync>,
    ) -> Self {
        let queue: Arc<WorkQueue<String>> = Arc::default();
        let wanted: Arc<Mutex<BTreeMap<String, Wanted>>> = Arc::default();
        let selection = ListParams {
            fields: Some(format!("spec.nodeName={node_name}")),
            ..ListParams::default()
        };
        let informer = Informer::start(client.all::<Pod>(), selection);
        let (to, all) = (Arc::clone(&queue), Arc::clone(&wanted));
        informer.on_change(move |change| {
            let pod = change.object();
            let uid = pod::uid(pod).to_owned();
            let mut all = lock(&all);
            match change {
                Known::Added(pod) | Known::Modified(_, pod) => match all.get_mut(&uid) {
                    Some(known) => {
                        known.pod = Arc::clone(pod);
                        // The watch may be behind the last answer, never
                        // for long: what it lacks is written again.
                        known.written = None;
                    }
                    None => {
                        all.insert(
                            uid.clone(),
                            Wanted {
                                pod: Arc::clone(pod),
                                written: None,
                                rejected: false,
                            },
                        );
                    }
                },
                Known::Deleted(_) => {
                    all.remove(&uid);
                }
            }
            drop(all);
            to.add(uid);
        });
        let to = Arc::clone(&queue);
        let wake: Wake = Arc::new(move |uid: &str| to.add(uid.to_owned()));
        Self {
            config_maps: Watched::new(client.clone(), Arc::clone(&wake)),
            secrets: Watched::new(client.clone(), Arc::clone(&wake)),
            claims: Watched::new(client.clone(), wake),
            tokens: Tokens::new(client.clone()),
            timers: Mutex::default(),
            client,
            manager,
            clock,
            node_name: node_name.to_owned(),
            budget,
            queue,
            wanted,
            informer,
        }
    }

    /// The pod that the API wants here under a name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.informer.store().get(&ObjectKey::new(namespace, name))
    }

    /// All pods that the API wants here.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.informer.store().all()
    }

    /// Works until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let changes = self.manager.watch();
        self.informer.synced().await;
        // What ran before and the API does not know any more.
        for view in self.manager.list() {
            self.queue.add(view.uid.clone());
        }
        let listen = self.listen(changes);
        let work = async {
            let mut workers = tokio::task::JoinSet::new();
            for _ in 0..POD_WORKERS {
                let pods = Arc::clone(&self);
                workers.spawn(async move {
                    let queue = Arc::clone(&pods.queue);
                    queue.work(|uid| pods.sync_and_tell(uid)).await;
                });
            }
            workers.join_all().await;
        };
        tokio::join!(listen, work);
    }

    async fn listen(&self, mut changes: tokio::sync::broadcast::Receiver<Change>) {
        loop {
            match changes.recv().await {
                Ok(Change::Updated(view) | Change::Removed(view)) => {
                    if view.source == Source::Api {
                        self.queue.add(view.uid.clone());
                    }
                }
                Err(RecvError::Lagged(_)) => {
                    for view in self.manager.list() {
                        self.queue.add(view.uid.clone());
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn api(&self, pod: &Pod) -> Api<Pod> {
        self.client.namespaced(pod::namespace(pod))
    }

    async fn sync_and_tell(&self, uid: String) -> Result<(), SyncError> {
        self.sync(uid).await.inspect_err(|error| {
            let error = rkube_engine::chain(error);
            tracing::warn!(error, "a pod is not as the API wants it yet");
        })
    }

    /// Brings one pod a step further.
    async fn sync(&self, uid: String) -> Result<(), SyncError> {
        let wanted = lock(&self.wanted).get(&uid).cloned();
        let view = self
            .manager
            .get(&uid)
            .filter(|view| view.source == Source::Api);
        let Some(wanted) = wanted else {
            return self.sync_gone(&uid, view.as_deref()).await;
        };
        if let Some(view) = &view {
            self.write_status(&uid, &wanted, view.pod.status.as_ref())
                .await?;
        }
        if let Some(seconds) = wanted.pod.metadata.deletion_grace_period_seconds
            && wanted.pod.metadata.deletion_timestamp.is_some()
        {
            return self.sync_ending(&wanted, view.as_deref(), seconds).await;
        }
        match view {
            None if wanted.rejected || status::is_terminal(wanted.pod.status.as_ref()) => Ok(()),
            None => self.begin(&wanted).await,
            Some(view) if view.finished => Ok(()),
            Some(_) => {
                let objects = self.objects(&wanted.pod).await?;
                let update = Update {
                    pod: Pod::clone(&wanted.pod),
                    objects,
                };
                // It may have gone by itself; its end is told.
                let _ = self.manager.update(&uid, update).await;
                Ok(())
            }
        }
    }

    /// The API has no such pod: what is left of it ends.
    async fn sync_gone(&self, uid: &str, view: Option<&PodView>) -> Result<(), SyncError> {
        self.config_maps.forget(uid);
        self.secrets.forget(uid);
        self.claims.forget(uid);
        self.tokens.forget(uid);
        lock(&self.timers).remove(uid);
        let Some(view) = view else { return Ok(()) };
        if !self.informer.has_synced() {
            return Ok(());
        }
        // One that ends already is to be forgotten then.
        let grace = view.finished.then_some(0);
        let _ = self.manager.delete(uid, grace).await;
        Ok(())
    }

    /// The pod is to end: first its containers, then its object.
    async fn sync_ending(
        &self,
        wanted: &Wanted,
        view: Option<&PodView>,
        grace_seconds: i64,
    ) -> Result<(), SyncError> {
        let pod = &wanted.pod;
        if let Some(view) = view.filter(|view| !view.finished) {
            let grace = u64::try_from(grace_seconds).unwrap_or(0);
            let asked = view.pod.metadata.deletion_grace_period_seconds;
            if asked.is_none_or(|asked| asked > grace_seconds) {
                let _ = self.manager.stop(&view.uid, Some(grace)).await;
            }
            return Ok(());
        }
        let params = DeleteParams {
            grace_seconds: Some(0),
            uid: pod.metadata.uid.clone(),
            ..DeleteParams::default()
        };
        match self.api(pod).delete(pod::name(pod), &params).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(source) => Err(SyncError::Api {
                attempt: "delete",
                pod: pod::display_name(pod),
                source,
            }),
        }
    }

    async fn begin(&self, wanted: &Wanted) -> Result<(), SyncError> {
        let pod = &wanted.pod;
        let uid = pod::uid(pod).to_owned();
        let others: Vec<Arc<PodView>> = self.manager.list();
        let running = others
            .iter()
            .filter(|v| !v.finished && v.uid != uid)
            .map(|v| &v.pod);
        if let Err(rejection) = admit::admit(pod, running, &(self.budget)()) {
            tracing::info!(pod = %pod::display_name(pod), reason = rejection.reason, "a pod is not taken");
            self.manager.journal().note(
                pod,
                None,
                rkube_kubelet::events::Severity::Warning,
                rejection.reason,
                &rejection.message,
            );
            let refused = status::rejected(rejection.reason, &rejection.message, self.clock.now());
            self.write_status(&uid, wanted, Some(&refused)).await?;
            if let Some(known) = lock(&self.wanted).get_mut(&uid) {
                known.rejected = true;
            }
            return Ok(());
        }
        let objects = self.objects(pod).await?;
        let bundle = Bundle {
            pod: Pod::clone(pod),
            objects,
            group: None,
            source: Source::Api,
        };
        let applied = self.manager.apply(bundle, IfExists::Attach).await;
        applied.map(drop).map_err(|source| SyncError::Manager {
            pod: pod::display_name(pod),
            source,
        })
    }

    /// What the pod refers to, as it is now; from now on it is followed.
    async fn objects(&self, pod: &Pod) -> Result<Objects, SyncError> {
        let references = References::of(pod);
        let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
        let untold = |source| SyncError::References {
            pod: pod::display_name(pod),
            source,
        };
        tokio::try_join!(
            self.config_maps
                .refer(uid, namespace, &references.config_maps),
            self.secrets.refer(uid, namespace, &references.secrets),
            self.claims.refer(uid, namespace, &references.claims),
        )
        .map_err(untold)?;
        let mut tokens = BTreeMap::new();
        let now = self.clock.now();
        let mut renew: Option<SystemTime> = None;
        for key in references.tokens {
            let got = self.tokens.get(pod, &key, now).await;
            let (token, again) = got.map_err(|source| SyncError::Api {
                attempt: "request a service account token",
                pod: pod::display_name(pod),
                source,
            })?;
            renew = Some(renew.map_or(again, |r| r.min(again)));
            tokens.insert(key, token);
        }
        if let Some(at) = renew {
            self.look_again(uid, at, now);
        }
        Ok(Objects {
            config_maps: only(&references.config_maps, |name| {
                self.config_maps
                    .get(namespace, name)
                    .map(|o| ConfigMap::clone(&o))
            }),
            secrets: only(&references.secrets, |name| {
                self.secrets.get(namespace, name).map(|o| Secret::clone(&o))
            }),
            claims: only(&references.claims, |name| {
                self.claims
                    .get(namespace, name)
                    .map(|o| PersistentVolumeClaim::clone(&o))
            }),
            tokens,
        })
    }

    /// Looks at the pod again at a time; one timer a pod.
    fn look_again(&self, uid: &str, at: SystemTime, now: SystemTime) {
        let mut timers = lock(&self.timers);
        if timers.get(uid).is_some_and(|due| *due > now && *due <= at) {
            return;
        }
        timers.insert(uid.to_owned(), at);
        let wait = at.duration_since(now).unwrap_or_default();
        self.queue
            .add_after(uid.to_owned(), wait.max(Duration::from_secs(1)));
    }

    /// Writes the status where it differs from what the API has.
    async fn write_status(
        &self,
        uid: &str,
        wanted: &Wanted,
        known: Option<&PodStatus>,
    ) -> Result<(), SyncError> {
        let Some(known) = known else { return Ok(()) };
        let pod = &wanted.pod;
        let empty = PodStatus::default();
        let there = wanted.written.as_ref().or(pod.status.as_ref());
        let Some(body) = status::patch(uid, there.unwrap_or(&empty), known) else {
            return Ok(());
        };
        let patch = Patch::Strategic(body);
        match self.api(pod).patch_status(pod::name(pod), &patch).await {
            Ok(now) => {
                if let Some(wanted) = lock(&self.wanted).get_mut(uid) {
                    wanted.written = now.status;
                }
                Ok(())
            }
            // Gone, or another pod of its name: the watch tells.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(source) => Err(SyncError::Api {
                attempt: "patch the status",
                pod: pod::display_name(pod),
                source,
            }),
        }
    }
}
