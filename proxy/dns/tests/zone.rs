//! Real sockets in a network namespace of the test's own, asked with an
//! independent codec (hickory-proto): the zone, its negative answers, and
//! forwarding to a resolver that the test plays.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata};
use rkube_dns::{Dns, DnsConfig, Serving};
use rkube_netns::route::{LOOPBACK_INDEX, Requests, RouteSocket};
use serde_json::{Value, json};
use support::FakeApi;

const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    api: FakeApi,
    server: SocketAddr,
    /// Queries that reached the upstream resolver.
    asked: Arc<AtomicUsize>,
    _serving: Serving,
    _dns: Dns,
    _runtime: tokio::runtime::Runtime,
}

fn run(test: impl FnOnce(&World) + Send + 'static) {
    let inside = move || {
        rkube_sys::netlink::unshare_network().unwrap();
        let mut route = RouteSocket::open().unwrap();
        route.run(Requests::new().up(LOOPBACK_INDEX)).unwrap();
        let (upstream, asked) = resolver();
        let api = FakeApi::default();
        fill(&api);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let config = DnsConfig {
            domain: "cluster.local".into(),
            addresses: vec!["10.96.0.10".parse().unwrap()],
            upstreams: vec![upstream],
        };
        let dns = Dns::start(&api.informers(), config).unwrap();
        runtime.block_on(dns.synced());
        let udp = UdpSocket::bind("127.0.0.1:53").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:53").unwrap();
        let server = udp.local_addr().unwrap();
        let serving = dns.serve(vec![udp], vec![tcp]).unwrap();
        drop(_inside);
        test(&World {
            api,
            server,
            asked,
            _serving: serving,
            _dns: dns,
            _runtime: runtime,
        });
    };
    std::thread::spawn(inside).join().unwrap();
}

fn fill(api: &FakeApi) {
    api.put("namespaces", json!({"metadata": {"name": "default"}}));
    let service = |name: &str, spec: Value| {
        api.put(
            "services",
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec}),
        );
    };
    service(
        "web",
        json!({"type": "ClusterIP", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}),
    );
    service(
        "v4",
        json!({"type": "ClusterIP", "clusterIP": "10.96.0.21", "clusterIPs": ["10.96.0.21"],
            "ports": [{"port": 80, "protocol": "TCP"}]}),
    );
    service(
        "db",
        json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
    );
    service(
        "empty",
        json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
    );
    service(
        "far",
        json!({"type": "ExternalName", "externalName": "www.example.org"}),
    );
    service(
        "near",
        json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
    );
    slice(api, &["10.0.0.5", "10.0.0.6"]);
}

/// `db` with a host name for the first endpoint.
fn slice(api: &FakeApi, ips: &[&str]) {
    let endpoints: Vec<Value> = ips
        .iter()
        .enumerate()
        .map(|(i, ip)| match i {
            0 => json!({"addresses": [ip], "hostname": "db-0", "conditions": {"ready": true}}),
            _ => json!({"addresses": [ip], "conditions": {"ready": true}}),
        })
        .chain([json!({"addresses": ["10.0.0.99"], "conditions": {"ready": false}})])
        .collect();
    api.put(
        "endpointslices",
        json!({"metadata": {"name": "db-x", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}]}),
    );
}

/// A resolver that knows `www.example.org` (behind an alias), a name with a
/// large answer, and nothing else.
fn resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let udp = UdpSocket::bind("127.0.0.2:53").unwrap();
    let tcp = TcpListener::bind("127.0.0.2:53").unwrap();
    let address = udp.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((got, from)) = udp.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let mut answer = resolve(&buffer[..got]);
            if answer.to_vec().unwrap().len() > 512 {
                answer.answers.clear();
                answer.metadata.truncation = true;
            }
            // A wrong id first: it must not be taken.
            let mut wrong = answer.clone();
            wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
            wrong.metadata.response_code = ResponseCode::Refused;
            udp.send_to(&wrong.to_vec().unwrap(), from).unwrap();
            udp.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message).unwrap();
            let answer = resolve(&message).to_vec().unwrap();
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, &answer[..]].concat()).unwrap();
        }
    });
    (address, asked)
}

