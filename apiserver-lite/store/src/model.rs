//! What the API server sees: keys, values, writes, pages, events, and the [`Store`] trait.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Health, StoreError};
use crate::pending::Pending;
use crate::watch::Watcher;

/// The store's clock: every change raises it by one. A key's revision is that of its last
/// change (`resourceVersion` of an object); a page's is that of the whole store.
pub type Revision = u64;

macro_rules! shared_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<[u8]>);

        impl $name {
            /// Copies the bytes once; every clone shares them.
            #[must_use]
            pub fn new(bytes: &[u8]) -> Self {
                Self(bytes.into())
            }

            /// The shared bytes, for a buffer type of the caller's.
            #[must_use]
            pub fn shared(&self) -> Arc<[u8]> {
                Arc::clone(&self.0)
            }
        }

        impl Deref for $name {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Borrow<[u8]> for $name {
            fn borrow(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<Arc<[u8]>> for $name {
            fn from(bytes: Arc<[u8]>) -> Self {
                Self(bytes)
            }
        }

        impl From<Vec<u8>> for $name {
            fn from(bytes: Vec<u8>) -> Self {
                Self(bytes.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.as_bytes().into())
            }
        }
    };
}

shared_bytes! {
    /// A key: 1 to [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) bytes, ordered bytewise. The API
    /// server names objects `resource.group/namespace/name`, so that a prefix is a list.
    Key
}

shared_bytes! {
    /// A value: at most [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX) bytes, of exactly its own
    /// size, shared by everything that shows it.
    Value
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Value {
    /// The length only: values hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

/// A key with its value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// The revision of the change that set the value.
    pub revision: Revision,
}

/// One change, made only if the key is as expected (compare and set).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key that does not exist.
    Create {
        /// The key.
        key: Key,
        /// Its value.
        value: Value,
        /// Seconds after which the store deletes the key; `None`: never.
        ttl_s: Option<u32>,
    },
    /// Sets a key whose last change is `expected`.
    Update {
        /// The key.
        key: Key,
        /// The revision that the key must have.
        expected: Revision,
        /// Its new value.
        value: Value,
        /// Seconds after which the store deletes the key, counted anew; `None`: never.
        ttl_s: Option<u32>,
    },
    /// Removes a key whose last change is `expected`.
    Delete {
        /// The key.
        key: Key,
        /// The revision that the key must have.
        expected: Revision,
    },
}

impl Write {
    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Create { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The new value; `None` removes the key.
    #[must_use]
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Create { value, .. } | Self::Update { value, .. } => Some(value),
            Self::Delete { .. } => None,
        }
    }

    /// The revision that the key must have; `None`: it must not exist.
    #[must_use]
    pub fn expected(&self) -> Option<Revision> {
        match self {
            Self::Create { .. } => None,
            Self::Update { expected, .. } | Self::Delete { expected, .. } => Some(*expected),
        }
    }

    pub(crate) fn ttl_s(&self) -> Option<u32> {
        match self {
            Self::Create { ttl_s, .. } | Self::Update { ttl_s, .. } => *ttl_s,
            Self::Delete { .. } => None,
        }
    }

    /// Bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.key().len() + self.value().map_or(0, |value| value.len())
    }
}

/// What a durable write answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The revision of the change.
    pub revision: Revision,
    /// The key before the change; `None` where it did not exist.
    pub previous: Option<Previous>,
}

/// A key's value before a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// The value.
    pub value: Value,
    /// The revision that had set it.
    pub revision: Revision,
}

/// Which keys to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range<'a> {
    /// Keys that begin with these bytes; empty: all.
    pub prefix: &'a [u8],
    /// First key (inclusive), where a former page ended: its last key and a zero byte.
    pub start: Option<&'a [u8]>,
    /// The revision to show; `None`: the newest.
    pub at: Option<Revision>,
    /// Records in the page; `None`: all.
    pub limit: Option<usize>,
    /// Also count the records that the page leaves off (walks their keys).
    pub count: bool,
}

impl<'a> Range<'a> {
    /// Everything under a prefix, at the newest revision.
    #[must_use]
    pub fn prefix(prefix: &'a [u8]) -> Self {
        Self {
            prefix,
            ..Self::default()
        }
    }
}

/// A part of the keys, ordered, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The revision shown: the asked one, or the newest of the whole store.
    pub revision: Revision,
    /// The records.
    pub records: Vec<Record>,
    /// Whether the limit left records off.
    pub more: bool,
    /// How many it left off, where [`Range::count`] asked.
    pub remaining: Option<u64>,
}

/// One change as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change.
    pub revision: Revision,
    /// The key.
    pub key: Key,
    /// The new value; `None`: removed.
    pub value: Option<Value>,
    /// The key before; `None`: it did not exist.
    pub previous: Option<Previous>,
}

/// What the API server needs of a store. Reads are answered from memory and never wait;
/// writes answer when they are durable. All methods may be called from any thread.
pub trait Store: Send + Sync {
    /// The newest readable revision. A list that must not be older than every answered write
    /// reads at `None` or at this.
    fn revision(&self) -> Revision;

    /// The oldest revision that can be read or watched after.
    fn compacted(&self) -> Revision;

    /// One key at a revision, `None` for the newest.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::Future`] for a revision that is gone or not
    /// there yet.
    fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<Record>, StoreError>;

    /// The keys of a range at a revision.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn range(&self, range: &Range<'_>) -> Result<Page, StoreError>;

    /// Queues a write. The answer (await it, or [`Pending::wait`]) comes when it is durable and
    /// readable and every watcher can see it.
    fn submit(&self, write: Write) -> Pending;

    /// Changes of keys under a prefix, after a revision, in order and without gaps.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::Future`], and [`StoreError::Limit`] where too
    /// many watch.
    fn watch(&self, prefix: &[u8], after: Revision) -> Result<Watcher, StoreError>;

    /// Forgets what only revisions before `revision` show.
    ///
    /// # Errors
    /// [`StoreError::Future`] for a revision above the newest.
    fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Whether writes are taken, and if not, why.
    fn health(&self) -> Health;

    /// [`Write::Create`], waited for on this thread.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the key exists; those of [`StoreError`] that end a write.
    fn create(&self, key: Key, value: Value, ttl_s: Option<u32>) -> Result<Committed, StoreError> {
        self.submit(Write::Create { key, value, ttl_s }).wait()
    }

    /// [`Write::Update`], waited for on this thread.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where the key has another revision or does not exist; those of
    /// [`StoreError`] that end a write.
    fn update(
        &self,
        key: Key,
        expected: Revision,
        value: Value,
        ttl_s: Option<u32>,
    ) -> Result<Committed, StoreError> {
        self.submit(Write::Update {
            key,
            expected,
            value,
            ttl_s,
        })
        .wait()
    }

    /// [`Write::Delete`], waited for on this thread.
    ///
    /// # Errors
    /// As [`Store::update`].
    fn delete(&self, key: Key, expected: Revision) -> Result<Committed, StoreError> {
        self.submit(Write::Delete { key, expected }).wait()
    }
}
