//! What a Service wants and what a pod offers: pure functions.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::owner::{self, Labels, Selector};
use crate::pods;

/// On the endpoints of a Service without cluster address.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// IPv4 or IPv6, as `spec.ipFamilies` and `addressType` name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(super) fn has(self, address: &str) -> bool {
        match address.parse() {
            Ok(IpAddr::V4(_)) => self == Self::V4,
            Ok(IpAddr::V6(_)) => self == Self::V6,
            Err(_) => false,
        }
    }
}

/// The pods of a Service; `None` where somebody else says what its endpoints
/// are.
pub(super) fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let labels = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    Some(Selector::of_labels(labels))
}

pub(super) fn is_headless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// The address families of a Service, the first one first.
pub(super) fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|s| s.ip_families.as_ref());
    let mut families: Vec<Family> = named
        .into_iter()
        .flatten()
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let address = spec
            .and_then(|s| s.cluster_ip.as_deref())
            .unwrap_or_default();
        families.push(if Family::V6.has(address) {
            Family::V6
        } else {
            Family::V4
        });
    }
    families
}

pub(super) fn ports(service: &Service) -> &[ServicePort] {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.ports.as_deref()).unwrap_or_default()
}

/// The address of a pod in a family.
pub(super) fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let many = status.pod_ips.iter().flatten().map(|p| p.ip.as_str());
    let one = status.pod_ip.as_deref();
    many.chain(one).find(|ip| family.has(ip)).map(str::to_owned)
}

/// Whether a pod is an endpoint at all. One on its way out is only where that
/// is asked for.
pub(super) fn belongs(pod: &Pod, terminating_too: bool) -> bool {
    let status = pod.status.as_ref();
    let has_address = status.is_some_and(|s| {
        s.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty())
            || s.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    has_address && !pods::is_terminal(pod) && (terminating_too || !owner::is_deleting(pod))
}

/// The number of the pod's port that a Service's port means: a number, or the
/// container port of that name and protocol.
pub(super) fn port_number(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let find = |container: &Container| {
        let mut ports = container.ports.iter().flatten();
        let found = ports.find(|p| {
            p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
        });
        found.map(|p| p.container_port)
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).find_map(find)
}

/// The name by which DNS knows a pod of a headless Service.
pub(super) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    let same = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    (same && owner::namespace(pod) == owner::namespace(service)).then_some(hostname)
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

pub(super) fn node(pod: &Pod) -> Option<String> {
    Some(pods::node_of(pod).to_owned()).filter(|n| !n.is_empty())
}

/// The labels of a Service's endpoints, without what only the controllers
/// set.
pub(super) fn labels(service: &Service, own: &[&str]) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| key != HEADLESS && !own.contains(&key.as_str()));
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Whether a change of a pod can change endpoints.
pub(super) fn differs(old: &Pod, new: &Pod) -> bool {
    let addresses = |p: &Pod| {
        p.status
            .as_ref()
            .map(|s| (s.pod_ip.clone(), s.pod_ips.clone()))
    };
    let place = |p: &Pod| {
        let spec = p.spec.as_ref();
        spec.map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone()))
    };
    old.metadata.uid != new.metadata.uid
        || old.metadata.labels != new.metadata.labels
        || owner::is_deleting(old) != owner::is_deleting(new)
        || pods::is_ready(old) != pods::is_ready(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || addresses(old) != addresses(new)
        || place(old) != place(new)
}
