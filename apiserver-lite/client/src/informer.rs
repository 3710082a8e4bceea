//! Informers: caches that follow a watch, and tell handlers what changed.
//!
//! ```text
//! list ─► replace the cache ─► watch from the list's revision ─┬─ ended: watch again
//!   ▲                                                          ├─ 410: list again
//!   └────────────── after a back-off ◄─────────────────────────┴─ error
//! ```

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::api::{
    Api, Client, List, ListParams, Object, WatchParams, bookmark, decode, list_request,
    watch_request,
};
use crate::error::ApiError;
use crate::store::{IndexFn, ObjectKey, Store};
use crate::transport::{Frame, FrameKind, Target};

/// First wait after a list or watch that failed; client-go's reflector
/// begins with as much.
const BACKOFF_MIN: Duration = Duration::from_millis(800);
/// Longest wait; client-go's reflector stops doubling there.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What became of an object, after the cache has it.
#[derive(Debug)]
pub enum Change<K> {
    /// It is new to this handler.
    Added(Arc<K>),
    /// It changed: `old`, `new`.
    Modified(Arc<K>, Arc<K>),
    /// It is gone; its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest known state.
    #[must_use]
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Modified(_, object) | Self::Deleted(object) => object,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send>;

/// A cache of one resource. Dropping it ends the watch.
pub struct Informer<K> {
    store: Arc<Store<K>>,
    handlers: Arc<Mutex<Vec<Handler<K>>>>,
    synced: watch::Receiver<bool>,
    task: AbortHandle,
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl<K> Drop for Informer<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Object> Informer<K> {
    /// Begins to follow a resource. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(api: Api<K>, selection: ListParams) -> Self {
        let store = Arc::new(Store::default());
        let handlers: Arc<Mutex<Vec<Handler<K>>>> = Arc::default();
        let (sender, synced) = watch::channel(false);
        let follower = Follower {
            client: api.client().clone(),
            target: api.target(None, None),
            selection,
            sink: Box::new(Cache {
                store: Arc::clone(&store),
                handlers: Arc::clone(&handlers),
            }),
            synced: sender,
        };
        let task = rkube_task::spawn(follower.run()).abort_handle();
        Self {
            store,
            handlers,
            synced,
            task,
        }
    }

    /// The cache.
    #[must_use]
    pub fn store(&self) -> &Arc<Store<K>> {
        &self.store
    }

    /// Adds an index to the cache.
    pub fn add_index(&self, name: &'static str, values_of: IndexFn<K>) {
        self.store.add_index(name, values_of);
    }

