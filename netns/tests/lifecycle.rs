//! Attach, detach, restart, crash and reset: what stays and what does not.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::AsFd;
use std::time::Instant;

use common::*;
use rkube_netns::route::{Requests, RouteSocket};
use rkube_netns::{Error, Host, HostConfig, Iid, Proto};

fn forwarding() -> [String; 2] {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(|name| {
        std::fs::read_to_string(format!("/proc/sys/net/{name}"))
            .unwrap()
            .trim()
            .to_owned()
    })
}

#[test]
fn the_table_prints_and_detach_empties_it() {
    TestHost::run(false, |test| {
        let host = test.open();
        let empty = nft(&["list", "ruleset"]);
        let ports = [
            port(Proto::Tcp, None, 8080, 80),
            port(Proto::Udp, Some("0.0.0.0"), 53, 53),
            port(Proto::Sctp, Some("192.0.2.1"), 99, 9),
            port(Proto::Tcp, Some("2001:db8::1"), 443, 443),
        ];
        let pod = attach(&host, "a", &ports);
        let full = nft(&["list", "ruleset"]);
        let expected = format!("192.0.2.1 . sctp . 99 : {} . 9", pod.got.v4);
        assert!(full.contains(&expected), "{expected} is not in\n{full}");
        nft(&["-j", "list", "ruleset"]);
        // The printed text is valid input.
        std::thread::spawn(move || {
            rkube_sys::netlink::unshare_network().unwrap();
            nft(&[&full
                .lines()
                .filter(|l| !l.contains("flags owner"))
                .collect::<Vec<_>>()
                .join("\n")]);
        })
        .join()
        .unwrap();
        host.detach("a").unwrap();
        host.detach("a").unwrap();
        assert_eq!(nft(&["list", "ruleset"]), empty);
        let link = pod.got.host_if.clone();
        drop(pod);
        wait_for("the link goes with its namespace", || {
            !links().contains(&link)
        });
        assert!(host.attachment("a").is_none());
    });
}

#[test]
fn reset_puts_everything_back() {
    TestHost::run(true, |test| {
        let (before_links, before_sysctl) = (links(), forwarding());
        assert_eq!(before_sysctl, ["0", "0"]);
        let host = test.open();
        let _pod = attach(&host, "a", &[port(Proto::Udp, None, 53, 53)]);
        assert_eq!(forwarding(), ["1", "1"]);
        let owned = nft(&["list", "tables"]);
        assert!(owned.contains("rkube-0badcafe"), "{owned}");
        drop(host);
        Host::reset(&test.config).unwrap();
        assert_eq!(links(), before_links);
        assert_eq!(forwarding(), before_sysctl);
        assert_eq!(nft(&["list", "ruleset"]), "");
        assert!(!test.config.state_dir.exists());
        Host::reset(&test.config).unwrap();
    });
}

#[test]
fn an_attach_that_cannot_end_leaves_nothing() {
    TestHost::run(false, |test| {
        let host = test.open();
        let before = (links(), nft(&["list", "ruleset"]));
        // eth0 is taken in this namespace, so the pair cannot be made.
        let pod = attach(&host, "a", &[]);
        let ports = [port(Proto::Tcp, None, 80, 80)];
        let error = try_attach(&host, "b", pod.netns.as_fd(), &ports).unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::EXIST), "{error}");
        assert!(host.attachment("b").is_none());
        host.detach("a").unwrap();
        drop(pod);
        wait_for("links as before", || links() == before.0);
        assert_eq!(nft(&["list", "ruleset"]), before.1);
    });
}

#[test]
fn a_host_port_has_one_pod() {
    TestHost::run(false, |test| {
        let host = test.open();
        let ports = [port(Proto::Tcp, None, 80, 80)];
        let _a = attach(&host, "ns/a", &ports);
        let netns = fresh_netns();
        let error = try_attach(&host, "ns/b", netns.as_fd(), &ports).unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port tcp *:80 is in use by pod ns/a"
        );
        try_attach(
            &host,
            "ns/b",
            netns.as_fd(),
            &[port(Proto::Udp, None, 80, 80)],
        )
        .unwrap();
        let plan = host
            .plan("ns/c", None, &[port(Proto::Tcp, None, 81, 8080)], None)
            .unwrap()
            .to_string();
        assert!(plan.contains("host port tcp *:81 to port 8080"), "{plan}");
        assert!(host.attachment("ns/c").is_none());
    });
}

