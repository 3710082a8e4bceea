//! Answers from the index, after the Kubernetes DNS specification 1.1.0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::index::{Entry, Host, Index, Port, undashed};
use crate::wire::{
    A, AAAA, ANY, CNAME, IN, Labels, NS, Name, Owner, PTR, Query, Rcode, Reply, SOA, SRV, Section,
    TXT, limit,
};

/// Time to live of all records of the zone, in seconds: CoreDNS' default.
pub const TTL_SECONDS: u32 = 5;
/// The version of the specification that is followed.
const SPEC_VERSION: &[u8] = b"\x051.1.0";
// Of the SOA: refresh, retry, expire, minimum (RFC 1035 3.3.13), in seconds.
const SOA_TIMES: [u32; 4] = [7200, 1800, 86_400, TTL_SECONDS];

/// What is said about the zone itself.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Its name, such as `cluster.local`.
    pub name: Name,
    /// The addresses of its server.
    pub servers: Vec<IpAddr>,
}

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Done,
    /// The name is not of this zone.
    Forward,
    /// The answer so far is an alias for a name whose addresses are wanted.
    Chase,
}

/// Answers a query into `out`. `turn` changes from query to query and tells
/// which of several addresses comes first.
pub fn answer(
    query: &Query<'_>,
    index: &Index,
    zone: &Zone,
    tcp: bool,
    turn: usize,
    out: &mut Vec<u8>,
) -> Outcome {
    let mut reply = Reply::new(out, query, limit(query.edns, tcp), true);
    if query.edns.is_some_and(|edns| edns.version != 0) {
        reply.finish(Rcode::BadVers);
        return Outcome::Done;
    }
    if query.class != IN && query.class != ANY {
        reply.finish(Rcode::Refused);
        return Outcome::Done;
    }
    let labels = Labels::of(&query.name);
    let Some(front) = labels.before(&zone.name) else {
        return reverse(query, index, zone, &labels, reply);
    };
    let place = Place {
        query,
        index,
        zone,
        turn,
    };
    let found = match front {
        [] => place.apex(&mut reply),
        [b"dns-version"] => place.version(&mut reply),
        [b"dns"] | [b"svc" | b"pod"] => Found::Empty,
        [b"ns", b"dns"] => place.addresses(&mut reply, zone.servers.iter()),
        [rest @ .., namespace, b"svc"] => place.service(&mut reply, rest, namespace),
        [rest @ .., namespace, b"pod"] => place.pod(&mut reply, rest, namespace),
        _ => Found::Nothing,
    };
    match found {
        Found::Alias => {
            reply.finish(Rcode::NoError);
            return Outcome::Chase;
        }
        Found::Nothing => {
            place.soa(&mut reply, Section::Authority);
            reply.finish(Rcode::NxDomain);
        }
        Found::Empty => {
            // The name exists; without a record of the type, the SOA tells
            // for how long that may be believed (RFC 2308).
            if reply.is_empty() {
                place.soa(&mut reply, Section::Authority);
            }
            reply.finish(Rcode::NoError);
        }
    }
    Outcome::Done
}

/// What there is at a name.
enum Found {
    /// No such name.
    Nothing,
    /// The name; its records, if any, are written.
    Empty,
    /// An alias, whose target is wanted too.
    Alias,
}

struct Place<'q> {
    query: &'q Query<'q>,
    index: &'q Index,
    zone: &'q Zone,
    turn: usize,
}

