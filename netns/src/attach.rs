//! What is asked for a pod and what it got: plain values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ipam::Lease;
use crate::names::Mac;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Proto {
    /// The IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Protocol.
    pub proto: Proto,
    /// `None`: all of the host's addresses. The unspecified address of one
    /// family: all of that family. Else: this address only.
    pub host_ip: Option<IpAddr>,
    /// Port on the host, not 0.
    pub host_port: u16,
    /// Port in the pod, not 0.
    pub container_port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
        };
        match self.host_ip {
            None => write!(f, "{proto} *:{}", self.host_port),
            Some(IpAddr::V4(ip)) => write!(f, "{proto} {ip}:{}", self.host_port),
            Some(IpAddr::V6(ip)) => write!(f, "{proto} [{ip}]:{}", self.host_port),
        }
    }
}

impl HostPort {
    /// The one address it is limited to, if it is.
    #[must_use]
    pub fn only(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// True if it answers on addresses of this family.
    #[must_use]
    pub fn serves(&self, v6: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv6() == v6)
    }

    /// True if some packet could belong to both. An address and "all
    /// addresses" meet, as in the Kubernetes scheduler.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.proto == other.proto
            && self.host_port == other.host_port
            && (self.serves(false) && other.serves(false)
                || self.serves(true) && other.serves(true))
            && match (self.only(), other.only()) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }

    pub(crate) fn check(&self, lease: Lease) -> Result<(), Error> {
        let bad = |reason| {
            Err(Error::BadHostPort {
                port: self.to_string(),
                reason,
            })
        };
        if self.host_port == 0 || self.container_port == 0 {
            return bad("port 0");
        }
        if self.host_ip.is_some_and(|ip| ip.is_ipv6()) && lease.v6.is_none() {
            return bad("the pod has no IPv6 address");
        }
        Ok(())
    }
}

/// A request to attach a pod.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest<'a> {
    /// Id of the sandbox. One that comes back with a new network namespace
    /// keeps its addresses; its old link is then deleted first, which costs
    /// 20 ms, so an id per sandbox attempt is better.
    pub pod: &'a str,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Exactly these addresses instead of the next free ones.
    pub addresses: Option<Lease>,
    /// Ports of the host that lead to the pod.
    pub host_ports: &'a [HostPort],
    /// MTU in bytes instead of the instance's.
    pub mtu: Option<u32>,
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the link on the host's side; the pod's is `eth0`.
    pub host_if: String,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address, if the host has IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Link-layer address of `eth0`.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Attachment {
    /// Its addresses.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease {
            v4: self.v4,
            v6: self.v6,
        }
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
    }
}

/// What an attach would do, in words, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One line each.
    pub steps: Vec<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        HostPort {
            proto: Proto::Tcp,
            host_ip,
            host_port: 80,
            container_port: 8080,
        }
    }

    #[test]
    fn ports_meet_where_their_addresses_do() {
        let all = port(None);
        assert!(
            all.meets(&port(Some("192.0.2.1"))) && all.meets(&port(Some("::1"))) && all.meets(&all)
        );
        assert!(!port(Some("192.0.2.1")).meets(&port(Some("192.0.2.2"))));
        assert!(!port(Some("0.0.0.0")).meets(&port(Some("::"))));
        assert!(port(Some("0.0.0.0")).meets(&port(Some("192.0.2.1"))));
        assert!(!all.meets(&HostPort {
            proto: Proto::Udp,
            ..all
        }));
        assert!(!all.meets(&HostPort {
            host_port: 81,
            ..all
        }));
    }
}