fn resolve(message: &[u8]) -> Message {
    let query = Message::from_vec(message).unwrap();
    let question = query.queries[0].clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    let name = question.name().to_lowercase();
    answer.add_query(question);
    let (www, host) = (
        Name::from_ascii("www.example.org.").unwrap(),
        Name::from_ascii("host.example.org.").unwrap(),
    );
    let a = |name: &Name, last: u8| {
        let data = RData::A(rdata::A::new(192, 0, 2, last));
        Record::from_rdata(name.clone(), 600, data)
    };
    if name == www || name == host {
        if name == www {
            let alias = RData::CNAME(rdata::CNAME(host.clone()));
            answer.add_answer(Record::from_rdata(www, 600, alias));
        }
        answer.add_answer(a(&host, 1));
    } else if name.to_ascii() == "large.example.org." {
        for last in 0..200 {
            answer.add_answer(a(&name, last));
        }
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer
}

impl World {
    fn message(&self, name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        let mut query = Query::query(Name::from_ascii(name).unwrap(), kind);
        query.set_query_class(DNSClass::IN);
        message.add_query(query);
        message.metadata.recursion_desired = true;
        message
    }

    fn udp(&self, message: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
            .send_to(&message.to_vec().unwrap(), self.server)
            .unwrap();
        let mut buffer = [0; 65535];
        let (got, _) = socket.recv_from(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..got]).unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert_eq!(answer.queries, message.queries);
        answer
    }

    fn tcp(&self, messages: &[Message]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.server).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        for message in messages {
            let bytes = message.to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, &bytes[..]].concat()).unwrap();
        }
        let read = |_| {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).unwrap();
            Message::from_vec(&bytes).unwrap()
        };
        messages.iter().map(read).collect()
    }

    /// The answer's data as text, sorted.
    fn ask(&self, name: &str, kind: RecordType) -> Vec<String> {
        data(&self.udp(&self.message(name, kind)))
    }

    /// Code, and whether the zone's SOA is there.
    fn negative(&self, name: &str, kind: RecordType) -> (ResponseCode, bool) {
        let answer = self.udp(&self.message(name, kind));
        assert!(answer.answers.is_empty(), "{name}: {answer}");
        let soa = answer.authorities.iter();
        let soa = soa.filter(|r| r.record_type() == RecordType::SOA).count() == 1;
        (answer.metadata.response_code, soa)
    }
}

fn data(answer: &Message) -> Vec<String> {
    let mut data: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    data
}

use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};

#[test]
fn the_zone_answers_as_the_specification_says() {
    run(|world| {
        let answer = world.udp(&world.message("web.default.svc.cluster.local.", A));
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(data(&answer), ["10.96.0.20"]);
        assert_eq!(
            world.ask("WEB.Default.svc.cluster.LOCAL.", AAAA),
            ["fd00:96::20"]
        );
        assert_eq!(
            world.ask("_http._tcp.web.default.svc.cluster.local.", SRV),
            ["0 100 80 web.default.svc.cluster.local."]
        );
        assert_eq!(
            world.ask("20.0.96.10.in-addr.arpa.", PTR),
            ["web.default.svc.cluster.local."]
        );
        let v6 = "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(world.ask(v6, PTR), ["web.default.svc.cluster.local."]);

        let db = "db.default.svc.cluster.local.";
        assert_eq!(world.ask(db, A), ["10.0.0.5", "10.0.0.6"]);
        assert_eq!(world.ask(&format!("db-0.{db}"), A), ["10.0.0.5"]);
        assert_eq!(world.ask(&format!("10-0-0-6.{db}"), A), ["10.0.0.6"]);
        let srv = world.udp(&world.message(&format!("_pg._tcp.{db}"), SRV));
        assert_eq!(
            data(&srv),
            [
                format!("0 50 5432 10-0-0-6.{db}"),
                format!("0 50 5432 db-0.{db}"),
            ]
        );
        assert_eq!(srv.additionals.len(), 2, "the hosts' addresses beside it");
        assert_eq!(
            world.ask("5.0.0.10.in-addr.arpa.", PTR),
            [format!("db-0.{db}")]
        );

        assert_eq!(
            world.ask("10-1-2-3.default.pod.cluster.local.", A),
            ["10.1.2.3"]
        );
        assert_eq!(
            world.ask("fd00--7.default.pod.cluster.local.", AAAA),
            ["fd00::7"]
        );
        assert_eq!(world.ask("dns-version.cluster.local.", TXT), ["1.1.0"]);
        assert_eq!(world.ask("cluster.local.", NS), ["ns.dns.cluster.local."]);
        assert_eq!(world.ask("ns.dns.cluster.local.", A), ["10.96.0.10"]);
        assert!(world.ask("cluster.local.", SOA)[0].starts_with("ns.dns.cluster.local."));
        assert_eq!(
            world.asked.load(Ordering::SeqCst),
            0,
            "nobody else was asked"
        );

        // Each address is the first one at some time.
        let first = |_| world.udp(&world.message(db, A)).answers[0].data.to_string();
        let firsts: std::collections::BTreeSet<String> = (0..4).map(first).collect();
        assert_eq!(firsts.len(), 2);
    });
}

#[test]
fn negative_answers_come_at_once_and_say_for_how_long() {
    run(|world| {
        let none = (ResponseCode::NXDomain, true);
        let no_data = (ResponseCode::NoError, true);
        for (name, kind, wanted) in [
            ("nothing.default.svc.cluster.local.", A, none),
            ("web.elsewhere.svc.cluster.local.", A, none),
            ("www.example.org.default.svc.cluster.local.", A, none),
            ("www.example.org.svc.cluster.local.", A, none),
            ("www.example.org.cluster.local.", A, none),
            ("_x._tcp.web.default.svc.cluster.local.", SRV, none),
            ("host.web.default.svc.cluster.local.", A, none),
            ("empty.default.svc.cluster.local.", A, none),
            ("300-1-1-1.default.pod.cluster.local.", A, none),
            ("v4.default.svc.cluster.local.", AAAA, no_data),
            ("web.default.svc.cluster.local.", TXT, no_data),
            ("_tcp.web.default.svc.cluster.local.", SRV, no_data),
            ("default.svc.cluster.local.", A, no_data),
            ("svc.cluster.local.", A, no_data),
            ("cluster.local.", A, no_data),
        ] {
            assert_eq!(world.negative(name, kind), wanted, "{name} {kind}");
        }
        assert_eq!(
            world.asked.load(Ordering::SeqCst),
            0,
            "nobody else was asked"
        );
    });
}

