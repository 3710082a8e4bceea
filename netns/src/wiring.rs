//! The netlink requests that wire one pod, host side and pod side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use ipnet::IpNet;

use crate::attach::{Attachment, Plan};
use crate::error::Error;
use crate::journal::PodRecord;
use crate::names::{Mac, POD_GATEWAY_V4, POD_GATEWAY_V6};
use crate::ns::in_netns;
use crate::route::{LOOPBACK_INDEX, NewRoute, Requests, RouteSocket, Veth};
use crate::sysctl;

/// Name of the pod's link.
pub(crate) const POD_LINK: &str = "eth0";
const POD_LINK_DISABLE_IPV6: &str = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";

/// What all pods of an instance share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared {
    pub(crate) gateway_v4: Ipv4Addr,
    pub(crate) gateway_v6: Option<Ipv6Addr>,
    pub(crate) host_mac: Mac,
    pub(crate) group: u32,
}

fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Makes the pair; the pod's side is born in the pod.
pub(crate) fn veth<'a>(
    shared: &Shared,
    attachment: &'a Attachment,
    netns: BorrowedFd<'a>,
) -> Veth<'a> {
    Veth {
        name: &attachment.host_if,
        mac: shared.host_mac,
        peer_name: POD_LINK,
        peer_mac: attachment.mac,
        peer_netns: netns,
        mtu: attachment.mtu,
        group: shared.group,
    }
}

/// True if connections to the host's loopback may lead to this pod.
fn serves_loopback(record: &PodRecord, v6: bool) -> bool {
    record
        .host_ports
        .iter()
        .any(|port| port.serves(v6) && port.only().is_none_or(|ip| ip.is_loopback()))
}

/// Settings, addresses, routes and neighbours of the host's side, which may
/// all be repeated; [`host_side_once`] may not.
pub(crate) fn host_side(shared: &Shared, record: &PodRecord, index: u32) -> Requests {
    let attachment = &record.attachment;
    let mut requests = Requests::new();
    requests
        .prepare_host_link(
            index,
            serves_loopback(record, false),
            attachment.v6.is_some(),
        )
        .up(index);
    requests.add_address(index, shared.gateway_v4.into());
    if let Some(gateway) = shared.gateway_v6.filter(|_| attachment.v6.is_some()) {
        requests.add_address(index, gateway.into());
    }
    for address in attachment.addresses() {
        requests
            .add_route(index, NewRoute::OnLink(host_net(address)))
            .add_neighbour(index, address, attachment.mac);
    }
    requests
}

/// The part of the host's side that the kernel refuses a second time.
pub(crate) fn host_side_once(
    shared: &Shared,
    record: &PodRecord,
    index: u32,
    requests: &mut Requests,
) {
    if let Some(gateway) = shared.gateway_v6.filter(|_| record.attachment.v6.is_some()) {
        requests.add_route(index, NewRoute::LocalV6(gateway));
    }
    if record.attachment.v6.is_some() && serves_loopback(record, true) {
        requests.add_route(index, NewRoute::LocalV6(Ipv6Addr::LOCALHOST));
    }
}

/// Wires the inside of the pod, on a thread of its own.
pub(crate) fn pod_side(
    netns: BorrowedFd<'_>,
    attachment: &Attachment,
    host_mac: Mac,
) -> Result<(), Error> {
    in_netns(netns, || {
        let mut socket = RouteSocket::open()?;
        let found = socket.run(Requests::new().up(LOOPBACK_INDEX).get_link(POD_LINK))?;
        let link = found.first().ok_or_else(|| Error::LinkMissing {
            name: POD_LINK.to_owned(),
        })?;
        if attachment.v6.is_some() {
            enable_ipv6()?;
        }
        let mut requests = Requests::new();
        for address in attachment.addresses() {
            requests.add_address(link.index, address);
        }
        requests.up(link.index);
        if let Some(v6) = attachment.v6 {
            requests.add_route(link.index, NewRoute::LocalV6(v6));
        }
        for address in attachment.addresses() {
            let gateway: IpAddr = if address.is_ipv4() {
                POD_GATEWAY_V4.into()
            } else {
                POD_GATEWAY_V6.into()
            };
            requests
                .add_neighbour(link.index, gateway, host_mac)
                .add_route(link.index, NewRoute::Default(gateway));
        }
        socket.run(&requests)?;
        Ok(())
    })
}

/// A new namespace may inherit "no IPv6" from `conf/default`, although the
/// host has it.
fn enable_ipv6() -> Result<(), Error> {
    let path = Path::new(POD_LINK_DISABLE_IPV6);
    if sysctl::read(path)? == "0" {
        Ok(())
    } else {
        sysctl::write(path, "0")
    }
}

/// The same in words.
pub(crate) fn plan(shared: &Shared, pod: &str, record: &PodRecord, table: &str) -> Plan {
    let Attachment { host_if, mtu, .. } = &record.attachment;
    let mut steps = vec![
        format!(
            "journal: pod {pod} gets {}",
            list(record.attachment.addresses())
        ),
        format!(
            "link: veth {host_if} (group {}) with {POD_LINK} in the pod, mtu {mtu}",
            shared.group
        ),
    ];
    let gateways = [
        Some(IpAddr::V4(shared.gateway_v4)),
        shared.gateway_v6.map(IpAddr::V6),
    ];
    steps.push(format!(
        "host: address {} on {host_if}",
        list(gateways.into_iter().flatten())
    ));
    for address in record.attachment.addresses() {
        steps.push(format!(
            "host: route {} dev {host_if}, permanent neighbour",
            host_net(address)
        ));
    }
    if serves_loopback(record, false) {
        steps.push(format!("host: route_localnet=1 on {host_if}"));
    }
    if record.attachment.v6.is_some() && serves_loopback(record, true) {
        steps.push(format!("host: local route ::1 dev {host_if}"));
    }
    for port in &record.host_ports {
        steps.push(format!(
            "nft: table inet {table}: host port {port} to port {}",
            port.container_port
        ));
    }
    for address in record.attachment.addresses() {
        let gateway: IpAddr = if address.is_ipv4() {
            POD_GATEWAY_V4.into()
        } else {
            POD_GATEWAY_V6.into()
        };
        steps.push(format!(
            "pod: lo up, {} on {POD_LINK}, default via {gateway}",
            host_net(address)
        ));
    }
    Plan { steps }
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses
        .map(|a| a.to_string())
        .collect::<Vec<_>>()
        .join(" and ")
}