    /// Tells a handler everything that is known, as added, and then every
    /// change. A handler must be quick and must not add handlers: it usually
    /// adds keys to a work queue. It may read the cache.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + 'static) {
        let mut handlers = lock(&self.handlers);
        for object in self.store.all() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Returns once the first list is in the cache.
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        // The sender goes only with the task, when this informer is dropped.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// Whether the first list is in the cache.
    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A handler that panicked is a bug of its own; the cache goes on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task behind an informer. It knows no type: one copy of it serves all
/// resources, and what it reads is decoded by the [`Sink`].
struct Follower {
    client: Client,
    target: Target,
    selection: ListParams,
    sink: Box<dyn Sink>,
    synced: watch::Sender<bool>,
}

/// Takes what a follower reads; `attempt` is for errors.
trait Sink: Send + Sync {
    /// Makes the cache what a list says. Gives the list's revision.
    fn replace(&self, attempt: &str, list: &[u8]) -> Result<String, ApiError>;
    /// Takes an object of a watch; gives its revision.
    fn take(&self, attempt: &str, frame: &Frame) -> Result<Option<String>, ApiError>;
}

impl Follower {
    async fn run(self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let begun = tokio::time::Instant::now();
            match self.list_and_watch().await {
                Ok(()) => backoff = BACKOFF_MIN,
                Err(error) => {
                    let resource = &self.target.resource;
                    tracing::warn!(resource, %error, "follow a resource");
                    if begun.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Returns `Ok` when the revision has expired and a new list is due.
    async fn list_and_watch(&self) -> Result<(), ApiError> {
        let request = list_request(self.target.clone(), &self.selection);
        let attempt = request.attempt();
        let list = self.client.transport().call(request).await?;
        let mut revision = self.sink.replace(&attempt, &list)?;
        drop(list);
        self.synced.send_replace(true);
        loop {
            let params = WatchParams {
                labels: self.selection.labels.clone(),
                fields: self.selection.fields.clone(),
                resource_version: revision.clone(),
            };
            match self.follow(&params, &mut revision).await {
                Ok(()) => {}
                Err(error) if error.is_expired() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn follow(&self, params: &WatchParams, revision: &mut String) -> Result<(), ApiError> {
        let request = watch_request(self.target.clone(), params);
        let attempt = request.attempt();
        let mut frames = self.client.transport().watch(request).await?;
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            if frame.kind == FrameKind::Bookmark {
                *revision = bookmark(&attempt, &frame)?;
            } else if let Some(newer) = self.sink.take(&attempt, &frame)? {
                *revision = newer;
            }
        }
        Ok(())
    }
}

/// The cache's side of an informer.
struct Cache<K> {
    store: Arc<Store<K>>,
    handlers: Arc<Mutex<Vec<Handler<K>>>>,
}

impl<K: Object> Sink for Cache<K> {
    fn replace(&self, attempt: &str, list: &[u8]) -> Result<String, ApiError> {
        let list: List<K> = decode(attempt, list)?;
        let revision = list.resource_version().to_owned();
        let mut gone: HashSet<ObjectKey> = self.store.keys().into_iter().collect();
        for object in list.items {
            gone.remove(&ObjectKey::of(&object));
            self.set(object);
        }
        for key in gone {
            self.remove(&key, None);
        }
        Ok(revision)
    }

    fn take(&self, attempt: &str, frame: &Frame) -> Result<Option<String>, ApiError> {
        let object: K = decode(attempt, &frame.object)?;
        let revision = object.metadata().resource_version.clone();
        match frame.kind {
            FrameKind::Added | FrameKind::Modified => self.set(object),
            FrameKind::Deleted => self.remove(&ObjectKey::of(&object), Some(object)),
            // The follower keeps these.
            FrameKind::Bookmark => {}
        }
        Ok(revision)
    }
}

impl<K: Object> Cache<K> {
    fn set(&self, object: K) {
        let object = Arc::new(object);
        let handlers = lock(&self.handlers);
        let change = match self.store.set(Arc::clone(&object)) {
            None => Change::Added(object),
            Some(old) if same_revision(old.metadata(), object.metadata()) => return,
            // The same name anew, its end and beginning fell into one gap.
            Some(old) if old.metadata().uid != object.metadata().uid => {
                tell(&handlers, &Change::Deleted(old));
                Change::Added(object)
            }
            Some(old) => Change::Modified(old, object),
        };
        tell(&handlers, &change);
    }

    fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let handlers = lock(&self.handlers);
        if let Some(old) = self.store.remove(key) {
            tell(&handlers, &Change::Deleted(last.map_or(old, Arc::new)));
        }
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

fn same_revision(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    a.resource_version.is_some() && a.resource_version == b.resource_version && a.uid == b.uid
}

/// One informer a resource, shared by everything in a process.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    all: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
}

impl fmt::Debug for Informers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informers")
            .field("count", &lock(&self.all).len())
            .finish_non_exhaustive()
    }
}

impl Informers {
    /// None yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            all: Arc::default(),
        }
    }

    /// The client that they use.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of a resource over all namespaces; begins with its first
    /// user.
    #[must_use]
    pub fn of<K: Object>(&self) -> Arc<Informer<K>> {
        let mut all = lock(&self.all);
        let any = all.entry(TypeId::of::<K>()).or_insert_with(|| {
            let api = self.client.all::<K>();
            Arc::new(Informer::start(api, ListParams::default()))
        });
        match Arc::clone(any).downcast() {
            Ok(informer) => informer,
            // The map's key is the type's own id.
            Err(_) => unreachable!("an informer of another type under this type's id"),
        }
    }
}
