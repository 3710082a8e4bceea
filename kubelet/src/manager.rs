//! All pods of one writer: takes them, finds them again after a restart,
//! tells what becomes of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::ContainerRuntime;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use crate::events::Journal;
use crate::images::Images;
use crate::machine::{Deletion, PodState};
use crate::manager_events;
pub use crate::manager_events::{ENGINE_BACKLOG_EVENTS, EventSink, EventSource, event_channel};
pub use crate::manager_recover::Recovery;
use crate::node::{NodeFacts, Paths};
use crate::objects::Objects;
use crate::pod;
pub use crate::record::Source;
use crate::record::{self, RECORD_VERSION, RecordError, Wanted};
use crate::surroundings::Surroundings;
use crate::time::Clock;
use crate::worker::update::as_wanted;
pub use crate::worker::{Ask, AskError, Change, PodView, Update};
use crate::worker::{MAILBOX_MESSAGES, Message, Shared, Worker, lock};

/// Changes that a slow watcher may be behind before it has to list again.
pub const WATCH_BACKLOG_CHANGES: usize = 1024;

/// What a manager works with.
#[derive(Debug)]
pub struct Config<R> {
    /// The engine.
    pub runtime: Arc<R>,
    /// Where things lie.
    pub paths: Paths,
    /// The host.
    pub node: NodeFacts,
    /// The time.
    pub clock: Clock,
    /// The engine's events.
    pub events: EventSource,
    /// What pods find around them.
    pub surroundings: Arc<dyn Surroundings>,
}

/// A pod to run, with what it refers to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bundle {
    /// The pod, validated and with its defaults. Without a uid it gets one.
    pub pod: Pod,
    /// ConfigMaps, Secrets and claims of its namespace.
    pub objects: Objects,
    /// Pods of one group find each other by name in /etc/hosts.
    pub group: Option<String>,
    /// Where it came from. Pods of an API are told apart by their uids, those
    /// of files by their names.
    pub source: Source,
}

/// What to do about a pod of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Attach to it if it is the same, else refuse.
    Attach,
    /// End it with its grace period, then run the new one.
    Replace,
}

/// What became of an applied pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// It is new.
    Created(Arc<PodView>),
    /// The same pod was there already.
    Attached(Arc<PodView>),
}

impl Applied {
    /// The pod.
    #[must_use]
    pub fn view(&self) -> &Arc<PodView> {
        match self {
            Self::Created(view) | Self::Attached(view) => view,
        }
    }
}

/// Why the manager refuses.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Another pod has the name.
    #[error("pod {name} exists already and is another one; remove it first or replace it")]
    Exists {
        /// `<namespace>/<name>`.
        name: String,
    },
    /// The pod of that name is being removed.
    #[error("pod {name} is being removed")]
    Ending {
        /// `<namespace>/<name>`.
        name: String,
    },
    /// The pod of that name came from an API server.
    #[error("pod {name} belongs to the API server")]
    OfApi {
        /// `<namespace>/<name>`.
        name: String,
    },
    /// The pod does not do what it was asked.
    #[error("pod {name}")]
    Refused {
        /// `<namespace>/<name>`.
        name: String,
        /// Why.
        source: AskError,
    },
    /// The pods are being left to the next writer.
    #[error("run pod {name}: this writer of the root is about to end")]
    Leaving {
        /// `<namespace>/<name>`.
        name: String,
    },
    /// There is no such pod.
    #[error("there is no pod {uid:?}")]
    NotFound {
        /// The uid.
        uid: String,
    },
    /// The uid cannot name a directory or sandbox.
    #[error("uid {uid:?} is not 1 to 63 characters of a-z, 0-9 and \"-\"")]
    BadUid {
        /// The uid.
        uid: String,
    },
    /// The record cannot be read or written.
    #[error("the record of pod {uid:?}")]
    Record {
        /// The pod.
        uid: String,
        /// Why.
        source: RecordError,
    },
    /// The engine does not answer.
    #[error("ask the engine for its sandboxes: {reason}")]
    Engine {
        /// Its error.
        reason: String,
    },
    /// The kernel gives no random uid.
    #[error("read /proc/sys/kernel/random/uuid")]
    Uid {
        /// What it answered.
        source: std::io::Error,
    },
}

/// The workers by uid.
pub(crate) type Pods = Arc<Mutex<BTreeMap<String, Handle>>>;

