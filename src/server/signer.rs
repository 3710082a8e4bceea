//! Signs what nodes ask for (`certificates.k8s.io`): the client certificate
//! of a node that joins by a bootstrap token or renews its own, and the
//! serving certificate of a node that is registered. Everything else waits
//! for an administrator, as upstream's signers leave it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use rkube_client::{Client, Informer, Informers, ObjectKey, Patch, WorkQueue};
use rkube_pki::{Pki, PkiError, bootstrap, csr};
use serde_json::{Value, json};

use super::api::now_s;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// Signs until it is dropped.
pub(super) struct Signer {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to sign.
pub(super) fn start(informers: &Informers, pki: Arc<Pki>) -> Signer {
    let requests = informers.of::<CertificateSigningRequest>();
    let queue: Arc<WorkQueue<ObjectKey>> = Arc::default();
    let to = Arc::clone(&queue);
    requests.on_change(move |change| to.add(ObjectKey::of(&**change.object())));
    let client = informers.client().clone();
    let task = rkube_task::spawn(async move {
        queue.work(|key| sign(&client, &pki, &requests, key)).await;
    });
    Signer { task }
}

/// Whether a request is one that this signer answers, and for which node.
fn node_of(request: &CertificateSigningRequest) -> Option<&str> {
    let spec = &request.spec;
    let status = request.status.as_ref();
    let answered = status.is_some_and(|s| {
        s.certificate.as_ref().is_some_and(|c| !c.0.is_empty())
            || s.conditions
                .iter()
                .flatten()
                .any(|c| matches!(c.type_.as_str(), "Denied" | "Failed"))
    });
    if answered {
        return None;
    }
    let user = spec.username.as_deref().unwrap_or_default();
    let own = user.strip_prefix(csr::NODE_USER_PREFIX);
    match spec.signer_name.as_str() {
        SERVING_SIGNER => own,
        CLIENT_SIGNER => {
            let groups = spec.groups.as_deref().unwrap_or_default();
            let joins = groups.iter().any(|g| g == bootstrap::GROUP);
            own.or(joins.then_some(""))
        }
        _ => None,
    }
}

async fn sign(
    client: &Client,
    pki: &Pki,
    requests: &Informer<CertificateSigningRequest>,
    key: ObjectKey,
) -> anyhow::Result<()> {
    let Some(request) = requests.store().get(&key) else {
        return Ok(());
    };
    let Some(node) = node_of(&request) else {
        return Ok(());
    };
    let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
    let signed = match request.spec.signer_name.as_str() {
        CLIENT_SIGNER => csr::parse(&pem).and_then(|parsed| {
            // A node renews its own certificate and no other.
            let wanted = parsed.common_name.strip_prefix(csr::NODE_USER_PREFIX);
            if !node.is_empty() && wanted != Some(node) {
                let why = format!("node {node} asks for the certificate of {wanted:?}");
                return Err(PkiError::Refused {
                    what: "the certificate request",
                    reason: why,
                });
            }
            pki.authority().sign_node(&parsed, now_s())
        }),
        _ => {
            let ips = addresses(client, node).await?;
            csr::parse(&pem).and_then(|parsed| {
                pki.authority()
                    .sign_node_server(&parsed, node, &ips, now_s())
            })
        }
    };
    answer(client, &request, &key.name, signed).await
}

/// Approves a request and gives the certificate, or tells why there is none.
async fn answer(
    client: &Client,
    request: &CertificateSigningRequest,
    name: &str,
    signed: Result<String, PkiError>,
) -> anyhow::Result<()> {
    let api = client.all::<CertificateSigningRequest>();
    let mut conditions = json!(request.status.as_ref().and_then(|s| s.conditions.as_ref()));
    if conditions.is_null() {
        conditions = json!([]);
    }
    let is_approved = conditions.as_array().is_some_and(|all| {
        let mut kinds = all.iter().map(|c| &c["type"]);
        kinds.any(|kind| kind == "Approved")
    });
    let mut add = |kind: &str, reason: &str, message: &str| {
        let condition =
            json!({"type": kind, "status": "True", "reason": reason, "message": message});
        if let Some(all) = conditions.as_array_mut() {
            all.push(condition);
        }
        conditions.clone()
    };
    // Each write is about what was looked at; a newer request is seen again.
    let mut revision = request.metadata.resource_version.clone();
    let patch = |revision: &Option<String>, status: Value| {
        Patch::Merge(json!({"metadata": {"resourceVersion": revision}, "status": status}))
    };
    let status = match signed {
        Ok(certificate) => {
            if !is_approved {
                let conditions = add(
                    "Approved",
                    "AutoApproved",
                    "Auto approving kubelet certificate after checking who asks.",
                );
                let approval = patch(&revision, json!({"conditions": conditions}));
                let approved = match api.patch_sub(name, "approval", &approval).await {
                    Err(error) if error.is_conflict() => return Ok(()),
                    approved => approved?,
                };
                let text = approved["metadata"]["resourceVersion"].as_str();
                revision = text.map(str::to_owned);
            }
            tracing::info!(request = name, "a node's certificate is signed");
            let encoded = k8s_openapi::ByteString(certificate.into_bytes());
            json!({"certificate": encoded})
        }
        Err(error) => {
            tracing::warn!(request = name, %error, "a node's certificate is not signed");
            json!({"conditions": add("Failed", "SignerValidationFailure", &error.to_string())})
        }
    };
    match api.patch_status(name, &patch(&revision, status)).await {
        Err(error) if error.is_conflict() => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

/// The addresses that a node's object shows.
async fn addresses(client: &Client, node: &str) -> anyhow::Result<Vec<IpAddr>> {
    let object = client.all::<Node>().get(node).await?;
    let list = object.status.and_then(|s| s.addresses).unwrap_or_default();
    Ok(list.iter().filter_map(|a| a.address.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(signer: &str, user: &str, group: &str) -> CertificateSigningRequest {
        serde_json::from_value(json!({"spec": {"request": "", "signerName": signer,
            "username": user, "groups": [group]}}))
        .unwrap()
    }

    #[test]
    fn only_nodes_requests_are_answered() {
        let node = "system:node:a";
        assert_eq!(node_of(&request(SERVING_SIGNER, node, "")), Some("a"));
        assert_eq!(node_of(&request(CLIENT_SIGNER, node, "")), Some("a"));
        let joining = request(CLIENT_SIGNER, "system:bootstrap:x", "system:bootstrappers");
        assert_eq!(node_of(&joining), Some(""));
        assert_eq!(
            node_of(&request(CLIENT_SIGNER, "mallory", "system:masters")),
            None
        );
        assert_eq!(
            node_of(&request(
                SERVING_SIGNER,
                "system:bootstrap:x",
                bootstrap::GROUP
            )),
            None
        );
        assert_eq!(
            node_of(&request("kubernetes.io/kube-apiserver-client", node, "")),
            None
        );
        let mut done = joining;
        done.status =
            serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]}))
                .ok();
        assert_eq!(node_of(&done), None);
    }
}
