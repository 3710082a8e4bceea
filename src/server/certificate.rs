//! A joined node's two certificates: asked for by the API
//! (`certificates.k8s.io`), kept, and renewed while the agent runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rkube_client::Client;
use rkube_engine::instance::Instance;
use rkube_pki::resolver::{Current, is_due};
use rkube_pki::{Authority, Purpose, csr, files};
use serde_json::json;

use super::api::now_s;
use super::renewal::PERIOD;

/// How long a certificate may take to be signed.
const SIGN_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const SIGN_PERIOD: Duration = Duration::from_millis(300);
/// How long after a renewal that failed it is tried again.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);
pub(super) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

/// What an agent keeps of its server.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) authority: PathBuf,
    pub(super) identity: PathBuf,
}

impl Kept {
    pub(super) fn new(instance: &Instance) -> Self {
        let dir = instance.state_dir().join("agent");
        Self {
            authority: dir.join("ca.crt"),
            identity: dir.join("client.pem"),
        }
    }

    /// When the certificate ends that is there, in seconds since 1970.
    fn not_after(&self) -> Option<u64> {
        let pem = files::read(&self.identity).ok().flatten()?;
        let identity = rkube_pki::Identity {
            certificate: pem.clone(),
            key: pem,
        };
        identity.not_after().ok()
    }

    /// Whether a certificate is there that another one can be asked by.
    pub(super) fn is_good(&self) -> bool {
        let lasts = self.not_after().is_some_and(|end| end > now_s());
        lasts && matches!(files::read(&self.authority), Ok(Some(_)))
    }

    /// Keeps what was given at joining.
    pub(super) fn keep(
        &self,
        authority: &str,
        identity: &rkube_pki::Identity,
    ) -> anyhow::Result<()> {
        if let Some(dir) = self.authority.parent() {
            files::make_dir(dir)?;
        }
        files::write_secret(&self.authority, authority.as_bytes())?;
        self.keep_identity(identity)
    }

    /// Keeps a certificate and its key in one file, so that they change at
    /// once.
    fn keep_identity(&self, identity: &rkube_pki::Identity) -> anyhow::Result<()> {
        let both = format!("{}{}", identity.certificate, identity.key);
        Ok(files::write_secret(&self.identity, both.as_bytes())?)
    }
}

/// Renews the node's certificates while the agent runs: that of its own API,
/// and, where it is kept, the one by which it asks. The client reads its file
/// again by itself.
pub(super) async fn renew(client: Client, kept: Option<Kept>, node: String, serving: Arc<Current>) {
    let mut wait = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        wait = PERIOD;
        let due = |kept: &&Kept| kept.not_after().is_none_or(|end| is_due(end, now_s()));
        if let Some(kept) = kept.as_ref().filter(due) {
            let renewed = asked(&client, &node, CLIENT_SIGNER, "client auth").await;
            let renewed = renewed.and_then(|identity| kept.keep_identity(&identity));
            if !told("client", &node, renewed) {
                wait = RENEWAL_RETRY;
            }
        }
        if serving.is_due(now_s()) {
            let renewed = serving_identity(&client, &node, kept.is_some()).await;
            let renewed = renewed.and_then(|identity| Ok(serving.replace(&identity)?));
            if !told("serving", &node, renewed) {
                wait = RENEWAL_RETRY;
            }
        }
    }
}

fn told(what: &str, node: &str, renewed: anyhow::Result<()>) -> bool {
    match &renewed {
        Ok(()) => tracing::info!(node, "the node's {what} certificate is renewed"),
        Err(error) => {
            let error = crate::error::chain(&**error);
            tracing::error!(node, error, "renew the node's {what} certificate");
        }
    }
    renewed.is_ok()
}

/// The node's serving certificate, anew at each start.
pub(super) async fn serving(
    client: &Client,
    node: &str,
    ours: bool,
) -> anyhow::Result<Arc<Current>> {
    let identity = serving_identity(client, node, ours).await?;
    Ok(Arc::new(Current::new(&identity)?))
}

/// At another's API server an administrator may have to approve the request;
/// until then the node's API has a certificate of its own making, as upstream's
/// kubelet.
async fn serving_identity(
    client: &Client,
    node: &str,
    ours: bool,
) -> anyhow::Result<rkube_pki::Identity> {
    let asked = asked(client, node, SERVING_SIGNER, "server auth").await;
    match asked {
        Err(error) if !ours => {
            let error = crate::error::chain(&*error);
            tracing::warn!(
                node,
                error,
                "the node's API gets a certificate of its own making"
            );
            let (authority, _) = Authority::new(node, now_s())?;
            let purpose = Purpose::Server {
                dns: vec![node.to_owned()],
                ips: Vec::new(),
            };
            Ok(authority.issue(node, None, &purpose, now_s())?)
        }
        other => other,
    }
}

/// A new key, and the certificate for it.
async fn asked(
    client: &Client,
    node: &str,
    signer: &str,
    usage: &str,
) -> anyhow::Result<rkube_pki::Identity> {
    let request = csr::node_request(node)?;
    let certificate = signed(client, &request.csr, signer, usage).await?;
    Ok(rkube_pki::Identity {
        certificate,
        key: request.key,
    })
}

/// Has a request signed.
pub(super) async fn signed(
    client: &Client,
    request: &str,
    signer: &str,
    usage: &str,
) -> anyhow::Result<String> {
    let api = client.all::<CertificateSigningRequest>();
    let body = json!({
        "metadata": {"generateName": "csr-"},
        "spec": {
            "request": k8s_openapi::ByteString(request.as_bytes().to_vec()),
            "signerName": signer,
            "usages": ["digital signature", usage],
        },
    });
    let made = api.create(&body).await.context("ask for a certificate")?;
    let name = made.metadata.name.unwrap_or_default();
    let wait = async {
        loop {
            let seen = api.get(&name).await?;
            let status = seen.status.unwrap_or_default();
            if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
                return Ok(String::from_utf8(certificate.0)?);
            }
            let refused = status.conditions.into_iter().flatten();
            if let Some(no) = refused
                .into_iter()
                .find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"))
            {
                anyhow::bail!(
                    "the certificate is refused: {}",
                    no.message.unwrap_or_default()
                );
            }
            tokio::time::sleep(SIGN_PERIOD).await;
        }
    };
    match tokio::time::timeout(SIGN_PATIENCE, wait).await {
        Ok(result) => result,
        Err(_) => anyhow::bail!("request {name} was not signed within {SIGN_PATIENCE:?}"),
    }
}

/// A certificate in PEM (RFC 7468).
pub(super) fn pem_of(der: &[u8]) -> String {
    // ByteString is base64 in JSON.
    let encoded = json!(k8s_openapi::ByteString(der.to_vec()));
    let text = encoded.as_str().unwrap_or_default();
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn certificates_in_pem_are_read_again() {
        let (authority, _) = rkube_pki::Authority::new("x", now_s()).unwrap();
        let pem = pem_of(authority.der());
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(&der, authority.der());
    }
}
