//! What all Services together ask for, and the difference to what was
//! programmed last.
//!
//! Two Services may ask for the same key (an external address, a hairpin).
//! The one whose namespace and name come first has it, so that the state
//! depends on the Services only and not on the order of their changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rkube_client::ObjectKey;

use crate::model::{Choice, Data, Entry, Key};

/// Who asks for a key: sorted by Service; the first has it.
type Claims = Vec<(Arc<ObjectKey>, Data)>;

/// The desired elements.
#[derive(Debug, Default)]
pub struct State {
    claims: HashMap<Key, Claims>,
    services: HashMap<Arc<ObjectKey>, Vec<Key>>,
    /// What keys were before the changes that were not taken yet.
    before: BTreeMap<Key, Option<Data>>,
}

/// A difference; keys whose data changed are in both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Elements to delete, with the data they had.
    pub remove: Vec<Entry>,
    /// Elements to add.
    pub add: Vec<Entry>,
}

impl Delta {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

impl State {
    /// Sets what one Service asks for; nothing removes it.
    pub fn set(&mut self, service: &ObjectKey, entries: &BTreeMap<Key, Data>) {
        let known = self.services.get_key_value(service);
        let service = known.map_or_else(|| Arc::new(service.clone()), |(key, _)| Arc::clone(key));
        let old = self.services.remove(&service).unwrap_or_default();
        for key in old.iter().filter(|key| !entries.contains_key(key)) {
            self.claim(*key, &service, None);
        }
        for (key, data) in entries {
            self.claim(*key, &service, Some(*data));
        }
        if !entries.is_empty() {
            self.services
                .insert(service, entries.keys().copied().collect());
        }
    }

    fn claim(&mut self, key: Key, service: &Arc<ObjectKey>, data: Option<Data>) {
        let claims = self.claims.entry(key).or_default();
        let now = claims.first().map(|(_, data)| *data);
        let place = claims.binary_search_by(|(other, _)| other.cmp(service));
        match (place, data) {
            (Ok(i), Some(data)) if claims[i].1 == data => return,
            (Ok(i), Some(data)) => claims[i].1 = data,
            (Ok(i), None) => drop(claims.remove(i)),
            (Err(i), Some(data)) => claims.insert(i, (Arc::clone(service), data)),
            (Err(_), None) => {}
        }
        if claims.is_empty() {
            self.claims.remove(&key);
        }
        self.before.entry(key).or_insert(now);
    }

    fn get(&self, key: &Key) -> Option<Data> {
        self.claims.get(key)?.first().map(|(_, data)| *data)
    }

    /// Takes the difference since the last time.
    #[must_use]
    pub fn take_delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        for (key, old) in std::mem::take(&mut self.before) {
            let new = self.get(&key);
            if old != new {
                delta.remove.extend(old.map(|data| (key, data)));
                delta.add.extend(new.map(|data| (key, data)));
            }
        }
        delta
    }

    /// All elements, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        let entries = self.claims.iter();
        let mut all: Vec<Entry> = entries
            .filter_map(|(key, claims)| Some((*key, claims.first()?.1)))
            .collect();
        all.sort_unstable();
        all
    }

    /// The ways to choose that are in use.
    #[must_use]
    pub fn choices(&self) -> BTreeSet<Choice> {
        choices(self.claims.values().filter_map(|c| c.first()).map(|c| &c.1))
    }
}

/// The ways to choose that some data name.
pub fn choices<'a>(data: impl IntoIterator<Item = &'a Data>) -> BTreeSet<Choice> {
    data.into_iter()
        .filter_map(|data| match data {
            Data::Choose(choice) => Some(*choice),
            _ => None,
        })
        .collect()
}
