//! The nftables table: a handful of constant rules over maps. Pods add and
//! remove elements and never rules, so an attach costs the same with one pod
//! or with a thousand.
//!
//! Loopback. A connection from the host to 127.0.0.1 or ::1 leaves `lo` only
//! if three things come together: the output hook translates the
//! destination; postrouting translates the source, which no other host may
//! see; and the answer, translated back to the loopback address, is accepted
//! on the pod's link. For IPv4 that is `route_localnet` on this link, with
//! the guard chain dropping what a pod itself sends to 127.0.0.0/8. For IPv6
//! it is a local route for ::1 on this link: a lookup of ::1 is strict about
//! the interface. (The kernel itself drops packets that arrive with ::1 as
//! source or destination before any of this, so a pod cannot use it.)

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rkube_nft::expr::{Base, Cmp, Meta, Reg};
use rkube_nft::{
    Batch, Chain, ChainKind, DataType, Element, Expr, Family, Hook, Set, SetKind, Table, Value,
    Verdict,
};

use crate::attach::HostPort;
use crate::journal::PodRecord;

/// Offsets of source and destination in the IPv4 and the IPv6 header.
const V4_SADDR: u32 = 12;
const V4_DADDR: u32 = 16;
const V6_SADDR: u32 = 8;
const V6_DADDR: u32 = 24;
/// Offset of the destination port in TCP, UDP and SCTP headers.
const DPORT: u32 = 2;

// Priorities of linux/netfilter_ipv4.h: NF_IP_PRI_RAW, _NAT_DST, _NAT_SRC.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

/// Per address family: names and types of what the rules use.
struct FamilySets {
    family: Family,
    address: DataType,
    /// proto . port -> pod address . port, on all addresses of the host.
    ports: &'static str,
    /// address . proto . port -> pod address . port.
    address_ports: &'static str,
    /// Pods with host ports, as address . same address.
    hairpin: &'static str,
    saddr: u32,
    daddr: u32,
    address_bytes: u32,
    /// First register behind an address at register 0.
    behind: u8,
}

const V4: FamilySets = FamilySets {
    family: Family::Ip,
    address: DataType::Ipv4Addr,
    ports: "hostports4",
    address_ports: "hostports4-addr",
    hairpin: "hairpin4",
    saddr: V4_SADDR,
    daddr: V4_DADDR,
    address_bytes: 4,
    behind: 1,
};
const V6: FamilySets = FamilySets {
    family: Family::Ip6,
    address: DataType::Ipv6Addr,
    ports: "hostports6",
    address_ports: "hostports6-addr",
    hairpin: "hairpin6",
    saddr: V6_SADDR,
    daddr: V6_DADDR,
    address_bytes: 16,
    behind: 4,
};

/// What the constant part depends on.
#[derive(Debug, Clone)]
pub struct Base4And6 {
    /// Pod range.
    pub v4: Ipv4Net,
    /// IPv6 pod range.
    pub v6: Option<Ipv6Net>,
    /// Group of the instance's host links.
    pub group: u32,
    /// Ranges of other nodes' pods.
    pub cluster: Vec<IpNet>,
    /// Addresses of pods that have theirs from before, out of another range.
    pub kept: Vec<IpAddr>,
}

