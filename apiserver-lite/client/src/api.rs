//! Typed requests over a [`Transport`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use k8s_openapi::{Metadata, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::transport::{Frame, FrameKind, Frames, Request, Target, Transport, Verb};

/// A type that the API serves as objects.
pub trait Object:
    Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static
{
}

/// A client; clones share the transport.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

impl Client {
    /// A client over a transport.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    /// Who carries the requests.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Objects without namespace, or of all namespaces.
    #[must_use]
    pub fn all<K: Object>(&self) -> Api<K> {
        Api {
            client: self.clone(),
            namespace: None,
            kind: PhantomData,
        }
    }

    /// Objects of one namespace.
    #[must_use]
    pub fn namespaced<K: Object>(&self, namespace: &str) -> Api<K> {
        Api {
            client: self.clone(),
            namespace: Some(namespace.to_owned()),
            kind: PhantomData,
        }
    }

    /// A request whose kind is known only at run time. Answers JSON.
    ///
    /// # Errors
    /// The server refuses or cannot be reached, or its answer is no JSON.
    pub async fn call(&self, request: Request) -> Result<Value, ApiError> {
        let attempt = request.attempt();
        let bytes = self.transport.call(request).await?;
        decode(&attempt, &bytes)
    }
}

/// One resource, in one namespace or in all.
pub struct Api<K> {
    client: Client,
    namespace: Option<String>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            kind: PhantomData,
        }
    }
}

impl<K> fmt::Debug for Api<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// Which objects, and how old they may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListParams {
    /// `labelSelector`.
    pub labels: Option<String>,
    /// `fieldSelector`.
    pub fields: Option<String>,
    /// `limit`, in objects.
    pub limit: Option<u32>,
    /// `continue` of the page before.
    pub continue_token: Option<String>,
}

/// What to watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchParams {
    /// `labelSelector`.
    pub labels: Option<String>,
    /// `fieldSelector`.
    pub fields: Option<String>,
    /// `resourceVersion` after which to begin.
    pub resource_version: String,
}

/// How to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteParams {
    /// `gracePeriodSeconds`.
    pub grace_seconds: Option<u32>,
    /// `propagationPolicy`: `Foreground`, `Background` or `Orphan`.
    pub propagation: Option<&'static str>,
    /// `preconditions.uid`.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`.
    pub resource_version: Option<String>,
}

/// A change of parts of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// JSON patch, RFC 6902.
    Json(Value),
    /// JSON merge patch, RFC 7386.
    Merge(Value),
    /// Strategic merge patch.
    Strategic(Value),
}

/// A list and its revision.
#[derive(Debug, Clone, Deserialize)]
pub struct List<K> {
    /// `resourceVersion`, `continue`, `remainingItemCount`.
    #[serde(default)]
    pub metadata: ListMeta,
    /// The objects.
    #[serde(default = "Vec::new")]
    pub items: Vec<K>,
}

impl<K> List<K> {
    /// The revision that the list shows.
    #[must_use]
    pub fn resource_version(&self) -> &str {
        self.metadata
            .resource_version
            .as_deref()
            .unwrap_or_default()
    }
}

/// What a typed watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<K> {
    /// An object is there.
    Added(K),
    /// It changed.
    Modified(K),
    /// It is gone; its last state.
    Deleted(K),
    /// Everything up to this revision was told.
    Bookmark(String),
}

/// A typed watch.
pub struct Watch<K> {
    frames: Box<dyn Frames>,
    attempt: String,
    kind: PhantomData<fn() -> K>,
}

impl<K> fmt::Debug for Watch<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl<K: Object> Watch<K> {
    /// The next event; `None`: the server ended the watch in good order.
    pub async fn next(&mut self) -> Option<Result<Event<K>, ApiError>> {
        let frame = match self.frames.next().await? {
            Ok(frame) => frame,
            Err(error) => return Some(Err(error)),
        };
        Some(self.event(&frame))
    }

