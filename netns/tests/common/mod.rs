//! A throw-away host: a network namespace with an uplink to a second one that
//! plays the outside. Nothing touches the machine's own network.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "tests, and each uses its part"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use rkube_netns::route::{LOOPBACK_INDEX, NewRoute, Requests, RouteSocket, Veth};
use rkube_netns::{
    AttachRequest, Attachment, Error, Host, HostConfig, HostPort, Iid, Proto, in_netns,
};

/// Far beyond anything that works; reached only by a failure.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const HOST_V4: &str = "192.0.2.1";
pub const OUTSIDE_V4: &str = "192.0.2.2";
pub const HOST_V6: &str = "2001:db8::1";
pub const OUTSIDE_V6: &str = "2001:db8::2";
const UPLINK_MTU: u32 = 1420;

/// A new network namespace; it lives as long as the descriptor.
pub fn fresh_netns() -> OwnedFd {
    std::thread::spawn(|| {
        rkube_sys::netlink::unshare_network().unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

pub struct TestHost {
    pub outside: OwnedFd,
    pub state: tempfile::TempDir,
    pub config: HostConfig,
}

impl TestHost {
    /// Runs a test on a thread inside a new host namespace.
    pub fn run(uplink: bool, test: impl FnOnce(&TestHost) + Send) {
        let netns = fresh_netns();
        let inside = || {
            let mut route = RouteSocket::open()?;
            route.run(Requests::new().up(LOOPBACK_INDEX))?;
            let outside = fresh_netns();
            if uplink {
                connect(&mut route, outside.as_fd());
            }
            let state = tempfile::tempdir().unwrap();
            let config = HostConfig::new(
                Iid::parse("0badcafe").unwrap(),
                "rkube-0badcafe",
                &state.path().join("net"),
            );
            test(&TestHost {
                outside,
                state,
                config,
            });
            Ok(())
        };
        in_netns(netns.as_fd(), inside).unwrap();
    }

    pub fn open(&self) -> Host {
        Host::open(self.config.clone()).unwrap()
    }
}

fn connect(route: &mut RouteSocket, outside: BorrowedFd<'_>) {
    let (host_mac, outside_mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let wire = |route: &mut RouteSocket, name: &str, own: [&str; 2], other: [&str; 2], mac| {
        let index = route.link(name).unwrap().unwrap().index;
        let mut requests = Requests::new();
        for own in own {
            requests.add_address(index, own.parse().unwrap());
        }
        requests.up(index);
        for other in other {
            let other: IpAddr = other.parse().unwrap();
            requests
                .add_route(index, NewRoute::OnLink(other.into()))
                .add_neighbour(index, other, mac);
        }
        route.run(&requests).unwrap();
        index
    };
    let veth = Veth {
        name: "uplink",
        mac: host_mac,
        peer_name: "eth0",
        peer_mac: outside_mac,
        peer_netns: outside,
        mtu: UPLINK_MTU,
        group: 0,
    };
    route.run(Requests::new().add_veth(&veth)).unwrap();
    in_netns(outside, || {
        let mut route = RouteSocket::open()?;
        route.run(Requests::new().up(LOOPBACK_INDEX))?;
        wire(
            &mut route,
            "eth0",
            [OUTSIDE_V4, OUTSIDE_V6],
            [HOST_V4, HOST_V6],
            host_mac,
        );
        Ok(())
    })
    .unwrap();
    let index = wire(
        route,
        "uplink",
        [HOST_V4, HOST_V6],
        [OUTSIDE_V4, OUTSIDE_V6],
        outside_mac,
    );
    let defaults = [OUTSIDE_V4, OUTSIDE_V6].map(|a| NewRoute::Default(a.parse().unwrap()));
    route
        .run(
            Requests::new()
                .add_route(index, defaults[0])
                .add_route(index, defaults[1]),
        )
        .unwrap();
}

pub struct Pod {
    pub netns: OwnedFd,
    pub got: Attachment,
}

pub fn attach(host: &Host, pod: &str, host_ports: &[HostPort]) -> Pod {
    let netns = fresh_netns();
    let got = try_attach(host, pod, netns.as_fd(), host_ports).unwrap();
    Pod { netns, got }
}

pub fn try_attach(
    host: &Host,
    pod: &str,
    netns: BorrowedFd<'_>,
    ports: &[HostPort],
) -> Result<Attachment, Error> {
    host.attach(&AttachRequest {
        pod,
        netns,
        addresses: None,
        host_ports: ports,
        mtu: None,
    })
}

pub fn port(proto: Proto, host_ip: Option<&str>, host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        proto,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port,
    }
}

/// Answers every TCP connection with the caller's address.
pub fn serve_tcp(netns: BorrowedFd<'_>, address: &str) {
    let listener = in_netns(netns, || Ok(TcpListener::bind(address).unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

/// Answers every datagram with `name` and the sender's address.
pub fn serve_udp(netns: BorrowedFd<'_>, address: &str, name: &'static str) {
    let socket = in_netns(netns, || Ok(UdpSocket::bind(address).unwrap())).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(
                format!("{name} {}", from.ip().to_canonical()).as_bytes(),
                from,
            );
        }
    });
}

/// What the server said: the address it saw.
pub fn try_ask_tcp(
    netns: Option<BorrowedFd<'_>>,
    ip: impl Into<IpAddr>,
    port: u16,
) -> std::io::Result<IpAddr> {
    let target = SocketAddr::new(ip.into(), port);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&target, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.parse().unwrap())
    };
    match netns {
        None => ask(),
        Some(netns) => in_netns(netns, || Ok(ask())).unwrap(),
    }
}

pub fn ask_tcp(netns: Option<BorrowedFd<'_>>, ip: impl Into<IpAddr>, port: u16) -> IpAddr {
    let ip = ip.into();
    try_ask_tcp(netns, ip, port)
        .unwrap_or_else(|error| panic!("{ip} port {port}: {error}\n{}", nft(&["list", "ruleset"])))
}

/// A UDP socket connected to a target from inside a namespace.
pub fn udp_client(netns: Option<BorrowedFd<'_>>, ip: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let target = SocketAddr::new(ip.into(), port);
    let make = || {
        let any: IpAddr = if target.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    match netns {
        None => make(),
        Some(netns) => in_netns(netns, || Ok(make())).unwrap(),
    }
}

pub fn ask_udp(client: &UdpSocket) -> String {
    client.send(b"?").unwrap();
    let mut buffer = [0; 64];
    let got = client.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..got]).into_owned()
}

/// `nft` as an oracle, in the calling thread's namespace.
pub fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Names of all links of the calling thread's namespace.
pub fn links() -> Vec<String> {
    RouteSocket::open()
        .unwrap()
        .links()
        .unwrap()
        .into_iter()
        .map(|link| link.name)
        .collect()
}

/// Waits for what the kernel does in the background.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
