//! A request in neutral form: what HTTP, and callers in this process, ask the engine for.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rkube_api::resources::{Resource, Subresource};
pub use rkube_client::Verb;

use crate::negotiate::Format;
use crate::options::Options;

/// The group of everyone who proved a name.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// The group of those who proved none.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything, before any role is looked at.
pub const GROUP_MASTERS: &str = "system:masters";
/// The name of a request without credentials.
pub const USER_ANONYMOUS: &str = "system:anonymous";

/// Who asks (`user.Info` of upstream).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The unique name.
    pub name: String,
    /// An identity that outlives a reused name; may be empty.
    pub uid: String,
    /// The groups, without order.
    pub groups: Vec<String>,
    /// What the authenticator knows besides; keys are lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user in groups; `system:authenticated` is added.
    #[must_use]
    pub fn named(name: &str, groups: &[&str]) -> Self {
        let mut user = Self {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        };
        if !user.in_group(GROUP_AUTHENTICATED) {
            user.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        user
    }

    /// Who comes without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: USER_ANONYMOUS.to_owned(),
            groups: vec![GROUP_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The server itself.
    #[must_use]
    pub fn server() -> Self {
        Self::named("system:apiserver", &[GROUP_MASTERS])
    }

    /// Whether the user is in a group.
    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Whether a verb changes something.
#[must_use]
pub const fn is_write(verb: Verb) -> bool {
    !matches!(verb, Verb::Get | Verb::List | Verb::Watch)
}

/// How a request's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyType {
    /// `application/json`, and a missing Content-Type.
    #[default]
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`, which typed clients send.
    Protobuf,
    /// `application/json-patch+json`.
    JsonPatch,
    /// `application/merge-patch+json`.
    MergePatch,
    /// `application/strategic-merge-patch+json`.
    StrategicPatch,
    /// `application/apply-patch+yaml`.
    ApplyPatch,
    /// Anything else.
    Unknown,
}

impl BodyType {
    /// Reads a `Content-Type`; parameters do not matter.
    #[must_use]
    pub fn parse(content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or("").trim();
        match essence.to_ascii_lowercase().as_str() {
            "" | "application/json" => Self::Json,
            "application/yaml" => Self::Yaml,
            "application/vnd.kubernetes.protobuf" => Self::Protobuf,
            "application/json-patch+json" => Self::JsonPatch,
            "application/merge-patch+json" => Self::MergePatch,
            "application/strategic-merge-patch+json" => Self::StrategicPatch,
            "application/apply-patch+yaml" => Self::ApplyPatch,
            _ => Self::Unknown,
        }
    }
}

/// A request for objects of one resource.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who asks.
    pub user: Arc<User>,
    /// What is done.
    pub verb: Verb,
    /// The resource, in the version asked for.
    pub resource: &'static Resource,
    /// A part of the resource with rules of its own.
    pub subresource: Option<&'static Subresource>,
    /// The namespace; empty for cluster-wide resources and for lists over all namespaces.
    pub namespace: String,
    /// The object; empty where the verb is about many, or about a new one.
    pub name: String,
    /// The query's options.
    pub options: Options,
    /// The body, at most [`BODY_BYTES_MAX`](crate::BODY_BYTES_MAX).
    pub body: Bytes,
    /// How the body is written.
    pub body_type: BodyType,
    /// What the answer shall look like.
    pub format: Format,
}

impl Request {
    /// A request without body and with default options.
    #[must_use]
    pub fn new(user: Arc<User>, verb: Verb, resource: &'static Resource) -> Self {
        Self {
            user,
            verb,
            resource,
            subresource: None,
            namespace: String::new(),
            name: String::new(),
            options: Options::default(),
            body: Bytes::new(),
            body_type: BodyType::Json,
            format: Format::default(),
        }
    }

    /// The subresource's name, "" where there is none.
    #[must_use]
    pub fn subresource_name(&self) -> &'static str {
        self.subresource.map_or("", |s| s.name)
    }
}
