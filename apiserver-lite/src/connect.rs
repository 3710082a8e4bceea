//! Hooks: what the engine does not answer from the store.
//!
//! [`Connect`] takes over a whole HTTP exchange (`exec`, `attach`, `portforward`, `log`,
//! `proxy`). [`Post`] answers a body that is never stored (`serviceaccounts/token`,
//! `subjectaccessreviews`, `tokenreviews`). Both run after authentication and authorization;
//! `Connect` after admission with [`Operation::Connect`](crate::admission::Operation).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use rkube_api::resources::Resource;
use rkube_api::status::Status;
use serde_json::Value;

use crate::http::Body;
use crate::objects::Objects;
use crate::request::User;

/// A future that can be sent.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection to an object.
#[derive(Debug)]
pub struct ConnectRequest {
    /// Who connects.
    pub user: Arc<User>,
    /// The resource, such as `pods`.
    pub resource: &'static Resource,
    /// The subresource, such as `exec`.
    pub subresource: &'static str,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// What follows the subresource in the path, with its slash; `proxy` only.
    pub rest: String,
    /// The request as it came: method, query and headers. For an upgrade, take
    /// `hyper::upgrade::on(&mut http)`, answer 101 with the protocol's headers, and await the
    /// connection in a task of its own.
    pub http: hyper::Request<Incoming>,
    /// What is stored, to find the pod and its node.
    pub objects: Objects,
}

/// Takes over the exchange.
pub trait Connect: Send + Sync + fmt::Debug {
    /// The answer: 101 for an upgrade, or a plain one whose body may stream.
    fn connect(&self, request: ConnectRequest) -> Later<'_, Result<hyper::Response<Body>, Status>>;
}

/// A body posted to something that stores nothing.
#[derive(Debug)]
pub struct PostRequest {
    /// Who posts.
    pub user: Arc<User>,
    /// The resource, such as `serviceaccounts` or `subjectaccessreviews`.
    pub resource: &'static Resource,
    /// The subresource, such as `token`, or "".
    pub subresource: &'static str,
    /// The namespace of the path.
    pub namespace: String,
    /// The name of the path, for a subresource.
    pub name: String,
    /// The decoded body.
    pub object: Value,
    /// Nothing may have an effect.
    pub dry_run: bool,
    /// What is stored.
    pub objects: Objects,
}

/// Answers posted bodies.
pub trait Post: Send + Sync + fmt::Debug {
    /// The object to answer with (201).
    fn post(&self, request: PostRequest) -> Later<'_, Result<Value, Status>>;
}

/// The hooks by resource.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    connect: HashMap<(String, String), Arc<dyn Connect>>,
    post: HashMap<(String, String, String), Arc<dyn Post>>,
}

impl Hooks {
    /// Hands connections to a core resource's subresource to `hook`.
    #[must_use]
    pub fn connect(mut self, plural: &str, subresource: &str, hook: Arc<dyn Connect>) -> Self {
        self.connect
            .insert((plural.to_owned(), subresource.to_owned()), hook);
        self
    }

    /// Hands bodies posted to a resource, or a subresource of it, to `hook`.
    #[must_use]
    pub fn post(mut self, group: &str, plural: &str, sub: &str, hook: Arc<dyn Post>) -> Self {
        let key = (group.to_owned(), plural.to_owned(), sub.to_owned());
        self.post.insert(key, hook);
        self
    }

    /// The hook of a connection.
    #[must_use]
    pub fn connector(&self, plural: &str, sub: &str) -> Option<&Arc<dyn Connect>> {
        self.connect.get(&(plural.to_owned(), sub.to_owned()))
    }

    /// The hook of a posted body.
    #[must_use]
    pub fn poster(&self, group: &str, plural: &str, sub: &str) -> Option<&Arc<dyn Post>> {
        let key = (group.to_owned(), plural.to_owned(), sub.to_owned());
        self.post.get(&key)
    }
}
