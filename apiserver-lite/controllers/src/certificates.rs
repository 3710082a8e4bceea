//! Certificates of nodes: requests are approved, signed, and removed when
//! nobody needs them any more.
//!
//! Rules and words: upstream's `pkg/controller/certificates`. Upstream asks
//! by SubjectAccessReview whether the sender may have a node's certificate;
//! here the two cases that its default bindings allow are told directly: a
//! bootstrap token for any node, and a node for itself.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::jiff::Timestamp;
use rkube_client::{Client, DeleteParams, Informer, ObjectKey, Patch, WorkQueue, clock};
use rkube_pki::{Authority, csr};
use serde_json::json;

use crate::error::{Error, Outcome, chain};
use crate::owner;
use crate::starter::Starter;

/// The one signer that this controller is.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// How long a request is kept that was answered (`approvedExpiration` and the
/// like), in seconds.
const ANSWERED_SECONDS: i64 = 3600;
/// How long one is kept that nobody answers (`pendingExpiration`), in seconds.
const PENDING_SECONDS: i64 = 24 * 3600;

/// The authority behind the signer.
pub trait NodeSigner: Debug + Send + Sync {
    /// The common name that a request (PEM) is for, after its form and its
    /// signature have been checked.
    ///
    /// # Errors
    /// Why the request is no node's.
    fn common_name(&self, request: &str) -> Result<String, String>;

    /// The certificate (PEM) for a request.
    ///
    /// # Errors
    /// Why it gets none.
    fn sign(&self, request: &str) -> Result<String, String>;
}

/// The cluster's own authority as signer.
#[derive(Debug)]
pub struct PkiSigner {
    authority: Arc<Authority>,
}

impl PkiSigner {
    /// A signer that uses an authority's key.
    #[must_use]
    pub const fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }
}

impl NodeSigner for PkiSigner {
    fn common_name(&self, request: &str) -> Result<String, String> {
        let parsed = csr::parse(request).map_err(|e| chain(&e))?;
        Ok(parsed.common_name)
    }

    fn sign(&self, request: &str) -> Result<String, String> {
        let parsed = csr::parse(request).map_err(|e| chain(&e))?;
        let now = u64::try_from(clock::now().as_second()).unwrap_or(0);
        self.authority
            .sign_node(&parsed, now)
            .map_err(|e| chain(&e))
    }
}

struct Certificates {
    requests: Arc<Informer<CertificateSigningRequest>>,
    queue: Arc<WorkQueue<String>>,
    client: Client,
    signer: Option<Arc<dyn NodeSigner>>,
}

/// Starts the controller. Without a signer it only removes old requests.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Certificates {
        requests: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        signer: starter.config.node_signer.clone(),
    });
    let own = Arc::clone(&controller);
    controller.requests.on_change(move |change| {
        own.queue.add(owner::name(&**change.object()).to_owned());
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move { own.requests.synced().await });
    let queue = Arc::clone(&controller.queue);
    starter.work("certificate-controller", &queue, synced, move |name| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&name).await }
    });
}

/// What to do about a request.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, before this.
    WaitUntil(Timestamp),
    /// It is old.
    Remove,
    /// It may be signed, with this message.
    Approve(&'static str),
    /// It is approved: sign it.
    Sign,
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind)
}

/// Decides; `common_name` is that of a request that reads as a node's.
fn decide(request: &CertificateSigningRequest, common_name: Option<&str>, now: Timestamp) -> Step {
    let created = request.metadata.creation_timestamp.as_ref();
    let created = created.map_or(now, |t| t.0).as_second();
    let answered = ["Approved", "Denied", "Failed"]
        .into_iter()
        .find_map(|kind| condition(request, kind));
    let (since, kept) = match answered {
        Some(answer) => {
            let at = answer.last_update_time.as_ref();
            (at.map_or(created, |t| t.0.as_second()), ANSWERED_SECONDS)
        }
        None => (created, PENDING_SECONDS),
    };
    let until = since.saturating_add(kept);
    if until <= now.as_second() {
        return Step::Remove;
    }
    let wait = Step::WaitUntil(Timestamp::from_second(until).unwrap_or(Timestamp::MAX));
    let refused = condition(request, "Denied").is_some() || condition(request, "Failed").is_some();
    if request.spec.signer_name != SIGNER || refused {
        return wait;
    }
    if condition(request, "Approved").is_some() {
        let signed = request.status.as_ref().and_then(|s| s.certificate.as_ref());
        return if signed.is_none_or(|c| c.0.is_empty()) {
            Step::Sign
        } else {
            wait
        };
    }
    let Some(name) = common_name.filter(|_| has_client_usages(request)) else {
        return wait;
    };
    let spec = &request.spec;
    if spec.username.as_deref() == Some(name) {
        return Step::Approve(
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        );
    }
    if spec.groups.iter().flatten().any(|g| g == BOOTSTRAPPERS) {
        return Step::Approve(
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        );
    }
    wait
}

/// What a client's certificate may be used for, and nothing else.
fn has_client_usages(request: &CertificateSigningRequest) -> bool {
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let allowed = ["client auth", "digital signature", "key encipherment"];
    usages.iter().any(|u| u == allowed[0]) && usages.iter().all(|u| allowed.contains(&u.as_str()))
}

