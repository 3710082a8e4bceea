//! What a cluster has before anybody asks for it: namespaces, roles, priority
//! classes, the Service of the API server itself.
//!
//! Runs at each start: what is missing is made, default roles get rules and
//! subjects back that they lack (unless their `autoupdate` annotation says
//! `false`), and nothing else is touched.

use std::net::IpAddr;
use std::sync::Arc;

use rkube_api::status::Status;
use serde_json::{Value, json};

use crate::authz::defaults;
use crate::authz::rbac::GROUP;
use crate::engine::Engine;
use crate::request::{Request, User, Verb};
use rkube_api::resources::preferred;

/// Where the API server is reached.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The first address of the Service range: the Service `kubernetes`.
    pub service_ip: IpAddr,
    /// The address that nodes and pods reach the server at.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The certificate authority, in PEM.
    pub authority: String,
}

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
///
/// # Errors
/// The first write that is refused.
pub async fn run(engine: &Engine, cluster: &Cluster) -> Result<(), Status> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(engine, "", "namespaces", object).await?;
    }
    for object in priority_classes() {
        ensure(engine, "scheduling.k8s.io", "priorityclasses", object).await?;
    }
    for (plural, object) in defaults::objects() {
        reconcile(engine, plural, object).await?;
    }
    let client_ca = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": cluster.authority},
    });
    ensure(engine, "", "configmaps", client_ca).await?;
    let [service, endpoints, slice] = kubernetes_service(cluster);
    ensure(engine, "", "services", service).await?;
    if cluster.address.is_loopback() {
        // No endpoint may be there: no pod would reach it.
        return Ok(());
    }
    replace(engine, "", "endpoints", endpoints).await?;
    replace(engine, "discovery.k8s.io", "endpointslices", slice).await
}

/// Upstream's two built-in classes (`scheduling/v1/helpers.go`).
fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// The Service by which pods find the API server, its Endpoints and slice.
fn kubernetes_service(cluster: &Cluster) -> [Value; 3] {
    let family = if cluster.address.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let service_family = if cluster.service_ip.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": cluster.service_ip.to_string(),
            "clusterIPs": [cluster.service_ip.to_string()],
            "ipFamilies": [service_family], "ipFamilyPolicy": "SingleStack", "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": cluster.port}],
        },
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": cluster.address.to_string()}],
            "ports": [{"name": "https", "port": cluster.port, "protocol": "TCP"}],
        }],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [cluster.address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": cluster.port, "protocol": "TCP"}],
    });
    [service, endpoints, slice]
}

fn place(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    (text("namespace"), text("name"))
}

async fn write(
    engine: &Engine,
    verb: Verb,
    group: &str,
    plural: &str,
    object: &Value,
) -> Result<(), Status> {
    let resource = preferred(group, plural).ok_or_else(Status::no_such_resource)?;
    let (namespace, name) = place(object);
    let mut request = Request::new(Arc::new(User::server()), verb, resource);
    request.namespace = namespace;
    if verb == Verb::Update {
        request.name = name;
    }
    request.body = object.to_string().into();
    let mut warnings = Vec::new();
    engine.call(&request, &mut warnings).await.map(drop)
}

fn find(
    engine: &Engine,
    group: &str,
    plural: &str,
    object: &Value,
) -> Result<Option<Value>, Status> {
    let (namespace, name) = place(object);
    engine.objects().find(group, plural, &namespace, &name)
}

/// Creates an object that is not there.
async fn ensure(engine: &Engine, group: &str, plural: &str, object: Value) -> Result<(), Status> {
    if find(engine, group, plural, &object)?.is_some() {
        return Ok(());
    }
    match write(engine, Verb::Create, group, plural, &object).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        other => other,
    }
}

/// Creates an object, or makes one that is there say the same.
async fn replace(engine: &Engine, group: &str, plural: &str, object: Value) -> Result<(), Status> {
    let Some(mut found) = find(engine, group, plural, &object)? else {
        return ensure(engine, group, plural, object).await;
    };
    let before = found.clone();
    for (field, value) in object.as_object().into_iter().flatten() {
        if !matches!(field.as_str(), "metadata" | "apiVersion" | "kind") {
            found[field] = value.clone();
        }
    }
    if found == before {
        return Ok(());
    }
    write(engine, Verb::Update, group, plural, &found).await
}

/// Creates a default role or binding, or gives one back what it lacks.
async fn reconcile(engine: &Engine, plural: &str, object: Value) -> Result<(), Status> {
    let Some(mut found) = find(engine, GROUP, plural, &object)? else {
        return ensure(engine, GROUP, plural, object).await;
    };
    const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
    if found["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Ok(());
    }
    let mut changed = false;
    for field in ["rules", "subjects"] {
        let wanted = object[field].as_array().map_or(&[][..], Vec::as_slice);
        for item in wanted {
            let has = found[field]
                .as_array()
                .is_some_and(|list| list.contains(item));
            if has {
                continue;
            }
            changed = true;
            match found[field].as_array_mut() {
                Some(list) => list.push(item.clone()),
                None => found[field] = json!([item]),
            }
        }
    }
    if !changed {
        return Ok(());
    }
    write(engine, Verb::Update, GROUP, plural, &found).await
}