#[derive(Debug)]
pub(crate) struct Handle {
    view: watch::Receiver<Arc<PodView>>,
    pub(crate) mailbox: mpsc::Sender<Message>,
    task: JoinHandle<()>,
}

/// All pods. Made inside a tokio runtime; clones are the same manager.
#[derive(Debug)]
pub struct Manager<R> {
    pub(crate) shared: Arc<Shared<R>>,
    pub(crate) pods: Pods,
    /// Events of the engine wait until the pods that they are about are known.
    pub(crate) recovered: Arc<watch::Sender<bool>>,
}

impl<R> Clone for Manager<R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            pods: Arc::clone(&self.pods),
            recovered: Arc::clone(&self.recovered),
        }
    }
}

impl<R: ContainerRuntime> Manager<R> {
    /// A manager without pods. Call [`Manager::recover`] before anything else:
    /// the engine's events are routed from then on.
    #[must_use]
    pub fn new(config: Config<R>) -> Self {
        let Config {
            runtime,
            paths,
            node,
            clock,
            events,
            surroundings,
        } = config;
        let journal = Journal::open(&paths.events(), clock.clone(), node.name.clone());
        let images = Images::new(paths.image_pulls());
        let shared = Arc::new(Shared {
            runtime,
            paths,
            node,
            clock,
            journal,
            surroundings,
            changes: broadcast::channel(WATCH_BACKLOG_CHANGES).0,
            boot_id: record::boot_id(),
            images,
            burstable: Mutex::default(),
            groups: Mutex::default(),
            leaving: AtomicBool::new(false),
        });
        let (recovered, begin) = watch::channel(false);
        let manager = Self {
            shared,
            pods: Arc::default(),
            recovered: Arc::new(recovered),
        };
        rkube_task::spawn(manager_events::dispatch(
            events,
            Arc::clone(&manager.pods),
            begin,
        ));
        manager
    }

    pub(crate) fn spawn(
        &self,
        pods: &mut BTreeMap<String, Handle>,
        wanted: Wanted,
        state: PodState,
        recovered: bool,
    ) -> Arc<PodView> {
        let uid = pod::uid(&wanted.pod).to_owned();
        let view = Arc::new(PodView {
            uid: uid.clone(),
            pod: wanted.pod.clone(),
            group: wanted.group.clone(),
            source: wanted.source,
            finished: state.finished,
        });
        let (sender, receiver) = watch::channel(Arc::clone(&view));
        let (mailbox, messages) = mpsc::channel(MAILBOX_MESSAGES);
        let worker = Worker::new(
            Arc::clone(&self.shared),
            wanted,
            state,
            recovered,
            sender,
            (mailbox.clone(), messages),
        );
        let all = Arc::clone(&self.pods);
        let own = uid.clone();
        let task = rkube_task::spawn(async move {
            worker.run().await;
            lock(&all).remove(&own);
        });
        pods.insert(
            uid,
            Handle {
                view: receiver,
                mailbox,
                task,
            },
        );
        view
    }

    /// Runs a pod. Returns when its record is written and its worker has
    /// begun, not when it runs; watch it for that.
    ///
    /// # Errors
    /// The name is taken by another pod, the uid is bad, or the record cannot
    /// be written.
    pub async fn apply(
        &self,
        bundle: Bundle,
        if_exists: IfExists,
    ) -> Result<Applied, ManagerError> {
        let mut bundle = bundle;
        if pod::uid(&bundle.pod).is_empty() {
            let path = "/proc/sys/kernel/random/uuid";
            let uid =
                std::fs::read_to_string(path).map_err(|source| ManagerError::Uid { source })?;
            bundle.pod.metadata.uid = Some(uid.trim().to_owned());
        }
        let uid = pod::uid(&bundle.pod).to_owned();
        if !valid_uid(&uid) {
            return Err(ManagerError::BadUid { uid });
        }
        let name = pod::display_name(&bundle.pod);
        let by_uid = bundle.source == Source::Api;
        loop {
            let old = {
                let mut pods = lock(&self.pods);
                // What is not in the map any more runs on.
                if self.shared.leaving.load(Ordering::Relaxed) {
                    return Err(ManagerError::Leaving { name });
                }
                let old = pods
                    .values()
                    .map(|h| h.view.borrow().clone())
                    .find(|v| v.uid == uid || !by_uid && pod::display_name(&v.pod) == name);
                let Some(old) = old else {
                    return self.create(&mut pods, bundle).map(Applied::Created);
                };
                old
            };
            if old.source == Source::Api && bundle.source == Source::File {
                return Err(ManagerError::OfApi { name });
            }
            // One that was stopped stays like one that has ended by itself.
            let ending = old.pod.metadata.deletion_timestamp.is_some() && !old.finished;
            match if_exists {
                IfExists::Attach if ending => return Err(ManagerError::Ending { name }),
                IfExists::Attach if same(&old.pod, &bundle.pod) => {
                    return Ok(Applied::Attached(old));
                }
                IfExists::Attach => return Err(ManagerError::Exists { name }),
                IfExists::Replace => {
                    // It may go by itself meanwhile.
                    if !ending && self.delete(&old.uid, None).await.is_err() {
                        continue;
                    }
                    self.gone(&old.uid).await;
                }
            }
        }
    }

