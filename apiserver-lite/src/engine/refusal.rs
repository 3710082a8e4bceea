//! Answers to writes that are refused, in upstream's words.

use rkube_api::field::{self, ErrorKind, FieldError, FieldPath};
use rkube_api::patch::PatchError;
use rkube_api::status::{Named, Status};
use serde_json::Value;

use super::unfit::converted;
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
        BodyType::StrategicPatch => {
            field::shown(&Value::String(rkube_api::printed::printed(patch)))
        }
        _ => field::shown(&Value::String(patched.to_string())),
    };
    let converted = match (request.body_type, request.resource.object_type()) {
        (BodyType::StrategicPatch, Some(ty)) => converted(patched, ty),
        _ => None,
    };
    // The decoder's own words, without whose they are.
    let prefix = format!(" cannot be handled as a {}: ", request.resource.gvk.kind);
    let decoded = why.message.split_once(&prefix).map(|(_, words)| words);
    let detail = converted.unwrap_or_else(|| decoded.unwrap_or(&why.message).to_owned());
    let error = FieldError {
        path: FieldPath::default().field("patch"),
        kind: ErrorKind::Invalid,
        value: Some(shown),
        detail: detail.into(),
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
    } else if error.is_unknown() {
        Status::unknown(error.to_string())
    } else {
        Status::bad_request(error.to_string())
    }
}
