//! Writing the status of an object: only what changed, against the revision
//! that the decision was made on.

use rkube_client::{Client, Object, ObjectKey, Patch, merge_diff};
use serde::Serialize;
use serde_json::json;

use crate::error::Error;
use crate::owner;

/// `None` for zero: upstream leaves such numbers out.
pub(crate) fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// The length of a list as the API's numbers are.
pub(crate) fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// Writes the difference between two statuses; does nothing if there is none.
/// The status is patched at the object's revision, so that a decision on an
/// old object is refused and made anew.
pub(crate) async fn write<K: Object>(
    client: &Client,
    object: &K,
    old: &impl Serialize,
    new: &impl Serialize,
) -> Result<Option<K>, Error> {
    let (old, new) = (
        rkube_api::value_of(old).unwrap_or_default(),
        rkube_api::value_of(new).unwrap_or_default(),
    );
    let Some(change) = merge_diff(&old, &new) else {
        return Ok(None);
    };
    let meta = object.metadata();
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": change,
    });
    let key = ObjectKey::of(object);
    let api = match meta.namespace.as_deref() {
        None | Some("") => client.all::<K>(),
        Some(namespace) => client.namespaced::<K>(namespace),
    };
    let patch = Patch::Merge(patch);
    let written = api.patch_status(owner::name(object), &patch).await;
    let written = written.map_err(Error::request("write the status of", key))?;
    Ok(Some(written))
}