    fn event(&self, frame: &Frame) -> Result<Event<K>, ApiError> {
        if frame.kind == FrameKind::Bookmark {
            return Ok(Event::Bookmark(bookmark(&self.attempt, frame)?));
        }
        let object = decode(&self.attempt, &frame.object)?;
        Ok(match frame.kind {
            FrameKind::Added => Event::Added(object),
            FrameKind::Modified => Event::Modified(object),
            FrameKind::Deleted | FrameKind::Bookmark => Event::Deleted(object),
        })
    }
}

impl<K: Object> Api<K> {
    /// The client below.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The target of a request; for requests that this type has no method for.
    #[must_use]
    pub fn target(&self, name: Option<&str>, subresource: Option<&str>) -> Target {
        Target {
            group: K::GROUP.to_owned(),
            version: K::VERSION.to_owned(),
            resource: K::URL_PATH_SEGMENT.to_owned(),
            namespace: self.namespace.clone(),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
        }
    }

    async fn send<T: DeserializeOwned>(&self, request: Request) -> Result<T, ApiError> {
        let attempt = request.attempt();
        let bytes = self.client.transport.call(request).await?;
        decode(&attempt, &bytes)
    }

    fn request(&self, verb: Verb, name: Option<&str>, subresource: Option<&str>) -> Request {
        Client::request(verb, self.target(name, subresource))
    }

    /// One object.
    ///
    /// # Errors
    /// [`ApiError::is_not_found`], and any other.
    pub async fn get(&self, name: &str) -> Result<K, ApiError> {
        self.send(self.request(Verb::Get, Some(name), None)).await
    }

    /// One object, or none.
    ///
    /// # Errors
    /// Any but that it does not exist.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>, ApiError> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Many objects.
    ///
    /// # Errors
    /// [`ApiError::is_expired`] for an old `continue` token, and any other.
    pub async fn list(&self, params: &ListParams) -> Result<List<K>, ApiError> {
        self.send(list_request(self.target(None, None), params))
            .await
    }

    /// Changes after a revision.
    ///
    /// # Errors
    /// [`ApiError::is_expired`] here or as an event, and any other.
    pub async fn watch(&self, params: &WatchParams) -> Result<Watch<K>, ApiError> {
        let request = watch_request(self.target(None, None), params);
        let attempt = request.attempt();
        let frames = self.client.transport.watch(request).await?;
        Ok(Watch {
            frames,
            attempt,
            kind: PhantomData,
        })
    }

    /// A new object. The body may be of any type that encodes to it.
    ///
    /// # Errors
    /// [`ApiError::is_already_exists`], [`ApiError::is_invalid`], and any other.
    pub async fn create(&self, object: &(impl Serialize + Sync)) -> Result<K, ApiError> {
        let mut request = self.request(Verb::Create, None, None);
        request.body = Some(self.encode(object)?);
        self.send(request).await
    }

    /// The whole object anew.
    ///
    /// # Errors
    /// [`ApiError::is_conflict`] where it changed meanwhile, and any other.
    pub async fn update(
        &self,
        name: &str,
        object: &(impl Serialize + Sync),
    ) -> Result<K, ApiError> {
        let mut request = self.request(Verb::Update, Some(name), None);
        request.body = Some(self.encode(object)?);
        self.send(request).await
    }

    /// Parts of an object.
    ///
    /// # Errors
    /// [`ApiError::is_conflict`] where the patch names a revision, and any other.
    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<K, ApiError> {
        self.send(self.patch_request(name, None, patch)?).await
    }

    /// Parts of an object's status.
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<K, ApiError> {
        self.send(self.patch_request(name, Some("status"), patch)?)
            .await
    }

