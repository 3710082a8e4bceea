//! Packets through Services, in namespaces that each test makes: pods of the
//! pod network as endpoints and clients, the host, and an outside.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../netns/tests/common/mod.rs"]
mod common;
mod support;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use common::*;
use rkube_netns::route::{NewRoute, Requests, RouteSocket};
use rkube_netns::{Host, in_netns};
use rkube_proxy::{Proxy, ProxyConfig};
use serde_json::{Value, json};
use support::FakeApi;

const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NODE: &str = "node-a";
const NODE_PORT: u16 = 32600;

/// A test host with pods `a`, `b`, `c` that serve, a client pod, and a proxy.
struct World<'t> {
    test: &'t TestHost,
    host: Host,
    pods: BTreeMap<&'static str, Pod>,
    api: FakeApi,
    proxy: Option<Proxy>,
    runtime: tokio::runtime::Runtime,
    config: ProxyConfig,
}

fn run(test: impl FnOnce(&mut World<'_>) + Send) {
    run_with(|_| {}, test);
}

fn run_with(
    change: impl FnOnce(&mut ProxyConfig) + Send,
    test: impl FnOnce(&mut World<'_>) + Send,
) {
    TestHost::run(true, |host| {
        let net = host.open();
        let mut pods = BTreeMap::new();
        for name in ["a", "b", "c", "client"] {
            let pod = attach(&net, name, &[]);
            serve_name(pod.netns.as_fd(), "[::]:8080", name);
            serve_udp(pod.netns.as_fd(), "[::]:5353", name);
            pods.insert(name, pod);
        }
        // The outside knows where Services are.
        in_netns(host.outside.as_fd(), || {
            let mut route = RouteSocket::open()?;
            let index = route.link("eth0")?.unwrap().index;
            for gateway in [HOST_V4, HOST_V6] {
                let default = NewRoute::Default(gateway.parse().unwrap());
                route.run(Requests::new().add_route(index, default))?;
            }
            Ok(())
        })
        .unwrap();
        let mut config = ProxyConfig::new(host.config.iid, &host.config.table, NODE);
        config.service_ranges = vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:96::/112".parse().unwrap(),
        ];
        change(&mut config);
        // Its threads are born in this namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut world = World {
            test: host,
            host: net,
            pods,
            api: FakeApi::default(),
            proxy: None,
            runtime,
            config,
        };
        world.start();
        test(&mut world);
        drop(world.proxy.take());
        Proxy::reset(&world.config).unwrap();
    });
}

impl World<'_> {
    fn start(&mut self) {
        self.proxy = None;
        let _inside = self.runtime.enter();
        let proxy = Proxy::start(&self.api.informers(), &self.config).unwrap();
        self.runtime.block_on(proxy.synced());
        self.proxy = Some(proxy);
    }

    fn pod(&self, name: &str) -> BorrowedFd<'_> {
        self.pods[name].netns.as_fd()
    }

    fn outside(&self) -> BorrowedFd<'_> {
        self.test.outside.as_fd()
    }

    /// Puts a Service `web` with both families and waits until it is programmed.
    fn service(&self, spec: Value, endpoints: &[&str]) {
        let mut whole = json!({
            "clusterIP": VIP[0], "clusterIPs": VIP, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": NODE_PORT},
            ],
        });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let status = whole.as_object_mut().unwrap().remove("status");
        let mut service =
            json!({"metadata": {"name": "web", "namespace": "default"}, "spec": whole});
        service["status"] = status.unwrap_or(json!({}));
        self.change(|| {
            self.api.put("services", service);
            self.slices(endpoints);
        });
    }

    fn slices(&self, endpoints: &[&str]) {
        for (family, suffix) in [("IPv4", "4"), ("IPv6", "6")] {
            let list: Vec<Value> = endpoints
                .iter()
                .map(|name| {
                    let got = &self.pods[name].got;
                    let ip: IpAddr = match family {
                        "IPv4" => got.v4.into(),
                        _ => got.v6.unwrap().into(),
                    };
                    json!({"addresses": [ip], "nodeName": NODE, "conditions": {"ready": true}})
                })
                .collect();
            self.api.put(
                "endpointslices",
                json!({
                    "metadata": {"name": format!("web-{suffix}"), "namespace": "default",
                        "labels": {"kubernetes.io/service-name": "web"}},
                    "addressType": family, "endpoints": list,
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"},
                              {"name": "dns", "port": 5353, "protocol": "UDP"}],
                }),
            );
        }
    }

    /// Makes a change and waits until nothing is programmed any more.
    fn change(&self, change: impl FnOnce()) {
        let mut programmed = self.proxy.as_ref().unwrap().programmed();
        programmed.mark_unchanged();
        change();
        self.runtime.block_on(async {
            let quiet = Duration::from_millis(300);
            tokio::time::timeout(DEADLINE, programmed.changed())
                .await
                .expect("nothing was programmed")
                .unwrap();
            while let Ok(more) = tokio::time::timeout(quiet, programmed.changed()).await {
                more.unwrap();
            }
        });
    }
}

