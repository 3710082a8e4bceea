//! Objects in the store: keys, storage versions, typed reads.
//!
//! The engine writes them; hooks and plug-ins read them through [`Objects`].

use std::fmt;
use std::sync::Arc;

use rkube_api::resources::{Resource, preferred};
use rkube_api::status::Status;
use rkube_store::{Range, Record, Revision, Store, StoreError};
use serde_json::Value;

use crate::codec;
use crate::convert;

/// Pairs of resources that are two views of one set of objects, with the group whose version
/// is stored.
const SAME_STORE: &[(&str, &str, &str)] = &[("events.k8s.io", "events", "")];

/// The resource in the version that is stored: the preferred one of its group, or of the group
/// that it is a view of.
#[must_use]
pub fn stored_as(resource: &'static Resource) -> &'static Resource {
    let (group, plural) = (resource.gvk.group, resource.plural);
    let group = SAME_STORE
        .iter()
        .find(|(view, name, _)| *view == group && *name == plural)
        .map_or(group, |(_, _, group)| group);
    preferred(group, plural).unwrap_or(resource)
}

/// The prefix of a resource's keys; with a namespace, of those in it.
#[must_use]
pub fn prefix(resource: &'static Resource, namespace: &str) -> String {
    let stored = stored_as(resource);
    let mut key = stored.plural.to_owned();
    if !stored.gvk.group.is_empty() {
        key.push('.');
        key.push_str(stored.gvk.group);
    }
    key.push('/');
    if !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key
}

/// The key of one object.
#[must_use]
pub fn key(resource: &'static Resource, namespace: &str, name: &str) -> String {
    let mut key = prefix(resource, if resource.namespaced { namespace } else { "" });
    key.push_str(name);
    key
}

/// Reads objects.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn Store>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

impl Objects {
    /// Objects in a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// One object in the version of `resource`.
    ///
    /// # Errors
    /// Where the store cannot answer.
    pub fn get(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        let key = key(resource, namespace, name);
        let record = self
            .store
            .get(key.as_bytes(), None)
            .map_err(|e| store_status(&e))?;
        record.map(|record| decode(resource, &record)).transpose()
    }

    /// One object of a group's resource, in the stored version.
    ///
    /// # Errors
    /// Where the API has no such resource, or the store cannot answer.
    pub fn find(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        self.get(known(group, plural)?, namespace, name)
    }

    /// All objects of a group's resource in a namespace ("" is all), in the stored version.
    ///
    /// # Errors
    /// As [`Objects::find`].
    pub fn list(&self, group: &str, plural: &str, namespace: &str) -> Result<Vec<Value>, Status> {
        self.list_with(group, plural, namespace, b"")
    }

    /// As [`Objects::list`], only those with a text in their stored form: a rare field
    /// (`"name":value`, which no string holds, since quotes are escaped) is found without
    /// decoding the others.
    ///
    /// # Errors
    /// As [`Objects::find`].
    pub fn list_with(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        text: &[u8],
    ) -> Result<Vec<Value>, Status> {
        let resource = known(group, plural)?;
        let prefix = prefix(resource, namespace);
        let page = self
            .store
            .range(&Range::prefix(prefix.as_bytes()))
            .map_err(|e| store_status(&e))?;
        let has = |stored: &[u8]| {
            text.is_empty() || stored.windows(text.len()).any(|window| window == text)
        };
        let wanted = page.records.iter().filter(|r| has(&r.value));
        wanted.map(|r| decode(resource, r)).collect()
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.store.revision()
    }
}

fn known(group: &str, plural: &str) -> Result<&'static Resource, Status> {
    preferred(group, plural)
        .ok_or_else(|| Status::internal(&format!("no resource {plural:?} in group {group:?}")))
}

/// A record as an object in the version of `resource`.
pub(crate) fn decode(resource: &'static Resource, record: &Record) -> Result<Value, Status> {
    decode_bytes(resource, &record.value, record.revision)
}

/// Stored bytes as an object in the version of `resource`.
pub(crate) fn decode_bytes(
    resource: &'static Resource,
    stored: &[u8],
    revision: Revision,
) -> Result<Value, Status> {
    let from = stored_as(resource);
    let object = codec::decode(stored, revision, &from.gvk).map_err(|e| {
        Status::internal(&format!("a stored {} does not decode: {e}", from.gvk.kind))
    })?;
    Ok(convert::convert(object, from, resource))
}

/// The answer to a failure of the store that no rule of a verb explains better.
pub(crate) fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } | StoreError::Lagged { .. } => {
            Status::expired("The resourceVersion for the provided watch is too old.")
        }
        StoreError::Future { asked, current } => Status::revision_too_high(*asked, *current),
        StoreError::Busy => Status::too_many_requests(error.to_string(), 1),
        StoreError::Limit { what, max, .. } if what.contains("value") => Status::too_large(*max),
        StoreError::Limit { .. } => Status::bad_request(error.to_string()),
        StoreError::Closed => Status::unavailable("the server is shutting down"),
        StoreError::Full { .. } | StoreError::ReadOnly { .. } | StoreError::Unconfirmed { .. } => {
            Status::unavailable(error.to_string())
        }
        StoreError::Conflict { .. } => Status::internal(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_versions() {
        let by = |g, v, p| rkube_api::resources::by_plural(g, v, p).unwrap();
        assert_eq!(key(by("", "v1", "pods"), "ns", "a"), "pods/ns/a");
        assert_eq!(key(by("", "v1", "nodes"), "", "n"), "nodes/n");
        assert_eq!(
            key(by("apps", "v1", "deployments"), "ns", "a"),
            "deployments.apps/ns/a"
        );
        assert_eq!(
            key(by("events.k8s.io", "v1", "events"), "ns", "a"),
            key(by("", "v1", "events"), "ns", "a"),
            "two views of one set of objects"
        );
        let hpa = by("autoscaling", "v1", "horizontalpodautoscalers");
        assert_eq!(stored_as(hpa).gvk.version, "v2");
        assert_eq!(prefix(by("", "v1", "pods"), ""), "pods/");
    }
}
