//! Answers to writes that are refused, in upstream's words.

use rkube_api::field::{self, ErrorKind, FieldError, FieldPath};
use rkube_api::patch::PatchError;
use rkube_api::status::{Named, Status};
use serde_json::Value;

use crate::request::{BodyType, Request};

/// Where upstream's store has an object; its answer to a wrong uid says so.
pub(super) fn upstream_key(request: &Request) -> String {
    let resource = match (request.resource.gvk.group, request.resource.plural) {
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        (_, plural) => plural,
    };
    let slash = if request.namespace.is_empty() {
        ""
    } else {
        "/"
    };
    format!(
        "/registry/{resource}/{}{slash}{}",
        request.namespace, request.name
    )
}

/// The answer to a patch whose result is no object of the kind.
pub(super) fn unfit(request: &Request, patch: &Value, patched: &Value, why: &Status) -> Status {
    // Upstream shows what it could not read: the patch itself, or the object after it.
    let shown = match request.body_type {
        BodyType::StrategicPatch => field::shown(patch),
        _ => field::shown(&Value::String(patched.to_string())),
    };
    let error = FieldError {
        path: FieldPath::default().field("patch"),
        kind: ErrorKind::Invalid,
        value: Some(shown),
        detail: why.message.as_str().into(),
    };
    let nothing = Named {
        group: "",
        resource: "",
        name: "",
    };
    Status::invalid(nothing, &[error])
}

/// The answer to a patch that does not apply.
pub(super) fn patch_status(error: &PatchError) -> Status {
    if error.is_unprocessable() {
        Status::patch_rejected()
    } else {
        Status::bad_request(error.to_string())
    }
}
