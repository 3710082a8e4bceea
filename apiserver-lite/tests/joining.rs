//! What nodes, and whoever wants to be one, may do: certificate requests,
//! objects of other nodes, bootstrap tokens over TLS.

#![allow(clippy::unwrap_used)]

mod cluster;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::api::storage::v1::CSINode;
use rkube_apiserver::request::User;
use rkube_client::{ApiError, Client, DeleteParams, ListParams, Patch};
use rkube_pki::bootstrap::{BootstrapToken, GROUP};
use rkube_pki::{csr, kubeconfig::Kubeconfig};
use serde_json::{Value, json};

use cluster::TestCluster;

const CSR_NODE: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CSR_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn admin() -> User {
    User::named("kubernetes-admin", &["system:masters"])
}

fn request(name: &str, signer: &str, pem: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "request": k8s_openapi::ByteString(pem.as_bytes().to_vec()), "signerName": signer,
        "usages": ["client auth"], "username": "mallory", "groups": ["devs"]}})
}

/// A user with rules of its own.
async fn user(cluster: &TestCluster, name: &str, rules: Value) -> Client {
    let client = cluster.client(admin());
    let role = json!({"metadata": {"name": name}, "rules": rules});
    client.all::<ClusterRole>().create(&role).await.unwrap();
    let binding = json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]});
    let bindings = client.all::<ClusterRoleBinding>();
    bindings.create(&binding).await.unwrap();
    cluster.client(User::named(name, &[]))
}

fn refusal(answer: Result<impl std::fmt::Debug, ApiError>, words: &str) {
    let text = answer.unwrap_err().to_string();
    assert!(text.contains(words), "{text}");
}

fn conditions(kinds: &[&str]) -> Value {
    kinds
        .iter()
        .map(|kind| json!({"type": kind, "status": "True", "reason": "Test"}))
        .collect()
}

/// Whoever may change a request may not become somebody else by it.
#[tokio::test]
async fn a_request_stays_what_was_asked() {
    let cluster = cluster::bare().await;
    let client = cluster.client(admin());
    let api = client.all::<CertificateSigningRequest>();
    let pem = csr::node_request("a").unwrap().csr;
    api.create(&request("a", CSR_NODE, &pem)).await.unwrap();
    let asked = api.get("a").await.unwrap().spec;
    let other = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"username": "system:bootstrap:abcdef", "groups": [GROUP], "signerName": "example.com/a"},
        "status": {"conditions": conditions(&["Approved"])}});
    let patched = api.patch("a", &Patch::Merge(other)).await.unwrap();
    assert_eq!(patched.spec, asked);
    assert_eq!(patched.metadata.labels.unwrap()["a"], "b");
    assert!(patched.status.unwrap_or_default().conditions.is_none());
    let mut whole = serde_json::to_value(api.get("a").await.unwrap()).unwrap();
    whole["spec"]["groups"] = json!([GROUP]);
    let updated = api.update("a", &whole).await.unwrap();
    assert_eq!(updated.spec, asked);
    let status = |conditions: Value, certificate: Value| {
        Patch::Merge(json!({"spec": {"username": "x"},
            "status": {"conditions": conditions, "certificate": certificate}}))
    };
    // A status neither approves nor takes an approval back.
    let approved = conditions(&["Approved"]);
    let adds = status(approved.clone(), Value::Null);
    refusal(
        api.patch_status("a", &adds).await,
        "updates may not add a condition of type \"Approved\"",
    );
    let approve = Patch::Merge(json!({"status": {"conditions": approved, "certificate": "YQ=="}}));
    let made = api.patch_sub("a", "approval", &approve).await.unwrap();
    assert!(made["status"]["certificate"].is_null(), "{made}");
    assert!(made["status"]["conditions"][0]["lastTransitionTime"].is_string());
    let removes = status(Value::Null, Value::Null);
    refusal(
        api.patch_status("a", &removes).await,
        "updates may not remove a condition of type \"Approved\"",
    );
    let signed =
        Patch::Merge(json!({"spec": {"username": "x"}, "status": {"certificate": "YQ=="}}));
    let signed = api.patch_status("a", &signed).await.unwrap();
    assert_eq!(signed.spec, asked);
    assert_eq!(signed.status.unwrap().certificate.unwrap().0, b"a");
    let other = Patch::Merge(json!({"status": {"certificate": "Yg=="}}));
    refusal(
        api.patch_status("a", &other).await,
        "updates may not modify existing certificate content",
    );
}

