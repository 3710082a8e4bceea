//! The cache of an informer: objects by key, with indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name of an object; the namespace is empty for cluster scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of an object.
    #[must_use]
    pub fn of<K: Metadata<Ty = ObjectMeta>>(object: &K) -> Self {
        let meta = object.metadata();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Under which values an index finds an object.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

struct Index<K> {
    values_of: IndexFn<K>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

struct Inner<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

/// The objects that an informer knows. Reads never wait for the network.
pub struct Store<K> {
    inner: RwLock<Inner<K>>,
}

impl<K> fmt::Debug for Store<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Store")
            .field("objects", &inner.objects.len())
            .finish_non_exhaustive()
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                objects: BTreeMap::new(),
                indexes: HashMap::new(),
            }),
        }
    }
}

impl<K: Metadata<Ty = ObjectMeta>> Store<K> {
    fn read<T>(&self, f: impl FnOnce(&Inner<K>) -> T) -> T {
        f(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Inner<K>) -> T) -> T {
        f(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|inner| inner.objects.get(key).cloned())
    }

    /// All objects, ordered by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read(|inner| inner.objects.values().cloned().collect())
    }

    /// The objects of a namespace, ordered by name.
    #[must_use]
    pub fn of_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = ObjectKey::new(namespace, "");
        self.read(|inner| {
            inner
                .objects
                .range(first..)
                .take_while(|(key, _)| key.namespace == namespace)
                .map(|(_, object)| Arc::clone(object))
                .collect()
        })
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read(|inner| inner.objects.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects that an index has under a value; none for an index that
    /// was never added.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.read(|inner| {
            let keys = inner.indexes.get(index).and_then(|i| i.keys.get(value));
            keys.into_iter()
                .flatten()
                .filter_map(|key| inner.objects.get(key).cloned())
                .collect()
        })
    }

    /// Adds an index over what is there and what comes. The same name again
    /// changes nothing.
    pub fn add_index(&self, name: &'static str, values_of: IndexFn<K>) {
        self.write(|inner| {
            if inner.indexes.contains_key(name) {
                return;
            }
            let mut index = Index {
                values_of,
                keys: HashMap::new(),
            };
            for (key, object) in &inner.objects {
                index.insert(key, object);
            }
            inner.indexes.insert(name, index);
        });
    }

    /// Sets an object; answers what was there.
    pub(crate) fn set(&self, object: Arc<K>) -> Option<Arc<K>> {
        let key = ObjectKey::of(&*object);
        self.write(|inner| {
            let old = inner.objects.insert(key.clone(), Arc::clone(&object));
            for index in inner.indexes.values_mut() {
                if let Some(old) = &old {
                    index.remove(&key, old);
                }
                index.insert(&key, &object);
            }
            old
        })
    }

    /// Removes an object; answers what was there.
    pub(crate) fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.write(|inner| {
            let old = inner.objects.remove(key)?;
            for index in inner.indexes.values_mut() {
                index.remove(key, &old);
            }
            Some(old)
        })
    }

    /// All keys.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.read(|inner| inner.objects.keys().cloned().collect())
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.values_of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.values_of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}
