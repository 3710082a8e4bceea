//! A node asks for its certificate and gets it.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rkube_controllers::{Config, PkiSigner};
use rkube_pki::{Authority, csr};
use serde_json::json;

use crate::{Cluster, PATIENCE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_node_gets_its_certificate() {
    let now = u64::try_from(rkube_client::clock::now().as_second()).unwrap();
    let (authority, _) = Authority::new("kubernetes", now).unwrap();
    let config = Config {
        node_signer: Some(Arc::new(PkiSigner::new(Arc::new(authority)))),
        ..Config::default()
    };
    let cluster = Cluster::with(0, config).await;
    let request = csr::node_request("worker-1").unwrap();
    let body = json!({"metadata": {"name": "join"}, "spec": {
        "request": ByteString(request.csr.into_bytes()),
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["digital signature", "client auth"],
        "username": "system:bootstrap:abcdef", "groups": ["system:bootstrappers"]}});
    let api = cluster.client.all::<CertificateSigningRequest>();
    let made = api.create(&body).await.unwrap();
    // The server may say who asks; then nobody approves this one by itself.
    if made.spec.username.as_deref() != Some("system:bootstrap:abcdef") {
        let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": ""}]}});
        api.patch_sub("join", "approval", &rkube_client::Patch::Merge(approve))
            .await
            .unwrap();
    }
    let until = tokio::time::Instant::now() + PATIENCE;
    let certificate = loop {
        let status = api.get("join").await.unwrap().status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            break certificate;
        }
        assert!(tokio::time::Instant::now() < until, "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(certificate.0.starts_with(b"-----BEGIN CERTIFICATE-----"));
    cluster.stop().await;
}