/// Answers every connection with a name and the caller's address.
fn serve_name(netns: BorrowedFd<'_>, address: &str, name: &'static str) {
    let listener = in_netns(netns, || Ok(TcpListener::bind(address).unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

/// Name of the server and the address that it saw.
fn ask(from: Option<BorrowedFd<'_>>, ip: &str, port: u16) -> std::io::Result<(String, IpAddr)> {
    let target = SocketAddr::new(ip.parse().unwrap(), port);
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let Some((name, peer)) = text.split_once(' ') else {
            return Err(ErrorKind::UnexpectedEof.into());
        };
        Ok((name.to_owned(), peer.parse().unwrap()))
    };
    match from {
        None => connect(),
        Some(netns) => in_netns(netns, || Ok(connect())).unwrap(),
    }
}

/// The servers that some connections reached, each once, in order.
fn reached(from: Option<BorrowedFd<'_>>, ip: &str, port: u16, times: usize) -> String {
    let mut names: Vec<String> = (0..times)
        .map(|_| {
            let answer = ask(from, ip, port);
            let dump = || nft(&["list", "ruleset"]);
            answer
                .unwrap_or_else(|e| panic!("{ip} {port}: {e}\n{}", dump()))
                .0
        })
        .collect();
    names.sort();
    names.dedup();
    names.join(",")
}

fn refused(from: Option<BorrowedFd<'_>>, ip: &str, port: u16) -> ErrorKind {
    ask(from, ip, port).unwrap_err().kind()
}

/// Enough that three endpoints are all met but once in 10^10.
const MANY: usize = 60;

#[test]
fn a_cluster_ip_spreads_over_its_endpoints_from_everywhere() {
    run(|world| {
        world.service(json!({}), &["a", "b", "c"]);
        for vip in VIP {
            assert_eq!(reached(Some(world.pod("client")), vip, 80, MANY), "a,b,c");
            assert_eq!(reached(None, vip, 80, MANY), "a,b,c");
            assert_eq!(reached(Some(world.outside()), vip, 80, MANY), "a,b,c");
            // A pod that is an endpoint may reach itself.
            assert_eq!(reached(Some(world.pod("a")), vip, 80, MANY), "a,b,c");
        }
        // Pods see pods; what comes from outside comes back through this node.
        let got = &world.pods["client"].got;
        let (_, seen) = ask(Some(world.pod("client")), VIP[0], 80).unwrap();
        assert_eq!(seen, got.v4);
        let (_, seen) = ask(Some(world.pod("client")), VIP[1], 80).unwrap();
        assert_eq!(seen, got.v6.unwrap());
        let (_, seen) = ask(Some(world.outside()), VIP[0], 80).unwrap();
        assert_eq!(seen, world.host.gateway().v4);

        // Fewer, others, none, back, gone.
        world.change(|| world.slices(&["b"]));
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 8), "b");
        assert_eq!(reached(Some(world.pod("client")), VIP[1], 80, 8), "b");
        world.change(|| world.slices(&[]));
        for vip in VIP {
            let kind = ErrorKind::ConnectionRefused;
            assert_eq!(refused(Some(world.pod("client")), vip, 80), kind);
            assert_eq!(refused(None, vip, 80), kind);
            assert_eq!(refused(Some(world.outside()), vip, 80), kind);
        }
        world.change(|| world.slices(&["c"]));
        assert_eq!(reached(None, VIP[0], 80, 8), "c");
        let kind = ErrorKind::ConnectionRefused;
        assert_eq!(refused(None, VIP[0], 81), kind, "no port of the Service");
        world.change(|| world.api.delete("services", "default", "web"));
        assert!(ask(Some(world.pod("client")), VIP[0], 80).is_err());
        assert!(!nft(&["list", "ruleset"]).contains(VIP[0]));
    });
}

