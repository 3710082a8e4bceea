//! Who owns what: controller references, selectors, adoption and release.
//!
//! Rules: upstream's `controller_ref_manager.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use rkube_api::selector;
use rkube_client::{Api, ApiError, Client, Informer, Object, ObjectKey, Patch};
use serde_json::{Value, json};

use crate::error::Error;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A selector that has been read; one that does not read matches nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector(selector::LabelSelector);

impl Selector {
    /// Matches nothing at all.
    pub(crate) fn nothing() -> Self {
        Self(selector::LabelSelector {
            requirements: Vec::new(),
            nothing: true,
        })
    }

    pub(crate) fn new(selector: &LabelSelector) -> Self {
        let value = rkube_api::value_of(selector).unwrap_or_default();
        selector::LabelSelector::from_value(&value).map_or_else(|_| Self::nothing(), Self)
    }

    /// From a map of labels that must all be there.
    pub(crate) fn of_labels(labels: &Labels) -> Self {
        let value = json!({ "matchLabels": labels });
        selector::LabelSelector::from_value(&value).map_or_else(|_| Self::nothing(), Self)
    }

    pub(crate) fn matches(&self, labels: Option<&Labels>) -> bool {
        self.0
            .matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.0.is_everything()
    }
}

/// The controller that owns an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = meta.owner_references.iter().flatten();
    owners.into_iter().find(|o| o.controller == Some(true))
}

/// Whether an object's controller is this one.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|o| o.uid == uid)
}

/// The uid of an object.
pub(crate) fn uid<K: Object>(object: &K) -> &str {
    object.metadata().uid.as_deref().unwrap_or_default()
}

/// The name of an object.
pub(crate) fn name<K: Object>(object: &K) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}

/// The namespace of an object, "" for cluster scope.
pub(crate) fn namespace<K: Object>(object: &K) -> &str {
    object.metadata().namespace.as_deref().unwrap_or_default()
}

/// Whether an object is on its way out.
pub(crate) fn is_deleting<K: Object>(object: &K) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

/// A reference to an object as the controller of another.
pub(crate) fn controller_reference<K: Object>(owner: &K) -> Value {
    json!({
        "apiVersion": K::API_VERSION,
        "kind": K::KIND,
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Objects by the uid of their controller.
pub(crate) const BY_CONTROLLER: &str = "controller";
/// Objects without controller, by namespace.
pub(crate) const ORPHANS: &str = "orphans";

/// Adds the two indexes that [`claim`] needs.
pub(crate) fn index_owners<K: Object>(informer: &Informer<K>) {
    informer.add_index(BY_CONTROLLER, |object| {
        let owner = controller_of(object.metadata());
        owner.map(|o| o.uid.clone()).into_iter().collect()
    });
    informer.add_index(ORPHANS, |object| match controller_of(object.metadata()) {
        Some(_) => Vec::new(),
        None => vec![namespace(object).to_owned()],
    });
}

/// What to do about an object and a possible owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Keep,
    /// It has no controller and matches: take it.
    Adopt,
    /// It is ours and does not match any more: let it go.
    Release,
    /// It is none of ours.
    Leave,
}

/// Decides about one object.
pub(crate) fn decide(
    child: &ObjectMeta,
    owner_uid: &str,
    owner_deleting: bool,
    matches: bool,
) -> Claim {
    match controller_of(child) {
        Some(owner) if owner.uid != owner_uid => Claim::Leave,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_deleting => Claim::Leave,
        Some(_) => Claim::Release,
        None if owner_deleting || !matches || child.deletion_timestamp.is_some() => Claim::Leave,
        None => Claim::Adopt,
    }
}

/// Adopts and releases what is due among the objects of a namespace, and
/// answers those that are the owner's.
pub(crate) async fn claim<P: Object, K: Object>(
    client: &Client,
    owner: &P,
    selector: &Selector,
    children: &Informer<K>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, Error> {
    let store = children.store();
    let mut candidates = store.by_index(BY_CONTROLLER, uid(owner));
    candidates.extend(store.by_index(ORPHANS, namespace(owner)));
    let mut owned = Vec::new();
    let mut may_adopt = None;
    let api = client.namespaced::<K>(namespace(owner));
    for child in candidates {
        if namespace(&*child) != namespace(owner) {
            continue;
        }
        let matches = selector.matches(child.metadata().labels.as_ref());
        match decide(child.metadata(), uid(owner), is_deleting(owner), matches) {
            Claim::Keep => owned.push(child),
            Claim::Leave => {}
            Claim::Release => release(&api, owner, &*child).await?,
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(is_still_there(client, owner).await?);
                }
                if may_adopt == Some(true)
                    && let Some(child) = adopt(&api, owner, &*child, finalizer).await?
                {
                    owned.push(Arc::new(child));
                }
            }
        }
    }
    Ok(owned)
}

/// Whether the owner, asked of the server itself, may take objects.
async fn is_still_there<P: Object>(client: &Client, owner: &P) -> Result<bool, Error> {
    let api = client.namespaced::<P>(namespace(owner));
    let fresh = api.get_opt(name(owner)).await;
    let fresh = fresh.map_err(Error::request("read the owner", ObjectKey::of(owner)))?;
    Ok(fresh.is_some_and(|f| uid(&f) == uid(owner) && !is_deleting(&f)))
}

async fn adopt<P: Object, K: Object>(
    api: &Api<K>,
    owner: &P,
    child: &K,
    finalizer: Option<&str>,
) -> Result<Option<K>, Error> {
    let mut metadata = json!({"uid": uid(child), "ownerReferences": [controller_reference(owner)]});
    if let Some(finalizer) = finalizer {
        metadata["finalizers"] = json!([finalizer]);
    }
    let patch = Patch::Strategic(json!({ "metadata": metadata }));
    let adopted = api.patch(name(child), &patch).await;
    unless_gone(adopted).map_err(Error::request("adopt", ObjectKey::of(child)))
}

async fn release<P: Object, K: Object>(api: &Api<K>, owner: &P, child: &K) -> Result<(), Error> {
    let patch = Patch::Strategic(json!({"metadata": {
        "uid": uid(child),
        "ownerReferences": [{"$patch": "delete", "uid": uid(owner)}],
    }}));
    let released = api.patch(name(child), &patch).await;
    unless_gone(released).map_err(Error::request("release", ObjectKey::of(child)))?;
    Ok(())
}

/// `None` where the object is gone, or its name is another's by now.
fn unless_gone<K>(answer: Result<K, ApiError>) -> Result<Option<K>, ApiError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() || error.is_invalid() || error.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_adopts_and_releases() {
        let child = |owner: Option<&str>, deleting: bool| -> ObjectMeta {
            let owners = owner.map(|uid| json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]));
            let deleted = deleting.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"ownerReferences": owners, "deletionTimestamp": deleted}))
                .unwrap()
        };
        for (owner, child_deleting, owner_deleting, matches, expected) in [
            (Some("me"), false, false, true, Claim::Keep),
            (Some("me"), true, true, true, Claim::Keep),
            (Some("me"), false, false, false, Claim::Release),
            (Some("me"), false, true, false, Claim::Leave),
            (Some("other"), false, false, true, Claim::Leave),
            (None, false, false, true, Claim::Adopt),
            (None, true, false, true, Claim::Leave),
            (None, false, true, true, Claim::Leave),
            (None, false, false, false, Claim::Leave),
        ] {
            let claim = decide(&child(owner, child_deleting), "me", owner_deleting, matches);
            assert_eq!(
                claim, expected,
                "{owner:?} {child_deleting} {owner_deleting} {matches}"
            );
        }
    }
}
