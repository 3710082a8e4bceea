//! Requests as data, and who carries them.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;

use crate::error::ApiError;

/// A future on the heap, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is to be done; the verbs of authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// One object.
    Get,
    /// Many.
    List,
    /// Changes of many.
    Watch,
    /// A new object, or a POST to a subresource.
    Create,
    /// The whole object anew.
    Update,
    /// Parts of it; the request's content type tells which kind of patch.
    Patch,
    /// One object.
    Delete,
    /// Many.
    DeleteCollection,
}

impl Verb {
    /// The word that RBAC uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The group; "" is core.
    pub group: String,
    /// The version, such as `v1`.
    pub version: String,
    /// The plural of the resource.
    pub resource: String,
    /// The namespace; `None`: cluster scope, or all namespaces.
    pub namespace: Option<String>,
    /// The object; `None`: the collection.
    pub name: Option<String>,
    /// The subresource, such as `status`.
    pub subresource: Option<String>,
}

impl Target {
    /// The path of the HTTP API, without query.
    #[must_use]
    pub fn path(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "/api/{}", self.version)?;
        } else {
            write!(f, "/apis/{}/{}", self.group, self.version)?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, "/namespaces/{namespace}")?;
        }
        write!(f, "/{}", self.resource)?;
        if let Some(name) = &self.name {
            write!(f, "/{name}")?;
        }
        if let Some(subresource) = &self.subresource {
            write!(f, "/{subresource}")?;
        }
        Ok(())
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is to be done.
    pub verb: Verb,
    /// To what.
    pub target: Target,
    /// Query parameters, not encoded.
    pub query: Vec<(&'static str, String)>,
    /// The body's media type, where there is a body.
    pub content_type: &'static str,
    /// The body.
    pub body: Option<Bytes>,
}

impl Request {
    /// `verb path`, for errors.
    #[must_use]
    pub fn attempt(&self) -> String {
        format!("{} {}", self.verb.as_str(), self.target)
    }
}

/// What a watch tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// `ADDED`.
    Added,
    /// `MODIFIED`.
    Modified,
    /// `DELETED`.
    Deleted,
    /// `BOOKMARK`: only the revision counts.
    Bookmark,
}

/// One event of a watch, with the object's JSON.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What happened.
    pub kind: FrameKind,
    /// The object.
    pub object: Bytes,
}

/// The events of a watch. `None`: the server ended it in good order.
/// An `ERROR` event comes as an error, and is the last.
pub trait Frames: Send {
    /// The next event.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Frame, ApiError>>>;
}

/// Carries requests to an API server, with an identity of its own.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Everything but [`Verb::Watch`]; answers the JSON of the object, list
    /// or `Status`.
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Bytes, ApiError>>;

    /// [`Verb::Watch`].
    fn watch(&self, request: Request) -> BoxFuture<'_, Result<Box<dyn Frames>, ApiError>>;
}
