//! NamespaceLifecycle: nothing new in a namespace that is not there or goes
//! away, and three namespaces that never go.

use rkube_api::status::{Named, Status};
use serde_json::json;

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plug-in.
#[derive(Debug)]
pub struct NamespaceLifecycle;

fn check(call: &Call) -> Result<(), Status> {
    let is_namespace = call.resource.gvk.group.is_empty() && call.resource.plural == "namespaces";
    if is_namespace {
        let is_doomed = call.operation == Operation::Delete && call.subresource.is_empty();
        if is_doomed && IMMORTAL.contains(&call.name.as_str()) {
            return Err(forbidden(call, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    if call.namespace.is_empty() || call.operation == Operation::Delete {
        return Ok(());
    }
    // Questions are answered about any namespace.
    if call.resource.plural == "localsubjectaccessreviews" {
        return Ok(());
    }
    let namespace = &call.namespace;
    let Some(found) = call.objects.find("", "namespaces", "", namespace)? else {
        return Err(Status::not_found(Named {
            group: "",
            resource: "namespaces",
            name: namespace,
        }));
    };
    let is_ending = !found["metadata"]["deletionTimestamp"].is_null()
        || found["status"]["phase"] == "Terminating";
    if call.operation == Operation::Create && is_ending {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = forbidden(call, &why);
        let cause = json!({
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        });
        status.details.insert("causes".into(), vec![cause].into());
        return Err(status);
    }
    Ok(())
}

impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_delete = call.operation == Operation::Delete;
        done(if is_delete { Ok(()) } else { check(call) })
    }

    /// A deletion changes nothing, so it is only checked.
    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_delete = call.operation == Operation::Delete;
        done(if is_delete { check(call) } else { Ok(()) })
    }
}
