//! One Service and its slices as elements: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::endpoints::{Endpoints, NodeFacts, choose};
use crate::model::{
    Choice, Data, ENDPOINTS_MAX_COUNT, Entry, Front, Key, LOCAL_SLOT_OFFSET, Protocol,
};

/// Label that gives a Service to another proxy.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What one Service asks of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The elements; no key twice.
    pub entries: BTreeMap<Key, Data>,
    /// `healthCheckNodePort` and the number of ready endpoints on this node.
    pub health: Option<(u16, usize)>,
    /// Node ports and where they lead for this node's own clients.
    pub node_ports: BTreeMap<Front, SocketAddr>,
}

/// Compiles a Service. `skip` are addresses that this node answers itself.
#[must_use]
pub fn compile(
    service: &Service,
    slices: &[&EndpointSlice],
    node: &NodeFacts,
    skip: &BTreeSet<IpAddr>,
) -> Compiled {
    let mut out = Compiled::default();
    let Some(view) = View::of(service, skip) else {
        return out;
    };
    let mut healthy = [BTreeSet::new(), BTreeSet::new()];
    for port in view.ports {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or("");
        for v6 in [false, true] {
            let endpoints = choose(slices, name, protocol, v6, node);
            let local = endpoints.local.iter().map(SocketAddr::ip);
            healthy[usize::from(v6)].extend(local);
            view.port(&mut out, port, protocol, v6, &endpoints);
        }
    }
    for ip in &view.cluster_ips {
        out.entries.insert(Key::Known(*ip), Data::None);
    }
    let check = service.spec.as_ref().and_then(|s| s.health_check_node_port);
    out.health = check
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        // An endpoint with an address of each family is one.
        .map(|port| (port, healthy[0].len().max(healthy[1].len())));
    out
}

/// The parts of a Service that count.
struct View<'a> {
    ports: &'a [ServicePort],
    cluster_ips: Vec<IpAddr>,
    external: Vec<IpAddr>,
    balanced: Vec<IpAddr>,
    sources: Vec<IpNet>,
    node_ports: bool,
    internal_local: bool,
    external_local: bool,
    affinity_seconds: Option<u32>,
}

