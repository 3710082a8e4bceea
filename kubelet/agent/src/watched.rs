//! Single objects, each followed by a watch of its own as long as a pod
//! refers to it. A node may read no more of ConfigMaps and Secrets than its
//! pods need, so there is no watch over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use rkube_client::{Client, Informer, ListParams, Object, ObjectKey};

/// How long a pod's start waits for an object that the API does not show or
/// deny.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Called with the uid of each pod that refers to what has changed.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

struct Followed<K> {
    informer: Arc<Informer<K>>,
    users: Arc<Mutex<BTreeSet<String>>>,
}

/// Objects of one kind.
pub struct Watched<K> {
    client: Client,
    wake: Wake,
    followed: Mutex<BTreeMap<ObjectKey, Followed<K>>>,
}

impl<K> std::fmt::Debug for Watched<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are whole between calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object was not told within [`FETCH_TIMEOUT`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {key}: the API server has not told of it for {FETCH_TIMEOUT:?}")]
pub struct NotTold {
    /// The kind.
    pub kind: &'static str,
    /// The object.
    pub key: ObjectKey,
}

impl<K: Object + k8s_openapi::Resource<Scope = NamespaceResourceScope>> Watched<K> {
    /// None yet.
    #[must_use]
    pub fn new(client: Client, wake: Wake) -> Self {
        Self {
            client,
            wake,
            followed: Mutex::default(),
        }
    }

    /// Makes `names` what the pod `uid` refers to, and waits until all of
    /// them are known, be it that they do not exist.
    ///
    /// # Errors
    /// The API server does not tell in time.
    pub async fn refer(
        &self,
        uid: &str,
        namespace: &str,
        names: &BTreeSet<String>,
    ) -> Result<(), NotTold> {
        let mut waits = Vec::new();
        {
            let mut followed = lock(&self.followed);
            for name in names {
                let key = ObjectKey::new(namespace, name);
                let entry = followed
                    .entry(key.clone())
                    .or_insert_with(|| self.follow(&key));
                lock(&entry.users).insert(uid.to_owned());
                if !entry.informer.has_synced() {
                    waits.push((key, Arc::clone(&entry.informer)));
                }
            }
            followed.retain(|key, entry| {
                let mut users = lock(&entry.users);
                if key.namespace != namespace || !names.contains(&key.name) {
                    users.remove(uid);
                }
                !users.is_empty()
            });
        }
        let deadline = tokio::time::Instant::now() + FETCH_TIMEOUT;
        for (key, informer) in waits {
            let told = tokio::time::timeout_at(deadline, informer.synced());
            told.await.map_err(|_| NotTold { kind: K::KIND, key })?;
        }
        Ok(())
    }

    fn follow(&self, key: &ObjectKey) -> Followed<K> {
        let api = self.client.namespaced::<K>(&key.namespace);
        let informer = Arc::new(Informer::start(
            api,
            ListParams {
                fields: Some(format!("metadata.name={}", key.name)),
                ..ListParams::default()
            },
        ));
        let users: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (told, wake) = (Arc::clone(&users), Arc::clone(&self.wake));
        informer.on_change(move |_| {
            for uid in lock(&told).iter() {
                wake(uid);
            }
        });
        Followed { informer, users }
    }

    /// An object that a pod refers to, as it is known.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = ObjectKey::new(namespace, name);
        let followed = lock(&self.followed);
        followed.get(&key)?.informer.store().get(&key)
    }

    /// The pod refers to nothing any more.
    pub fn forget(&self, uid: &str) {
        lock(&self.followed).retain(|_, entry| {
            let mut users = lock(&entry.users);
            users.remove(uid);
            !users.is_empty()
        });
    }

    /// How many objects are followed.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.followed).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