#[test]
fn a_restart_finds_pods_and_repairs_what_was_broken() {
    TestHost::run(false, |test| {
        let host = test.open();
        let ports = [port(Proto::Tcp, None, 8080, 80)];
        let (a, gone) = (attach(&host, "a", &ports), attach(&host, "gone", &[]));
        serve_tcp(a.netns.as_fd(), "[::]:80");
        // While it lives, a second writer is kept out (where tables are owned).
        match Host::open(test.config.clone()) {
            Err(Error::TableOwned { table, .. }) => assert_eq!(table, test.config.table),
            Ok(_) => println!("tables cannot be owned on this kernel"),
            Err(error) => panic!("{error}"),
        }
        let table = nft(&["list", "ruleset"]).replace(" # progname", "");
        drop(host);
        // Down and up loses the IPv6 routes; the table is emptied.
        let mut route = RouteSocket::open().unwrap();
        nft(&["flush", "ruleset"]);
        std::process::Command::new("nft")
            .arg("list ruleset")
            .status()
            .unwrap();
        let link = gone.got.host_if.clone();
        drop(gone);
        wait_for("the link of the lost pod goes", || !links().contains(&link));
        let index = route.link(&a.got.host_if).unwrap().unwrap().index;
        std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", a.got.host_if),
            "1",
        )
        .unwrap();
        std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", a.got.host_if),
            "0",
        )
        .unwrap();
        assert!(
            route
                .routes(true)
                .unwrap()
                .iter()
                .all(|r| r.oif != Some(index) || r.destination.prefix_len() != 128)
        );

        let host = test.open();
        let report = host.adopt().unwrap();
        assert_eq!(report.lost, ["gone"]);
        assert_eq!(report.attached["a"], a.got);
        for lo in ["127.0.0.1", "::1"] {
            ask_tcp(None, lo.parse::<std::net::IpAddr>().unwrap(), 8080);
        }
        assert_eq!(
            host.adopt().unwrap(),
            report,
            "adopting again changes nothing"
        );
        let strip = |text: &str| {
            text.lines()
                .filter(|l| !l.contains("flags"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(strip(&nft(&["list", "ruleset"])).len(), strip(&table).len());
        host.detach("gone").unwrap();
        // A pod that comes back in a new namespace keeps its addresses.
        let again = attach(&host, "a", &ports);
        assert_eq!(again.got, a.got);
    });
}

#[test]
fn a_crash_anywhere_is_reset_or_detached() {
    TestHost::run(false, |test| {
        let before = links();
        let journal = test.config.state_dir.join("net.journal");
        let host = test.open();
        let intact = std::fs::read(&journal).unwrap();
        let _pods = [
            attach(&host, "a", &[port(Proto::Tcp, None, 80, 80)]),
            attach(&host, "b", &[]),
        ];
        drop(host);
        let bytes = std::fs::read(&journal).unwrap();
        // Every prefix is a crash before the rest was written; pods made
        // later exist nevertheless when the page was lost.
        for end in (intact.len()..=bytes.len()).step_by(7) {
            std::fs::write(&journal, &bytes[..end]).unwrap();
            drop(test.open());
        }
        // Recorded but never made: killed right after the journal write.
        std::fs::write(&journal, &bytes).unwrap();
        RouteSocket::open()
            .unwrap()
            .run(Requests::new().delete_group(test.config.iid.group()))
            .unwrap();
        let host = test.open();
        assert_eq!(host.adopt().unwrap().lost, ["a", "b"]);
        host.detach("a").unwrap();
        drop(host);
        Host::reset(&test.config).unwrap();
        assert_eq!(
            (links(), nft(&["list", "ruleset"])),
            (before, String::new())
        );
    });
}

#[test]
fn two_instances_do_not_meet_and_the_last_restores() {
    TestHost::run(false, |test| {
        let first = test.open();
        let other = HostConfig::new(
            Iid::parse("12345678").unwrap(),
            "rkube-12345678",
            &test.state.path().join("other"),
        );
        let second = Host::open(other.clone()).unwrap();
        let (a, b) = (attach(&first, "same", &[]), attach(&second, "same", &[]));
        assert_ne!(
            (a.got.host_if.clone(), a.got.v4),
            (b.got.host_if.clone(), b.got.v4)
        );
        drop(first);
        Host::reset(&test.config).unwrap();
        assert_eq!(forwarding(), ["1", "1"], "the second instance needs it");
        assert!(links().contains(&b.got.host_if) && !links().contains(&a.got.host_if));
        serve_tcp(b.netns.as_fd(), "[::]:80");
        ask_tcp(None, b.got.v4, 80);
        drop(second);
        Host::reset(&other).unwrap();
        assert_eq!(forwarding(), ["0", "0"]);
    });
}

#[test]
fn an_overlap_with_a_route_is_named() {
    TestHost::run(true, |test| {
        let config = HostConfig {
            v4: "192.0.2.0/24".parse().unwrap(),
            ..test.config.clone()
        };
        let error = Host::open(config).unwrap_err();
        assert!(
            matches!(&error, Error::RangeOverlap { dev, .. } if dev == "uplink" || dev == "lo"),
            "{error}"
        );
        assert!(!test.config.state_dir.exists(), "before any change");
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

#[test]
fn a_host_without_ipv6_has_ipv4_pods() {
    TestHost::run(false, |test| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let host = test.open();
        assert_eq!(host.notes().len(), 1);
        let a = attach(&host, "a", &[port(Proto::Tcp, None, 8080, 80)]);
        assert_eq!(a.got.v6, None);
        serve_tcp(a.netns.as_fd(), "0.0.0.0:80");
        ask_tcp(None, std::net::Ipv4Addr::LOCALHOST, 8080);
        drop(host);
        Host::reset(&test.config).unwrap();
    });
}

#[test]
fn two_hundred_attaches_are_timed() {
    const PODS: usize = 200;
    TestHost::run(false, |test| {
        let host = test.open();
        let mut times = Vec::new();
        let mut pods = Vec::new();
        for n in 0..PODS {
            let netns = fresh_netns();
            let port = [port(Proto::Tcp, None, u16::try_from(1000 + n).unwrap(), 80)];
            let ports = if n % 2 == 0 { &port[..] } else { &[] };
            let start = Instant::now();
            pods.push((
                try_attach(&host, &format!("pod-{n}"), netns.as_fd(), ports).unwrap(),
                netns,
            ));
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!(
            "attach: p50 {:?} p99 {:?} max {:?}",
            times[PODS / 2],
            times[PODS * 99 / 100],
            times[PODS - 1]
        );
        let start = Instant::now();
        for n in 0..PODS {
            host.detach(&format!("pod-{n}")).unwrap();
        }
        println!(
            "detach: mean {:?}",
            start.elapsed() / u32::try_from(PODS).unwrap()
        );
        let all: std::collections::HashSet<_> = pods.iter().map(|(got, _)| got.v4).collect();
        assert_eq!(all.len(), PODS);
    });
}
