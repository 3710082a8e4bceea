//! What the zone says, by Service: filled by informers, read by queries.
//!
//! A query finds its Service with one look into a hash map, by bytes of the
//! query itself; nothing is computed then and nothing allocated.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::ObjectKey;

use crate::wire::Name;

/// Longest key: two labels and a separator, in bytes.
const KEY_MAX_BYTES: usize = 127;

/// A port with a name, which has an SRV record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name.
    pub name: Box<[u8]>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static [u8],
    /// Its number.
    pub number: u16,
}

/// An endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name below the Service's.
    pub name: Box<[u8]>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Addresses of the Service's own.
    Cluster {
        /// The addresses.
        ips: Vec<IpAddr>,
        /// Its named ports.
        ports: Vec<Port>,
    },
    /// Its endpoints.
    Headless(Vec<Host>),
    /// Another name, in wire format.
    External(Box<[u8]>),
}

/// The zone's content.
#[derive(Debug, Default)]
pub struct Index {
    entries: HashMap<Box<[u8]>, Entry>,
    /// Names below the zone by address, in wire format without the zone.
    reverse: HashMap<IpAddr, BTreeSet<Box<[u8]>>>,
    namespaces: HashSet<Box<[u8]>>,
}

impl Index {
    /// The Service with these labels.
    #[must_use]
    pub fn find(&self, service: &[u8], namespace: &[u8]) -> Option<&Entry> {
        let mut key = [0; KEY_MAX_BYTES];
        let length = service.len() + 1 + namespace.len();
        let to = key.get_mut(..length)?;
        to[..service.len()].copy_from_slice(service);
        to[service.len()] = b'.';
        to[service.len() + 1..].copy_from_slice(namespace);
        self.entries.get(&key[..length])
    }

    /// Names of an address, in wire format without the zone.
    pub fn names(&self, ip: IpAddr) -> impl Iterator<Item = &[u8]> {
        self.reverse
            .get(&ip)
            .into_iter()
            .flatten()
            .map(|name| &**name)
    }

    /// Whether there is a namespace.
    #[must_use]
    pub fn has_namespace(&self, namespace: &[u8]) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Sets whether there is a namespace.
    pub fn set_namespace(&mut self, namespace: &str, there: bool) {
        if there {
            self.namespaces.insert(namespace.as_bytes().into());
        } else {
            self.namespaces.remove(namespace.as_bytes());
        }
    }

    /// Sets or removes a Service.
    pub fn set(&mut self, service: &ObjectKey, entry: Option<Entry>) {
        let key = format!("{}.{}", service.name, service.namespace);
        let key: Box<[u8]> = key.into_bytes().into();
        let new = entry.as_ref().map(|e| reverse(service, e));
        let old = match entry {
            Some(entry) => self.entries.insert(key, entry),
            None => self.entries.remove(&key),
        };
        for (ip, name) in old.iter().flat_map(|old| reverse(service, old)) {
            if let Some(names) = self.reverse.get_mut(&ip) {
                names.remove(&name);
                if names.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        for (ip, name) in new.into_iter().flatten() {
            self.reverse.entry(ip).or_default().insert(name);
        }
    }
}

/// The names of a Service's addresses.
fn reverse(service: &ObjectKey, entry: &Entry) -> Vec<(IpAddr, Box<[u8]>)> {
    let name = |host: &[u8]| {
        let mut name = Vec::new();
        let parts = [
            host,
            service.name.as_bytes(),
            service.namespace.as_bytes(),
            b"svc",
        ];
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            // Labels of the API are at most 63 bytes.
            name.push(u8::try_from(part.len()).unwrap_or(0));
            name.extend_from_slice(part);
        }
        name.into_boxed_slice()
    };
    match entry {
        Entry::Cluster { ips, .. } => ips.iter().map(|ip| (*ip, name(b""))).collect(),
        Entry::Headless(hosts) => hosts
            .iter()
            .flat_map(|host| host.ips.iter().map(|ip| (*ip, name(&host.name))))
            .collect(),
        Entry::External(_) => Vec::new(),
    }
}

fn protocol(text: Option<&str>) -> Option<&'static [u8]> {
    match text {
        None | Some("" | "TCP") => Some(b"tcp"),
        Some("UDP") => Some(b"udp"),
        Some("SCTP") => Some(b"sctp"),
        Some(_) => None,
    }
}

fn port(name: Option<&str>, kind: Option<&str>, number: i32) -> Option<Port> {
    let name = name.filter(|name| !name.is_empty() && name.len() < 64)?;
    Some(Port {
        name: name.to_ascii_lowercase().into_bytes().into(),
        protocol: protocol(kind)?,
        number: u16::try_from(number).ok()?,
    })
}

/// What a Service's name stands for; a pure function. `None`: its name does
/// not exist.
#[must_use]
pub fn entry(service: &Service, slices: &[&EndpointSlice]) -> Option<Entry> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = Name::parse(spec.external_name.as_deref()?)?;
        return Some(Entry::External(name.as_bytes().into()));
    }
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    if first == "None" {
        return Some(Entry::Headless(hosts(slices)));
    }
    let ips = spec.cluster_ips.as_deref().unwrap_or(&[]);
    let ips: Vec<IpAddr> = match ips {
        [] => first.parse().into_iter().collect(),
        ips => ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
    };
    let ports = spec.ports.iter().flatten();
    let ports = ports
        .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port))
        .collect();
    Some(Entry::Cluster { ips, ports })
}

/// Ready endpoints by name, in order. Those of one pod in both families are
/// one host if they have a hostname.
fn hosts(slices: &[&EndpointSlice]) -> Vec<Host> {
    type Parts = (BTreeSet<IpAddr>, BTreeSet<Port>);
    let mut hosts: BTreeMap<Box<[u8]>, Parts> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports: Vec<Port> = ports
            .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            if conditions.and_then(|c| c.ready) == Some(false) {
                continue;
            }
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>() else {
                    continue;
                };
                let name = match endpoint.hostname.as_deref().filter(|h| !h.is_empty()) {
                    Some(name) => name.to_ascii_lowercase(),
                    None => dashed(ip),
                };
                let host = hosts.entry(name.into_bytes().into()).or_default();
                host.0.insert(ip);
                host.1.extend(ports.iter().cloned());
            }
        }
    }
    hosts
        .into_iter()
        .map(|(name, (ips, ports))| Host {
            name,
            ips: ips.into_iter().collect(),
            ports: ports.into_iter().collect(),
        })
        .collect()
}

/// An address as a label: `10-0-0-1`, `fd00--1`.
#[must_use]
pub fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address of such a label.
#[must_use]
pub fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let v4 = || text.replace('-', ".").parse().ok().map(IpAddr::V4);
    let v6 = || text.replace('-', ":").parse().ok().map(IpAddr::V6);
    v4().or_else(v6)
}
