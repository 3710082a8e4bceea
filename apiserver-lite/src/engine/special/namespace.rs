//! Namespaces end in two steps: marked `Terminating`, then emptied by their controller, which
//! takes `kubernetes` from `spec.finalizers` (`pkg/registry/core/namespace/storage`).

use rkube_api::time::Time;
use serde_json::Value;

use crate::engine::delete::Plan;
use crate::engine::meta;
use crate::request::Request;

pub(crate) fn is_namespace(request: &Request) -> bool {
    request.resource.gvk.group.is_empty() && request.resource.plural == "namespaces"
}

/// Decides about the deletion of a namespace.
pub(crate) fn plan(object: &Value, now: Time) -> Plan {
    let held = object["spec"]["finalizers"]
        .as_array()
        .is_some_and(|f| !f.is_empty());
    if meta::is_deleting(object) {
        // While something holds it, its controller is at it.
        return if held || !meta::finalizers(object).is_empty() {
            Plan::Leave
        } else {
            Plan::Remove
        };
    }
    let mut marked = object.clone();
    let deadline = Time::from_seconds(now.seconds).to_rfc3339();
    meta::of(&mut marked).insert("deletionTimestamp".into(), deadline.into());
    marked["status"]["phase"] = "Terminating".into();
    if held || !meta::finalizers(object).is_empty() {
        Plan::Mark(marked)
    } else {
        Plan::MarkAndRemove(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn two_steps() {
        let now = Time::from_seconds(0);
        let active = json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Mark(marked) = plan(&active, now) else {
            panic!("it is marked");
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(plan(&marked, now), Plan::Leave);
        let empty = json!({"metadata": {"deletionTimestamp": "x"}, "spec": {}});
        assert_eq!(plan(&empty, now), Plan::Remove);
    }
}