#[test]
fn answers_follow_the_api() {
    run(|world| {
        let wait = |name: &str, kind, wanted: &[&str]| {
            let start = Instant::now();
            while world.ask(name, kind) != wanted {
                assert!(
                    start.elapsed() < DEADLINE,
                    "{name}: {:?}",
                    world.ask(name, kind)
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        slice(&world.api, &["10.0.0.7"]);
        wait("db.default.svc.cluster.local.", A, &["10.0.0.7"]);
        wait("db-0.db.default.svc.cluster.local.", A, &["10.0.0.7"]);
        wait("5.0.0.10.in-addr.arpa.", PTR, &[]);
        world.api.delete("services", "default", "web");
        wait("web.default.svc.cluster.local.", A, &[]);
        world
            .api
            .put("namespaces", json!({"metadata": {"name": "new"}}));
        wait("10-0-0-1.new.pod.cluster.local.", A, &["10.0.0.1"]);
    });
}

#[test]
fn other_names_are_asked_once_and_kept() {
    run(|world| {
        let name = "Www.Example.ORG.";
        let answer = world.udp(&world.message(name, A));
        assert!(!answer.metadata.authoritative);
        assert_eq!(data(&answer), ["192.0.2.1", "host.example.org."]);
        assert_eq!(answer.answers[0].ttl, 600);
        for _ in 0..3 {
            assert_eq!(world.ask("www.example.org.", A).len(), 2);
        }
        assert_eq!(world.asked.load(Ordering::SeqCst), 1);
        assert_eq!(
            world.negative("nowhere.example.org.", A).0,
            ResponseCode::NXDomain
        );

        // An alias of a Service brings the addresses along, from here or there.
        let far = "far.default.svc.cluster.local.";
        let wanted = ["192.0.2.1", "host.example.org.", "www.example.org."];
        assert_eq!(world.ask(far, A), wanted);
        assert_eq!(world.ask(far, CNAME), ["www.example.org."]);
        assert_eq!(
            world.ask("near.default.svc.cluster.local.", A),
            ["10.96.0.20", "web.default.svc.cluster.local."]
        );
    });
}

#[test]
fn what_does_not_fit_goes_over_tcp() {
    run(|world| {
        let large = world.message("large.example.org.", A);
        let short = world.udp(&large);
        assert!(short.metadata.truncation && short.answers.is_empty());
        let web = world.message("web.default.svc.cluster.local.", A);
        let answers = world.tcp(&[large.clone(), web, large]);
        let counts: Vec<usize> = answers.iter().map(|a| a.answers.len()).collect();
        assert_eq!(counts, [200, 1, 200], "several queries of one connection");

        let ips: Vec<String> = (1..=60).map(|n| format!("10.0.1.{n}")).collect();
        let ips: Vec<&str> = ips.iter().map(|ip| &**ip).collect();
        slice(&world.api, &ips);
        let db = world.message("db.default.svc.cluster.local.", A);
        let start = Instant::now();
        while world.tcp(std::slice::from_ref(&db))[0].answers.len() != 60 {
            assert!(start.elapsed() < DEADLINE);
        }
        assert!(world.udp(&db).metadata.truncation, "more than 512 bytes");
        let mut with_edns = db.clone();
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        with_edns.edns = Some(edns);
        let answer = world.udp(&with_edns);
        assert!(!answer.metadata.truncation && answer.answers.len() == 60);
        assert_eq!(answer.edns.unwrap().max_payload(), 1232);
    });
}

#[test]
fn what_is_no_query_is_told_or_dropped() {
    run(|world| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let code = |bytes: &[u8]| {
            socket.send_to(bytes, world.server).unwrap();
            let mut buffer = [0; 512];
            let (got, _) = socket.recv_from(&mut buffer).unwrap();
            assert!(got >= 12 && buffer[..2] == bytes[..2]);
            buffer[3] & 0xf
        };
        let query = world
            .message("web.default.svc.cluster.local.", A)
            .to_vec()
            .unwrap();
        // Neither is answered; what comes next is.
        socket.send_to(b"x", world.server).unwrap();
        let mut answer = query.clone();
        answer[2] |= 0x80;
        socket.send_to(&answer, world.server).unwrap();
        assert_eq!(code(&query), 0);
        let mut update = query.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), 4, "NOTIMP");
        assert_eq!(code(&query[..20]), 1, "FORMERR");
        let mut looped = query[..12].to_vec();
        looped.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&looped), 1, "a pointer to itself");
        let mut chaos = query.clone();
        let last = chaos.len() - 1;
        chaos[last] = 3;
        assert_eq!(code(&chaos), 5, "REFUSED");
    });
}
