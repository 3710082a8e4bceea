//! Who asks for a certificate: the API server writes that into the request,
//! whatever it says itself (`certificates.k8s.io`'s strategy of upstream).

use rkube_apiserver::admission::{Admission, Call, Operation, Step, done};

/// Sets `spec.username`, `spec.uid` and `spec.groups` of new requests.
#[derive(Debug)]
pub(super) struct Asker;

impl Admission for Asker {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        if call.is("certificates.k8s.io", "certificatesigningrequests") {
            let user = call.user.clone();
            call.object["spec"]["username"] = user.name.clone().into();
            call.object["spec"]["uid"] = user.uid.clone().into();
            call.object["spec"]["groups"] = user.groups.clone().into();
        }
        done(Ok(()))
    }
}