#[tokio::test]
async fn signers_are_approved_and_signed_for_by_who_may() {
    let cluster = cluster::bare().await;
    let client = cluster.client(admin());
    let api = client.all::<CertificateSigningRequest>();
    let pem = csr::node_request("a").unwrap().csr;
    for (name, signer) in [("a", CSR_NODE), ("b", "example.com/one")] {
        api.create(&request(name, signer, &pem)).await.unwrap();
    }
    let writes = json!({"apiGroups": ["certificates.k8s.io"], "verbs": ["update", "patch", "get"],
        "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"]});
    let may = |verb: &str, names: &[&str]| {
        json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
            "verbs": [verb], "resourceNames": names})
    };
    let eve = user(&cluster, "eve", json!([writes.clone()])).await;
    let rules = json!([
        writes,
        may("approve", &["example.com/*"]),
        may("sign", &["example.com/one"])
    ]);
    let trent = user(&cluster, "trent", rules).await;
    let approve = Patch::Merge(json!({"status": {"conditions": conditions(&["Approved"])}}));
    let sign = Patch::Merge(json!({"status": {"certificate": "YQ=="}}));
    let of = |client: &Client| client.all::<CertificateSigningRequest>();
    refusal(
        of(&eve).patch_sub("b", "approval", &approve).await,
        "user not permitted to approve requests with signerName \"example.com/one\"",
    );
    refusal(
        of(&eve).patch_status("b", &sign).await,
        "user not permitted to sign requests with signerName \"example.com/one\"",
    );
    // What changes nothing of an answer needs no right to sign.
    let nothing = Patch::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
    of(&eve).patch_status("b", &nothing).await.unwrap();
    refusal(
        of(&trent).patch_sub("a", "approval", &approve).await,
        "user not permitted to approve",
    );
    let trent = of(&trent);
    trent.patch_sub("b", "approval", &approve).await.unwrap();
    trent.patch_status("b", &sign).await.unwrap();
    // Nobody asks for the administrators' group.
    let pem = csr::request("root", "system:masters").unwrap().csr;
    refusal(
        api.create(&request("c", CSR_CLIENT, &pem)).await,
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed",
    );
    refusal(
        api.create(&request("d", CSR_CLIENT, "none")).await,
        "failed to parse CSR",
    );
    let pem = csr::request("alice", "devs").unwrap().csr;
    api.create(&request("e", CSR_CLIENT, &pem)).await.unwrap();
}

/// Objects about a node are written by that node alone.
#[tokio::test]
async fn a_node_writes_about_itself() {
    let cluster = cluster::bare().await;
    let node = |name: &str| {
        cluster.client(User::named(
            &format!("system:node:{name}"),
            &["system:nodes"],
        ))
    };
    let (a, b) = (node("a"), node("b"));
    let csi = |name: &str| json!({"metadata": {"name": name}, "spec": {"drivers": []}});
    let own = a.all::<CSINode>();
    own.create(&csi("a")).await.unwrap();
    refusal(
        b.all::<CSINode>().create(&csi("c")).await,
        "can only access CSINode with the same name as the requesting node",
    );
    let labels = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    own.patch("a", &labels).await.unwrap();
    let others = b.all::<CSINode>();
    let words = "can only access CSINode with the same name as the requesting node";
    refusal(others.patch("a", &labels).await, words);
    refusal(others.get("a").await, words);
    refusal(others.delete("a", &DeleteParams::default()).await, words);
    let slice = |name: &str, node: Value| {
        let mut slice = json!({"metadata": {"name": name}, "spec": {"driver": "d.example.com",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": []}});
        match node {
            Value::Null => slice["spec"]["allNodes"] = true.into(),
            node => slice["spec"]["nodeName"] = node,
        }
        slice
    };
    let slices = a.all::<ResourceSlice>();
    slices.create(&slice("a", json!("a"))).await.unwrap();
    for (name, node) in [("b", json!("b")), ("all", Value::Null)] {
        refusal(
            slices.create(&slice(name, node)).await,
            "can only create ResourceSlice with the same NodeName as the requesting node",
        );
    }
    for change in [
        json!({"nodeName": "b"}),
        json!({"nodeName": null, "allNodes": true}),
    ] {
        refusal(
            slices
                .patch("a", &Patch::Merge(json!({"spec": change})))
                .await,
            "can only update ResourceSlice with the same NodeName as the requesting node",
        );
    }
    let others = b.all::<ResourceSlice>();
    refusal(
        others.delete("a", &DeleteParams::default()).await,
        "no relationship found between node 'b' and this object",
    );
    let list = slices.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 1);
    own.delete("a", &DeleteParams::default()).await.unwrap();
    slices.delete("a", &DeleteParams::default()).await.unwrap();
}

/// Of a claim that its pods use a node tells what it found, and nothing else.
#[tokio::test]
async fn a_node_tells_the_size_of_its_claims() {
    let cluster = cluster::bare().await;
    let root = cluster.client(admin());
    let accounts = root.namespaced::<ServiceAccount>("default");
    let account = json!({"metadata": {"name": "default"}});
    accounts.create(&account).await.unwrap();
    let claims = root.namespaced::<PersistentVolumeClaim>("default");
    let claim = json!({"metadata": {"name": "disk"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    claims.create(&claim).await.unwrap();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a",
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "disk"}}]}});
    root.namespaced::<Pod>("default")
        .create(&pod)
        .await
        .unwrap();
    let node = cluster.client(User::named("system:node:a", &["system:nodes"]));
    let own = node.namespaced::<PersistentVolumeClaim>("default");
    let status = |change: Value| Patch::Merge(change);
    let size = json!({"status": {"capacity": {"storage": "2Gi"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}});
    own.patch_sub("disk", "status", &status(size))
        .await
        .unwrap();
    for change in [
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"finalizers": ["example.com/stays"]}}),
        json!({"status": {"phase": "Lost"}}),
    ] {
        refusal(
            own.patch_sub("disk", "status", &status(change)).await,
            "is not allowed to update fields other than status.capacity and status.conditions",
        );
    }
}