impl<'a> View<'a> {
    /// `None`: nothing of it is the proxy's business.
    fn of(service: &'a Service, skip: &BTreeSet<IpAddr>) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let labels = service.metadata.labels.as_ref();
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let first = spec.cluster_ip.as_deref().unwrap_or("");
        let other = labels.is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
        if other || kind == "ExternalName" || first == "None" || first.is_empty() {
            return None;
        }
        let parse = |list: &[String]| -> Vec<IpAddr> {
            let ips = list.iter().filter_map(|ip| ip.parse().ok());
            ips.filter(|ip| !skip.contains(ip)).collect()
        };
        let cluster_ips = match spec.cluster_ips.as_deref() {
            Some(list) if !list.is_empty() => parse(list),
            _ => parse(&[first.to_owned()]),
        };
        let balancer = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or(&[]);
        let balanced = ingress
            .iter()
            .filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|entry| entry.ip.clone())
            .collect::<Vec<_>>();
        let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        let timeout = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref()?.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            // The API's default, 3 hours.
            .unwrap_or(10_800);
        Some(Self {
            ports: spec.ports.as_deref().unwrap_or(&[]),
            cluster_ips,
            external: parse(spec.external_ips.as_deref().unwrap_or(&[])),
            balanced: if kind == "LoadBalancer" {
                parse(&balanced)
            } else {
                Vec::new()
            },
            sources: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse::<IpNet>().ok())
                .map(|range| range.trunc())
                .collect(),
            node_ports: matches!(kind, "NodePort" | "LoadBalancer"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            affinity_seconds: affinity.then_some(timeout),
        })
    }

    fn port(
        &self,
        out: &mut Compiled,
        port: &ServicePort,
        protocol: Protocol,
        v6: bool,
        endpoints: &Endpoints,
    ) {
        let Ok(number) = u16::try_from(port.port) else {
            return;
        };
        for ip in endpoints.hairpin.iter().copied() {
            out.entries.insert(Key::Hairpin(ip), Data::None);
        }
        let of = |ips: &[IpAddr]| -> Vec<Front> {
            let ips = ips.iter().filter(|ip| ip.is_ipv6() == v6);
            ips.map(|ip| Front::Address(*ip, protocol, number))
                .collect()
        };
        for front in of(&self.cluster_ips) {
            let inside = if self.internal_local {
                &endpoints.local
            } else {
                &endpoints.cluster
            };
            self.front(out, front, inside, &endpoints.cluster);
        }
        let mut outer = of(&self.external);
        outer.extend(of(&self.balanced));
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok());
        // A node port answers in the families that the Service has.
        let family = self.cluster_ips.iter().any(|ip| ip.is_ipv6() == v6);
        if let Some(port) = node_port.filter(|p| *p != 0 && self.node_ports && family) {
            outer.push(Front::Node { v6, protocol, port });
            let cluster_ip = self.cluster_ips.iter().find(|ip| ip.is_ipv6() == v6);
            if let Some(ip) = cluster_ip {
                let target = SocketAddr::new(*ip, number);
                out.node_ports
                    .insert(Front::Node { v6, protocol, port }, target);
            }
        }
        for front in outer {
            self.front(out, front, &endpoints.cluster, &endpoints.cluster);
            if self.external_local {
                self.outside(out, front, endpoints);
            }
        }
        if !self.sources.is_empty() {
            for front in of(&self.balanced) {
                out.entries.insert(Key::Guarded(front), Data::None);
                for range in &self.sources {
                    if range.addr().is_ipv6() == v6 {
                        out.entries.insert(Key::Source(front, *range), Data::None);
                    }
                }
            }
        }
    }

    /// A front with its endpoints; refused if nobody has any, dropped if
    /// only this node has none.
    fn front(
        &self,
        out: &mut Compiled,
        front: Front,
        endpoints: &[SocketAddr],
        anywhere: &[SocketAddr],
    ) {
        if anywhere.is_empty() && endpoints.is_empty() {
            out.entries.insert(Key::Refused(front), Data::None);
        } else if endpoints.is_empty() {
            out.entries.insert(Key::Front(front), Data::Drop);
        } else {
            let choice = self.slots(out, front, endpoints, false);
            out.entries.insert(Key::Front(front), Data::Choose(choice));
        }
    }

    /// What packets from outside get where only local endpoints count.
    fn outside(&self, out: &mut Compiled, front: Front, endpoints: &Endpoints) {
        if endpoints.cluster.is_empty() && endpoints.local.is_empty() {
            return;
        }
        let data = if endpoints.local.is_empty() {
            Data::Drop
        } else {
            Data::Choose(self.slots(out, front, &endpoints.local, true))
        };
        out.entries.insert(Key::Outside(front), data);
    }

    /// The endpoints of a front by slot.
    fn slots(
        &self,
        out: &mut Compiled,
        front: Front,
        endpoints: &[SocketAddr],
        local: bool,
    ) -> Choice {
        let endpoints = &endpoints[..endpoints.len().min(ENDPOINTS_MAX_COUNT)];
        let offset = if local { LOCAL_SLOT_OFFSET } else { 0 };
        let mut put = |entry: Entry| out.entries.insert(entry.0, entry.1);
        let numbers = match self.affinity_seconds {
            Some(_) => numbers(endpoints),
            None => Vec::new(),
        };
        let mut count = 0;
        for (slot, endpoint) in (0..).zip(endpoints) {
            count = slot + 1;
            let place = match numbers.get(usize::from(slot)) {
                None => slot,
                Some(number) => {
                    let pick = Key::Pick(front, offset + slot);
                    put((pick, Data::Number(offset + number)));
                    *number
                }
            };
            put((
                Key::Endpoint(front, offset + place),
                Data::Endpoint(*endpoint),
            ));
        }
        Choice {
            node: matches!(front, Front::Node { .. }),
            local,
            count,
            affinity_seconds: self.affinity_seconds,
        }
    }
}

/// A number for each endpoint that depends on its address and hardly on the
/// others: a client keeps its endpoint when others come and go.
fn numbers(endpoints: &[SocketAddr]) -> Vec<u16> {
    let mut taken = BTreeSet::new();
    endpoints
        .iter()
        .map(|endpoint| {
            let mut number = hash(*endpoint) % LOCAL_SLOT_OFFSET;
            // At most as many as there are numbers: one is free.
            while !taken.insert(number) {
                number = (number + 1) % LOCAL_SLOT_OFFSET;
            }
            number
        })
        .collect()
}

/// FNV-1a over address and port, folded to 16 bits.
fn hash(endpoint: SocketAddr) -> u16 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let start = 0xcbf2_9ce4_8422_2325;
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.octets().iter().fold(start, step),
        IpAddr::V6(ip) => ip.octets().iter().fold(start, step),
    };
    let [a, b, c, d, e, f, g, h] = endpoint
        .port()
        .to_be_bytes()
        .iter()
        .fold(ip, step)
        .to_be_bytes();
    u16::from_be_bytes([a ^ c ^ e ^ g, b ^ d ^ f ^ h])
}
