//! The cluster DNS of this node: every node answers its own pods, at the one
//! address that all of them know.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context;
use rkube_client::Informers;
use rkube_dns::{Dns, DnsConfig, Serving};
use rkube_kubelet::files::resolv;

/// The port of DNS (RFC 1035).
const PORT: u16 = 53;

/// A DNS that answers; ends when dropped.
#[derive(Debug)]
pub(super) struct ClusterDns {
    _serving: Serving,
    _dns: Dns,
}

/// Answers at addresses that the proxy has given to this host.
pub(super) fn start(
    informers: &Informers,
    addresses: &[IpAddr],
    domain: &str,
) -> anyhow::Result<ClusterDns> {
    let upstreams = resolv::of_host()
        .nameservers
        .iter()
        .filter_map(|s| Some(SocketAddr::new(s.parse().ok()?, PORT)))
        .collect();
    let dns = Dns::start(
        informers,
        DnsConfig {
            domain: domain.to_owned(),
            addresses: addresses.to_vec(),
            upstreams,
        },
    )?;
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for ip in addresses {
        let at = SocketAddr::new(*ip, PORT);
        let on = |what: &str| format!("listen for {what} on {at}, the address of the cluster DNS");
        udp.push(UdpSocket::bind(at).with_context(|| on("UDP"))?);
        tcp.push(TcpListener::bind(at).with_context(|| on("TCP"))?);
    }
    let serving = dns.serve(udp, tcp)?;
    Ok(ClusterDns {
        _serving: serving,
        _dns: dns,
    })
}
