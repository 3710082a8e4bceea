//! `serviceaccounts/NAME/token`: tokens on request (TokenRequest,
//! `k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage/token.go`).

use std::sync::Arc;

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::resources;
use rkube_api::status::{Named, Status};
use rkube_api::time::Time;
use rkube_pki::token::{Bound, Claims, TokenKey, new_uuid};
use serde_json::{Value, json};

use crate::authn::now_seconds;
use crate::connect::{Later, Post, PostRequest};
use crate::objects::Objects;

/// A token's life where none is asked for, in seconds.
const DEFAULT_SECONDS: i64 = 3600;
/// The shortest life, in seconds.
const MIN_SECONDS: i64 = 600;
/// The longest life, in seconds.
const MAX_SECONDS: i64 = 1 << 32;
/// What projected volumes ask for: an hour and a little, by which the server
/// knows them; old clients that do not read the file again get a year.
const PROJECTED_SECONDS: i64 = 3607;
/// That year, in seconds.
const EXTENDED_SECONDS: u64 = 365 * 24 * 3600;

/// Gives tokens.
#[derive(Debug)]
pub struct TokenRequests {
    key: Arc<TokenKey>,
}

impl TokenRequests {
    /// Signed with a key.
    #[must_use]
    pub const fn new(key: Arc<TokenKey>) -> Self {
        Self { key }
    }

    fn answer(&self, request: &PostRequest) -> Result<Value, Status> {
        let (namespace, name) = (&request.namespace, &request.name);
        let account = request
            .objects
            .find("", "serviceaccounts", namespace, name)?;
        let account = account.ok_or_else(|| missing("serviceaccounts", name))?;
        let spec = &request.object["spec"];
        let seconds = spec["expirationSeconds"]
            .as_i64()
            .unwrap_or(DEFAULT_SECONDS);
        let problem = match seconds {
            ..MIN_SECONDS => "may not specify a duration less than 10 minutes",
            MIN_SECONDS..=MAX_SECONDS => "",
            _ => "may not specify a duration larger than 2^32 seconds",
        };
        if !problem.is_empty() {
            let error = FieldError {
                path: FieldPath::default()
                    .field("spec")
                    .field("expirationSeconds"),
                kind: ErrorKind::Invalid,
                value: Some(seconds.to_string().into()),
                detail: problem.into(),
            };
            let kind = Named {
                group: "authentication.k8s.io",
                resource: "TokenRequest",
                name: "",
            };
            return Err(Status::invalid(kind, &[error]));
        }
        let mut audiences: Vec<String> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences.push(self.key.issuer().to_owned());
        }
        let now = now_seconds();
        let asked = u64::try_from(seconds).unwrap_or(0);
        let is_extended = seconds == PROJECTED_SECONDS && audiences == [self.key.issuer()];
        let life = if is_extended { EXTENDED_SECONDS } else { asked };
        let mut claims = Claims {
            audiences: audiences.clone(),
            issued_at: now,
            expires_at: now + life,
            id: new_uuid().map_err(|e| Status::internal(&e.to_string()))?,
            namespace: namespace.clone(),
            account: bound(&account),
            pod: None,
            secret: None,
            node: None,
            warn_after: is_extended.then_some(now + asked),
        };
        let reference = &spec["boundObjectRef"];
        if reference.is_object() {
            bind(&mut claims, reference, &request.objects)?;
        }
        let token = self
            .key
            .sign(&claims)
            .map_err(|e| Status::internal(&e.to_string()))?;
        let stamp =
            |at: u64| Time::from_seconds(i64::try_from(at).unwrap_or(i64::MAX)).to_rfc3339();
        let mut answer = json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": stamp(now)},
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": reference},
            // As asked for, so that volumes are refreshed in time.
            "status": {"token": token, "expirationTimestamp": stamp(now + asked)},
        });
        if reference.is_null() {
            answer["spec"]["boundObjectRef"] = Value::Null;
        }
        Ok(answer)
    }
}

fn missing(plural: &str, name: &str) -> Status {
    Status::not_found(Named {
        group: "",
        resource: plural,
        name,
    })
}

fn bound(object: &Value) -> Bound {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    Bound {
        name: text("name"),
        uid: text("uid"),
    }
}

/// Binds a token to the Pod, Secret or Node that the request names.
fn bind(claims: &mut Claims, reference: &Value, objects: &Objects) -> Result<(), Status> {
    let text = |field: &str| reference[field].as_str().unwrap_or("");
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (text("apiVersion"), kind) {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        ("v1", "Node") => "nodes",
        (version, kind) => {
            let slash = if version.contains('/') { "" } else { "/" };
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {slash}{version}, Kind={kind}"
            )));
        }
    };
    let resource = resources::by_plural("", "v1", plural).ok_or_else(Status::no_such_resource)?;
    let namespace = if resource.namespaced {
        claims.namespace.as_str()
    } else {
        ""
    };
    let object = objects.get(resource, namespace, name)?;
    let object = object.ok_or_else(|| missing(plural, name))?;
    let found = bound(&object);
    if !uid.is_empty() && uid != found.uid {
        let named = Named {
            group: "",
            resource: plural,
            name,
        };
        let actual = &found.uid;
        return Err(Status::conflict(
            named,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated; UID in record: {actual}"
            ),
        ));
    }
    match plural {
        "pods" => {
            if object["spec"]["serviceAccountName"] != *claims.account.name {
                let account = &claims.account.name;
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = object["spec"]["nodeName"].as_str().unwrap_or("");
            if !node.is_empty() {
                claims.node = objects
                    .find("", "nodes", "", node)?
                    .map(|node| bound(&node));
            }
            claims.pod = Some(found);
        }
        "secrets" => claims.secret = Some(found),
        _ => claims.node = Some(found),
    }
    Ok(())
}

impl Post for TokenRequests {
    fn post(&self, request: PostRequest) -> Later<'_, Result<Value, Status>> {
        Box::pin(async move { self.answer(&request) })
    }
}
