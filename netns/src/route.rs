//! Links, addresses, routes and neighbours: the only module that knows
//! NETLINK_ROUTE and the `netlink-packet-route` types.
//!
//! Requests are collected and sent in one `send`; the kernel works through
//! them in order and answers those it refuses and the last one. Answers are read
//! by attribute number and not through the crate's types, whose parsers
//! refuse a whole link for one attribute that a newer kernel changed.

mod gateway;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind,
    InfoVeth, LinkAttribute, LinkFlags, LinkInfo as LinkInfoAttr, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rkube_nft::attr::{Reader, Writer};
use rkube_nft::netlink::{
    F_ACK, F_APPEND, F_CREATE, F_DUMP, F_EXCL, F_REPLACE, F_REQUEST, KernelError, Reply,
};
use rkube_nft::{Protocol, Socket};

use crate::error::Error;
use crate::names::Mac;

pub use gateway::GatewayRoute;

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK_INDEX: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
/// Bytes of `struct ifinfomsg` and `struct rtmsg`.
const IFINFOMSG_BYTES: usize = 16;
const RTMSG_BYTES: usize = 12;
// linux/if_link.h, linux/rtnetlink.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_GROUP: u16 = 27;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const AF_INET: u8 = 2;
/// `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u8 = 255;
/// `RTPROT_RA`: a route learned from a router advertisement.
pub const PROTOCOL_RA: u8 = 9;

/// A new veth pair.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name on this side.
    pub name: &'a str,
    /// Address on this side.
    pub mac: Mac,
    /// Name of the other side.
    pub peer_name: &'a str,
    /// Address of the other side.
    pub peer_mac: Mac,
    /// Network namespace of the other side.
    pub peer_netns: BorrowedFd<'a>,
    /// MTU of both sides in bytes.
    pub mtu: u32,
    /// Group of this side.
    pub group: u32,
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Group.
    pub group: u32,
    /// Link-layer address, if of 6 bytes.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
    /// Transmits: up, and the kernel has acted on the carrier (`IF_OPER_UP`).
    pub operational: bool,
}

/// A unicast or local route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination; prefix length 0 is a default route.
    pub destination: IpNet,
    /// Outgoing link, of the first next hop if there are several.
    pub oif: Option<u32>,
    /// Metric; less is preferred.
    pub priority: u32,
    /// Table.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// The next hop, where there is one.
    pub gateway: Option<IpAddr>,
}

/// A route to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewRoute {
    /// The destination is on the link itself.
    OnLink(IpNet),
    /// The default route over a gateway that is taken to be on the link.
    Default(IpAddr),
    /// What arrives on this link for the address is for this host. The kernel
    /// makes such a route for each IPv6 address of a link, but from a work
    /// queue some time after the address was acknowledged.
    LocalV6(Ipv6Addr),
}

/// Requests to be sent together.
#[derive(Debug, Default)]
pub struct Requests {
    list: Vec<(String, u16, RouteNetlinkMessage)>,
}