impl Place<'_> {
    fn wants(&self, kind: u16) -> bool {
        self.query.kind == kind || self.query.kind == ANY
    }

    fn apex(&self, reply: &mut Reply<'_>) -> Found {
        if self.wants(SOA) {
            self.soa(reply, Section::Answer);
        }
        if self.wants(NS) {
            let server = [b"\x02ns\x03dns", self.zone.name.as_bytes()];
            reply.record(Section::Answer, Owner::Question, NS, TTL_SECONDS, &server);
            let server = server.concat();
            for ip in &self.zone.servers {
                address(reply, Section::Additional, Owner::Name(&server), *ip);
            }
        }
        Found::Empty
    }

    fn soa(&self, reply: &mut Reply<'_>, section: Section) {
        let zone = self.zone.name.as_bytes();
        let mut times = [0; 20];
        // The serial says nothing: nobody transfers this zone.
        let numbers = [1, SOA_TIMES[0], SOA_TIMES[1], SOA_TIMES[2], SOA_TIMES[3]];
        for (to, number) in times.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_be_bytes());
        }
        let data: [&[u8]; 5] = [b"\x02ns\x03dns", zone, b"\x0ahostmaster", zone, &times];
        reply.record(section, Owner::Name(zone), SOA, TTL_SECONDS, &data);
    }

    fn version(&self, reply: &mut Reply<'_>) -> Found {
        if self.wants(TXT) {
            let section = Section::Answer;
            reply.record(section, Owner::Question, TXT, TTL_SECONDS, &[SPEC_VERSION]);
        }
        Found::Empty
    }

    /// Writes the addresses of the wanted type, beginning with another one
    /// each time.
    fn addresses<'i>(
        &self,
        reply: &mut Reply<'_>,
        ips: impl Iterator<Item = &'i IpAddr> + Clone,
    ) -> Found {
        let wanted = |ip: &&&IpAddr| self.wants(if ip.is_ipv4() { A } else { AAAA });
        let count = ips.clone().filter(|ip| wanted(&ip)).count();
        let first = self.turn % count.max(1);
        let all = ips.clone().filter(|ip| wanted(&ip));
        let again = ips.filter(|ip| wanted(&ip));
        for ip in all.skip(first).chain(again.take(first)) {
            address(reply, Section::Answer, Owner::Question, *ip);
        }
        Found::Empty
    }

    fn service(&self, reply: &mut Reply<'_>, rest: &[&[u8]], namespace: &[u8]) -> Found {
        if !self.index.has_namespace(namespace) {
            return Found::Nothing;
        }
        let Some((service, below)) = rest.split_last() else {
            return Found::Empty;
        };
        let Some(entry) = self.index.find(service, namespace) else {
            return Found::Nothing;
        };
        match (entry, below) {
            (Entry::External(target), []) => {
                let section = Section::Answer;
                reply.record(section, Owner::Question, CNAME, TTL_SECONDS, &[target]);
                match self.query.kind {
                    A | AAAA => Found::Alias,
                    _ => Found::Empty,
                }
            }
            (Entry::Cluster { ips, .. }, []) => self.addresses(reply, ips.iter()),
            // A Service of endpoints of which none is ready has no name.
            (Entry::Headless(hosts), []) if hosts.is_empty() => Found::Nothing,
            (Entry::Headless(hosts), []) => {
                self.addresses(reply, hosts.iter().flat_map(|host| &host.ips))
            }
            (Entry::Headless(hosts), [host]) if !host.starts_with(b"_") => {
                match hosts.iter().find(|h| *h.name == **host) {
                    Some(host) => self.addresses(reply, host.ips.iter()),
                    None => Found::Nothing,
                }
            }
            (_, [protocol]) => self.protocol(entry, protocol),
            (_, [port, protocol]) => self.srv(reply, entry, port, protocol),
            _ => Found::Nothing,
        }
    }

    /// `_tcp.web.default.svc` exists if some `_http` is below it.
    fn protocol(&self, entry: &Entry, protocol: &[u8]) -> Found {
        let fits = |port: &Port| protocol.strip_prefix(b"_") == Some(port.protocol);
        let any = match entry {
            Entry::Cluster { ports, .. } => ports.iter().any(fits),
            Entry::Headless(hosts) => hosts.iter().flat_map(|h| &h.ports).any(fits),
            Entry::External(_) => false,
        };
        if any { Found::Empty } else { Found::Nothing }
    }

    fn srv(&self, reply: &mut Reply<'_>, entry: &Entry, name: &[u8], protocol: &[u8]) -> Found {
        let fits = |port: &&Port| {
            name.strip_prefix(b"_") == Some(&port.name)
                && protocol.strip_prefix(b"_") == Some(port.protocol)
        };
        // The name of the Service: what follows the first two labels.
        let skip = name.len() + protocol.len() + 2;
        let service = &self.query.name.as_bytes()[skip..];
        match entry {
            Entry::Cluster { ips, ports } => {
                let Some(port) = ports.iter().find(fits) else {
                    return Found::Nothing;
                };
                if self.wants(SRV) {
                    srv(reply, 1, port.number, &[service]);
                    for ip in ips {
                        address(reply, Section::Additional, Owner::Name(service), *ip);
                    }
                }
                Found::Empty
            }
            Entry::Headless(hosts) => {
                let with = |host: &Host| host.ports.iter().find(fits).map(|p| p.number);
                let all = || hosts.iter().filter_map(|h| with(h).map(|port| (h, port)));
                let count = all().count();
                if count == 0 {
                    return Found::Nothing;
                }
                if self.wants(SRV) {
                    for (host, port) in all() {
                        let length = [u8::try_from(host.name.len()).unwrap_or(0)];
                        srv(reply, count, port, &[&length, &host.name, service]);
                    }
                    for (host, _) in all() {
                        let length = u8::try_from(host.name.len()).unwrap_or(0);
                        let name = [&[length], &*host.name, service].concat();
                        for ip in &host.ips {
                            address(reply, Section::Additional, Owner::Name(&name), *ip);
                        }
                    }
                }
                Found::Empty
            }
            Entry::External(_) => Found::Nothing,
        }
    }

    fn pod(&self, reply: &mut Reply<'_>, rest: &[&[u8]], namespace: &[u8]) -> Found {
        if !self.index.has_namespace(namespace) {
            return Found::Nothing;
        }
        match rest {
            [] => Found::Empty,
            [label] => match undashed(label) {
                Some(ip) => self.addresses(reply, [ip].iter()),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }
}

fn address(reply: &mut Reply<'_>, section: Section, owner: Owner<'_>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => reply.record(section, owner, A, TTL_SECONDS, &[&ip.octets()]),
        IpAddr::V6(ip) => reply.record(section, owner, AAAA, TTL_SECONDS, &[&ip.octets()]),
    }
}