#[test]
fn a_node_port_answers_on_every_address_of_the_node() {
    run(|world| {
        world.service(json!({"type": "NodePort"}), &["a", "b"]);
        for (v, host) in [HOST_V4, HOST_V6].into_iter().enumerate() {
            let outside = Some(world.outside());
            assert_eq!(reached(outside, host, NODE_PORT, MANY), "a,b");
            assert_eq!(reached(None, host, NODE_PORT, MANY), "a,b");
            assert_eq!(
                reached(Some(world.pod("client")), host, NODE_PORT, MANY),
                "a,b"
            );
            let loopback = ["127.0.0.1", "::1"][v];
            wait_for("a listener on loopback", || {
                ask(None, loopback, NODE_PORT).is_ok()
            });
            assert_eq!(reached(None, loopback, NODE_PORT, MANY), "a,b");
        }
        let (_, seen) = ask(Some(world.outside()), HOST_V4, NODE_PORT).unwrap();
        assert_eq!(seen, world.host.gateway().v4, "masqueraded");
        let udp = udp_client(None, "127.0.0.1".parse::<IpAddr>().unwrap(), NODE_PORT);
        assert!(ask_udp(&udp).starts_with(['a', 'b']));

        // With Local the source stays.
        world.service(
            json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
            &["a"],
        );
        for (host, outside) in [(HOST_V4, OUTSIDE_V4), (HOST_V6, OUTSIDE_V6)] {
            let (_, seen) = ask(Some(world.outside()), host, NODE_PORT).unwrap();
            assert_eq!(seen, outside.parse::<IpAddr>().unwrap());
        }
        // Back to another type: the port is nobody's.
        world.service(json!({"type": "ClusterIP"}), &["a"]);
        assert!(ask(Some(world.outside()), HOST_V4, NODE_PORT).is_err());
        assert!(ask(None, "127.0.0.1", NODE_PORT).is_err());
    });
}

#[test]
fn clients_stay_at_their_endpoint_and_the_choice_can_be_switched() {
    run(|world| {
        let stay = json!({"type": "NodePort", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 3600}}});
        world.service(stay.clone(), &["a", "b", "c"]);
        let client = || Some(world.pod("client"));
        for (ip, port) in [
            (VIP[0], 80),
            (VIP[1], 80),
            (HOST_V4, NODE_PORT),
            (HOST_V6, NODE_PORT),
        ] {
            let one = reached(client(), ip, port, MANY);
            assert_eq!(one.len(), 1, "{one}: one endpoint at {ip}");
            // Another client may have another, and from outside it is masqueraded.
            assert_eq!(reached(Some(world.outside()), ip, port, 20).len(), 1);
        }
        let (_, seen) = ask(Some(world.outside()), VIP[0], 80).unwrap();
        assert_eq!(seen, world.host.gateway().v4);

        // The others come and go; the client stays.
        let one = reached(client(), VIP[0], 80, 5);
        let other = ["a", "b", "c"].into_iter().find(|n| *n != one).unwrap();
        world.change(|| world.slices(&[&*one, other]));
        assert_eq!(reached(client(), VIP[0], 80, 20), one);
        world.change(|| world.slices(&["a", "b", "c"]));
        assert_eq!(reached(client(), VIP[0], 80, 20), one);
        // Its own goes: it gets one of the others and stays there.
        let rest: Vec<&str> = ["a", "b", "c"].into_iter().filter(|n| *n != one).collect();
        world.change(|| world.slices(&rest));
        let next = reached(client(), VIP[0], 80, 20);
        assert!(rest.contains(&&*next), "{next} of {rest:?}");

        world.service(json!({"type": "NodePort"}), &["a", "b", "c"]);
        assert_eq!(reached(client(), VIP[0], 80, MANY), "a,b,c");
        assert_eq!(reached(client(), HOST_V4, NODE_PORT, MANY), "a,b,c");
        world.service(stay, &["a", "b", "c"]);
        assert_eq!(reached(client(), VIP[0], 80, MANY).len(), 1);

        // After its time a client chooses anew.
        let short = json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
        world.service(short, &["a", "b", "c"]);
        let mut met = std::collections::BTreeSet::new();
        wait_for("another endpoint", || {
            std::thread::sleep(Duration::from_millis(1300));
            met.insert(reached(client(), VIP[1], 80, 3));
            met.len() > 1
        });
    });
}

#[test]
fn udp_flows_follow_their_endpoints() {
    run(|world| {
        world.service(json!({"type": "NodePort"}), &["a"]);
        for vip in VIP {
            let vip: IpAddr = vip.parse().unwrap();
            let client = udp_client(Some(world.pod("client")), vip, 53);
            assert!(ask_udp(&client).starts_with("a "));
            world.change(|| world.slices(&["b"]));
            assert!(ask_udp(&client).starts_with("b "), "the same socket");
            world.change(|| world.slices(&[]));
            client.send(b"?").unwrap();
            let refused = client.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            world.change(|| world.slices(&["a"]));
            assert!(ask_udp(&client).starts_with("a "));
        }
        let host: IpAddr = HOST_V4.parse().unwrap();
        let client = udp_client(Some(world.outside()), host, NODE_PORT);
        assert!(ask_udp(&client).starts_with("a "));
        world.change(|| world.slices(&["c"]));
        assert!(ask_udp(&client).starts_with("c "));
    });
}

