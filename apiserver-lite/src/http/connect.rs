//! Requests that a hook takes over whole: `exec`, `attach`, `portforward`, `log`, `proxy`.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use rkube_api::resources::Subresource;
use rkube_api::status::Status;
use serde_json::{Map, Value};

use super::body::Body;
use super::route::Target;
use crate::auth;
use crate::connect::ConnectRequest;
use crate::engine::Engine;
use crate::request::{self, User, Verb};

/// Subresources that a hook serves.
const CONNECTED: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// Whether a subresource is a hook's.
pub(super) fn is_connected(part: &Subresource) -> bool {
    CONNECTED.contains(&part.name)
}

/// Lets a hook answer.
///
/// # Errors
/// 403, a refusal of admission, 405, or what the hook answers instead.
pub(super) async fn connect(
    engine: &Engine,
    user: Arc<User>,
    target: Target,
    part: &'static Subresource,
    http: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let method = http.method().clone();
    let verb = match method.as_str() {
        "POST" => Verb::Create,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        _ => Verb::Get,
    };
    let resource = target.resource;
    let mut asked = request::Request::new(Arc::clone(&user), verb, resource);
    asked.subresource = Some(part);
    asked.namespace.clone_from(&target.namespace);
    asked.name.clone_from(&target.name);
    engine.authorize_request(&asked)?;
    if !part.verbs.contains(&verb.as_str()) {
        return Err(Status::no_such_method());
    }
    if matches!(part.name, "exec" | "attach" | "portforward") && verb == Verb::Get {
        // A WebSocket begins with GET; whoever may only read must not run programs by it
        // (`AuthorizePodWebsocketUpgradeCreatePermission` of upstream).
        engine.authorize(&auth::Access {
            user: &user,
            verb: "create",
            target: auth::Target::Resource {
                group: resource.gvk.group,
                version: resource.gvk.version,
                resource: resource.plural,
                subresource: part.name,
                namespace: &target.namespace,
                name: &target.name,
            },
        })?;
    }
    let hook = engine
        .hooks()
        .connector(resource.plural, part.name)
        .cloned()
        .ok_or_else(|| {
            Status::unavailable(format!(
                "{}/{} is not served by this server",
                resource.plural, part.name
            ))
        })?;
    if part.name != "log" {
        engine.admit_connect(&asked, options(part, &http)).await?;
    }
    hook.connect(ConnectRequest {
        user,
        resource,
        subresource: part.name,
        namespace: target.namespace,
        name: target.name,
        rest: target.rest,
        http,
        objects: engine.objects().clone(),
    })
    .await
}

/// The query as the options object that admission sees (`PodExecOptions` and the like).
fn options(part: &Subresource, http: &Request<Incoming>) -> Value {
    let mut map = Map::new();
    map.insert("kind".into(), part.gvk.kind.into());
    map.insert("apiVersion".into(), part.gvk.api_version().into());
    let query = http.uri().query().unwrap_or("");
    for (key, value) in super::service::pairs(query) {
        let value = match (key.as_str(), value.as_str()) {
            ("stdin" | "stdout" | "stderr" | "tty", "true" | "1") => Value::Bool(true),
            ("stdin" | "stdout" | "stderr" | "tty", _) => Value::Bool(false),
            ("command", word) => {
                let list = map
                    .entry("command")
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    list.push(word.into());
                }
                continue;
            }
            (_, text) => text.into(),
        };
        map.insert(key, value);
    }
    Value::Object(map)
}
