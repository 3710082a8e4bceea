//! The maps and sets of the table, and elements as they lie in them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use rkube_nft::{DataType, Element, Family, Value, Verdict};

use crate::model::{Data, Entry, Front, Key};
use crate::ruleset::chain_name;

/// Where things are in packets and registers of one family.
#[derive(Debug)]
pub struct Fields {
    /// The family.
    pub family: Family,
    /// Data type of an address.
    pub address: DataType,
    /// Bytes of an address.
    pub bytes: u32,
    /// 4-byte registers of an address.
    pub words: u8,
    /// Offset of the source in the header.
    pub saddr: u32,
    /// Offset of the destination in the header.
    pub daddr: u32,
    suffix: char,
}

/// IPv4, then IPv6.
pub const FAMILIES: [&Fields; 2] = [
    &Fields {
        family: Family::Ip,
        address: DataType::Ipv4Addr,
        bytes: 4,
        words: 1,
        saddr: 12,
        daddr: 16,
        suffix: '4',
    },
    &Fields {
        family: Family::Ip6,
        address: DataType::Ipv6Addr,
        bytes: 16,
        words: 4,
        saddr: 8,
        daddr: 24,
        suffix: '6',
    },
];

/// The maps and sets; each is there once for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// address . protocol . port -> verdict
    Fronts,
    /// protocol . port -> verdict
    NodePorts,
    /// As [`Map::Fronts`], asked first for packets from outside.
    Outside,
    /// As [`Map::NodePorts`], asked first for packets from outside.
    NodeOutside,
    /// front . slot -> address . port
    Endpoints,
    /// node port . slot -> address . port
    NodeEndpoints,
    /// front . slot -> number
    Picks,
    /// node port . slot -> number
    NodePicks,
    /// source . front -> number, by the rules themselves
    Clients,
    /// source . node port -> number, by the rules themselves
    NodeClients,
    /// address . same address
    Hairpin,
    /// Fronts without endpoints.
    Refused,
    /// Node ports without endpoints.
    NodeRefused,
    /// Addresses of Services.
    Known,
    /// Fronts with source ranges.
    Guarded,
    /// front . source range
    Sources,
}

impl Map {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Fronts,
        Self::NodePorts,
        Self::Outside,
        Self::NodeOutside,
        Self::Endpoints,
        Self::NodeEndpoints,
        Self::Picks,
        Self::NodePicks,
        Self::Clients,
        Self::NodeClients,
        Self::Hairpin,
        Self::Refused,
        Self::NodeRefused,
        Self::Known,
        Self::Guarded,
        Self::Sources,
    ];

    /// Where a way to choose finds endpoints.
    #[must_use]
    pub const fn endpoints(node: bool) -> Self {
        if node {
            Self::NodeEndpoints
        } else {
            Self::Endpoints
        }
    }

    /// Where it finds their numbers.
    #[must_use]
    pub const fn picks(node: bool) -> Self {
        if node { Self::NodePicks } else { Self::Picks }
    }

    /// Where it keeps clients.
    #[must_use]
    pub const fn clients(node: bool) -> Self {
        if node {
            Self::NodeClients
        } else {
            Self::Clients
        }
    }

    /// Whether rules add its elements.
    #[must_use]
    pub const fn is_dynamic(self) -> bool {
        matches!(self, Self::Clients | Self::NodeClients)
    }

    /// The name in the table.
    #[must_use]
    pub fn name(self, fields: &Fields) -> String {
        let name = match self {
            Self::Fronts => "services",
            Self::NodePorts => "nodeports",
            Self::Outside => "outside",
            Self::NodeOutside => "nodeports-outside",
            Self::Endpoints => "endpoints",
            Self::NodeEndpoints => "nodeport-endpoints",
            Self::Picks => "picks",
            Self::NodePicks => "nodeport-picks",
            Self::Clients => "clients",
            Self::NodeClients => "nodeport-clients",
            Self::Hairpin => "hairpin",
            Self::Refused => "refused",
            Self::NodeRefused => "nodeports-refused",
            Self::Known => "known",
            Self::Guarded => "guarded",
            Self::Sources => "sources",
        };
        format!("{name}{}", fields.suffix)
    }

    /// Types of key and data.
    #[must_use]
    pub fn types(self, fields: &Fields) -> (Vec<DataType>, Option<&'static [DataType]>) {
        use DataType::{InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
        const ENDPOINT4: &[DataType] = &[Ipv4Addr, InetService];
        const ENDPOINT6: &[DataType] = &[Ipv6Addr, InetService];
        let a = fields.address;
        let endpoint = if fields.words == 1 {
            ENDPOINT4
        } else {
            ENDPOINT6
        };
        let verdict = Some(&[DataType::Verdict][..]);
        let number = Some(&[Mark][..]);
        match self {
            Self::Fronts | Self::Outside => (vec![a, InetProto, InetService], verdict),
            Self::NodePorts | Self::NodeOutside => (vec![InetProto, InetService], verdict),
            Self::Endpoints => (vec![a, InetProto, InetService, Mark], Some(endpoint)),
            Self::NodeEndpoints => (vec![InetProto, InetService, Mark], Some(endpoint)),
            Self::Picks => (vec![a, InetProto, InetService, Mark], number),
            Self::NodePicks => (vec![InetProto, InetService, Mark], number),
            Self::Clients => (vec![a, a, InetProto, InetService], number),
            Self::NodeClients => (vec![a, InetProto, InetService], number),
            Self::Hairpin => (vec![a, a], None),
            Self::Refused | Self::Guarded => (vec![a, InetProto, InetService], None),
            Self::NodeRefused => (vec![InetProto, InetService], None),
            Self::Known => (vec![a], None),
            Self::Sources => (vec![a, InetProto, InetService, a], None),
        }
    }
}