/// Replaces the table, whatever is in it, by the constant rules.
pub fn install(batch: &mut Batch, table: &Table, base: &Base4And6) {
    // Added first so that deleting cannot miss; all in one transaction.
    batch.add_table(table).delete_table().add_table(table);
    for sets in families(base) {
        add_sets(batch, sets);
    }
    for (name, kind, hook, priority) in [
        ("guard", ChainKind::Filter, Hook::Prerouting, PRIORITY_RAW),
        (
            "prerouting",
            ChainKind::Nat,
            Hook::Prerouting,
            PRIORITY_DSTNAT,
        ),
        ("output", ChainKind::Nat, Hook::Output, PRIORITY_DSTNAT),
        (
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            PRIORITY_SRCNAT,
        ),
    ] {
        batch.add_chain(&Chain {
            name: name.to_owned(),
            base: Some((kind, hook, priority)),
        });
    }
    batch.add_chain(&Chain {
        name: "hostports".to_owned(),
        base: None,
    });

    let loopback = Ipv4Net::new_assert([127, 0, 0, 0].into(), 8);
    let to_loopback = || concat([&v4_match(V4_DADDR, loopback, Cmp::Eq)]);
    let drop = [Expr::Verdict(Verdict::Drop)];
    let guard = concat([
        &Expr::group(Meta::IifGroup, Cmp::Eq, base.group),
        &to_loopback(),
        &drop,
    ]);
    batch.add_rule(
        "guard",
        &guard,
        Some("pods must not reach the host's loopback"),
    );

    // A neighbour on the wire could otherwise reach ports bound to 127.0.0.1:
    // translation comes before the kernel's check for martians.
    let leave = concat([&to_loopback(), &[Expr::Verdict(Verdict::Return)]]);
    batch.add_rule("prerouting", &leave, None);
    let jump = [Expr::Verdict(Verdict::Jump("hostports".to_owned()))];
    batch
        .add_rule("prerouting", &jump, None)
        .add_rule("output", &jump, None);

    for sets in families(base) {
        add_host_port_rules(batch, sets);
    }
    add_masquerade_rules(batch, base, loopback);
}

fn families(base: &Base4And6) -> impl Iterator<Item = &'static FamilySets> {
    [Some(&V4), base.v6.map(|_| &V6)].into_iter().flatten()
}

fn concat<const N: usize>(parts: [&[Expr]; N]) -> Vec<Expr> {
    parts.concat()
}

fn v4_match(offset: u32, net: Ipv4Net, cmp: Cmp) -> Vec<Expr> {
    concat([
        &Expr::nfproto(Family::Ip),
        &Expr::v4_in(offset, net.network(), net.netmask(), cmp),
    ])
}

fn v6_match(offset: u32, net: Ipv6Net, cmp: Cmp) -> Vec<Expr> {
    concat([
        &Expr::nfproto(Family::Ip6),
        &Expr::v6_in(offset, net.network(), net.netmask(), cmp),
    ])
}

fn add_sets(batch: &mut Batch, sets: &FamilySets) {
    let target = || SetKind::Map(vec![sets.address, DataType::InetService]);
    let port = [DataType::InetProto, DataType::InetService];
    let address_port = [sets.address, DataType::InetProto, DataType::InetService];
    for (name, key, kind) in [
        (sets.ports, &port[..], target()),
        (sets.address_ports, &address_port[..], target()),
        (
            sets.hairpin,
            &[sets.address, sets.address][..],
            SetKind::Set,
        ),
    ] {
        batch.add_set(&Set {
            name: name.to_owned(),
            key: key.to_vec(),
            kind,
            interval: false,
            dynamic: false,
            size: None,
        });
    }
}

/// Loads protocol and destination port from register `at` on.
fn load_port(at: u8) -> [Expr; 2] {
    [
        Expr::Meta(Meta::L4Proto, Reg(at)),
        Expr::Payload {
            base: Base::Transport,
            offset: DPORT,
            len: 2,
            to: Reg(at + 1),
        },
    ]
}

fn add_host_port_rules(batch: &mut Batch, sets: &FamilySets) {
    let dnat = |set: &str| {
        [
            Expr::MapLookup {
                set: set.to_owned(),
                key: Reg(0),
                to: Reg(0),
            },
            Expr::Dnat {
                family: sets.family,
                addr: Reg(0),
                port: Some(Reg(sets.behind)),
            },
        ]
    };
    let proto = Expr::nfproto(sets.family);
    let load_daddr = Expr::Payload {
        base: Base::Network,
        offset: sets.daddr,
        len: sets.address_bytes,
        to: Reg(0),
    };
    let by_address = concat([
        &proto,
        &[load_daddr],
        &load_port(sets.behind),
        &dnat(sets.address_ports),
    ]);
    let by_port = concat([
        &proto,
        &Expr::daddr_is_local(),
        &load_port(0),
        &dnat(sets.ports),
    ]);
    batch
        .add_rule("hostports", &by_address, None)
        .add_rule("hostports", &by_port, None);
}

