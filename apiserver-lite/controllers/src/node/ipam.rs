//! A range of pod addresses for every node, cut from the cluster's.
//!
//! Rules: upstream's `pkg/controller/nodeipam`, the range allocator.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use rkube_client::{Client, EventType, Informer, ObjectKey, Patch, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio::sync::Mutex;

use crate::error::{Error, Outcome};
use crate::owner;
use crate::starter::Starter;

/// Prefix of a node's IPv4 range (`--node-cidr-mask-size-ipv4`).
const NODE_PREFIX_V4: u8 = 24;
/// Prefix of a node's IPv6 range (`--node-cidr-mask-size-ipv6`).
const NODE_PREFIX_V6: u8 = 64;
/// Most ranges of one cluster range, as upstream's bitmap: 2^16.
const RANGES_MAX_BITS: u8 = 16;

/// The cluster's range of pod addresses, and how large a node's part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterCidr {
    network: IpAddr,
    prefix: u8,
    node_prefix: u8,
}

/// Why a text is no range for a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the cluster's pod range {text:?}: {reason}")]
pub struct CidrError {
    text: String,
    reason: &'static str,
}

impl FromStr for ClusterCidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let fail = |reason| CidrError {
            text: text.to_owned(),
            reason,
        };
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| fail("no prefix length"))?;
        let address: IpAddr = address.parse().map_err(|_| fail("no address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fail("no prefix length"))?;
        let (bits, mut node_prefix) = match address {
            IpAddr::V4(_) => (32, NODE_PREFIX_V4),
            IpAddr::V6(_) => (128, NODE_PREFIX_V6),
        };
        if prefix > bits {
            return Err(fail("the prefix is longer than the address"));
        }
        if node_prefix < prefix {
            // A small cluster range is one node's.
            node_prefix = prefix;
        }
        if node_prefix - prefix > RANGES_MAX_BITS {
            return Err(fail("it has more than 65536 ranges for nodes"));
        }
        let whole = Self {
            network: address,
            prefix,
            node_prefix,
        };
        if whole.range(0).network != address {
            return Err(fail("the address has bits beyond the prefix"));
        }
        Ok(whole)
    }
}

/// One node's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Range {
    network: IpAddr,
    prefix: u8,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn address(value: u128, width: u8) -> IpAddr {
    match u32::try_from(value) {
        Ok(value) if width == 32 => IpAddr::V4(Ipv4Addr::from_bits(value)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(value)),
    }
}

/// The lower bits of an address that a prefix leaves free.
fn host_mask(prefix: u8, width: u8) -> u128 {
    let free = u32::from(width - prefix.min(width));
    1_u128.checked_shl(free).map_or(u128::MAX, |top| top - 1)
}

impl ClusterCidr {
    fn range(&self, index: u32) -> Range {
        let (value, width) = bits(self.network);
        let base = value & !host_mask(self.prefix, width);
        let shift = u32::from(width - self.node_prefix);
        let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
        Range {
            network: address(base | offset, width),
            prefix: self.node_prefix,
        }
    }

    /// The first range that is not used.
    fn free(&self, used: &HashSet<String>) -> Option<Range> {
        let count = 1_u32 << (self.node_prefix - self.prefix);
        (0..count)
            .map(|index| self.range(index))
            .find(|range| !used.contains(&range.to_string()))
    }
}

struct Ipam {
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<String>>,
    client: Client,
    recorder: Recorder,
    cidrs: Vec<ClusterCidr>,
    /// Ranges given to nodes that the informer does not show yet, by node.
    /// Held while one is chosen and written: one node at a time.
    given: Mutex<Vec<(String, Vec<String>)>>,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    if starter.config.cluster_cidrs.is_empty() {
        return;
    }
    let controller = Arc::new(Ipam {
        nodes: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        recorder: starter.recorder("cidrAllocator"),
        cidrs: starter.config.cluster_cidrs.clone(),
        given: Mutex::default(),
    });
    let own = Arc::clone(&controller);
    controller.nodes.on_change(move |change| {
        let node = change.object();
        if ranges(node).is_empty() && !owner::is_deleting(&**node) {
            own.queue.add(owner::name(&**node).to_owned());
        }
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move { own.nodes.synced().await });
    let queue = Arc::clone(&controller.queue);
    starter.work("node-ipam-controller", &queue, synced, move |name| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(name).await }
    });
}

fn ranges(node: &Node) -> Vec<String> {
    let spec = node.spec.as_ref();
    let all = spec.and_then(|s| s.pod_cidrs.clone());
    all.unwrap_or_default()
}

impl Ipam {
    async fn sync(&self, name: String) -> Outcome {
        let mut given = self.given.lock().await;
        let key = ObjectKey::new("", &name);
        let Some(node) = self
            .nodes
            .store()
            .get(&key)
            .filter(|n| ranges(n).is_empty())
        else {
            return Ok(());
        };
        let nodes = self.nodes.store().all();
        given.retain(|(name, _)| {
            // What the informer shows is counted there; who is gone gives back.
            nodes
                .iter()
                .any(|n| owner::name(&**n) == name && ranges(n).is_empty())
        });
        let shown = nodes.iter().flat_map(|n| ranges(n));
        let used: HashSet<String> = shown
            .chain(given.iter().flat_map(|(_, r)| r.clone()))
            .collect();
        let before = given
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, r)| r.clone());
        let free = || {
            self.cidrs
                .iter()
                .map(|c| c.free(&used).map(|r| r.to_string()))
        };
        let Some(chosen) = before.or_else(|| free().collect::<Option<Vec<_>>>()) else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            let about = reference(&*node);
            self.recorder
                .event(about, EventType::Normal, "CIDRNotAvailable", &message);
            return Ok(());
        };
        if !given.iter().any(|(n, _)| *n == name) {
            given.push((name.clone(), chosen.clone()));
        }
        let patch = json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": chosen.first(), "podCIDRs": chosen},
        });
        let api = self.client.all::<Node>();
        match api.patch(&name, &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer
                .map(|_| ())
                .map_err(Error::request("give a pod range to", name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_in_order() {
        let cidr: ClusterCidr = "10.42.0.0/22".parse().unwrap();
        let mut used = HashSet::new();
        let mut given = Vec::new();
        while let Some(range) = cidr.free(&used) {
            used.insert(range.to_string());
            given.push(range.to_string());
        }
        assert_eq!(
            given,
            [
                "10.42.0.0/24",
                "10.42.1.0/24",
                "10.42.2.0/24",
                "10.42.3.0/24"
            ]
        );
        used.remove("10.42.1.0/24");
        assert_eq!(cidr.free(&used).unwrap().to_string(), "10.42.1.0/24");
        let six: ClusterCidr = "fd00:1::/56".parse().unwrap();
        assert_eq!(six.range(255).to_string(), "fd00:1:0:ff::/64");
        let small: ClusterCidr = "10.0.0.0/28".parse().unwrap();
        assert_eq!(small.range(0).to_string(), "10.0.0.0/28");
        assert_eq!(small.free(&["10.0.0.0/28".to_owned()].into()), None);
    }

    #[test]
    fn texts_that_are_no_ranges() {
        for bad in [
            "",
            "10.0.0.0",
            "x/8",
            "10.0.0.0/33",
            "10.0.0.1/16",
            "10.0.0.0/7",
            "fd00::/40",
        ] {
            assert!(bad.parse::<ClusterCidr>().is_err(), "{bad}");
        }
    }
}
