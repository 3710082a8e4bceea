//! The engine: every verb over every resource, by the tables.
//!
//! A write goes: decode ► default ► admission may change ► metadata, status, generation and the
//! kind's own preparation ► validate ► (managed fields find their place here) ► admission may
//! refuse ► encode ► compare and set, again from the top where another write came between.

mod change;
mod csr;
mod decode;
mod delete;
mod json;
mod meta;
mod normal;
mod parts;
mod policy;
mod read;
mod refusal;
mod render;
mod special;
mod unfit;
mod write;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rkube_api::discovery::is_on_by_default;
use rkube_api::resources::{self, Resource};
use rkube_api::status::{Named, Status};
use rkube_store::Store;
use serde_json::Value;

use crate::admission::{Call, Chain, Operation};
use crate::auth::{Access, Authorize, Target};
use crate::connect::{Hooks, PostRequest};
use crate::objects::Objects;
use crate::request::{Request, User, Verb};
use crate::watch::{FrameCache, Watch};

pub(crate) use meta::{random, uid};
pub(crate) use render::{encode, event_object};

/// What an engine is made of.
#[derive(Clone)]
pub struct Config {
    /// Where objects lie.
    pub store: Arc<dyn Store>,
    /// Who may what.
    pub authorize: Arc<dyn Authorize>,
    /// What is changed or refused on the way in.
    pub admission: Chain,
    /// What is not answered from the store.
    pub hooks: Hooks,
    /// The resources that are served, all versions; [`served_by_default`] is upstream's choice.
    pub served: Vec<&'static Resource>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("authorize", &self.authorize)
            .field("admission", &self.admission)
            .field("hooks", &self.hooks)
            .finish_non_exhaustive()
    }
}

/// What upstream serves without being told to: versions that are generally available.
#[must_use]
pub fn served_by_default() -> Vec<&'static Resource> {
    resources::all()
        .iter()
        .filter(|r| is_on_by_default(r))
        .collect()
}

/// Answers requests; clones share everything.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    objects: Objects,
    authorize: Arc<dyn Authorize>,
    admission: Chain,
    hooks: Hooks,
    served: Vec<&'static Resource>,
    served_set: HashSet<(&'static str, &'static str, &'static str)>,
    frames: FrameCache,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// The body of an answer.
pub enum AnswerBody {
    /// All of it.
    Whole(Bytes),
    /// A long list, encoded while it is sent.
    Chunks(Box<dyn Iterator<Item = Bytes> + Send>),
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Chunks(_) => f.write_str("Chunks"),
        }
    }
}

impl AnswerBody {
    /// All of it in one piece.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Chunks(chunks) => {
                let mut all = Vec::new();
                for chunk in chunks {
                    all.extend_from_slice(&chunk);
                }
                all.into()
            }
        }
    }
}

/// What a request is answered with.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status: 200, 201 or 202.
    pub code: u16,
    /// The media type.
    pub content_type: &'static str,
    /// The body.
    pub body: AnswerBody,
}

/// Sentences for the user, collected on the way.
pub type Warnings = Vec<String>;