/// The map and family index of a key.
#[must_use]
pub fn place(key: &Key) -> (Map, usize) {
    let by_front = |front: &Front, address: Map, node: Map| {
        let map = match front {
            Front::Address(..) => address,
            Front::Node { .. } => node,
        };
        (map, usize::from(front.is_v6()))
    };
    match key {
        Key::Front(front) => by_front(front, Map::Fronts, Map::NodePorts),
        Key::Outside(front) => by_front(front, Map::Outside, Map::NodeOutside),
        Key::Endpoint(front, _) => by_front(front, Map::Endpoints, Map::NodeEndpoints),
        Key::Pick(front, _) => by_front(front, Map::Picks, Map::NodePicks),
        Key::Refused(front) => by_front(front, Map::Refused, Map::NodeRefused),
        // Node ports have no source ranges.
        Key::Guarded(front) => (Map::Guarded, usize::from(front.is_v6())),
        Key::Source(front, _) => (Map::Sources, usize::from(front.is_v6())),
        Key::Hairpin(ip) => (Map::Hairpin, usize::from(ip.is_ipv6())),
        Key::Known(ip) => (Map::Known, usize::from(ip.is_ipv6())),
    }
}

fn front_value(front: &Front) -> Value {
    let value = match front {
        Front::Address(ip, ..) => Value::new().ip(*ip),
        Front::Node { .. } => Value::new(),
    };
    value.proto(front.protocol().number()).port(front.port())
}

fn endpoint_value(endpoint: SocketAddr) -> Value {
    Value::new()
        .ip(endpoint.ip())
        .port(endpoint.port())
        .padded()
}

/// An element as it lies in its map; without its data for a deletion.
#[must_use]
pub fn element((key, data): &Entry, with_data: bool) -> Element {
    let value = match key {
        Key::Front(front) | Key::Outside(front) | Key::Refused(front) | Key::Guarded(front) => {
            front_value(front).padded()
        }
        Key::Endpoint(front, slot) | Key::Pick(front, slot) => {
            front_value(front).u32(u32::from(*slot))
        }
        Key::Hairpin(ip) => Value::new().ip(*ip).ip(*ip),
        Key::Known(ip) => Value::new().ip(*ip),
        Key::Source(front, range) => return source(front, *range),
    };
    if !with_data {
        return Element::key(value);
    }
    match data {
        Data::None => Element::key(value),
        Data::Choose(choice) => Element::verdict(value, Verdict::Goto(chain_name(choice))),
        Data::Drop => Element::verdict(value, Verdict::Drop),
        Data::Endpoint(endpoint) => Element::map(value, endpoint_value(*endpoint)),
        Data::Number(number) => Element::map(value, Value::new().u32(u32::from(*number))),
    }
}

fn source(front: &Front, range: IpNet) -> Element {
    let (first, last): (IpAddr, IpAddr) = (range.network(), range.broadcast());
    let end = |ip| front_value(front).ip(ip);
    Element::range(end(first), end(last))
}