/// Priority 0, and the same weight for each of `count`, 100 together.
fn srv(reply: &mut Reply<'_>, count: usize, port: u16, target: &[&[u8]]) {
    let weight = u16::try_from(100 / count.max(1)).unwrap_or(1).max(1);
    let ([w0, w1], [p0, p1]) = (weight.to_be_bytes(), port.to_be_bytes());
    let fixed = [0, 0, w0, w1, p0, p1];
    let mut data: Vec<&[u8]> = vec![&fixed];
    data.extend_from_slice(target);
    reply.record(Section::Answer, Owner::Question, SRV, TTL_SECONDS, &data);
}

/// Names of cluster addresses; all others are somebody else's.
fn reverse(
    query: &Query<'_>,
    index: &Index,
    zone: &Zone,
    labels: &Labels<'_>,
    mut reply: Reply<'_>,
) -> Outcome {
    let Some(ip) = reverse_ip(labels.all()) else {
        return Outcome::Forward;
    };
    let mut names = index.names(ip).peekable();
    if names.peek().is_none() {
        return Outcome::Forward;
    }
    if query.kind == PTR || query.kind == ANY {
        for name in names {
            let data = [name, zone.name.as_bytes()];
            reply.record(Section::Answer, Owner::Question, PTR, TTL_SECONDS, &data);
        }
    }
    reply.finish(Rcode::NoError);
    Outcome::Done
}

/// The address of a name in `in-addr.arpa` or `ip6.arpa`.
fn reverse_ip(labels: &[&[u8]]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, b"in-addr", b"arpa"] => {
            let mut octets = [0; 4];
            for (to, label) in octets.iter_mut().zip([a, b, c, d]) {
                *to = std::str::from_utf8(label).ok()?.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        [digits @ .., b"ip6", b"arpa"] if digits.len() == 32 => {
            let mut number = 0_u128;
            for label in digits.iter().rev() {
                let [digit] = **label else { return None };
                number = number << 4 | u128::from(char::from(digit).to_digit(16)?);
            }
            Some(Ipv6Addr::from_bits(number).into())
        }
        _ => None,
    }
}
