//! What the kernel received, as `nft` prints it, against hand-written text.
//! `nft` is the oracle here and nowhere else. Every test has a network
//! namespace of its own.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::Ipv4Addr;
use std::process::Command;

use rkube_nft::expr::{Cmp, Meta, Reg, Reject};
use rkube_nft::object::{TABLE_F_OWNER, TABLE_F_PERSIST};
use rkube_nft::query;
use rkube_nft::{
    Batch, Chain, ChainKind, DataType, Element, Expr, Family, Hook, Protocol, Set, SetKind, Socket,
    Table, Value, Verdict,
};

/// Runs `test` on a thread of its own in a fresh network namespace; the
/// commands it starts run there too.
fn in_fresh_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rkube_sys::netlink::unshare_network().unwrap();
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn table(flags: u32) -> Table {
    Table {
        family: Family::Inet,
        name: "t".into(),
        flags,
        comment: None,
    }
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    Chain {
        name: name.into(),
        base: Some((kind, hook, priority)),
    }
}

fn set(name: &str, key: &[DataType], kind: SetKind, interval: bool) -> Set {
    Set {
        name: name.into(),
        key: key.to_vec(),
        kind,
        interval,
        dynamic: false,
        size: None,
    }
}

#[test]
fn the_rules_of_the_pod_network_print_as_text() {
    let printed = in_fresh_netns(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        let port_map = SetKind::Map(vec![DataType::Ipv4Addr, DataType::InetService]);
        batch
            .add_table(&table(0))
            .add_set(&set(
                "ports",
                &[DataType::InetProto, DataType::InetService],
                port_map,
                false,
            ))
            .add_set(&set(
                "hairpin",
                &[DataType::Ipv4Addr, DataType::Ipv4Addr],
                SetKind::Set,
                false,
            ))
            .add_chain(&base("dnat", ChainKind::Nat, Hook::Prerouting, -100))
            .add_chain(&base("snat", ChainKind::Nat, Hook::Postrouting, 100))
            .add_chain(&base("guard", ChainKind::Filter, Hook::Prerouting, -300));
        let lookup = [
            Expr::Meta(Meta::L4Proto, Reg(0)),
            Expr::Payload {
                base: rkube_nft::expr::Base::Transport,
                offset: 2,
                len: 2,
                to: Reg(1),
            },
            Expr::MapLookup {
                set: "ports".into(),
                key: Reg(0),
                to: Reg(0),
            },
            Expr::Dnat {
                family: Family::Ip,
                addr: Reg(0),
                port: Some(Reg(1)),
            },
        ];
        let rule = [
            &Expr::nfproto(Family::Ip)[..],
            &Expr::daddr_is_local(),
            &lookup,
        ]
        .concat();
        batch.add_rule("dnat", &rule, Some("host ports"));
        let pod_net = (
            Ipv4Addr::new(10, 200, 0, 0),
            Ipv4Addr::new(255, 255, 240, 0),
        );
        let rule = [
            &Expr::nfproto(Family::Ip)[..],
            &Expr::v4_in(12, pod_net.0, pod_net.1, Cmp::Eq),
            &Expr::v4_in(16, pod_net.0, pod_net.1, Cmp::Neq),
            &[Expr::Counter, Expr::Masquerade { fully_random: true }],
        ]
        .concat();
        batch.add_rule("snat", &rule, None);
        let rule = [
            &Expr::nfproto(Family::Ip)[..],
            &Expr::ct_is_dnat(),
            &[
                Expr::Payload {
                    base: rkube_nft::expr::Base::Network,
                    offset: 12,
                    len: 4,
                    to: Reg(0),
                },
                Expr::Payload {
                    base: rkube_nft::expr::Base::Network,
                    offset: 16,
                    len: 4,
                    to: Reg(1),
                },
                Expr::Lookup {
                    set: "hairpin".into(),
                    key: Reg(0),
                    invert: false,
                },
                Expr::Masquerade {
                    fully_random: false,
                },
            ],
        ]
        .concat();
        batch.add_rule("snat", &rule, None);
        let rule = [
            &Expr::group(Meta::IifGroup, Cmp::Eq, 77)[..],
            &Expr::nfproto(Family::Ip),
            &Expr::v4_in(
                16,
                Ipv4Addr::new(127, 0, 0, 0),
                Ipv4Addr::new(255, 0, 0, 0),
                Cmp::Eq,
            ),
            &[Expr::Verdict(Verdict::Drop)],
        ]
        .concat();
        batch.add_rule("guard", &rule, None);
        batch.add_elements(
            "ports",
            &[Element::map(
                Value::new().proto(6).port(8080).padded(),
                Value::new()
                    .v4(Ipv4Addr::new(10, 200, 0, 2))
                    .port(80)
                    .padded(),
            )],
        );
        let pod = Ipv4Addr::new(10, 200, 0, 2);
        batch.add_elements("hairpin", &[Element::key(Value::new().v4(pod).v4(pod))]);
        batch.commit(&mut socket).unwrap();
        nft(&["-j", "list", "ruleset"]);
        nft(&["list", "ruleset"])
    });
    let expected = r#"table inet t {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.200.0.2 . 80 }
	}

	set hairpin {
		type ipv4_addr . ipv4_addr
		elements = { 10.200.0.2 . 10.200.0.2 }
	}

	chain dnat {
		type nat hook prerouting priority dstnat; policy accept;
		meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @ports comment "host ports"
	}

	chain snat {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.200.0.0/20 ip daddr != 10.200.0.0/20 counter packets 0 bytes 0 masquerade fully-random
		ct status dnat ip saddr . ip daddr @hairpin masquerade
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifgroup 77 ip daddr 127.0.0.0/8 drop
	}
}
"#;
    assert_eq!(printed, expected);
}

