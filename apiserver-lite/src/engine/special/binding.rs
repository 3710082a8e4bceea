//! `pods/binding` (and the older `bindings`): gives a pod to a node
//! (`pkg/registry/core/pod/storage` of upstream).

use rkube_api::field::Errors;
use rkube_api::resources::{self, Gvk};
use rkube_api::status::{Named, Status};
use rkube_api::time::Time;
use rkube_api::view::At;
use rkube_store::{Key, StoreError, Value as Stored, Write};
use serde_json::{Map, Value, json};

use crate::admission::Operation;
use crate::codec;
use crate::engine::decode::{self, Expected};
use crate::engine::{Answer, Engine, Warnings, meta, render};
use crate::objects::{decode as decode_record, key, store_status};
use crate::request::Request;

const BINDING: Gvk = Gvk {
    group: "",
    version: "v1",
    kind: "Binding",
};

/// How often a binding that another write overtook is tried again.
const RETRIES_MAX: usize = 100;

/// Whether a request is for the resource `bindings`.
pub(crate) fn is_binding(request: &Request) -> bool {
    request.resource.gvk.group.is_empty() && request.resource.plural == "bindings"
}

/// The pod with the binding's node, or why it cannot have it.
fn bound(pod: &Value, binding: &Value, now: Time) -> Result<Value, String> {
    let name = meta::text(pod, "name");
    if meta::is_deleting(pod) {
        return Err(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    if !node.is_empty() {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|g| !g.is_empty())
    {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for map in ["annotations", "labels"] {
        let Some(added) = binding["metadata"][map].as_object() else {
            continue;
        };
        let own = meta::of(&mut pod)
            .entry(map)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(own) = own.as_object_mut() {
            own.extend(added.clone());
        }
    }
    set_condition(
        &mut pod,
        json!({"type": "PodScheduled", "status": "True"}),
        now,
    );
    Ok(pod)
}

/// Sets a condition of a pod; the time moves only where its status does.
pub(super) fn set_condition(pod: &mut Value, mut condition: Value, now: Time) {
    let stamp = Time::from_seconds(now.seconds).to_rfc3339();
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = stamp.into();
    if let Some(map) = condition.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    let status = &mut pod["status"];
    if !status.is_object() {
        *status = json!({});
    }
    let conditions = &mut status["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else {
        return;
    };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(same) => {
            if same["status"] == condition["status"] {
                condition["lastTransitionTime"] = same["lastTransitionTime"].take();
            }
            *same = condition;
        }
        None => list.push(condition),
    }
}

/// What is wrong with a target; upstream takes it for a failure of its own, a 500.
fn check_target(binding: &Value) -> Result<(), Status> {
    let mut errors = Errors::default();
    let root = At::root(binding);
    let target = root.get("target");
    let (kind, name) = (target.get("kind"), target.get("name"));
    if !matches!(kind.str(), "" | "Node") {
        kind.unsupported(&mut errors, &["Node", "<empty>"]);
    }
    if name.str().is_empty() {
        name.required(&mut errors, "");
    }
    let errors = errors.into_vec();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match &texts[..] {
        [] => Ok(()),
        [one] => Err(Status::unknown(one.as_str())),
        many => Err(Status::unknown(format!("[{}]", many.join(", ")))),
    }
}

impl Engine {
    pub(in crate::engine) async fn bind(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let expected = Expected {
            gvk: BINDING,
            validation: request.options.field_validation,
            required: true,
        };
        let (body, doubled) = decode::value(&request.body, request.body_type)?;
        let binding = decode::object(body, doubled, &expected, warnings)?;
        let name = match (request.name.as_str(), meta::text(&binding, "name")) {
            ("", name) => name.to_owned(),
            (path, "") => path.to_owned(),
            (path, body) if path == body => path.to_owned(),
            (path, body) => {
                tracing::debug!(path, body, "a binding of another pod");
                return Err(Status::bad_request(
                    "name in URL does not match name in Binding object",
                ));
            }
        };
        check_target(&binding)?;
        let pods = resources::by_plural("", "v1", "pods")
            .ok_or_else(|| Status::internal("no resource pods"))?;
        let mut call = self.admission_call(request, Operation::Create, binding, Value::Null);
        call.name.clone_from(&name);
        self.admission().admit(&mut call).await?;
        self.admission().validate(&mut call).await?;
        warnings.append(&mut call.warnings);
        let named = Named {
            group: "",
            resource: "pods/binding",
            name: &name,
        };
        let key = Key::from(key(pods, &request.namespace, &name).as_str());
        for _ in 0..RETRIES_MAX {
            let record = self.store().get(&key, None).map_err(|e| store_status(&e))?;
            let record = record.ok_or_else(|| {
                Status::not_found(Named {
                    group: "",
                    resource: "pods",
                    name: &name,
                })
            })?;
            let pod = decode_record(pods, &record)?;
            for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
                let wanted = meta::text(&call.object, field);
                let found = meta::text(&pod, field);
                if !wanted.is_empty() && wanted != found {
                    let why = format!(
                        "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                    );
                    return Err(Status::conflict(named, &why));
                }
            }
            let pod = bound(&pod, &call.object, meta::now())
                .map_err(|why| Status::conflict(named, &why))?;
            if request.options.dry_run {
                break;
            }
            let map = pod.as_object().cloned().unwrap_or_default();
            let write = Write::Update {
                key: key.clone(),
                expected: record.revision,
                value: Stored::from(codec::encode(&map, &pods.gvk)),
                ttl_s: None,
            };
            match self.store().submit(write).await {
                Ok(_) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_status(&error)),
            }
        }
        render::value(request, 201, &success())
    }
}

/// The bare `Status` of a success.
pub(super) fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let binding = json!({"metadata": {"annotations": {"a": "b"}}, "target": {"name": "n"}});
        let now = Time::from_seconds(0);
        let once = bound(&pod, &binding, now).unwrap();
        assert_eq!(once["spec"]["nodeName"], "n");
        assert_eq!(once["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            once["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}])
        );
        assert!(
            bound(&once, &binding, now)
                .unwrap_err()
                .contains("already assigned")
        );
        let gone = json!({"metadata": {"name": "p", "deletionTimestamp": "x"}, "spec": {}});
        assert!(bound(&gone, &binding, now).is_err());
    }
}
