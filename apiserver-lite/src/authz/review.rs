//! Reviews: questions about users and permissions, answered and never stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::status::{Named, Status};
use serde_json::{Map, Value, json};

use super::rbac::Rbac;
use super::rules::Rule;
use crate::auth::{Access, Authorize, Decision, Target};
use crate::authn::ServiceAccountTokens;
use crate::connect::{Later, Post, PostRequest};
use crate::request::User;

/// Answers `*accessreviews`, `selfsubjectrulesreviews`, `selfsubjectreviews`
/// and `tokenreviews`.
#[derive(Debug)]
pub struct Reviews {
    /// All authorizers of the server.
    pub authorize: Arc<dyn Authorize>,
    /// The roles, for lists of rules.
    pub rbac: Arc<Rbac>,
    /// Tokens of service accounts.
    pub tokens: Arc<ServiceAccountTokens>,
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("")
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    let texts = items.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// `UserInfo` of a user.
fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), user.name.clone().into());
    if !user.uid.is_empty() {
        info.insert("uid".into(), user.uid.clone().into());
    }
    info.insert("groups".into(), user.groups.clone().into());
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    Value::Object(info)
}

/// The user that a SubjectAccessReview asks about.
fn subject(spec: &Value) -> User {
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.to_lowercase(), texts(values)))
        .collect();
    User {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: texts(&spec["groups"]),
        extra,
    }
}

/// 422 for a part of a review's spec; upstream names no kind here.
fn invalid(part: &str, shown: &str, why: &str) -> Status {
    let mut path = FieldPath::default().field("spec");
    for field in part.split('.') {
        path = path.field(field);
    }
    let error = FieldError {
        path,
        kind: ErrorKind::Invalid,
        value: Some(shown.into()),
        detail: why.into(),
    };
    let named = Named {
        group: "authorization.k8s.io",
        resource: "",
        name: "",
    };
    Status::invalid(named, &[error])
}

/// A review of somebody must say of whom.
fn check_subject(spec: &Value) -> Result<(), Status> {
    let named = !text(spec, "user").is_empty() || !texts(&spec["groups"]).is_empty();
    if named {
        return Ok(());
    }
    let why = "at least one of user or group must be specified";
    Err(invalid("user", "\"\"", why))
}

impl Reviews {
    fn access(&self, user: &User, spec: &Value) -> Result<Value, Status> {
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let (verb, target) = match (resource.is_object(), path.is_object()) {
            (true, false) => {
                let target = Target::Resource {
                    group: text(resource, "group"),
                    version: text(resource, "version"),
                    resource: text(resource, "resource"),
                    subresource: text(resource, "subresource"),
                    namespace: text(resource, "namespace"),
                    name: text(resource, "name"),
                };
                (text(resource, "verb"), target)
            }
            (false, true) => (text(path, "verb"), Target::Path(text(path, "path"))),
            (true, true) => {
                return Err(invalid(
                    "nonResourceAttributes",
                    &rkube_api::field::shown(path),
                    "cannot be specified in combination with resourceAttributes",
                ));
            }
            (false, false) => {
                return Err(invalid(
                    "resourceAttributes",
                    "\"null\"",
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                ));
            }
        };
        let decision = self.authorize.authorize(&Access { user, verb, target });
        let mut status = Map::new();
        status.insert("allowed".into(), decision.is_allowed().into());
        if matches!(decision, Decision::Deny(_)) {
            status.insert("denied".into(), true.into());
        }
        if !decision.reason().is_empty() {
            status.insert("reason".into(), decision.reason().into());
        }
        Ok(Value::Object(status))
    }

    fn rules(&self, user: &User, namespace: &str) -> Value {
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        let rules: Vec<Rule> = self.rbac.tables().rules(user, namespace);
        for rule in rules {
            if !rule.urls.is_empty() {
                paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
            } else if !rule.resources.is_empty() {
                resources.push(rule.to_value());
            }
        }
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }

    fn token(&self, spec: &Value) -> Result<Value, Status> {
        let token = text(spec, "token");
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let asked = texts(&spec["audiences"]);
        let own = [rkube_pki::token::DEFAULT_ISSUER];
        let audiences: Vec<&str> = if asked.is_empty() {
            own.to_vec()
        } else {
            asked.iter().map(String::as_str).collect()
        };
        Ok(match self.tokens.check(token, &audiences) {
            Ok((mut user, claims)) => {
                user.groups
                    .push(crate::request::GROUP_AUTHENTICATED.to_owned());
                let both = claims
                    .audiences
                    .iter()
                    .filter(|a| audiences.contains(&a.as_str()));
                let both: Vec<&String> = both.collect();
                json!({"authenticated": true, "user": user_info(&user), "audiences": both})
            }
            // Why is logged, and no business of who shows it.
            Err(refused) => {
                tracing::debug!(reason = refused.reason, "a reviewed token is refused");
                json!({"user": {}, "error": "invalid bearer token"})
            }
        })
    }

    fn answer(&self, request: PostRequest) -> Result<Value, Status> {
        let mut object = request.object;
        let spec = &object["spec"];
        let status = match request.resource.plural {
            "selfsubjectaccessreviews" => self.access(&request.user, spec)?,
            "subjectaccessreviews" => {
                check_subject(spec)?;
                self.access(&subject(spec), spec)?
            }
            "localsubjectaccessreviews" => {
                if text(&spec["resourceAttributes"], "namespace") != request.namespace {
                    let namespace = text(&spec["resourceAttributes"], "namespace");
                    return Err(invalid(
                        "resourceAttributes.namespace",
                        &format!("{namespace:?}"),
                        "must match metadata.namespace",
                    ));
                }
                self.access(&subject(spec), spec)?
            }
            "selfsubjectrulesreviews" => match text(spec, "namespace") {
                "" => return Err(Status::bad_request("no namespace on request")),
                namespace => self.rules(&request.user, namespace),
            },
            "selfsubjectreviews" => json!({"userInfo": user_info(&request.user)}),
            "tokenreviews" => self.token(spec)?,
            _ => return Err(Status::no_such_resource()),
        };
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), status);
            map.entry("metadata").or_insert_with(|| json!({}));
        }
        Ok(object)
    }
}

impl Post for Reviews {
    fn post(&self, request: PostRequest) -> Later<'_, Result<Value, Status>> {
        Box::pin(std::future::ready(self.answer(request)))
    }
}