    fn create(
        &self,
        pods: &mut BTreeMap<String, Handle>,
        bundle: Bundle,
    ) -> Result<Arc<PodView>, ManagerError> {
        let uid = pod::uid(&bundle.pod).to_owned();
        let now = self.shared.clock.now();
        let mut pod = as_wanted(bundle.pod);
        pod.metadata
            .creation_timestamp
            .get_or_insert_with(|| crate::time::api_time(now));
        let wanted = Wanted {
            version: RECORD_VERSION,
            boot_id: self.shared.boot_id.clone(),
            pod,
            objects: bundle.objects,
            group: bundle.group,
            deletion: None,
            source: bundle.source,
        };
        // A small file in the page cache: not worth a thread.
        record::write_wanted(&self.shared.paths, &uid, &wanted)
            .map_err(|source| ManagerError::Record { uid, source })?;
        let state = PodState::new(&wanted.pod, now);
        Ok(self.spawn(pods, wanted, state, false))
    }

    /// Tells a pod what it is wanted to be now, and what it refers to. Returns
    /// when that is told, not when it is so.
    ///
    /// # Errors
    /// There is no such pod.
    pub async fn update(&self, uid: &str, update: Update) -> Result<(), ManagerError> {
        let not_found = || ManagerError::NotFound {
            uid: uid.to_owned(),
        };
        let mailbox = self.mailbox(uid).ok_or_else(not_found)?;
        let message = Message::Update(Box::new(update));
        mailbox.send(message).await.map_err(|_| not_found())
    }

    /// Asks something of a pod. Returns when it is recorded (and limits are in
    /// force), not when what runs again runs.
    ///
    /// # Errors
    /// There is no such pod, it came from an API, or it refuses.
    pub async fn ask(&self, uid: &str, ask: Ask) -> Result<(), ManagerError> {
        let not_found = || ManagerError::NotFound {
            uid: uid.to_owned(),
        };
        let view = self.get(uid).ok_or_else(not_found)?;
        if view.source == Source::Api {
            return Err(ManagerError::OfApi {
                name: pod::display_name(&view.pod),
            });
        }
        let mailbox = self.mailbox(uid).ok_or_else(not_found)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let message = Message::Ask(Box::new(ask), answer);
        mailbox.send(message).await.map_err(|_| not_found())?;
        let refused = |source| ManagerError::Refused {
            name: pod::display_name(&view.pod),
            source,
        };
        match answered.await {
            Ok(result) => result.map_err(refused),
            Err(_) => Err(refused(AskError::Gone)),
        }
    }

    fn mailbox(&self, uid: &str) -> Option<mpsc::Sender<Message>> {
        lock(&self.pods).get(uid).map(|h| h.mailbox.clone())
    }

    /// Asks a pod to end and to be forgotten; `grace_seconds` replaces its
    /// own grace period, 0 kills at once. Returns when that is asked; wait
    /// with [`Manager::gone`].
    ///
    /// # Errors
    /// There is no such pod.
    pub async fn delete(&self, uid: &str, grace_seconds: Option<u64>) -> Result<(), ManagerError> {
        self.end(uid, grace_seconds, false).await
    }

    /// Asks a pod to end like [`Manager::delete`], but keeps it known until
    /// it is deleted. Returns when that is asked; wait with
    /// [`Manager::over`].
    ///
    /// # Errors
    /// There is no such pod.
    pub async fn stop(&self, uid: &str, grace_seconds: Option<u64>) -> Result<(), ManagerError> {
        self.end(uid, grace_seconds, true).await
    }

