//! How a node's proxy is to be.

use std::net::IpAddr;

use ipnet::IpNet;
use rkube_netns::Iid;

use crate::ruleset::Facts;

/// First and number of the mark's bits that instances choose from: above the
/// 16 bits of an endpoint's number. kube-proxy uses 14.
const MARK_BIT_FIRST: u32 = 16;
const MARK_BIT_COUNT: u32 = 15;

/// How a node's proxy is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The instance: its pods' links and its bit of the mark.
    pub iid: Iid,
    /// Name of the nftables table (family inet).
    pub table: String,
    /// Name of this node's Node object.
    pub node: String,
    /// Ranges of Service addresses. Packets to those that no Service has are
    /// dropped.
    pub service_ranges: Vec<IpNet>,
    /// Service addresses that this node answers itself (cluster DNS): they get
    /// no rules, their packets are untracked, and `lo` has them while the
    /// proxy runs.
    pub answered: Vec<IpAddr>,
    /// Node ports answer on 127.0.0.1 and ::1 too.
    pub loopback: bool,
    /// Own the table where the kernel can.
    pub own_table: bool,
}

impl ProxyConfig {
    /// The defaults of an instance. `table` is the pod network's table; the
    /// proxy's is named after it.
    #[must_use]
    pub fn new(iid: Iid, table: &str, node: &str) -> Self {
        Self {
            iid,
            table: format!("{table}-services"),
            node: node.to_owned(),
            service_ranges: Vec::new(),
            answered: Vec::new(),
            loopback: true,
            own_table: true,
        }
    }

    /// What the table's constant part depends on.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts {
            pod_group: self.iid.group(),
            masquerade_bit: 1 << (MARK_BIT_FIRST + self.iid.number() % MARK_BIT_COUNT),
            service_ranges: self.service_ranges.clone(),
            answered: self.answered.clone(),
        }
    }
}