impl Requests {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, what: String, flags: u16, message: RouteNetlinkMessage) -> &mut Self {
        self.list.push((what, flags, message));
        self
    }

    /// Makes a veth pair; this side comes up later.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> &mut Self {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.peer_name.to_owned()),
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
        ];
        peer.attributes.extend(single_queue());
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(veth.name.to_owned()),
            LinkAttribute::Address(veth.mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Group(veth.group),
            LinkAttribute::LinkInfo(vec![
                LinkInfoAttr::Kind(InfoKind::Veth),
                LinkInfoAttr::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        link.attributes.extend(single_queue());
        let what = format!("add veth {} with peer {}", veth.name, veth.peer_name);
        self.push(what, F_CREATE | F_EXCL, RouteNetlinkMessage::NewLink(link))
    }

    /// Asks for a link by name.
    pub fn get_link(&mut self, name: &str) -> &mut Self {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.push(
            format!("find link {name}"),
            0,
            RouteNetlinkMessage::GetLink(link),
        )
    }

    /// Settings of a host link before it comes up: strict reverse path check
    /// (a pod sends from its own address only), `route_localnet` if asked,
    /// and no IPv6 link-local address of its own (hence no DAD).
    pub fn prepare_host_link(&mut self, index: u32, route_localnet: bool, v6: bool) -> &mut Self {
        let mut conf = InetDevConf::default();
        conf.rp_filter = 1;
        conf.route_localnet = i32::from(route_localnet);
        let mut families = vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)])];
        if v6 {
            families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )]));
        }
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::AfSpecUnspec(families)];
        self.push(
            format!("prepare link {index}"),
            0,
            RouteNetlinkMessage::SetLink(link),
        )
    }

    /// Brings a link up.
    pub fn up(&mut self, index: u32) -> &mut Self {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.push(
            format!("set link {index} up"),
            0,
            RouteNetlinkMessage::SetLink(link),
        )
    }

    /// Takes an address from a link.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> &mut Self {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address.addr())];
        let what = format!("delete address {address} from link {index}");
        self.push(what, 0, RouteNetlinkMessage::DelAddress(message))
    }

    /// Adds a single address to a link, without duplicate address detection.
    pub fn add_address(&mut self, index: u32, address: IpAddr) -> &mut Self {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = max_prefix(address);
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(
                AddressFlags::Nodad | AddressFlags::Noprefixroute,
            ));
        }
        let what = format!("add address {address} to link {index}");
        self.push(
            what,
            F_CREATE | F_REPLACE,
            RouteNetlinkMessage::NewAddress(message),
        )
    }

    /// Adds or replaces a route.
    pub fn add_route(&mut self, index: u32, route: NewRoute) -> &mut Self {
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(index)];
        let mut flags = F_CREATE | F_REPLACE;
        let destination = match route {
            NewRoute::OnLink(net) => {
                message.header.scope = if net.addr().is_ipv4() {
                    RouteScope::Link
                } else {
                    RouteScope::Universe
                };
                net
            }
            NewRoute::Default(gateway) => {
                message.header.flags = RouteFlags::Onlink;
                message
                    .attributes
                    .push(RouteAttribute::Gateway(gateway.into()));
                let unspecified: IpAddr = match gateway {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                IpNet::new_assert(unspecified, 0)
            }
            NewRoute::LocalV6(address) => {
                message.header.table = TABLE_LOCAL;
                message.header.kind = RouteType::Local;
                // One such route per link, beside those of other links.
                flags = F_CREATE | F_APPEND;
                IpNet::from(IpAddr::from(address))
            }
        };
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        if destination.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::from(
                    destination.addr(),
                )));
        }
        let what = format!("add route {destination} to link {index}");
        self.push(what, flags, RouteNetlinkMessage::NewRoute(message))
    }

    /// Adds or replaces a permanent neighbour.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> &mut Self {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let what = format!("add neighbour {address} to link {index}");
        self.push(
            what,
            F_CREATE | F_REPLACE,
            RouteNetlinkMessage::NewNeighbour(message),
        )
    }

    /// Deletes a link: about 20 ms, never on a hot path.
    pub fn delete_link(&mut self, index: u32) -> &mut Self {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.push(
            format!("delete link {index}"),
            0,
            RouteNetlinkMessage::DelLink(link),
        )
    }

    /// Deletes all links of a group at once; ENODEV if there are none.
    pub fn delete_group(&mut self, group: u32) -> &mut Self {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::Group(group)];
        self.push(
            format!("delete links of group {group}"),
            0,
            RouteNetlinkMessage::DelLink(link),
        )
    }
}

/// A NETLINK_ROUTE socket of one network namespace.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
}

