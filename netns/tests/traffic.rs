//! Packets through the real thing: who reaches whom, and under which address.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use common::*;
use rkube_netns::Proto;
use rkube_netns::route::{LOOPBACK_INDEX, Requests, RouteSocket};

const LOCALHOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

#[test]
fn pods_and_host_reach_each_other_under_their_own_addresses() {
    TestHost::run(false, |test| {
        let host = test.open();
        let (a, b) = (attach(&host, "a", &[]), attach(&host, "b", &[]));
        assert_eq!((a.got.mtu, host.notes()), (1500, &[][..]));
        serve_tcp(b.netns.as_fd(), "[::]:80");
        let pods = [
            (IpAddr::V4(a.got.v4), IpAddr::V4(b.got.v4)),
            (a.got.v6.unwrap().into(), b.got.v6.unwrap().into()),
        ];
        for (from, to) in pods {
            assert_eq!(ask_tcp(Some(a.netns.as_fd()), to, 80), from);
            let gateway: IpAddr = if to.is_ipv4() {
                host.gateway().v4.into()
            } else {
                host.gateway().v6.unwrap().into()
            };
            assert_eq!(ask_tcp(None, to, 80), gateway);
        }
        // And the host from a pod, at its address in the range; lo in a pod.
        let this = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        serve_tcp(this.as_fd(), "[::]:81");
        assert_eq!(
            ask_tcp(Some(a.netns.as_fd()), host.gateway().v4, 81),
            a.got.v4
        );
        assert_eq!(
            ask_tcp(Some(a.netns.as_fd()), host.gateway().v6.unwrap(), 81),
            a.got.v6.unwrap()
        );
        for lo in LOCALHOST {
            assert_eq!(ask_tcp(Some(b.netns.as_fd()), lo, 80), lo);
            assert_eq!(ask_tcp(None, lo, 81), lo);
        }
    });
}

#[test]
fn the_outside_sees_the_hosts_address() {
    TestHost::run(true, |test| {
        let host = test.open();
        let a = attach(&host, "a", &[]);
        assert_eq!(a.got.mtu, 1420, "the uplink's MTU");
        serve_tcp(test.outside.as_fd(), "[::]:80");
        for (to, seen) in [(OUTSIDE_V4, HOST_V4), (OUTSIDE_V6, HOST_V6)] {
            let (to, seen): (IpAddr, IpAddr) = (to.parse().unwrap(), seen.parse().unwrap());
            assert_eq!(ask_tcp(Some(a.netns.as_fd()), to, 80), seen);
        }
    });
}

#[test]
fn host_ports_answer_from_everywhere() {
    TestHost::run(true, |test| {
        let host = test.open();
        let (a, b) = (
            attach(&host, "a", &[port(Proto::Tcp, None, 8080, 80)]),
            attach(&host, "b", &[]),
        );
        serve_tcp(a.netns.as_fd(), "[::]:80");
        let host_ips: [IpAddr; 2] = [HOST_V4.parse().unwrap(), HOST_V6.parse().unwrap()];
        let outside_ips: [IpAddr; 2] = [OUTSIDE_V4.parse().unwrap(), OUTSIDE_V6.parse().unwrap()];
        let gateways: [IpAddr; 2] = [host.gateway().v4.into(), host.gateway().v6.unwrap().into()];
        let b_ips: [IpAddr; 2] = [b.got.v4.into(), b.got.v6.unwrap().into()];
        for v in 0..2 {
            assert_eq!(
                ask_tcp(Some(test.outside.as_fd()), host_ips[v], 8080),
                outside_ips[v],
                "outside, source kept"
            );
            assert_eq!(
                ask_tcp(None, host_ips[v], 8080),
                host_ips[v],
                "the host at its own address"
            );
            assert_eq!(
                ask_tcp(None, LOCALHOST[v], 8080),
                gateways[v],
                "the host at loopback, masqueraded"
            );
            assert_eq!(
                ask_tcp(Some(b.netns.as_fd()), host_ips[v], 8080),
                b_ips[v],
                "another pod"
            );
            assert_eq!(
                ask_tcp(Some(a.netns.as_fd()), host_ips[v], 8080),
                gateways[v],
                "the pod itself"
            );
        }
        // Loopback of the host still works beside it.
        let this = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        serve_tcp(this.as_fd(), "[::]:81");
        for lo in LOCALHOST {
            assert_eq!(ask_tcp(None, lo, 81), lo);
        }
    });
}