#[test]
fn sets_of_all_shapes_print_and_read_back() {
    let printed = in_fresh_netns(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        let cidr_key = [DataType::Ipv4Addr, DataType::InetService];
        batch
            .add_table(&Table {
                comment: Some("who made this".into()),
                ..table(0)
            })
            .add_chain(&Chain {
                name: "a".into(),
                base: None,
            })
            .add_chain(&Chain {
                name: "b".into(),
                base: None,
            })
            .add_set(&set("nets", &[DataType::Ipv4Addr], SetKind::Set, true))
            .add_set(&set("netports", &cidr_key, SetKind::Set, true))
            .add_set(&set(
                "verdicts",
                &[DataType::Ipv6Addr],
                SetKind::VerdictMap,
                false,
            ))
            .add_set(&set(
                "marks",
                &[DataType::Ipv4Addr],
                SetKind::Map(vec![DataType::Mark]),
                false,
            ));
        let v4 = |d| Value::new().v4(Ipv4Addr::new(10, 0, 0, d));
        batch.add_elements("nets", &Element::interval(v4(0), v4(16)));
        batch.add_elements(
            "netports",
            &[Element::range(
                v4(0).port(80).padded(),
                v4(255).port(90).padded(),
            )],
        );
        batch.add_elements(
            "verdicts",
            &[Element::verdict(
                Value::new().v6("fd00::1".parse().unwrap()),
                Verdict::Goto("b".into()),
            )],
        );
        batch.add_elements("marks", &[Element::map(v4(1), Value::new().u32(7))]);
        let vmap = [
            &Expr::nfproto(Family::Ip6)[..],
            &[
                Expr::Payload {
                    base: rkube_nft::expr::Base::Network,
                    offset: 24,
                    len: 16,
                    to: Reg(0),
                },
                Expr::VerdictLookup {
                    set: "verdicts".into(),
                    key: Reg(0),
                },
            ],
        ]
        .concat();
        batch.add_rule("a", &vmap, None);
        batch.add_rule(
            "a",
            &[
                Expr::Immediate(Reg(0), Value::new().u32(5)),
                Expr::MetaSet(Meta::Mark, Reg(0)),
            ],
            None,
        );
        batch.add_rule("b", &[Expr::Reject(Reject::PortUnreachable)], None);
        batch.commit(&mut socket).unwrap();
        let read = query::elements(&mut socket, Family::Inet, "t", "marks").unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(
            (read[0].key.as_slice(), read[0].data.as_slice()),
            (&[10, 0, 0, 1][..], &7u32.to_ne_bytes()[..])
        );
        let info = query::table(&mut socket, Family::Inet, "t")
            .unwrap()
            .unwrap();
        assert_eq!(info.comment.as_deref(), Some("who made this"));
        assert_eq!(
            query::rule_chains(&mut socket, Family::Inet, "t").unwrap(),
            ["a", "a", "b"]
        );
        assert_eq!(
            query::names(&mut socket, Family::Inet, "t", query::Object::Set)
                .unwrap()
                .len(),
            4
        );
        nft(&["-j", "list", "ruleset"]);
        nft(&["list", "ruleset"])
    });
    for line in [
        "type ipv4_addr\n\t\tflags interval\n\t\telements = { 10.0.0.0/28 }",
        "elements = { 10.0.0.0/24 . 80-90 }",
        "type ipv6_addr : verdict\n\t\telements = { fd00::1 : goto b }",
        "elements = { 10.0.0.1 : 0x00000007 }",
        "ip6 daddr vmap @verdicts",
        "meta mark set 0x00000005",
    ] {
        assert!(printed.contains(line), "{line:?} is not in:\n{printed}");
    }
}