    async fn end(
        &self,
        uid: &str,
        grace_seconds: Option<u64>,
        keep: bool,
    ) -> Result<(), ManagerError> {
        let not_found = || ManagerError::NotFound {
            uid: uid.to_owned(),
        };
        let mailbox = self.mailbox(uid).ok_or_else(not_found)?;
        let at = self.shared.clock.now();
        let message = Message::Delete(Deletion {
            at,
            grace_seconds,
            keep,
        });
        mailbox.send(message).await.map_err(|_| not_found())
    }

    /// Waits until nothing of a pod runs or will run, or it is forgotten.
    pub async fn over(&self, uid: &str) {
        let view = lock(&self.pods).get(uid).map(|h| h.view.clone());
        if let Some(mut view) = view {
            // An error means that its worker has ended: it is forgotten.
            let _ = view.wait_for(|v| v.finished).await;
        }
    }

    /// Waits until a pod is forgotten.
    pub async fn gone(&self, uid: &str) {
        let view = lock(&self.pods).get(uid).map(|h| h.view.clone());
        if let Some(mut view) = view {
            while view.changed().await.is_ok() {}
            // The worker has ended; its entry goes right after, and another
            // pod may take its place.
            while lock(&self.pods)
                .get(uid)
                .is_some_and(|h| h.view.same_channel(&view))
            {
                tokio::task::yield_now().await;
            }
        }
    }

    /// All pods, by uid.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<PodView>> {
        lock(&self.pods)
            .values()
            .map(|h| h.view.borrow().clone())
            .collect()
    }

    /// The pod of that uid.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<PodView>> {
        lock(&self.pods).get(uid).map(|h| h.view.borrow().clone())
    }

    /// The pod of that name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodView>> {
        self.list()
            .into_iter()
            .find(|v| pod::namespace(&v.pod) == namespace && pod::name(&v.pod) == name)
    }

    /// Follows one pod: holds its latest state, and is closed once the pod is
    /// forgotten.
    #[must_use]
    pub fn follow(&self, uid: &str) -> Option<watch::Receiver<Arc<PodView>>> {
        lock(&self.pods).get(uid).map(|h| h.view.clone())
    }

    /// Changes of all pods from now on; one that lags must list again.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// The journal of events.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Where things lie.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.shared.paths
    }

    /// Tells that an image was added: what waits for one looks again.
    pub fn images_changed(&self) {
        for handle in lock(&self.pods).values() {
            // A full mailbox means that the worker is about to look anyway.
            let _ = handle.mailbox.try_send(Message::ImagesChanged);
        }
    }

    /// Forgets which credentials pulled images that are gone from the store.
    pub fn forget_removed_images(&self) {
        self.shared.forget_removed_images();
    }

    /// Ends all workers where they are, as SIGKILL of the writer does.
    #[cfg(test)]
    pub(crate) fn abort_for_tests(&self) {
        for handle in std::mem::take(&mut *lock(&self.pods)).into_values() {
            handle.task.abort();
        }
    }

    /// Ends all workers and leaves the pods running for the next writer; no
    /// pod is taken on from then on.
    pub async fn leave(&self) {
        let handles: Vec<Handle> = {
            let mut pods = lock(&self.pods);
            self.shared.leaving.store(true, Ordering::Relaxed);
            std::mem::take(&mut *pods).into_values().collect()
        };
        for handle in &handles {
            let _ = handle.mailbox.send(Message::Leave).await;
        }
        for handle in handles {
            // A worker that panicked has left its record as it was.
            let _ = handle.task.await;
        }
    }
}

/// Whether two pods ask for the same: all but what the writer adds.
fn same(old: &Pod, new: &Pod) -> bool {
    let key = |pod: &Pod| {
        let mut pod = pod.clone();
        pod.status = None;
        pod.metadata.uid = None;
        pod.metadata.creation_timestamp = None;
        pod.metadata.deletion_timestamp = None;
        pod.metadata.deletion_grace_period_seconds = None;
        pod.metadata.resource_version = None;
        pod.metadata.generation = None;
        pod
    };
    key(old) == key(new)
}

fn valid_uid(uid: &str) -> bool {
    (1..=63).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
