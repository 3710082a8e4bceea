//! Admission: an ordered list of plug-ins that may change or refuse a write.
//!
//! The place of the chain in a write is upstream's: changes after defaulting and before the
//! engine's own preparation, checks after validation and right before the store. A write that
//! is retried (a patch that met another write) is admitted anew.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use rkube_api::resources::Resource;
use rkube_api::status::Status;
use serde_json::Value;

use crate::objects::Objects;
use crate::request::User;

/// What a plug-in answers, later.
pub type Step<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

/// An answer that is there already.
#[must_use]
pub fn done<'a>(answer: Result<(), Status>) -> Step<'a> {
    Box::pin(ready(answer))
}

/// What kind of write is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new object, or a body posted to a subresource.
    Create,
    /// An object replaced or patched.
    Update,
    /// An object deleted; there is no new one.
    Delete,
    /// A connection (`exec`, `attach`, `portforward`, `proxy`); the object is its options.
    Connect,
}

/// One write on its way through the chain.
#[derive(Debug)]
pub struct Call {
    /// What is done.
    pub operation: Operation,
    /// Who does it.
    pub user: Arc<User>,
    /// The resource written to, in the version of the request.
    pub resource: &'static Resource,
    /// The subresource, or "".
    pub subresource: &'static str,
    /// The namespace; "" for cluster-wide resources.
    pub namespace: String,
    /// The name; "" while it is to be generated.
    pub name: String,
    /// The new object, `null` for a deletion. A plug-in changes it in [`Admission::admit`] only.
    pub object: Value,
    /// The object before, `null` for a creation.
    pub old: Value,
    /// The query's options as an object (`CreateOptions`, `UpdateOptions`, `DeleteOptions`).
    pub options: Value,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// Sentences for the user (`Warning: 299`).
    pub warnings: Vec<String>,
    /// What is stored, for plug-ins that look.
    pub objects: Objects,
}

impl Call {
    /// Whether the call is about objects of a resource themselves, not a subresource.
    #[must_use]
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.is_sub(group, plural, "")
    }

    /// Whether the call is about a subresource.
    #[must_use]
    pub fn is_sub(&self, group: &str, plural: &str, subresource: &str) -> bool {
        self.resource.gvk.group == group
            && self.resource.plural == plural
            && self.subresource == subresource
    }
}

/// One plug-in.
pub trait Admission: Send + Sync + fmt::Debug {
    /// The name as upstream's `--enable-admission-plugins` writes it.
    fn name(&self) -> &'static str;

    /// Whether the plug-in wants to see an operation at all.
    fn handles(&self, operation: Operation) -> bool;

    /// May change `call.object`, add warnings, or refuse.
    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let _ = call;
        done(Ok(()))
    }

    /// May refuse; sees the object as it will be stored.
    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let _ = call;
        done(Ok(()))
    }
}

/// The plug-ins in their order.
#[derive(Debug, Clone, Default)]
pub struct Chain(Vec<Arc<dyn Admission>>);

impl Chain {
    /// A chain of plug-ins, asked in this order.
    #[must_use]
    pub fn new(plugins: Vec<Arc<dyn Admission>>) -> Self {
        Self(plugins)
    }

    /// The same with one more at its end.
    #[must_use]
    pub fn with(mut self, plugin: Arc<dyn Admission>) -> Self {
        self.0.push(plugin);
        self
    }

    /// The same with a plug-in in the place of the one of its name.
    #[must_use]
    pub fn with_instead(mut self, plugin: Arc<dyn Admission>) -> Self {
        let name = plugin.name();
        for place in self.0.iter_mut().filter(|p| p.name() == name) {
            *place = Arc::clone(&plugin);
        }
        self
    }

    /// Lets every plug-in change the object.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(&self, call: &mut Call) -> Result<(), Status> {
        let operation = call.operation;
        for plugin in self.0.iter().filter(|p| p.handles(operation)) {
            plugin.admit(call).await?;
        }
        Ok(())
    }

    /// Lets every plug-in check the object.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, call: &mut Call) -> Result<(), Status> {
        let operation = call.operation;
        for plugin in self.0.iter().filter(|p| p.handles(operation)) {
            plugin.validate(call).await?;
        }
        Ok(())
    }
}