#[test]
fn a_refused_batch_names_the_message_and_changes_nothing() {
    in_fresh_netns(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.add_table(&table(0)).add_chain(&Chain {
            name: "c".into(),
            base: None,
        });
        batch.add_rule("missing", &[Expr::Counter], None);
        batch.add_chain(&Chain {
            name: "d".into(),
            base: None,
        });
        let error = batch.commit(&mut socket).unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT));
        assert_eq!(error.to_string(), "add rule t missing");
        assert!(
            query::table(&mut socket, Family::Inet, "t")
                .unwrap()
                .is_none()
        );
        // The socket is still in step.
        let mut batch = Batch::new(Family::Inet, "t");
        batch.add_table(&table(0));
        batch.commit(&mut socket).unwrap();
        let mut batch = Batch::new(Family::Inet, "t");
        batch.delete_table();
        batch.commit(&mut socket).unwrap();
        assert!(query::tables(&mut socket).unwrap().is_empty());
    });
}

#[test]
fn large_element_lists_are_split_and_stay_one_transaction() {
    const COUNT: u32 = 20_000;
    in_fresh_netns(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let elements: Vec<_> = (0..COUNT)
            .map(|i| Element::key(Value::new().v4(Ipv4Addr::from(0x0a00_0000 + i))))
            .collect();
        let mut batch = Batch::new(Family::Inet, "t");
        batch
            .add_table(&table(0))
            .add_set(&set("s", &[DataType::Ipv4Addr], SetKind::Set, false));
        batch.add_elements("s", &elements);
        assert!(batch.len() > 3, "{} messages", batch.len());
        batch.commit(&mut socket).unwrap();
        let read = query::elements(&mut socket, Family::Inet, "t", "s").unwrap();
        assert_eq!(read.len(), usize::try_from(COUNT).unwrap());
        let mut batch = Batch::new(Family::Inet, "t");
        batch.delete_elements("s", &elements[1..]);
        batch.commit(&mut socket).unwrap();
        assert_eq!(
            query::elements(&mut socket, Family::Inet, "t", "s")
                .unwrap()
                .len(),
            1
        );
        let mut batch = Batch::new(Family::Inet, "t");
        batch.flush_set("s").delete_set("s");
        batch.commit(&mut socket).unwrap();
    });
}

#[test]
fn an_owned_table_outlives_its_socket_and_is_adopted() {
    in_fresh_netns(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let owned = table(TABLE_F_OWNER | TABLE_F_PERSIST);
        let add = |socket: &mut Socket| {
            let mut batch = Batch::new(Family::Inet, "t");
            batch.add_table(&owned);
            batch.commit(socket)
        };
        match add(&mut socket) {
            Err(error) if error.errno() == Some(rustix::io::Errno::OPNOTSUPP) => {
                println!("this kernel has no persistent owned tables");
                return;
            }
            other => other.unwrap(),
        }
        nft(&["flush", "ruleset"]);
        assert!(
            query::table(&mut socket, Family::Inet, "t")
                .unwrap()
                .unwrap()
                .owner
                .is_some()
        );
        let mut second = Socket::open(Protocol::Netfilter).unwrap();
        assert_eq!(
            add(&mut second).unwrap_err().errno(),
            Some(rustix::io::Errno::PERM)
        );
        drop(socket);
        add(&mut second).unwrap();
    });
}
