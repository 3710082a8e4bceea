//! Routes to the pods of other nodes over these nodes' own addresses
//! (host-gw): nodes on one link need nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use rkube_client::{Informer, Informers, Store};
use rkube_netns::Iid;
use rkube_netns::route::{GatewayRoute, Requests, RouteSocket, TABLE_MAIN};
use rustix::io::Errno;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::error::Error;

/// `rtm_protocol` of our routes: none of `linux/rtnetlink.h`'s.
const PROTOCOL: u8 = 114;
/// How long after a refusal (an address that is on no link yet) it is tried
/// again.
const RETRY: Duration = Duration::from_secs(5);

/// Where the pods of other nodes are: pod range to the node's address of the
/// same family. Of two nodes with one range the first by name has it.
#[must_use]
pub fn peers(me: &str, nodes: &[&Node]) -> BTreeMap<IpNet, IpAddr> {
    let mut sorted: Vec<&&Node> = nodes.iter().collect();
    sorted.sort_unstable_by_key(|node| &node.metadata.name);
    let own: BTreeSet<IpNet> = sorted
        .iter()
        .filter(|node| node.metadata.name.as_deref() == Some(me))
        .flat_map(|node| ranges(node))
        .collect();
    let mut peers = BTreeMap::new();
    for node in sorted {
        if node.metadata.name.as_deref() == Some(me) {
            continue;
        }
        for range in ranges(node) {
            let v6 = range.addr().is_ipv6();
            let address = addresses(node).find(|ip| ip.is_ipv6() == v6);
            if let Some(address) = address.filter(|_| !own.contains(&range)) {
                peers.entry(range).or_insert(address);
            }
        }
    }
    peers
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = node.spec.as_ref() else {
        return Vec::new();
    };
    let all = match spec.pod_cidrs.as_deref() {
        Some(list) if !list.is_empty() => list.to_vec(),
        _ => spec.pod_cidr.iter().cloned().collect(),
    };
    let parsed = all.iter().filter_map(|range| range.parse::<IpNet>().ok());
    parsed.map(|range| range.trunc()).collect()
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let status = node.status.as_ref();
    let all = status.and_then(|s| s.addresses.as_deref()).unwrap_or(&[]);
    all.iter()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
}

/// What leads from the routes that are there to those that are wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    delete: Vec<GatewayRoute>,
    add: Vec<GatewayRoute>,
}

fn steps(wanted: &BTreeSet<GatewayRoute>, there: &BTreeSet<GatewayRoute>) -> Steps {
    let replaced = |old: &&GatewayRoute| {
        // Adding replaces a route with the same destination and metric.
        !wanted.iter().any(|new| new.destination == old.destination)
    };
    Steps {
        delete: there.difference(wanted).filter(replaced).copied().collect(),
        add: wanted.difference(there).copied().collect(),
    }
}

