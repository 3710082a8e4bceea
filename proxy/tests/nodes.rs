//! Two nodes joined by a veth pair, each a network namespace with pods, a
//! proxy and routes of its own.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../netns/tests/common/mod.rs"]
mod common;
mod support;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use common::*;
use rkube_netns::{Host, HostConfig, Iid, in_netns};
use rkube_proxy::{Proxy, ProxyConfig, Routes};
use serde_json::json;
use support::FakeApi;

const VIP: &str = "10.96.0.10";
const NODE_PORT: u16 = 32600;

/// One node: its pod network, proxy and routes, made inside its namespace.
struct Node {
    host: Host,
    pod: Pod,
    proxy: Proxy,
    routes: Routes,
    runtime: tokio::runtime::Runtime,
}

fn config(test: &TestHost, number: u8) -> HostConfig {
    let iid = Iid::parse(&format!("0badcaf{number}")).unwrap();
    let state = test.state.path().join(format!("net-{number}"));
    HostConfig {
        v4: format!("10.244.{number}.0/24").parse().unwrap(),
        v6: Some(format!("fd00:244:0:{number}::/64").parse().unwrap()),
        cluster: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:244::/48".parse().unwrap(),
        ],
        ..HostConfig::new(iid, &format!("rkube-0badcaf{number}"), &state)
    }
}

fn node(test: &TestHost, api: &FakeApi, number: u8) -> Node {
    let config = config(test, number);
    let host = Host::open(config.clone()).unwrap();
    let pod = attach(&host, "pod", &[]);
    serve_tcp(pod.netns.as_fd(), "[::]:8080");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let name = format!("node-{number}");
    let (proxy, routes) = {
        let _inside = runtime.enter();
        let informers = api.informers();
        let proxy = ProxyConfig::new(config.iid, &config.table, &name);
        (
            Proxy::start(&informers, &proxy).unwrap(),
            Routes::start(&informers, config.iid, &name).unwrap(),
        )
    };
    runtime.block_on(proxy.synced());
    Node {
        host,
        pod,
        proxy,
        routes,
        runtime,
    }
}

impl Node {
    fn await_peers(&self, count: usize) {
        let mut settled = self.routes.settled();
        let there = settled.wait_for(|peers| peers.as_ref().is_some_and(|p| p.len() == count));
        let waited = async { tokio::time::timeout(DEADLINE, there).await.is_ok() };
        assert!(self.runtime.block_on(waited), "the routes");
    }

    fn netns(&self) -> BorrowedFd<'_> {
        self.pod.netns.as_fd()
    }
}

fn object(number: u8, ips: [&str; 2]) -> serde_json::Value {
    let ranges = [
        format!("10.244.{number}.0/24"),
        format!("fd00:244:0:{number}::/64"),
    ];
    json!({"metadata": {"name": format!("node-{number}")},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": ips.map(|ip| json!({"type": "InternalIP", "address": ip}))}})
}

#[test]
fn pods_services_and_node_ports_work_across_nodes() {
    TestHost::run(true, |test| {
        let api = FakeApi::default();
        let a = node(test, &api, 1);
        let b = in_netns(test.outside.as_fd(), || Ok(node(test, &api, 2))).unwrap();
        api.put("nodes", object(1, [HOST_V4, HOST_V6]));
        api.put("nodes", object(2, [OUTSIDE_V4, OUTSIDE_V6]));
        a.await_peers(2);
        b.await_peers(2);

        // Pod to pod, both ways, under their own addresses.
        for (from, to) in [(&a, &b), (&b, &a)] {
            let pairs: [(IpAddr, IpAddr); 2] = [
                (from.pod.got.v4.into(), to.pod.got.v4.into()),
                (
                    from.pod.got.v6.unwrap().into(),
                    to.pod.got.v6.unwrap().into(),
                ),
            ];
            for (own, other) in pairs {
                assert_eq!(ask_tcp(Some(from.netns()), other, 8080), own);
            }
        }

        // A Service whose only endpoint is on the other node.
        let mut programmed = a.proxy.programmed();
        api.put(
            "services",
            json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": VIP, "clusterIPs": [VIP],
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}]}}),
        );
        api.put(
            "endpointslices",
            json!({"metadata": {"name": "web-x", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [b.pod.got.v4], "nodeName": "node-2"}]}),
        );
        let seen = |from: Option<BorrowedFd<'_>>, ip: &str, port| {
            let ip: IpAddr = ip.parse().unwrap();
            wait_for("the Service", || try_ask_tcp(from, ip, port).is_ok());
            ask_tcp(from, ip, port)
        };
        assert_eq!(
            seen(Some(a.netns()), VIP, 80),
            a.pod.got.v4,
            "the source stays"
        );
        assert_eq!(seen(None, HOST_V4, NODE_PORT).to_string(), HOST_V4);
        assert_eq!(seen(None, "127.0.0.1", NODE_PORT).to_string(), HOST_V4);
        // From a third party over node 1 to node 2: masqueraded by node 1.
        let third: OwnedFd = fresh_netns();
        let from = join(&third);
        assert_eq!(from.to_string(), "198.18.0.2");
        assert_eq!(
            seen(Some(third.as_fd()), HOST_V4, NODE_PORT).to_string(),
            HOST_V4
        );
        assert!(programmed.has_changed().unwrap());
        let _ = programmed.borrow_and_update();

        // A node that goes takes its routes along.
        api.delete("nodes", "", "node-2");
        a.await_peers(0);
        assert!(!routes_text().contains("10.244.2.0/24"));
        Routes::reset(Iid::parse("0badcaf1").unwrap()).unwrap();
        drop(a.host);
    });
}

/// Joins a namespace to this one by a link of its own; answers its address.
fn join(third: &OwnedFd) -> IpAddr {
    use rkube_netns::route::{LOOPBACK_INDEX, NewRoute, Requests, RouteSocket, Veth};
    let (ours, theirs): (IpAddr, IpAddr) =
        ("198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap());
    let (mac, peer_mac) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
    let veth = Veth {
        name: "third",
        mac,
        peer_name: "eth0",
        peer_mac,
        peer_netns: third.as_fd(),
        mtu: 1420,
        group: 0,
    };
    let mut route = RouteSocket::open().unwrap();
    route.run(Requests::new().add_veth(&veth)).unwrap();
    in_netns(third.as_fd(), || {
        let mut route = RouteSocket::open()?;
        let index = route.link("eth0")?.unwrap().index;
        let mut requests = Requests::new();
        requests
            .up(LOOPBACK_INDEX)
            .add_address(index, theirs)
            .up(index)
            .add_route(index, NewRoute::OnLink(ours.into()))
            .add_route(index, NewRoute::Default(ours))
            .add_neighbour(index, ours, mac);
        route.run(&requests).map(drop)
    })
    .unwrap();
    let index = route.link("third").unwrap().unwrap().index;
    let mut requests = Requests::new();
    requests
        .add_address(index, ours)
        .up(index)
        .add_route(index, NewRoute::OnLink(theirs.into()))
        .add_neighbour(index, theirs, peer_mac);
    route.run(&requests).unwrap();
    theirs
}

fn routes_text() -> String {
    use rkube_netns::route::RouteSocket;
    let routes = RouteSocket::open().unwrap().routes(false).unwrap();
    routes
        .iter()
        .map(|r| format!("{}\n", r.destination))
        .collect()
}
