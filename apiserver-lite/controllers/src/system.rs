//! What every cluster has from its first second on: the system namespaces,
//! the two system priority classes, and the Service `kubernetes` that leads
//! to the API server.
//!
//! Upstream's API server keeps these itself (`pkg/controlplane/controller`,
//! `pkg/registry/scheduling/rest`); the objects are the same.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use rkube_client::{Change, Client, Informer, Object, ObjectKey, Patch, WorkQueue, merge_diff};
use serde_json::{Value, json};

use crate::error::{Error, Outcome};
use crate::owner;
use crate::starter::Starter;

/// Where the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiEndpoint {
    /// The first address of the Services' range: that of `kubernetes`.
    pub service_ip: IpAddr,
    /// The addresses of API servers that pods reach, all of one family.
    pub addresses: Vec<IpAddr>,
    /// Their port.
    pub port: u16,
}

/// The port of the Service `kubernetes`.
const SERVICE_PORT: u16 = 443;
const KUBERNETES: &str = "kubernetes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Namespaces,
    Priorities,
    Service,
}

struct System {
    namespaces: Arc<Informer<Namespace>>,
    priorities: Arc<Informer<PriorityClass>>,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue<Key>>,
    client: Client,
    api: Option<ApiEndpoint>,
}

/// Starts the controller.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(System {
        namespaces: starter.informers.of(),
        priorities: starter.informers.of(),
        services: starter.informers.of(),
        endpoints: starter.informers.of(),
        slices: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        api: starter.config.api_endpoint.clone(),
    });
    for key in [Key::Namespaces, Key::Priorities, Key::Service] {
        controller.queue.add(key);
    }
    wake(
        &controller.namespaces,
        &controller.queue,
        Key::Namespaces,
        "",
    );
    wake(
        &controller.priorities,
        &controller.queue,
        Key::Priorities,
        "",
    );
    wake(
        &controller.namespaces,
        &controller.queue,
        Key::Service,
        "default",
    );
    wake(
        &controller.services,
        &controller.queue,
        Key::Service,
        KUBERNETES,
    );
    wake(
        &controller.endpoints,
        &controller.queue,
        Key::Service,
        KUBERNETES,
    );
    wake(
        &controller.slices,
        &controller.queue,
        Key::Service,
        KUBERNETES,
    );
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.namespaces.synced().await;
        own.priorities.synced().await;
        own.services.synced().await;
        own.endpoints.synced().await;
        own.slices.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("system-objects", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

/// Wakes when an object of a name (any, if it is empty) goes or changes, or
/// comes where it is waited for.
fn wake<K: Object>(
    informer: &Informer<K>,
    queue: &Arc<WorkQueue<Key>>,
    key: Key,
    only: &'static str,
) {
    let queue = Arc::clone(queue);
    informer.on_change(move |change| {
        let name = owner::name(&**change.object());
        let gone = matches!(change, Change::Deleted(_));
        if name == only || (only.is_empty() && gone) {
            queue.add(key);
        }
    });
}

/// The namespaces that upstream's API server makes.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

fn priorities() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| json!({"metadata": {"name": name}, "value": value, "description": description});
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

fn service(api: &ApiEndpoint) -> Value {
    json!({
        "metadata": {
            "name": KUBERNETES,
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": api.service_ip,
            "clusterIPs": [api.service_ip],
            "ipFamilies": [if api.service_ip.is_ipv6() { "IPv6" } else { "IPv4" }],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": api.port}],
        },
    })
}

fn endpoints(api: &ApiEndpoint) -> Value {
    let addresses: Vec<Value> = api.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "metadata": {
            "name": KUBERNETES,
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": "https", "port": api.port, "protocol": "TCP"}],
        }],
    })
}

fn slice(api: &ApiEndpoint) -> Value {
    let endpoints: Vec<Value> = api
        .addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    let six = api.addresses.iter().any(IpAddr::is_ipv6);
    json!({
        "metadata": {
            "name": KUBERNETES,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": KUBERNETES},
        },
        "addressType": if six { "IPv6" } else { "IPv4" },
        "ports": [{"name": "https", "port": api.port, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

impl System {
    async fn sync(&self, key: Key) -> Outcome {
        match key {
            Key::Namespaces => {
                for name in NAMESPACES {
                    let body = json!({"metadata": {"name": name}});
                    self.keep(&self.namespaces, &body, &[]).await?;
                }
            }
            Key::Priorities => {
                for body in priorities() {
                    self.keep(&self.priorities, &body, &[]).await?;
                }
            }
            Key::Service => {
                let Some(api) = &self.api else { return Ok(()) };
                self.keep(&self.services, &service(api), &[]).await?;
                self.keep(&self.endpoints, &endpoints(api), &["/subsets"])
                    .await?;
                let parts = ["/endpoints", "/ports"];
                self.keep(&self.slices, &slice(api), &parts).await?;
            }
        }
        Ok(())
    }

    /// Makes an object that is not there, and brings those parts of one that
    /// is there to what they shall be.
    async fn keep<K: Object + serde::Serialize>(
        &self,
        informer: &Informer<K>,
        body: &Value,
        parts: &[&str],
    ) -> Outcome {
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let key = ObjectKey::new(text("/metadata/namespace"), text("/metadata/name"));
        let api = if key.namespace.is_empty() {
            self.client.all::<K>()
        } else {
            self.client.namespaced::<K>(&key.namespace)
        };
        let answer = match informer.store().get(&key) {
            None => api.create(body).await,
            Some(object) => {
                let have = rkube_api::value_of(&*object).unwrap_or_default();
                let mut patch = json!({});
                for part in parts {
                    let (old, new) = (have.pointer(part), body.pointer(part));
                    let null = Value::Null;
                    if let Some(change) = merge_diff(old.unwrap_or(&null), new.unwrap_or(&null)) {
                        patch[part.trim_start_matches('/')] = change;
                    }
                }
                if patch == json!({}) {
                    return Ok(());
                }
                api.patch(&key.name, &Patch::Merge(patch)).await
            }
        };
        match answer {
            Err(error) if error.is_already_exists() => Ok(()),
            answer => answer.map(|_| ()).map_err(Error::request("keep", key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn the_way_to_the_api_server() {
        let api = ApiEndpoint {
            service_ip: "10.96.0.1".parse().unwrap(),
            addresses: vec!["192.0.2.7".parse().unwrap()],
            port: 6443,
        };
        let service: Service = object(service(&api));
        let spec = service.spec.unwrap();
        assert_eq!(spec.cluster_ip.as_deref(), Some("10.96.0.1"));
        let slice: EndpointSlice = object(slice(&api));
        assert_eq!(
            (slice.address_type.as_str(), slice.ports.unwrap()[0].port),
            ("IPv4", Some(6443))
        );
        let endpoints: Endpoints = object(endpoints(&api));
        assert_eq!(
            endpoints.subsets.unwrap()[0].addresses.as_ref().unwrap()[0].ip,
            "192.0.2.7"
        );
    }
}