impl Engine {
    /// An engine over a store.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let served_set = config
            .served
            .iter()
            .map(|r| (r.gvk.group, r.gvk.version, r.plural))
            .collect();
        Self {
            shared: Arc::new(Shared {
                objects: Objects::new(config.store),
                authorize: config.authorize,
                admission: config.admission,
                hooks: config.hooks,
                served: config.served,
                served_set,
                frames: FrameCache::default(),
            }),
        }
    }

    /// The stored objects.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.shared.objects
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        self.shared.objects.store()
    }

    /// The hooks.
    #[must_use]
    pub fn hooks(&self) -> &Hooks {
        &self.shared.hooks
    }

    /// The resources served.
    #[must_use]
    pub fn served(&self) -> &[&'static Resource] {
        &self.shared.served
    }

    /// A served resource by its path.
    #[must_use]
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        let resource = resources::by_plural(group, version, plural)?;
        let key = (resource.gvk.group, resource.gvk.version, resource.plural);
        self.shared.served_set.contains(&key).then_some(resource)
    }

    pub(crate) fn frames(&self) -> &FrameCache {
        &self.shared.frames
    }

    /// Whether a user may; the answer to give where not.
    ///
    /// # Errors
    /// 403.
    pub fn authorize(&self, access: &Access<'_>) -> Result<(), Status> {
        let decision = self.shared.authorize.authorize(access);
        if decision.is_allowed() {
            return Ok(());
        }
        Err(forbidden(access, decision.reason()))
    }

    /// Decides about a request for a resource.
    ///
    /// # Errors
    /// 403.
    pub fn authorize_request(&self, request: &Request) -> Result<(), Status> {
        let gvk = &request.resource.gvk;
        // Roles say which object with the name of the selector that a watch or list of one has.
        let named = matches!(
            request.verb,
            Verb::List | Verb::Watch | Verb::DeleteCollection
        );
        let name = if named {
            let fields = &request.options.fields;
            fields.required_value("metadata.name").unwrap_or("")
        } else {
            &request.name
        };
        // A namespace is asked for in itself, as upstream's request parsing has it.
        let namespace = if gvk.group.is_empty() && request.resource.plural == "namespaces" {
            name
        } else {
            &request.namespace
        };
        self.authorize(&Access {
            user: &request.user,
            verb: request.verb.as_str(),
            target: Target::Resource {
                group: gvk.group,
                version: gvk.version,
                resource: request.resource.plural,
                subresource: request.subresource_name(),
                namespace,
                name,
            },
        })
    }

    /// Answers everything but a watch. Warnings are for failures too.
    ///
    /// # Errors
    /// What the API answers instead.
    pub async fn call(&self, request: &Request, warnings: &mut Warnings) -> Result<Answer, Status> {
        self.authorize_request(request)?;
        self.check_served(request)?;
        if let Some(kind) = options_kind(request.verb) {
            request.options.check(kind)?;
        }
        if request.subresource.is_some() {
            return self.call_part(request, warnings).await;
        }
        if request.verb == Verb::Create
            && let Some(hook) = self.poster(request)
        {
            return self.post(request, &hook, warnings).await;
        }
        match request.verb {
            Verb::Get => self.get_at(request).await,
            Verb::List => self.list(request).await,
            Verb::Create if special::is_binding(request) => self.bind(request, warnings).await,
            // Nothing to store: it is posted to be answered, by a hook that is not there.
            Verb::Create if request.resource.verbs == ["create"] => Err(Status::unavailable(
                format!("{} is not served by this server", request.resource.plural),
            )),
            Verb::Create => self.create(request, warnings).await,
            Verb::Update | Verb::Patch => self.update(request, warnings).await,
            Verb::Delete => self.delete(request, warnings).await,
            Verb::DeleteCollection => self.delete_collection(request, warnings).await,
            Verb::Watch => Err(Status::bad_request("a watch is no single answer")),
        }
    }

    async fn call_part(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        if request.verb == Verb::Create
            && let Some(hook) = self.poster(request)
        {
            return self.post(request, &hook, warnings).await;
        }
        match (request.subresource_name(), request.verb) {
            ("scale", Verb::Get) => self.get_scale(request),
            ("scale", Verb::Update | Verb::Patch) => self.set_scale(request, warnings).await,
            ("binding", Verb::Create) => self.bind(request, warnings).await,
            ("eviction", Verb::Create) => self.evict(request, warnings).await,
            ("status" | "approval" | "finalize" | "ephemeralcontainers" | "resize", Verb::Get) => {
                self.get(request)
            }
            (
                "status" | "approval" | "finalize" | "ephemeralcontainers" | "resize",
                Verb::Update | Verb::Patch,
            ) => self.update(request, warnings).await,
            (name, _) => Err(Status::unavailable(format!(
                "{}/{name} is not served by this server",
                request.resource.plural
            ))),
        }
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// What the API answers instead; a revision that is gone is an event of the watch.
    pub async fn watch(&self, request: &Request) -> Result<Watch, Status> {
        self.authorize_request(request)?;
        self.check_served(request)?;
        Watch::start(self, request).await
    }

    fn poster(&self, request: &Request) -> Option<Arc<dyn crate::connect::Post>> {
        let resource = request.resource;
        self.hooks()
            .poster(
                resource.gvk.group,
                resource.plural,
                request.subresource_name(),
            )
            .cloned()
    }

    async fn post(
        &self,
        request: &Request,
        hook: &Arc<dyn crate::connect::Post>,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let gvk = request.subresource.map_or(request.resource.gvk, |s| s.gvk);
        render::plain_only(request)?;
        let expected = decode::Expected {
            gvk,
            validation: request.options.field_validation,
            required: false,
        };
        let (body, doubled) = decode::value(&request.body, request.body_type)?;
        let object = decode::object(body, doubled, &expected, warnings)?;
        let mut call = self.admission_call(request, Operation::Create, object, Value::Null);
        self.shared.admission.admit(&mut call).await?;
        self.shared.admission.validate(&mut call).await?;
        warnings.append(&mut call.warnings);
        let answer = hook
            .post(PostRequest {
                user: Arc::clone(&request.user),
                resource: request.resource,
                subresource: request.subresource_name(),
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                object: call.object,
                dry_run: request.options.dry_run,
                objects: self.objects().clone(),
            })
            .await?;
        render::value(request, 201, &answer)
    }

    /// Whether the table serves the verb where it is asked for.
    fn check_served(&self, request: &Request) -> Result<(), Status> {
        let resource = request.resource;
        if self
            .resource(resource.gvk.group, resource.gvk.version, resource.plural)
            .is_none()
        {
            return Err(Status::no_such_resource());
        }
        let verb = request.verb.as_str();
        let served = match request.subresource {
            Some(part) => part.verbs.contains(&verb),
            None => resource.serves(verb),
        };
        // Only lists and watches look into all namespaces at once.
        let everywhere =
            request.subresource.is_none() && matches!(request.verb, Verb::List | Verb::Watch);
        let placed = !resource.namespaced || !request.namespace.is_empty() || everywhere;
        if served && placed {
            Ok(())
        } else {
            Err(Status::no_such_method())
        }
    }

    /// The object of a request, for errors.
    fn named<'a>(&self, request: &'a Request, name: &'a str) -> Named<'a> {
        Named {
            group: request.resource.gvk.group,
            resource: request.resource.plural,
            name,
        }
    }

    /// A call of the admission chain.
    fn admission_call(
        &self,
        request: &Request,
        operation: Operation,
        object: Value,
        old: Value,
    ) -> Call {
        let kind = match operation {
            Operation::Create | Operation::Connect => "CreateOptions",
            Operation::Update if request.verb == Verb::Patch => "PatchOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        };
        Call {
            operation,
            user: Arc::clone(&request.user),
            resource: request.resource,
            subresource: request.subresource_name(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            object,
            old,
            options: request.options.to_value(kind),
            dry_run: request.options.dry_run,
            warnings: Vec::new(),
            objects: self.objects().clone(),
        }
    }

    /// Lets admission decide about a connection, which has no object in the store.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit_connect(&self, request: &Request, options: Value) -> Result<(), Status> {
        let mut call = self.admission_call(request, Operation::Connect, options, Value::Null);
        self.shared.admission.admit(&mut call).await?;
        self.shared.admission.validate(&mut call).await
    }

    pub(crate) fn admission(&self) -> &Chain {
        &self.shared.admission
    }
}

/// The kind of the options that a verb has; reads have their own rules.
const fn options_kind(verb: Verb) -> Option<&'static str> {
    match verb {
        Verb::Create => Some("CreateOptions"),
        Verb::Update => Some("UpdateOptions"),
        Verb::Patch => Some("PatchOptions"),
        Verb::Delete | Verb::DeleteCollection => Some("DeleteOptions"),
        Verb::Get | Verb::List | Verb::Watch => None,
    }
}

/// The sentence of a 403 (`responsewriters.Forbidden` of upstream).
fn forbidden(access: &Access<'_>, reason: &str) -> Status {
    let user = access.user.name.as_str();
    let verb = access.verb;
    let tail = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    match access.target {
        Target::Path(path) => {
            let mut status = Status::forbidden(
                Named {
                    group: "",
                    resource: "",
                    name: "",
                },
                "",
            );
            status.bare = true;
            status.message = format!("forbidden: User {user:?} cannot {verb} path {path:?}{tail}");
            status
        }
        Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } => {
            let slash = if subresource.is_empty() { "" } else { "/" };
            let place = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {namespace:?}")
            };
            let why = format!(
                "User {user:?} cannot {verb} resource \"{resource}{slash}{subresource}\" in API group {group:?} {place}{tail}"
            );
            Status::forbidden(
                Named {
                    group,
                    resource,
                    name,
                },
                &why,
            )
        }
    }
}

/// The user that this process's own parts act as where they have no other name.
#[must_use]
pub fn loopback_user() -> Arc<User> {
    Arc::new(User::server())
}
