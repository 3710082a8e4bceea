//! Which endpoints a Service port sends to, from its slices.
//!
//! The rules are kube-proxy's: ready ones; if there is none, those that still
//! serve while they end (KEP-1669); of these, those hinted for this node or
//! its zone, if every one has a hint (KEP-2433, KEP-3015).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::model::Protocol;

/// What is known of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// One endpoint as its slices tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    for_node: Option<bool>,
    for_zone: Option<bool>,
}

/// The usable endpoints of one port and family, in order of their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For everyone.
    pub cluster: Vec<SocketAddr>,
    /// On this node.
    pub local: Vec<SocketAddr>,
    /// All that are on this node, used or not: for counting and hairpins.
    pub hairpin: Vec<IpAddr>,
}

/// Chooses the endpoints of the port with this name.
#[must_use]
pub fn choose(
    slices: &[&EndpointSlice],
    port_name: &str,
    protocol: Protocol,
    v6: bool,
    node: &NodeFacts,
) -> Endpoints {
    let mut all: BTreeMap<SocketAddr, Seen> = BTreeMap::new();
    for slice in slices {
        if slice.address_type != if v6 { "IPv6" } else { "IPv4" } {
            continue;
        }
        let Some(port) = port_of(slice, port_name, protocol) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            // The first address is the endpoint; more of them are reserved.
            let address = endpoint.addresses.first().and_then(|a| a.parse().ok());
            let Some(address) = address.filter(|ip: &IpAddr| ip.is_ipv6() == v6) else {
                continue;
            };
            let new = seen(endpoint, node);
            let entry = all.entry(SocketAddr::new(address, port)).or_insert(new);
            // In two slices while it moves from one to the other: the better counts.
            if new.ready && !entry.ready {
                *entry = new;
            }
        }
    }
    let hairpin = all.iter().filter(|(_, seen)| seen.local);
    let mut hairpin: Vec<IpAddr> = hairpin.map(|(address, _)| address.ip()).collect();
    hairpin.dedup();
    Endpoints {
        cluster: hinted(usable(all.iter().collect())),
        local: usable(all.iter().filter(|(_, seen)| seen.local).collect())
            .into_iter()
            .map(|(address, _)| *address)
            .collect(),
        hairpin,
    }
}

fn port_of(slice: &EndpointSlice, name: &str, protocol: Protocol) -> Option<u16> {
    let ports = slice.ports.iter().flatten();
    ports
        .filter(|port| port.name.as_deref().unwrap_or("") == name)
        .filter(|port| Protocol::parse(port.protocol.as_deref()) == Some(protocol))
        .find_map(|port| u16::try_from(port.port?).ok())
}

fn seen(endpoint: &Endpoint, node: &NodeFacts) -> Seen {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Absent means ready; absent `serving` follows `ready`.
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let for_nodes = hints.and_then(|h| h.for_nodes.as_ref());
    let for_zones = hints.and_then(|h| h.for_zones.as_ref());
    Seen {
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(&*node.name),
        for_node: for_nodes
            .filter(|list| !list.is_empty())
            .map(|list| list.iter().any(|hint| hint.name == node.name)),
        for_zone: for_zones.filter(|list| !list.is_empty()).map(|list| {
            list.iter()
                .any(|hint| Some(&hint.name) == node.zone.as_ref())
        }),
    }
}

type Found<'a> = (&'a SocketAddr, &'a Seen);

fn usable(all: Vec<Found<'_>>) -> Vec<Found<'_>> {
    let ready: Vec<_> = all.iter().filter(|(_, s)| s.ready).copied().collect();
    if !ready.is_empty() {
        return ready;
    }
    let ending = |(_, s): &Found<'_>| s.serving && s.terminating;
    all.into_iter().filter(ending).collect()
}

fn hinted(usable: Vec<Found<'_>>) -> Vec<SocketAddr> {
    for hint in [|s: &Seen| s.for_node, |s: &Seen| s.for_zone] {
        let all_have = usable.iter().all(|(_, seen)| hint(seen).is_some());
        let mine: Vec<SocketAddr> = usable
            .iter()
            .filter(|(_, seen)| hint(seen) == Some(true))
            .map(|(address, _)| **address)
            .collect();
        if all_have && !mine.is_empty() {
            return mine;
        }
    }
    usable.into_iter().map(|(address, _)| *address).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use serde_json::json;

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n"}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn chosen(endpoints: serde_json::Value) -> (String, String) {
        let node = NodeFacts {
            name: "me".into(),
            zone: Some("z1".into()),
        };
        let got = choose(&[&slice(endpoints)], "", Protocol::Tcp, false, &node);
        let last = |list: &[SocketAddr]| {
            let octet = |a: &SocketAddr| a.ip().to_string().rsplit('.').next().unwrap().to_owned();
            list.iter().map(octet).collect::<Vec<_>>().join(",")
        };
        (last(&got.cluster), last(&got.local))
    }

    #[test]
    fn ready_ones_then_those_that_still_serve() {
        let ready = json!({"addresses": ["10.0.0.1"], "nodeName": "me"});
        let not = json!({"addresses": ["10.0.0.2"], "conditions": {"ready": false}});
        let ending = json!({"addresses": ["10.0.0.3"], "nodeName": "me",
            "conditions": {"ready": false, "serving": true, "terminating": true}});
        let other = json!({"addresses": ["10.0.0.4"], "nodeName": "you"});
        let case = |list: &[&serde_json::Value]| chosen(json!(list));
        assert_eq!(case(&[&ready, &not, &ending]), ("1".into(), "1".into()));
        assert_eq!(case(&[&not, &ending]), ("3".into(), "3".into()));
        assert_eq!(case(&[&not]), (String::new(), String::new()));
        // Each view falls back by itself.
        assert_eq!(case(&[&other, &ending]), ("4".into(), "3".into()));
    }

    #[test]
    fn hints_count_if_all_have_them() {
        let zone = |last: u8, zone: &str| json!({"addresses": [format!("10.0.0.{last}")], "hints": {"forZones": [{"name": zone}]}});
        let node = |last: u8, node: &str| {
            json!({"addresses": [format!("10.0.0.{last}")], "hints":
            {"forZones": [{"name": "z1"}], "forNodes": [{"name": node}]}})
        };
        let none = json!({"addresses": ["10.0.0.9"]});
        assert_eq!(chosen(json!([zone(1, "z1"), zone(2, "z2")])).0, "1");
        assert_eq!(
            chosen(json!([zone(1, "z1"), zone(2, "z2"), none])).0,
            "1,2,9"
        );
        assert_eq!(chosen(json!([zone(1, "z3"), zone(2, "z2")])).0, "1,2");
        assert_eq!(chosen(json!([node(1, "me"), node(2, "you")])).0, "1");
        assert_eq!(chosen(json!([node(1, "x"), node(2, "you")])).0, "1,2");
    }
}
