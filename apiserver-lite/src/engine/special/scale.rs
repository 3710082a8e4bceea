//! `scale`: how many replicas, in the same form for every kind that has some.

use rkube_api::field::{ErrorKind, FieldError, FieldPath, shown};
use rkube_api::resources::Gvk;
use rkube_api::selector::LabelSelector;
use rkube_api::status::{Named, Status};
use rkube_api::types;
use serde_json::{Map, Value, json};

use crate::engine::decode::{self, Expected};
use crate::engine::write::Change;
use crate::engine::{Answer, Engine, Warnings, meta, render};
use crate::objects::{decode as decode_record, decode_bytes};
use crate::request::{BodyType, Request, Verb};

const SCALE: Gvk = Gvk {
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
};

/// The scale of an object.
fn scale_of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let selector = &object["spec"]["selector"];
    // A ReplicationController has the bare map of labels.
    let bare = selector.is_object()
        && selector.get("matchLabels").is_none()
        && selector.get("matchExpressions").is_none();
    let parsed = if bare {
        LabelSelector::from_value(&json!({"matchLabels": selector}))
    } else {
        LabelSelector::from_value(selector)
    };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if let Ok(selector) = parsed
        && !selector.nothing
    {
        status["selector"] = selector.to_string().into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": status,
    })
}

impl Engine {
    pub(in crate::engine) fn get_scale(&self, request: &Request) -> Result<Answer, Status> {
        let record = self.record(request)?;
        let object = decode_record(request.resource, &record)?;
        render::value(request, 200, &scale_of(&object))
    }

    pub(in crate::engine) async fn set_scale(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let object = decode_record(request.resource, &self.record(request)?)?;
        let old = scale_of(&object);
        let expected = Expected {
            gvk: SCALE,
            validation: request.options.field_validation,
            required: false,
        };
        let scale = if request.verb == Verb::Patch {
            let Change::Patch(patch) = self.read_patch(request, warnings)? else {
                return Err(Status::internal("a patch is no patch"));
            };
            let ty = types::by_gvk(SCALE.group, SCALE.version, SCALE.kind);
            let patched = self.patched(request, &patch, &old, ty)?;
            decode::object(patched, Vec::new(), &expected, warnings)?
        } else {
            let (body, doubled) = decode::value(&request.body, request.body_type)?;
            decode::object(body, doubled, &expected, warnings)?
        };
        let name = meta::text(&scale, "name");
        if name != request.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                request.name
            )));
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = FieldError {
                path: FieldPath::default().field("spec").field("replicas"),
                kind: ErrorKind::Invalid,
                value: Some(shown(&replicas.into())),
                detail: "must be greater than or equal to 0".into(),
            };
            let named = Named {
                group: SCALE.group,
                resource: SCALE.kind,
                name,
            };
            return Err(Status::invalid(named, &[error]));
        }
        // A merge patch of the object itself: what else it has stays as the store has it.
        let mut patch = json!({"spec": {"replicas": replicas}});
        let stated = meta::text(&scale, "resourceVersion");
        let pinned = request.verb == Verb::Update || stated != meta::text(&old, "resourceVersion");
        if pinned && !stated.is_empty() {
            patch["metadata"]["resourceVersion"] = stated.into();
        }
        let uid = meta::text(&scale, "uid");
        if !uid.is_empty() {
            patch["metadata"]["uid"] = uid.into();
        }
        let mut whole = request.clone();
        whole.subresource = None;
        whole.body_type = BodyType::MergePatch;
        let written = self.change(&whole, &Change::Patch(patch), warnings).await?;
        let object = decode_bytes(request.resource, &written.stored, written.revision)?;
        render::value(request, 200, &scale_of(&object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_text() {
        let set = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let scale = scale_of(&set);
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=b"}));
        assert_eq!(scale["metadata"], json!({"name": "a"}));
        let controller =
            json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"c": "d"}}});
        assert_eq!(scale_of(&controller)["status"]["selector"], "c=d");
    }
}
