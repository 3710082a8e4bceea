//! Routes over another host: to the pods of other nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rkube_nft::netlink::{F_CREATE, F_REPLACE};

use super::{Requests, family};

/// A route over another host on a link of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayRoute {
    /// Where to.
    pub destination: IpNet,
    /// Over whom.
    pub gateway: IpAddr,
    /// Who made it: a number of `rtnetlink.h`'s free range.
    pub protocol: u8,
    /// Metric; it tells routes of different instances apart.
    pub priority: u32,
}

impl GatewayRoute {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(self.destination.network())),
            RouteAttribute::Gateway(self.gateway.into()),
            RouteAttribute::Priority(self.priority),
        ];
        message
    }
}

impl Requests {
    /// Adds a route over another host, or replaces the one with the same
    /// destination and metric.
    pub fn add_gateway_route(&mut self, route: &GatewayRoute) -> &mut Self {
        let what = format!("add route {} via {}", route.destination, route.gateway);
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.push(what, F_CREATE | F_REPLACE, message)
    }

    /// Deletes such a route; ESRCH if it is not there.
    pub fn delete_gateway_route(&mut self, route: &GatewayRoute) -> &mut Self {
        let what = format!("delete route {} via {}", route.destination, route.gateway);
        self.push(what, 0, RouteNetlinkMessage::DelRoute(route.message()))
    }
}
