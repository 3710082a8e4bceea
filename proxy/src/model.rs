//! What the maps hold, as plain values: the result of compiling Services and
//! the state that deltas are taken from.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// A transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// `IPPROTO_TCP`.
    Tcp = 6,
    /// `IPPROTO_UDP`.
    Udp = 17,
    /// `IPPROTO_SCTP`.
    Sctp = 132,
}

impl Protocol {
    /// As the API writes it; absent is TCP.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The protocol's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        // repr(u8) discriminants are the IP protocol numbers.
        self as u8
    }
}

/// Where clients send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// An address of the Service.
    Address(IpAddr, Protocol, u16),
    /// A port on every address of this node.
    Node {
        /// Of IPv6 addresses.
        v6: bool,
        /// Protocol.
        protocol: Protocol,
        /// Port.
        port: u16,
    },
}

impl Front {
    /// Whether this is about IPv6.
    #[must_use]
    pub const fn is_v6(self) -> bool {
        match self {
            Self::Address(ip, ..) => ip.is_ipv6(),
            Self::Node { v6, .. } => v6,
        }
    }

    /// The transport protocol.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Address(_, protocol, _) | Self::Node { protocol, .. } => protocol,
        }
    }

    /// The port that clients send to.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Address(_, _, port) | Self::Node { port, .. } => port,
        }
    }
}

/// The most endpoints of one front: slots of the two views share 16 bits.
pub const ENDPOINTS_MAX_COUNT: usize = 1 << 15;
/// First slot of the endpoints that packets from outside get where
/// `externalTrafficPolicy` is `Local`.
pub const LOCAL_SLOT_OFFSET: u16 = 1 << 15;

/// How a front chooses among its endpoints; each way has a chain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The front is a node port.
    pub node: bool,
    /// Only endpoints of this node, and the source address stays.
    pub local: bool,
    /// How many endpoints there are, 1 to [`ENDPOINTS_MAX_COUNT`].
    pub count: u16,
    /// How long a client stays at its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
}

/// The key of an element, and thereby the map or set that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// What happens to new connections to a front.
    Front(Front),
    /// The same for those from outside, where `Local` makes a difference.
    Outside(Front),
    /// An endpoint of a front by its slot, or by its number where clients
    /// stay.
    Endpoint(Front, u16),
    /// The number of the endpoint in a slot, where clients stay.
    Pick(Front, u16),
    /// An endpoint on this node: it may connect to itself.
    Hairpin(IpAddr),
    /// A front without endpoints.
    Refused(Front),
    /// An address of a Service: ports that it has not are refused.
    Known(IpAddr),
    /// A front that only some sources may use.
    Guarded(Front),
    /// A source that may.
    Source(Front, IpNet),
}

/// The data of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// The element of a set.
    None,
    /// To one of the endpoints.
    Choose(Choice),
    /// Nowhere: a policy is `Local` and this node has no endpoint.
    Drop,
    /// An endpoint.
    Endpoint(SocketAddr),
    /// The number of an endpoint.
    Number(u16),
}

/// One element.
pub type Entry = (Key, Data);
