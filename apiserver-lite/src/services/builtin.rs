//! What every cluster has: its namespaces, and the Services of the API server
//! and of DNS.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::{Api, ApiError, Client, Object, Patch};
use serde::Serialize;
use serde_json::{Value, json};

use super::ServicesConfig;

/// Which address of the first range the API server has, counted from the
/// range's own.
const API_OFFSET: u128 = 1;
/// Which addresses cluster DNS has, as by convention.
const DNS_OFFSET: u128 = 10;

impl ServicesConfig {
    /// The address with this number in each range that is large enough.
    fn nth(&self, offset: u128) -> Vec<IpAddr> {
        let ranges = self.ranges.iter();
        ranges
            .filter_map(|(ip, prefix)| match ip {
                IpAddr::V4(ip) => {
                    let count = 1_u64.checked_shl(32 - u32::from(*prefix).min(32))?;
                    // The last address is the broadcast's.
                    let offset = u32::try_from(offset).ok()?;
                    let base = u64::from(ip.to_bits()) & !(count - 1);
                    let fits = u64::from(offset) + 1 < count;
                    let number = u32::try_from(base).ok()?.checked_add(offset)?;
                    fits.then(|| IpAddr::V4(number.into()))
                }
                IpAddr::V6(ip) => {
                    let count = 1_u128.checked_shl(128 - u32::from(*prefix).min(128))?;
                    let base = ip.to_bits() & !(count - 1);
                    (offset < count).then(|| IpAddr::V6((base + offset).into()))
                }
            })
            .collect()
    }

    /// The address of the API server's Service: the first of the first range.
    #[must_use]
    pub fn api_address(&self) -> Option<IpAddr> {
        self.nth(API_OFFSET).first().copied()
    }

    /// The addresses of cluster DNS, one of each range.
    #[must_use]
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        self.nth(DNS_OFFSET)
    }
}

/// The namespaces that upstream's server makes.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Makes the system's namespaces, the Services `default/kubernetes` and `kube-system/kube-dns` unless
/// they are there, and the endpoints of the former what they should be:
/// `address` and `port` are where this server is reached from pods.
///
/// # Errors
/// The API's refusal.
pub async fn ensure(
    client: &Client,
    config: &ServicesConfig,
    address: IpAddr,
    port: u16,
) -> Result<(), ApiError> {
    for name in NAMESPACES {
        create(
            &client.all::<Namespace>(),
            &json!({"metadata": {"name": name}}),
        )
        .await?;
    }
    let services = client.namespaced::<Service>("default");
    if let Some(ip) = config.api_address() {
        create(&services, &api_service(ip, port)).await?;
        let (endpoints, slice) = api_endpoints(address, port);
        put(&client.namespaced::<Endpoints>("default"), &endpoints).await?;
        put(&client.namespaced::<EndpointSlice>("default"), &slice).await?;
    }
    let ips = config.dns_addresses();
    if ips.is_empty() {
        return Ok(());
    }
    let services = client.namespaced::<Service>("kube-system");
    create(&services, &dns_service(&ips)).await
}

async fn create<K: Object>(api: &Api<K>, object: &(impl Serialize + Sync)) -> Result<(), ApiError> {
    match api.create(object).await {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

async fn put<K: Object>(api: &Api<K>, object: &Value) -> Result<(), ApiError> {
    match api.create(object).await {
        Err(error) if error.is_already_exists() => {
            let name = object["metadata"]["name"].as_str().unwrap_or("");
            // The same again is no write.
            api.patch(name, &Patch::Merge(object.clone()))
                .await
                .map(drop)
        }
        other => other.map(drop),
    }
}

fn api_service(ip: IpAddr, port: u16) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    })
}

fn api_endpoints(address: IpAddr, port: u16) -> (Value, Value) {
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    (endpoints, slice)
}

fn dns_service(ips: &[IpAddr]) -> Value {
    let policy = if ips.len() > 1 {
        "PreferDualStack"
    } else {
        "SingleStack"
    };
    json!({
        "metadata": {"name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS"}},
        "spec": {"type": "ClusterIP", "clusterIP": ips.first(), "clusterIPs": ips,
            "ipFamilyPolicy": policy,
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]},
    })
}