    /// Parts of an object through a subresource such as `approval` or `scale`.
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn patch_sub(
        &self,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<Value, ApiError> {
        self.send(self.patch_request(name, Some(subresource), patch)?)
            .await
    }

    fn patch_request(
        &self,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
    ) -> Result<Request, ApiError> {
        let mut request = self.request(Verb::Patch, Some(name), subresource);
        let (content_type, body) = match patch {
            Patch::Json(body) => ("application/json-patch+json", body),
            Patch::Merge(body) => ("application/merge-patch+json", body),
            Patch::Strategic(body) => ("application/strategic-merge-patch+json", body),
        };
        request.content_type = content_type;
        request.body = Some(encode("patch", body)?);
        Ok(request)
    }

    /// A POST to a subresource such as `binding`, `eviction` or `token`.
    ///
    /// # Errors
    /// The server's refusal, and any other.
    pub async fn create_sub(
        &self,
        name: &str,
        subresource: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Value, ApiError> {
        let mut request = self.request(Verb::Create, Some(name), Some(subresource));
        request.body = Some(encode("body", body)?);
        self.send(request).await
    }

    /// Deletes an object. Answers the object or a `Status`.
    ///
    /// # Errors
    /// [`ApiError::is_not_found`], [`ApiError::is_conflict`] where a
    /// precondition does not hold, and any other.
    pub async fn delete(&self, name: &str, params: &DeleteParams) -> Result<Value, ApiError> {
        let mut request = self.request(Verb::Delete, Some(name), None);
        request.body = Some(encode("DeleteOptions", &params.body())?);
        self.send(request).await
    }

    /// Deletes all objects of the collection that a selection names.
    ///
    /// # Errors
    /// The server's refusal, and any other.
    pub async fn delete_collection(
        &self,
        selection: &ListParams,
        params: &DeleteParams,
    ) -> Result<Value, ApiError> {
        let mut request = self.request(Verb::DeleteCollection, None, None);
        push(&mut request, "labelSelector", selection.labels.as_ref());
        push(&mut request, "fieldSelector", selection.fields.as_ref());
        request.body = Some(encode("DeleteOptions", &params.body())?);
        self.send(request).await
    }

    /// The object's JSON with `apiVersion` and `kind`.
    fn encode(&self, object: &(impl Serialize + Sync)) -> Result<Bytes, ApiError> {
        let fail = |e: serde_json::Error| ApiError::Encode {
            what: K::KIND,
            reason: e.to_string(),
        };
        let mut value = rkube_api::value_of(object).map_err(fail)?;
        if let Value::Object(map) = &mut value {
            map.entry("apiVersion").or_insert(K::API_VERSION.into());
            map.entry("kind").or_insert(K::KIND.into());
        }
        encode(K::KIND, &value)
    }
}

pub(crate) fn list_request(target: Target, params: &ListParams) -> Request {
    let mut request = Client::request(Verb::List, target);
    push(&mut request, "labelSelector", params.labels.as_ref());
    push(&mut request, "fieldSelector", params.fields.as_ref());
    push(&mut request, "limit", params.limit.as_ref());
    push(&mut request, "continue", params.continue_token.as_ref());
    request
}

pub(crate) fn watch_request(target: Target, params: &WatchParams) -> Request {
    let mut request = Client::request(Verb::Watch, target);
    push(&mut request, "labelSelector", params.labels.as_ref());
    push(&mut request, "fieldSelector", params.fields.as_ref());
    let revision = Some(&params.resource_version).filter(|r| !r.is_empty());
    push(&mut request, "resourceVersion", revision);
    push(&mut request, "allowWatchBookmarks", Some(&true));
    push(&mut request, "watch", Some(&true));
    request
}

/// The revision that a bookmark tells.
pub(crate) fn bookmark(attempt: &str, frame: &Frame) -> Result<String, ApiError> {
    let object: Value = decode(attempt, &frame.object)?;
    let revision = object.pointer("/metadata/resourceVersion");
    let revision = revision.and_then(Value::as_str).unwrap_or_default();
    Ok(revision.to_owned())
}

impl DeleteParams {
    /// The `DeleteOptions` of a request.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(seconds) = self.grace_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = self.propagation {
            body["propagationPolicy"] = policy.into();
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(revision) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = revision.as_str().into();
        }
        body
    }
}

fn push<T: ToString>(request: &mut Request, name: &'static str, value: Option<&T>) {
    if let Some(value) = value {
        request.query.push((name, value.to_string()));
    }
}

pub(crate) fn decode<T: DeserializeOwned>(attempt: &str, bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::Decode {
        attempt: attempt.to_owned(),
        reason: e.to_string(),
    })
}

fn encode(what: &'static str, value: &impl Serialize) -> Result<Bytes, ApiError> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(bytes.into()),
        Err(e) => Err(ApiError::Encode {
            what,
            reason: e.to_string(),
        }),
    }
}