/// Keeps the routes; dropping it stops that and leaves them as they are, so
/// that pods are reached while the next one starts.
#[derive(Debug)]
pub struct Routes {
    task: AbortHandle,
    settled: watch::Receiver<Option<BTreeMap<IpNet, IpAddr>>>,
    _nodes: Arc<Informer<Node>>,
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Routes {
    /// Starts in the calling thread's network namespace and tokio runtime.
    ///
    /// # Errors
    /// [`Error::Route`].
    pub fn start(informers: &Informers, iid: Iid, node: &str) -> Result<Self, Error> {
        let socket = open()?;
        let nodes = informers.of::<Node>();
        let changed = Arc::new(Notify::new());
        let weak = Arc::downgrade(&changed);
        nodes.on_change(move |_| {
            if let Some(changed) = weak.upgrade() {
                changed.notify_one();
            }
        });
        let (tell, settled) = watch::channel(None);
        let keeper = Keeper {
            socket,
            priority: iid.group(),
            node: node.to_owned(),
            nodes: Arc::clone(nodes.store()),
            tell,
        };
        let informer = Arc::clone(&nodes);
        let run = async move {
            informer.synced().await;
            drop(informer);
            keeper.run(&changed).await;
        };
        Ok(Self {
            task: rkube_task::spawn(run).abort_handle(),
            settled,
            _nodes: nodes,
        })
    }

    /// The peers whose routes are there; `None` before the first time.
    #[must_use]
    pub fn settled(&self) -> watch::Receiver<Option<BTreeMap<IpNet, IpAddr>>> {
        self.settled.clone()
    }

    /// Deletes an instance's routes; for `rkube reset`.
    ///
    /// # Errors
    /// [`Error::Route`].
    pub fn reset(iid: Iid) -> Result<(), Error> {
        let mut socket = open()?;
        let there = routes(&mut socket, iid.group()).map_err(failed)?;
        apply(&mut socket, &steps(&BTreeSet::new(), &there)).map_err(failed)
    }
}

fn failed(source: rkube_netns::Error) -> Error {
    let what = "routes to the pods of other nodes".to_owned();
    Error::Route { what, source }
}

fn open() -> Result<RouteSocket, Error> {
    RouteSocket::open().map_err(failed)
}

/// The instance's own routes.
fn routes(
    socket: &mut RouteSocket,
    priority: u32,
) -> Result<BTreeSet<GatewayRoute>, rkube_netns::Error> {
    let mut own = BTreeSet::new();
    for v6 in [false, true] {
        for route in socket.routes(v6)? {
            let ours = (route.table, route.protocol, route.priority);
            if ours == (TABLE_MAIN, PROTOCOL, priority)
                && let Some(gateway) = route.gateway
            {
                own.insert(GatewayRoute {
                    destination: route.destination,
                    gateway,
                    protocol: PROTOCOL,
                    priority,
                });
            }
        }
    }
    Ok(own)
}

/// Tries everything; tells the first refusal.
fn apply(socket: &mut RouteSocket, steps: &Steps) -> Result<(), rkube_netns::Error> {
    let mut first = Ok(());
    for route in &steps.delete {
        match socket.run(Requests::new().delete_gateway_route(route)) {
            Err(error) if error.errno() == Some(Errno::SRCH) => {}
            other => first = first.and(other.map(drop)),
        }
    }
    for route in &steps.add {
        let done = socket.run(Requests::new().add_gateway_route(route));
        first = first.and(done.map(drop));
    }
    first
}

struct Keeper {
    socket: RouteSocket,
    priority: u32,
    node: String,
    nodes: Arc<Store<Node>>,
    tell: watch::Sender<Option<BTreeMap<IpNet, IpAddr>>>,
}

impl Keeper {
    async fn run(mut self, changed: &Notify) {
        loop {
            match self.settle() {
                Ok(()) => changed.notified().await,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a node's address is on none of this node's links"
                    );
                    // Either something changed, or it is time.
                    let _ = tokio::time::timeout(RETRY, changed.notified()).await;
                }
            }
        }
    }

    fn settle(&mut self) -> Result<(), Error> {
        let nodes = self.nodes.all();
        let nodes: Vec<&Node> = nodes.iter().map(|node| &**node).collect();
        let peers = peers(&self.node, &nodes);
        // Node objects change every few seconds, their addresses hardly ever.
        if self.tell.borrow().as_ref() == Some(&peers) {
            return Ok(());
        }
        let wanted = peers.iter().map(|(range, address)| GatewayRoute {
            destination: *range,
            gateway: *address,
            protocol: PROTOCOL,
            priority: self.priority,
        });
        let there = routes(&mut self.socket, self.priority).map_err(failed)?;
        let steps = steps(&wanted.collect(), &there);
        apply(&mut self.socket, &steps).map_err(failed)?;
        self.tell.send_replace(Some(peers));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use serde_json::json;

    fn node(name: &str, ranges: &[&str], ips: &[&str]) -> Node {
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .chain([json!({"type": "Hostname", "address": name})])
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn other_nodes_are_reached_over_their_addresses() {
        let nodes = [
            node("me", &["10.1.0.0/24"], &["192.0.2.1"]),
            node(
                "c",
                &["10.3.0.0/24", "fd00:3::/64"],
                &["192.0.2.3", "2001:db8::3"],
            ),
            node("b", &["10.2.0.0/24", "fd00:2::/64"], &["192.0.2.2"]),
            node("d", &["10.3.0.0/24"], &["192.0.2.4"]),
            node("e", &["10.1.0.0/24"], &["192.0.2.5"]),
            node("f", &[], &["192.0.2.6"]),
        ];
        let nodes: Vec<&Node> = nodes.iter().collect();
        let got: Vec<String> = peers("me", &nodes)
            .iter()
            .map(|(range, ip)| format!("{range} {ip}"))
            .collect();
        assert_eq!(
            got,
            [
                "10.2.0.0/24 192.0.2.2",
                "10.3.0.0/24 192.0.2.3",
                "fd00:3::/64 2001:db8::3",
            ]
        );
    }

    #[test]
    fn steps_replace_and_delete() {
        let route = |destination: &str, gateway: &str| GatewayRoute {
            destination: destination.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            protocol: PROTOCOL,
            priority: 7,
        };
        let there = BTreeSet::from([
            route("10.1.0.0/24", "192.0.2.1"),
            route("10.2.0.0/24", "192.0.2.2"),
            route("10.3.0.0/24", "192.0.2.3"),
        ]);
        let wanted = BTreeSet::from([
            route("10.1.0.0/24", "192.0.2.1"),
            route("10.2.0.0/24", "192.0.2.9"),
        ]);
        assert_eq!(
            steps(&wanted, &there),
            Steps {
                delete: vec![route("10.3.0.0/24", "192.0.2.3")],
                add: vec![route("10.2.0.0/24", "192.0.2.9")],
            }
        );
    }
}