impl RouteSocket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
        })
    }

    /// Sends the requests together. All are tried, whatever happens to the
    /// others; returns the links that were asked for.
    ///
    /// # Errors
    /// [`Error::Netlink`] with the first refused request.
    pub fn run(&mut self, requests: &Requests) -> Result<Vec<Link>, Error> {
        let Some(last) = requests.list.len().checked_sub(1) else {
            return Ok(Vec::new());
        };
        let overflow = |_| rkube_nft::Error::TooLong {
            what: "a batch of route requests".to_owned(),
        };
        let first_seq = self
            .socket
            .reserve_seq(u32::try_from(last + 1).map_err(overflow)?);
        let last_seq = first_seq + u32::try_from(last).map_err(overflow)?;
        let mut writer = Writer::new();
        let mut body = Vec::new();
        for (seq, (_, flags, message)) in (first_seq..).zip(&requests.list) {
            body.clear();
            body.resize(message.buffer_len(), 0);
            message.serialize(&mut body);
            // Refusals are told unasked; one acknowledgement ends the answer.
            let ack = if seq == last_seq { F_ACK } else { 0 };
            writer.message(message.message_type(), F_REQUEST | ack | flags, seq, |w| {
                w.raw(&body)
            });
        }
        let what = &requests.list[0].0;
        let answer = self
            .socket
            .exchange(what, writer.as_bytes(), first_seq, last_seq)?;
        if let Some((seq, source)) = answer.refused.into_iter().next() {
            let index = usize::try_from(seq - first_seq).unwrap_or(0);
            let what = requests
                .list
                .get(index)
                .map_or(what, |(what, ..)| what)
                .clone();
            return Err(rkube_nft::Error::Refused { what, source }.into());
        }
        Ok(answer.replies.iter().filter_map(parse_link).collect())
    }

    /// The link with this name, if there is one.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        match self.run(Requests::new().get_link(name)) {
            Ok(links) => Ok(links.into_iter().next()),
            Err(Error::Netlink(rkube_nft::Error::Refused {
                source: KernelError { errno, .. },
                ..
            })) if errno == rustix::io::Errno::NODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        Ok(self
            .dump("list links", &message)?
            .iter()
            .filter_map(parse_link)
            .collect())
    }

    /// All unicast and local routes of one family, of all tables.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn routes(&mut self, v6: bool) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let message = RouteNetlinkMessage::GetRoute(message);
        Ok(self
            .dump("list routes", &message)?
            .iter()
            .filter_map(parse_route)
            .collect())
    }

    fn dump(&mut self, what: &str, message: &RouteNetlinkMessage) -> Result<Vec<Reply>, Error> {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Ok(self.socket.dump(what, |seq| {
            let mut writer = Writer::new();
            writer.message(message.message_type(), F_REQUEST | F_DUMP, seq, |w| {
                w.raw(&body)
            });
            writer.as_bytes().to_vec()
        })?)
    }
}

/// A veth gets a transmit and a receive queue per possible CPU by default,
/// each with objects in sysfs. It transmits without a lock or a queue
/// discipline, so one each is enough on hosts with many CPUs.
fn single_queue() -> [LinkAttribute; 2] {
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn max_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn ne32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.try_into().ok()?))
}

fn parse_link(reply: &Reply) -> Option<Link> {
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let attrs = Reader::new(reply.body.get(IFINFOMSG_BYTES..)?);
    let number = |kind| attrs.get(kind).and_then(|a| ne32(a.payload));
    Some(Link {
        index: ne32(reply.body.get(4..8)?)?,
        name: attrs.get(IFLA_IFNAME)?.text(),
        mtu: number(IFLA_MTU)?,
        group: number(IFLA_GROUP).unwrap_or(0),
        mac: attrs
            .get(IFLA_ADDRESS)
            .and_then(|a| a.payload.try_into().ok()),
        // IFF_UP is bit 0 of ifi_flags.
        up: ne32(reply.body.get(8..12)?)? & 1 == 1,
        operational: attrs.get(IFLA_OPERSTATE).is_some_and(|a| a.payload == [6]),
    })
}

fn parse_route(reply: &Reply) -> Option<Route> {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let &[family, prefix, _, _, table, protocol, _, kind, ..] =
        reply.body.first_chunk::<RTMSG_BYTES>()?;
    // RTN_UNICAST, RTN_LOCAL.
    if reply.kind != RTM_NEWROUTE || !matches!(kind, 1 | 2) {
        return None;
    }
    let attrs = Reader::new(reply.body.get(RTMSG_BYTES..)?);
    let number = |kind| attrs.get(kind).and_then(|a| ne32(a.payload));
    let ip = |payload: &[u8]| -> Option<IpAddr> {
        match family {
            AF_INET => Some(<[u8; 4]>::try_from(payload).ok()?.into()),
            _ => Some(<[u8; 16]>::try_from(payload).ok()?.into()),
        }
    };
    let address = match (attrs.get(RTA_DST), family) {
        (Some(a), _) => ip(a.payload)?,
        (None, AF_INET) => Ipv4Addr::UNSPECIFIED.into(),
        (None, _) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // struct rtnexthop: len, flags, hops, ifindex.
    let first_hop = || ne32(attrs.get(RTA_MULTIPATH)?.payload.get(4..8)?);
    Some(Route {
        destination: IpNet::new(address, prefix).ok()?,
        oif: number(RTA_OIF).or_else(first_hop),
        priority: number(RTA_PRIORITY).unwrap_or(0),
        table: number(RTA_TABLE).unwrap_or(u32::from(table)),
        protocol,
        gateway: attrs.get(RTA_GATEWAY).and_then(|a| ip(a.payload)),
    })
}