#[test]
fn traffic_policies_look_at_this_node_only() {
    run(|world| {
        world.service(
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                "externalIPs": ["198.51.100.1"], "healthCheckNodePort": 32700,
                "status": {"loadBalancer": {"ingress": [
                    {"ip": "198.51.100.2", "ipMode": "VIP"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}]}},
                "loadBalancerSourceRanges": ["192.0.2.0/30", "10.0.0.0/8"]}),
            &["a"],
        );
        let outside = || Some(world.outside());
        let source: IpAddr = OUTSIDE_V4.parse().unwrap();
        for ip in ["198.51.100.1", "198.51.100.2"] {
            assert_eq!(ask(outside(), ip, 80).unwrap(), ("a".to_owned(), source));
        }
        assert!(
            ask(outside(), "198.51.100.3", 80).is_err(),
            "the balancer's own"
        );
        let health = || {
            in_netns(world.outside(), || {
                let mut stream = TcpStream::connect((HOST_V4, 32700)).unwrap();
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    .unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                Ok(text)
            })
            .unwrap()
        };
        assert!(health().starts_with("HTTP/1.1 200") && health().contains("\"localEndpoints\": 1"));

        // All endpoints are elsewhere: outside is dropped, pods are not refused.
        world.change(|| {
            world.api.put("endpointslices", json!({
                "metadata": {"name": "web-4", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [world.pods["b"].got.v4], "nodeName": "node-b"}],
            }));
        });
        assert_eq!(refused(outside(), "198.51.100.1", 80), ErrorKind::TimedOut);
        assert_eq!(refused(outside(), HOST_V4, NODE_PORT), ErrorKind::TimedOut);
        assert_eq!(
            reached(Some(world.pod("client")), "198.51.100.1", 80, 5),
            "b"
        );
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 5), "b");

        // Sources that are not in the ranges; inside only local endpoints.
        world.service(
            json!({"type": "LoadBalancer", "internalTrafficPolicy": "Local",
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}]}},
                "loadBalancerSourceRanges": ["203.0.113.0/24"]}),
            &["a"],
        );
        assert_eq!(refused(outside(), "198.51.100.2", 80), ErrorKind::TimedOut);
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 5), "a");
        assert_eq!(reached(outside(), HOST_V4, NODE_PORT, 5), "a");
    });
}

#[test]
fn a_flush_by_others_and_a_restart_lose_nothing() {
    run(|world| {
        world.service(json!({}), &["a"]);
        nft(&["flush", "ruleset"]);
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 3), "a");
        // What an earlier proxy programmed serves until the next one is ready.
        world.proxy = None;
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 3), "a");
        world.slices(&["b"]);
        world.start();
        assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 3), "b");
    });
}

#[test]
fn without_an_owner_the_table_is_made_anew() {
    run_with(
        |config| config.own_table = false,
        |world| {
            world.service(json!({}), &["a"]);
            assert_eq!(reached(Some(world.pod("client")), VIP[0], 80, 3), "a");
            let table = world.config.table.clone();
            nft(&["delete", "table", "inet", &table]);
            wait_for("the table", || {
                nft(&["list", "ruleset"]).contains(&format!("table inet {table}"))
            });
            wait_for("the Service", || {
                ask(Some(world.pod("client")), VIP[0], 80).is_ok()
            });
        },
    );
}

#[test]
fn nft_prints_the_table_in_both_forms() {
    run(|world| {
        world.service(
            json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}]}},
                "loadBalancerSourceRanges": ["192.0.2.0/24"]}),
            &["a", "b"],
        );
        let _ = ask(Some(world.pod("client")), VIP[0], 80).unwrap();
        let text = nft(&["list", "ruleset"]);
        for part in [
            "10.96.0.10 . tcp . 80 : goto stay-2-10800",
            "tcp . 32600 : goto node-local-stay-2-10800",
            "flags owner",
            "dnat ip to ip daddr . meta l4proto . th dport . meta mark map @endpoints4",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let json = nft(&["-j", "list", "table", "inet", &world.config.table]);
        assert!(json.contains("nodeport-endpoints6"));
    });
}