fn add_masquerade_rules(batch: &mut Batch, base: &Base4And6, loopback: Ipv4Net) {
    let plain = [Expr::Masquerade {
        fully_random: false,
    }];
    let random = [Expr::Masquerade { fully_random: true }];
    let to_pod = Expr::group(Meta::OifGroup, Cmp::Eq, base.group);

    let rule = concat([&to_pod, &v4_match(V4_SADDR, loopback, Cmp::Eq), &plain]);
    batch.add_rule("postrouting", &rule, Some("host ports on 127.0.0.1"));
    if base.v6.is_some() {
        let localhost = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
        let rule = concat([&to_pod, &v6_match(V6_SADDR, localhost, Cmp::Eq), &plain]);
        batch.add_rule("postrouting", &rule, Some("host ports on ::1"));
    }
    for sets in families(base) {
        let load = |offset, to| Expr::Payload {
            base: Base::Network,
            offset,
            len: sets.address_bytes,
            to: Reg(to),
        };
        let itself = [
            load(sets.saddr, 0),
            load(sets.daddr, sets.behind),
            Expr::Lookup {
                set: sets.hairpin.to_owned(),
                key: Reg(0),
                invert: false,
            },
        ];
        let rule = concat([
            &Expr::nfproto(sets.family),
            &Expr::ct_is_dnat(),
            &itself,
            &plain,
        ]);
        batch.add_rule("postrouting", &rule, Some("a pod's own host port"));
    }
    let pods = std::iter::once(IpNet::from(base.v4))
        .chain(base.v6.map(IpNet::from))
        .chain(base.kept.iter().copied().map(IpNet::from));
    for pods in pods {
        let mut rule = outside(base, pods);
        rule.extend_from_slice(&random);
        batch.add_rule("postrouting", &rule, Some("pods to the outside"));
    }
}

/// Matches packets from some pods to what is no pod.
fn outside(base: &Base4And6, pods: IpNet) -> Vec<Expr> {
    let mut rule = match pods {
        IpNet::V4(pods) => concat([
            &v4_match(V4_SADDR, pods, Cmp::Eq),
            &v4_match(V4_DADDR, base.v4, Cmp::Neq)[2..],
        ]),
        IpNet::V6(pods) => v6_match(V6_SADDR, pods, Cmp::Eq),
    };
    if let (IpNet::V6(_), Some(range)) = (pods, base.v6) {
        rule.extend_from_slice(&v6_match(V6_DADDR, range, Cmp::Neq)[2..]);
    }
    for range in &base.cluster {
        match (range, pods) {
            (IpNet::V4(net), IpNet::V4(_)) => {
                rule.extend_from_slice(&v4_match(V4_DADDR, *net, Cmp::Neq)[2..]);
            }
            (IpNet::V6(net), IpNet::V6(_)) => {
                rule.extend_from_slice(&v6_match(V6_DADDR, *net, Cmp::Neq)[2..]);
            }
            _ => {}
        }
    }
    rule
}

/// The elements of one pod, by set.
#[must_use]
pub fn pod_elements(record: &PodRecord) -> Vec<(&'static str, Element)> {
    let mut elements = Vec::new();
    if record.host_ports.is_empty() {
        return elements;
    }
    for address in record.attachment.addresses() {
        let sets = if address.is_ipv6() { &V6 } else { &V4 };
        elements.push((
            sets.hairpin,
            Element::key(Value::new().ip(address).ip(address)),
        ));
        for port in record
            .host_ports
            .iter()
            .filter(|port| port.serves(address.is_ipv6()))
        {
            let data = Value::new().ip(address).port(port.container_port).padded();
            let (set, key) = match port.only() {
                None => (sets.ports, port_key(Value::new(), port)),
                Some(only) => (sets.address_ports, port_key(Value::new().ip(only), port)),
            };
            elements.push((set, Element::map(key, data)));
        }
    }
    elements
}

fn port_key(prefix: Value, port: &HostPort) -> Value {
    prefix
        .proto(port.proto.number())
        .port(port.host_port)
        .padded()
}
