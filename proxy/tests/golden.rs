//! The whole table as `nft` prints it, against text that people read: `nft`
//! is the oracle for the encoder, and the text the description of the rules.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use rkube_netns::Iid;
use rkube_proxy::ProxyConfig;
use rkube_proxy::model::{Choice, Data, Entry, Front, Key, Protocol};
use rkube_proxy::table::Table;

/// A front without and one with affinity, a local node port, and the rest.
fn entries() -> Vec<Entry> {
    let web = Front::Address("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80);
    let dns = Front::Address("fd00:96::10".parse().unwrap(), Protocol::Udp, 53);
    let none = Front::Address("10.96.0.11".parse().unwrap(), Protocol::Sctp, 9);
    let node = Front::Node {
        v6: false,
        protocol: Protocol::Tcp,
        port: 32600,
    };
    let choice = |node, local, affinity_seconds| {
        Data::Choose(Choice {
            node,
            local,
            count: 2,
            affinity_seconds,
        })
    };
    let endpoint = |text: &str| Data::Endpoint(text.parse().unwrap());
    vec![
        (Key::Front(web), choice(false, false, None)),
        (Key::Endpoint(web, 0), endpoint("10.0.0.1:8080")),
        (Key::Endpoint(web, 1), endpoint("10.0.0.2:8080")),
        (Key::Front(dns), choice(false, false, Some(60))),
        (Key::Pick(dns, 0), Data::Number(700)),
        (Key::Pick(dns, 1), Data::Number(9)),
        (Key::Endpoint(dns, 700), endpoint("[fd00::1]:5353")),
        (Key::Endpoint(dns, 9), endpoint("[fd00::2]:5353")),
        (Key::Front(node), Data::Drop),
        (Key::Outside(node), choice(true, true, None)),
        (Key::Endpoint(node, 32768), endpoint("10.0.0.1:8080")),
        (Key::Endpoint(node, 32769), endpoint("10.0.0.2:8080")),
        (Key::Hairpin("10.0.0.1".parse().unwrap()), Data::None),
        (Key::Refused(none), Data::None),
        (Key::Known("10.96.0.10".parse().unwrap()), Data::None),
        (Key::Guarded(web), Data::None),
        (
            Key::Source(web, "192.0.2.0/24".parse().unwrap()),
            Data::None,
        ),
    ]
}

#[test]
fn the_table_prints_as_text() {
    let printed = std::thread::spawn(|| {
        rkube_sys::netlink::unshare_network().unwrap();
        let mut config = ProxyConfig::new(Iid::parse("00000001").unwrap(), "t", "node");
        config.service_ranges = vec!["10.96.0.0/16".parse().unwrap()];
        config.answered = vec!["10.96.0.2".parse().unwrap()];
        let mut table = Table::open(&config.table, config.facts(), false).unwrap();
        table.install(&entries()).unwrap();
        let list = ["list", "table", "inet", "t-services"];
        let output = Command::new("nft").args(list).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    })
    .join()
    .unwrap();
    // Elements of a map come in the order of their hashes.
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text
            .replace("elements = {", "")
            .replace(" }", "")
            .split([',', '\n'])
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect();
        parts.sort();
        parts
    };
    let wanted = include_str!("golden.nft");
    if sorted(&printed) != sorted(wanted) {
        assert_eq!(printed, wanted);
    }
}
