//! Admission plug-ins, in upstream's order
//! (`k8s.io/kubernetes/pkg/kubeapiserver/options/plugins.go`).
//!
//! Later ones find their place here: LimitRanger before ServiceAccount,
//! PodSecurity before Priority, DefaultStorageClass and
//! StorageObjectInUseProtection before RuntimeClass, DefaultIngressClass after
//! the certificates, webhooks before ResourceQuota, and that last.

mod certificates;
mod namespace;
mod node;
mod pod;
mod runtime_class;
mod service_account;

use std::sync::Arc;

use rkube_api::status::{Named, Status};

use crate::admission::{Admission, Call, Chain};
use crate::auth::Authorize;
use crate::authz::Rbac;
use crate::authz::escalation::Escalation;

pub use certificates::{CertificateSubjectRestriction, Signers};
pub use namespace::NamespaceLifecycle;
pub use node::{NodeRestriction, TaintNodesByCondition};
pub use pod::{DefaultTolerationSeconds, Priority};
pub use runtime_class::RuntimeClass;
pub use service_account::ServiceAccount;

/// All plug-ins in their order.
#[must_use]
pub fn chain(rbac: Arc<Rbac>, authorize: Arc<dyn Authorize>) -> Chain {
    let plugins: Vec<Arc<dyn Admission>> = vec![
        Arc::new(NamespaceLifecycle),
        Arc::new(ServiceAccount),
        Arc::new(NodeRestriction),
        Arc::new(TaintNodesByCondition),
        Arc::new(Priority),
        Arc::new(DefaultTolerationSeconds::default()),
        Arc::new(RuntimeClass),
        Arc::new(Signers::approval(Arc::clone(&authorize))),
        Arc::new(Signers::signing(Arc::clone(&authorize))),
        Arc::new(CertificateSubjectRestriction),
        Arc::new(Escalation::new(rbac, authorize)),
    ];
    Chain::new(plugins)
}

/// 403 of a plug-in, about the object of a call.
fn forbidden(call: &Call, why: &str) -> Status {
    let name = if call.name.is_empty() {
        let metadata = &call.object["metadata"];
        metadata["name"]
            .as_str()
            .or_else(|| metadata["generateName"].as_str())
            .unwrap_or("")
    } else {
        &call.name
    };
    let named = Named {
        group: call.resource.gvk.group,
        resource: call.resource.plural,
        name,
    };
    Status::forbidden(named, why)
}