fn answer(
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> CertificateSigningRequestCondition {
    let now = Some(clock::time(now));
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

impl Certificates {
    async fn sync(&self, name: &str) -> Outcome {
        let Some(request) = self.requests.store().get(&ObjectKey::new("", name)) else {
            return Ok(());
        };
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let signer = self.signer.as_ref();
        let common_name = signer.and_then(|s| s.common_name(&pem).ok());
        let now = clock::now();
        match decide(&request, common_name.as_deref(), now) {
            Step::WaitUntil(at) => {
                let wait = at.as_second().saturating_sub(now.as_second()).max(1);
                let wait = Duration::from_secs(u64::try_from(wait).unwrap_or(1));
                self.queue.add_after(name.to_owned(), wait);
                Ok(())
            }
            Step::Remove => self.remove(name, &request).await,
            Step::Approve(message) => {
                let condition = answer("Approved", "AutoApproved", message, now);
                self.write(name, &request, "approval", vec![condition], None)
                    .await
            }
            Step::Sign => match signer.map(|s| s.sign(&pem)) {
                None => Ok(()),
                Some(Ok(certificate)) => {
                    let certificate = ByteString(certificate.into_bytes());
                    self.write(name, &request, "status", Vec::new(), Some(certificate))
                        .await
                }
                Some(Err(why)) => {
                    let condition = answer("Failed", "SignerValidationFailure", &why, now);
                    self.write(name, &request, "status", vec![condition], None)
                        .await
                }
            },
        }
    }

    async fn write(
        &self,
        name: &str,
        request: &CertificateSigningRequest,
        subresource: &str,
        more: Vec<CertificateSigningRequestCondition>,
        certificate: Option<ByteString>,
    ) -> Outcome {
        let old = request.status.as_ref().and_then(|s| s.conditions.clone());
        let mut status = json!({});
        if !more.is_empty() {
            let all: Vec<_> = old.into_iter().flatten().chain(more).collect();
            status["conditions"] = json!(all);
        }
        if let Some(certificate) = certificate {
            status["certificate"] = json!(certificate);
        }
        let patch = Patch::Merge(json!({
            "metadata": {
                "uid": request.metadata.uid,
                "resourceVersion": request.metadata.resource_version,
            },
            "status": status,
        }));
        let api = self.client.all::<CertificateSigningRequest>();
        match api.patch_sub(name, subresource, &patch).await {
            Err(error) if !error.is_not_found() => Err(Error::request(
                "answer the certificate request",
                name,
            )(error)),
            _ => Ok(()),
        }
    }

    async fn remove(&self, name: &str, request: &CertificateSigningRequest) -> Outcome {
        let params = DeleteParams {
            uid: request.metadata.uid.clone(),
            ..DeleteParams::default()
        };
        let api = self.client.all::<CertificateSigningRequest>();
        match api.delete(name, &params).await {
            Err(error) if !error.is_not_found() => Err(Error::request(
                "remove the certificate request",
                name,
            )(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object};
    use serde_json::Value;

    const NODE: &str = "system:node:n1";

    fn request(extra: Value) -> CertificateSigningRequest {
        let base = json!({"metadata": {"name": "r", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": SIGNER, "username": "system:bootstrap:abcdef",
                "groups": ["system:bootstrappers", "system:authenticated"],
                "usages": ["digital signature", "client auth"]}});
        object(rkube_api::patch::merge(base, extra).unwrap())
    }

    #[test]
    fn who_gets_a_certificate() {
        let soon = at(100);
        let step = |extra: Value, name: Option<&str>| decide(&request(extra), name, soon);
        assert!(
            matches!(step(json!({}), Some(NODE)), Step::Approve(m) if m.starts_with("Auto approving kubelet"))
        );
        let own = json!({"spec": {"username": NODE, "groups": ["system:nodes"]}});
        assert!(
            matches!(step(own, Some(NODE)), Step::Approve(m) if m.starts_with("Auto approving self"))
        );
        for other in [
            json!({"spec": {"username": "system:node:n2", "groups": ["system:nodes"]}}),
            json!({"spec": {"signerName": "example.com/own"}}),
            json!({"spec": {"usages": ["server auth", "client auth"]}}),
            json!({"spec": {"usages": ["digital signature"]}}),
            json!({"status": {"conditions": [{"type": "Denied", "status": "True"}]}}),
        ] {
            assert!(
                matches!(step(other.clone(), Some(NODE)), Step::WaitUntil(_)),
                "{other}"
            );
        }
        assert!(
            matches!(step(json!({}), None), Step::WaitUntil(_)),
            "it does not read"
        );
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        assert_eq!(step(approved, Some(NODE)), Step::Sign);
    }

    #[test]
    fn old_requests_go() {
        assert_eq!(
            decide(&request(json!({})), None, at(PENDING_SECONDS)),
            Step::Remove
        );
        let answered = request(json!({"status": {"certificate": "eA==", "conditions": [
            {"type": "Approved", "status": "True", "lastUpdateTime": "1970-01-01T00:01:00Z"}]}}));
        assert_eq!(decide(&answered, None, at(100)), Step::WaitUntil(at(3660)));
        assert_eq!(decide(&answered, None, at(3660)), Step::Remove);
    }
}
