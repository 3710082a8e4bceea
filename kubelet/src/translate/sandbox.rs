//! The sandbox of a pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::{NamespaceMode, PortMapping, Protocol, Resources, SandboxConfig};

use super::{TranslateError, qos, security::pod_security};
use crate::files::hosts;
use crate::node::{NodeFacts, Paths};
use crate::pod::{self, Kind};

/// Size of the /dev/shm that a pod's containers share.
pub const SHM_BYTES: u64 = 64 * 1024 * 1024;
/// The longest host name (HOST_NAME_MAX, sethostname(2)).
pub const MAX_HOSTNAME_BYTES: usize = 64;

/// Labels that every sandbox and container carries.
#[must_use]
pub fn labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        (
            "io.kubernetes.pod.name".to_owned(),
            pod::name(pod).to_owned(),
        ),
        (
            "io.kubernetes.pod.namespace".to_owned(),
            pod::namespace(pod).to_owned(),
        ),
        ("io.kubernetes.pod.uid".to_owned(), pod::uid(pod).to_owned()),
    ])
}

/// What the pod's sandbox is to be. `parents` are the limits of the cgroups
/// above it ([`qos::tier_resources`]).
///
/// # Errors
/// The host name is too long or a host port has no address.
pub fn sandbox(
    pod: &Pod,
    node: &NodeFacts,
    paths: &Paths,
    parents: BTreeMap<String, Resources>,
) -> Result<SandboxConfig, TranslateError> {
    let spec = pod::spec(pod);
    let host = |flag: Option<bool>| {
        if flag == Some(true) {
            NamespaceMode::Host
        } else {
            NamespaceMode::Pod
        }
    };
    let hostname = hostname(pod, node)?;
    let network = host(spec.host_network);
    Ok(SandboxConfig {
        id: pod::uid(pod).to_owned(),
        display_name: pod::display_name(pod),
        hostname,
        domainname: None,
        network,
        ipc: host(spec.host_ipc),
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => NamespaceMode::Host,
            (_, Some(true)) => NamespaceMode::Pod,
            _ => NamespaceMode::Container,
        },
        user_namespace: spec.host_users == Some(false),
        ports: if network == NamespaceMode::Host {
            Vec::new()
        } else {
            ports(pod)?
        },
        sysctls: pod_security(pod)
            .sysctls
            .iter()
            .flatten()
            .map(|s| (s.name.replace('/', "."), s.value.clone()))
            .collect(),
        cgroup: qos::class(pod).pod_cgroup(pod::uid(pod)),
        resources: qos::pod_resources(pod),
        parent_resources: parents,
        log_dir: paths.pod_logs(pod),
        shm_bytes: SHM_BYTES,
        labels: labels(pod),
    })
}

/// The host name of the UTS namespace: with the host's network the host's,
/// with `setHostnameAsFQDN` the full name.
fn hostname(pod: &Pod, node: &NodeFacts) -> Result<String, TranslateError> {
    let spec = pod::spec(pod);
    let own = spec
        .hostname_override
        .as_deref()
        .is_some_and(|h| !h.is_empty());
    let name = if pod::host_network(pod) && !own {
        node.name.clone()
    } else if spec.set_hostname_as_fqdn == Some(true) && !own {
        hosts::fqdn(pod, node).unwrap_or_else(|| pod::hostname(pod))
    } else {
        pod::hostname(pod)
    };
    if name.len() > MAX_HOSTNAME_BYTES {
        return Err(TranslateError::Hostname { name });
    }
    Ok(name)
}

/// Host ports of main containers and sidecars.
fn ports(pod: &Pod) -> Result<Vec<PortMapping>, TranslateError> {
    let mut list = Vec::new();
    let all = pod::containers(pod).filter(|(kind, _)| *kind != Kind::Init);
    for port in all.flat_map(|(_, c)| c.ports.iter().flatten()) {
        let Some(host_port) = port.host_port.filter(|p| *p != 0) else {
            continue;
        };
        let number = |field: &str, value: i32| {
            u16::try_from(value)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| TranslateError::OutOfRange {
                    field: field.to_owned(),
                    value: value.into(),
                })
        };
        let host_ip = match port.host_ip.as_deref().filter(|t| !t.is_empty()) {
            None => None,
            Some(text) => {
                let ip: std::net::IpAddr = text.parse().map_err(|_| TranslateError::HostIp {
                    text: text.to_owned(),
                })?;
                Some(ip).filter(|ip| !ip.is_unspecified())
            }
        };
        list.push(PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            host_ip,
            host_port: number("hostPort", host_port)?,
            container_port: number("containerPort", port.container_port)?,
        });
    }
    Ok(list)
}