/// Bootstrap tokens over TLS: the right one asks for certificates and does
/// nothing else, and any other one is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_tokens_open_one_door() {
    let cluster = cluster::bare().await;
    let secrets = cluster.client(admin()).namespaced::<Secret>("kube-system");
    let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
    let made = secrets.create(&token.to_secret(None)).await.unwrap();
    let name = made.metadata.name.unwrap();
    let over_tls = |token: &str| {
        let config = Kubeconfig {
            server: format!("https://{}", cluster.server.address()),
            authority: cluster.pki.authority().pem().to_owned(),
            token: Some(token.to_owned()),
            ..Kubeconfig::default()
        };
        cluster::over_tls(&config)
    };
    let joins = over_tls("abcdef.0123456789abcdef");
    let pem = csr::node_request("a").unwrap().csr;
    let requests = joins.all::<CertificateSigningRequest>();
    requests
        .create(&request("a", CSR_NODE, &pem))
        .await
        .unwrap();
    requests.get("a").await.unwrap();
    for refused in [
        joins
            .namespaced::<Secret>("kube-system")
            .get(&name)
            .await
            .map(drop),
        joins
            .all::<Node>()
            .list(&ListParams::default())
            .await
            .map(drop),
        requests
            .delete("a", &DeleteParams::default())
            .await
            .map(drop),
        requests
            .patch("a", &Patch::Merge(json!({})))
            .await
            .map(drop),
        requests
            .patch_sub("a", "approval", &Patch::Merge(json!({})))
            .await
            .map(drop),
        joins
            .namespaced::<ConfigMap>("default")
            .create(&json!({"metadata": {"name": "x"}}))
            .await
            .map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.code(), 403, "{error}");
    }
    let unauthorized = async |token: &str| {
        let requests = over_tls(token).all::<CertificateSigningRequest>();
        let error = requests.get("a").await.unwrap_err();
        assert_eq!(error.code(), 401, "{token}: {error}");
    };
    for wrong in [
        "abcdef.0123456789abcdee",
        "abcdeg.0123456789abcdef",
        "abcdef",
        "abcdef.0123456789abcdef0",
    ] {
        unauthorized(wrong).await;
    }
    let field = |name: &str, text: &str| {
        let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
        Patch::Merge(json!({"data": {name: bytes}}))
    };
    let spoilt = [
        (
            "auth-extra-groups",
            "system:masters",
            "system:bootstrappers:kubeadm:default-node-token",
        ),
        ("usage-bootstrap-authentication", "false", "true"),
        ("expiration", "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"),
    ];
    for (what, wrong, right) in spoilt {
        secrets.patch(&name, &field(what, wrong)).await.unwrap();
        unauthorized("abcdef.0123456789abcdef").await;
        secrets.patch(&name, &field(what, right)).await.unwrap();
        requests.get("a").await.unwrap();
    }
    secrets
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    unauthorized("abcdef.0123456789abcdef").await;
}