#[test]
fn a_loopback_host_port_is_for_the_host_alone() {
    TestHost::run(true, |test| {
        let host = test.open();
        let ports = [
            port(Proto::Tcp, Some("127.0.0.1"), 8080, 80),
            port(Proto::Tcp, Some("::1"), 8080, 80),
        ];
        let a = attach(&host, "a", &ports);
        serve_tcp(a.netns.as_fd(), "[::]:80");
        for lo in LOCALHOST {
            ask_tcp(None, lo, 8080);
        }
        for ip in [HOST_V4, HOST_V6] {
            let ip: IpAddr = ip.parse().unwrap();
            let error = try_ask_tcp(Some(test.outside.as_fd()), ip, 8080).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn pods_cannot_reach_the_hosts_loopback() {
    TestHost::run(false, |test| {
        let host = test.open();
        // route_localnet is on for this pod's link.
        let a = attach(&host, "a", &[port(Proto::Tcp, None, 8080, 80)]);
        let server = std::net::UdpSocket::bind("127.0.0.1:53").unwrap();
        server.set_nonblocking(true).unwrap();
        rkube_netns::in_netns(a.netns.as_fd(), || {
            // Without an address on lo, 127.0.0.0/8 follows the default route.
            let loopback = "127.0.0.1/8".parse().unwrap();
            RouteSocket::open()?.run(Requests::new().delete_address(LOOPBACK_INDEX, loopback))?;
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            let client = std::net::UdpSocket::bind((a.got.v4, 0)).unwrap();
            for _ in 0..5 {
                client.send_to(b"x", "127.0.0.1:53").unwrap();
            }
            Ok(())
        })
        .unwrap();
        // veth delivers before send_to returns or shortly after; a packet to
        // an open port of the same path shows that the path was drained.
        let probe = std::net::UdpSocket::bind((host.gateway().v4, 54)).unwrap();
        probe.set_read_timeout(Some(DEADLINE)).unwrap();
        let client = udp_client(Some(a.netns.as_fd()), host.gateway().v4, 54);
        client.send(b"y").unwrap();
        probe.recv(&mut [0; 8]).unwrap();
        assert_eq!(
            server.recv(&mut [0; 8]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    });
}

#[test]
fn udp_host_ports_follow_their_pod() {
    TestHost::run(true, |test| {
        let host = test.open();
        let ports = [port(Proto::Udp, None, 5353, 53)];
        let a = attach(&host, "a", &ports);
        serve_udp(a.netns.as_fd(), "[::]:53", "a");
        let targets: [(&str, IpAddr); 2] = [
            (HOST_V4, OUTSIDE_V4.parse().unwrap()),
            (HOST_V6, OUTSIDE_V6.parse().unwrap()),
        ];
        let clients: Vec<_> = targets
            .iter()
            .map(|(to, _)| {
                udp_client(
                    Some(test.outside.as_fd()),
                    to.parse::<IpAddr>().unwrap(),
                    5353,
                )
            })
            .collect();
        for (client, (_, from)) in clients.iter().zip(&targets) {
            assert_eq!(ask_udp(client), format!("a {from}"));
        }
        for lo in LOCALHOST {
            assert!(ask_udp(&udp_client(None, lo, 5353)).starts_with("a "));
        }
        // The same client sockets, hence the same connections, then reach the
        // successor: nothing of the first pod is remembered.
        host.detach("a").unwrap();
        // Sent into the gap; leaves an untranslated connection behind.
        clients[0].send(b"gap").unwrap();
        let _ = clients[0].recv(&mut [0; 8]);
        let b = attach(&host, "b", &ports);
        serve_udp(b.netns.as_fd(), "[::]:53", "b");
        for (client, (_, from)) in clients.iter().zip(&targets) {
            assert_eq!(ask_udp(client), format!("b {from}"));
        }
    });
}

#[test]
fn the_first_packet_after_an_attach_arrives() {
    TestHost::run(false, |test| {
        let host = test.open();
        for n in 0..50 {
            let pod = attach(&host, &format!("p{n}"), &[]);
            let in_pod = rkube_netns::in_netns(pod.netns.as_fd(), || {
                Ok(std::net::UdpSocket::bind("[::]:7").unwrap())
            })
            .unwrap();
            in_pod.set_read_timeout(Some(DEADLINE)).unwrap();
            for to in pod.got.addresses() {
                udp_client(None, to, 7).send(b"first").unwrap();
                in_pod.recv(&mut [0; 8]).unwrap();
            }
        }
    });
}
