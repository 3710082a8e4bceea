//! EndpointSlices and Endpoints: where the pods of a Service are.
//!
//! Three controllers as upstream's (`pkg/controller/endpointslice`, `endpoint`
//! and `endpointslicemirroring`), on what a Service and a pod say in [`facts`].

mod facts;
mod legacy;
mod mirror;
mod slices;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use rkube_client::{Change, Informer, ObjectKey, WorkQueue};

use crate::owner;
use crate::starter::Starter;

/// Starts the three controllers.
pub(crate) fn start(starter: &mut Starter<'_>) {
    slices::start(starter);
    legacy::start(starter);
    mirror::start(starter);
}

/// Wakes Services when they or their pods change.
fn wake_services(
    services: &Arc<Informer<Service>>,
    pods: &Arc<Informer<Pod>>,
    queue: &Arc<WorkQueue<ObjectKey>>,
) {
    let waking = Arc::clone(queue);
    services.on_change(move |change| waking.add(ObjectKey::of(&**change.object())));
    let (waking, services) = (Arc::clone(queue), Arc::clone(services));
    pods.on_change(move |change| {
        let pod = change.object();
        let old = match change {
            Change::Modified(old, new) if !facts::differs(old, new) => return,
            Change::Modified(old, _) => Some(old),
            Change::Added(_) | Change::Deleted(_) => None,
        };
        for service in services.store().of_namespace(owner::namespace(&**pod)) {
            let Some(selector) = facts::selector(&service) else {
                continue;
            };
            let matches = |pod: &Pod| selector.matches(pod.metadata.labels.as_ref());
            if matches(pod) || old.is_some_and(|old| matches(old)) {
                waking.add(ObjectKey::of(&*service));
            }
        }
    });
}
