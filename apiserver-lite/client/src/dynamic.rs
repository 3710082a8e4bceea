//! Metadata of resources that are known only at run time: what a garbage
//! collector or a namespace's end needs, without a type for each kind.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use crate::api::Client;
use crate::error::ApiError;
use crate::transport::{FrameKind, Request, Target, Verb};

/// Wait between two watches that the server ended in good order, so that a
/// server that ends them at once is not asked in a circle.
const REWATCH_PAUSE: Duration = Duration::from_millis(20);

/// The metadata of an object of any kind.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Partial {
    /// Names, labels, owners, finalizers.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

/// What a followed resource tells.
#[derive(Debug, Clone)]
pub enum Seen {
    /// These are all objects; whatever was known before is gone.
    All(Vec<Partial>),
    /// An object is new or changed.
    Set(Partial),
    /// An object is gone; its last state.
    Gone(Partial),
}

#[derive(Deserialize)]
struct PartialList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Option<Vec<Partial>>,
}

impl Client {
    /// A request without body for a resource that is known at run time.
    #[must_use]
    pub fn request(verb: Verb, target: Target) -> Request {
        Request {
            verb,
            target,
            query: Vec::new(),
            content_type: "application/json",
            body: None,
        }
    }

    /// The metadata of all objects of a collection, and the list's revision.
    ///
    /// # Errors
    /// The server refuses or cannot be reached, or its answer is no list.
    pub async fn list_metadata(&self, target: Target) -> Result<(Vec<Partial>, String), ApiError> {
        let request = Self::request(Verb::List, target);
        let attempt = request.attempt();
        let bytes = self.transport().call(request).await?;
        let list: PartialList = serde_json::from_slice(&bytes).map_err(|e| ApiError::Decode {
            attempt,
            reason: e.to_string(),
        })?;
        let revision = list.metadata.resource_version.unwrap_or_default();
        Ok((list.items.unwrap_or_default(), revision))
    }

    /// Tells the metadata of a collection and every change of it, until the
    /// server refuses.
    ///
    /// # Errors
    /// Always ends with one: what the server refused, or that it is gone. An
    /// expired revision is answered by a new list and is no end.
    pub async fn follow_metadata(
        &self,
        target: Target,
        mut tell: impl FnMut(Seen) + Send,
    ) -> Result<std::convert::Infallible, ApiError> {
        loop {
            let (items, mut revision) = self.list_metadata(target.clone()).await?;
            tell(Seen::All(items));
            loop {
                match self.follow_once(&target, &mut revision, &mut tell).await {
                    Ok(()) => tokio::time::sleep(REWATCH_PAUSE).await,
                    Err(error) if error.is_expired() => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn follow_once(
        &self,
        target: &Target,
        revision: &mut String,
        tell: &mut (impl FnMut(Seen) + Send),
    ) -> Result<(), ApiError> {
        let mut request = Self::request(Verb::Watch, target.clone());
        request.query = vec![
            ("resourceVersion", revision.clone()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("watch", "true".to_owned()),
        ];
        let attempt = request.attempt();
        let mut frames = self.transport().watch(request).await?;
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            let object: Partial =
                serde_json::from_slice(&frame.object).map_err(|e| ApiError::Decode {
                    attempt: attempt.clone(),
                    reason: e.to_string(),
                })?;
            if let Some(newer) = &object.metadata.resource_version {
                revision.clone_from(newer);
            }
            match frame.kind {
                FrameKind::Added | FrameKind::Modified => tell(Seen::Set(object)),
                FrameKind::Deleted => tell(Seen::Gone(object)),
                FrameKind::Bookmark => {}
            }
        }
        Ok(())
    }
}

/// The JSON merge patch (RFC 7386) that turns `old` into `new`; `None` where
/// they are equal. Lists are replaced whole.
#[must_use]
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Some(from), Some(to)) = (old.as_object(), new.as_object()) else {
        return Some(new.clone());
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(before) => {
                if let Some(change) = merge_diff(before, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_merge_patch_names_what_changes_and_what_goes() {
        let old = json!({"a": 1, "b": {"c": 1, "d": [1, 2]}, "gone": true});
        let new = json!({"a": 1, "b": {"c": 2, "d": [1]}, "new": {"x": {}}});
        assert_eq!(
            merge_diff(&old, &new),
            Some(json!({"b": {"c": 2, "d": [1]}, "new": {"x": {}}, "gone": null}))
        );
        assert_eq!(merge_diff(&old, &old), None);
        assert_eq!(
            merge_diff(&json!({}), &json!({"a": 0})),
            Some(json!({"a": 0}))
        );
    }
}
