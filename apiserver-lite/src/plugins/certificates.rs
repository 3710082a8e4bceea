//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction
//! (`k8s.io/kubernetes/plugin/pkg/admission/certificates`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rkube_api::status::Status;
use rkube_pki::csr;
use serde_json::Value;

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};
use crate::auth::{Access, Authorize, Target};
use crate::request::GROUP_MASTERS;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
/// The signer of users' certificates, which gives nobody the administrators' group.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Whether the user of a call may `verb` for a signer: by its name, or by `DOMAIN/*`.
fn may(authorize: &dyn Authorize, call: &Call, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer, &format!("{domain}/*")].iter().any(|name| {
        let target = Target::Resource {
            group: GROUP,
            version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
        };
        let access = Access {
            user: &call.user,
            verb,
            target,
        };
        authorize.authorize(&access).is_allowed()
    })
}

/// The signer that a request was made for: of the old object, whatever the new one says.
fn signer(call: &Call) -> &str {
    call.old["spec"]["signerName"].as_str().unwrap_or_default()
}

/// Who writes a part of a request holds a right of the request's signer.
#[derive(Debug)]
pub struct Signers {
    authorize: Arc<dyn Authorize>,
    name: &'static str,
    part: &'static str,
    verb: &'static str,
}

impl Signers {
    /// CertificateApproval, with all authorizers of a server: who approves or
    /// denies holds `approve`.
    #[must_use]
    pub const fn approval(authorize: Arc<dyn Authorize>) -> Self {
        Self {
            authorize,
            name: "CertificateApproval",
            part: "approval",
            verb: "approve",
        }
    }

    /// CertificateSigning, likewise: who gives a certificate, or changes
    /// conditions through the status, holds `sign`.
    #[must_use]
    pub const fn signing(authorize: Arc<dyn Authorize>) -> Self {
        Self {
            authorize,
            name: "CertificateSigning",
            part: "status",
            verb: "sign",
        }
    }

    fn check(&self, call: &Call) -> Result<(), Status> {
        let same = |field: &str| call.object["status"][field] == call.old["status"][field];
        let signer = signer(call);
        if !call.is_sub(GROUP, REQUESTS, self.part)
            || (self.part == "status" && same("certificate") && same("conditions"))
            || may(&*self.authorize, call, self.verb, signer)
        {
            return Ok(());
        }
        let verb = self.verb;
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(forbidden(call, &why))
    }
}

impl Admission for Signers {
    fn name(&self) -> &'static str {
        self.name
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        done(self.check(call))
    }
}

/// Nobody asks for a client certificate of `system:masters`.
#[derive(Debug)]
pub struct CertificateSubjectRestriction;

fn organisations(request: &Value) -> Result<Vec<String>, String> {
    let text = request.as_str().unwrap_or_default();
    let pem = STANDARD.decode(text).map_err(|e| e.to_string())?;
    let parsed = csr::parse(&String::from_utf8_lossy(&pem)).map_err(|e| e.to_string())?;
    Ok(parsed.organisations)
}

fn check_subject(call: &Call) -> Result<(), Status> {
    let spec = &call.object["spec"];
    if !call.is(GROUP, REQUESTS) || spec["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let why = match organisations(&spec["request"]) {
        Ok(groups) if groups.iter().any(|g| g == GROUP_MASTERS) => {
            format!("use of {CLIENT_SIGNER} signer with {GROUP_MASTERS} group is not allowed")
        }
        Ok(_) => return Ok(()),
        Err(error) => format!("failed to parse CSR: {error}"),
    };
    Err(forbidden(call, &why))
}

impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        done(check_subject(call))
    }
}
