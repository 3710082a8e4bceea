//! Names to addresses without libc: `/etc/hosts`, then the servers of
//! `/etc/resolv.conf` over UDP (RFC 1035; AAAA by RFC 3596).
//!
//! Absent on purpose: TCP after a truncated answer, EDNS, caching, mDNS.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long one server may take for one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// resolv.conf(5), MAXNS.
const MAX_SERVERS: usize = 3;
/// RFC 1035 4.2.1: the longest message over UDP without EDNS.
const MAX_MESSAGE_BYTES: usize = 512;
/// RFC 1035 2.3.4.
const MAX_NAME_BYTES: usize = 255;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// All addresses of `host` (a name, an address, an address in brackets), IPv4
/// first.
///
/// # Errors
/// `NotFound` when every source says that there is no such name; the last
/// server's error when none gave an answer.
pub fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let known = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let found = in_hosts(&known, bare);
    if !found.is_empty() {
        return Ok(found);
    }
    let config = Config::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let mut failure = None;
    for name in config.candidates(bare) {
        match config.ask(&name) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name")))
}

/// The addresses of `name` in the text of a hosts(5) file.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            found.push(address);
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Config {
    /// Reads resolv.conf(5); lines that make no sense are passed over.
    fn parse(text: &str) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    if let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>)
                        && config.servers.len() < MAX_SERVERS
                    {
                        config.servers.push(SocketAddr::new(address, 53));
                    }
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    for word in words {
                        if let Some(Ok(n)) = word.strip_prefix("ndots:").map(str::parse) {
                            config.ndots = n;
                        }
                    }
                }
                _ => {}
            }
        }
        config
    }

    /// The full names to ask for, in the order of resolv.conf(5).
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self
            .search
            .iter()
            .map(|domain| format!("{name}.{}", domain.trim_end_matches('.')))
            .collect();
        let dots = name.matches('.').count();
        let position = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(position, name.to_owned());
        names
    }

    /// Asks the servers in turn until one answers both questions.
    fn ask(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "no name server is known");
        for server in &self.servers {
            let both = query(*server, name, TYPE_A).and_then(|mut found| {
                found.extend(query(*server, name, TYPE_AAAA)?);
                Ok(found)
            });
            match both {
                Ok(found) => return Ok(found),
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }
}

fn query(server: SocketAddr, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    // Keyed by the kernel's random bytes: an identifier nobody can guess.
    let id = u16::try_from(RandomState::new().build_hasher().finish() & 0xffff).unwrap_or(0);
    let question = question(id, name, kind)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a domain name"))?;
    socket.send(&question)?;
    let mut message = [0; MAX_MESSAGE_BYTES];
    // A few replies to other questions may come before ours; not many.
    for _ in 0..8 {
        let n = socket.recv(&mut message)?;
        if let Some(answer) = answer(&message[..n], &question, kind) {
            return answer;
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "no fitting reply",
    ))
}

/// The query message, `None` if `name` cannot be a domain name.
fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(name.len() + 18);
    message.extend(id.to_be_bytes());
    // Recursion desired; one question, no other records.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    if name.len() > MAX_NAME_BYTES - 2 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if length == 0 || length > 63 {
            return None;
        }
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Some(message)
}

/// The addresses in a reply; `None` if it does not belong to `question`.
fn answer(message: &[u8], question: &[u8], kind: u16) -> Option<io::Result<Vec<IpAddr>>> {
    let same = message.get(..2) == question.get(..2)
        && message.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && message.get(12..question.len()).is_some_and(|echoed| {
            question
                .get(12..)
                .is_some_and(|asked| echoed.eq_ignore_ascii_case(asked))
        });
    if !same {
        return None;
    }
    match message[3] & 0x0f {
        0 => {}
        3 => return Some(Ok(Vec::new())),
        code => return Some(Err(io::Error::other(format!("server answers code {code}")))),
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed reply");
    Some(records(message, question.len(), kind).ok_or_else(malformed))
}

fn records(message: &[u8], mut at: usize, kind: u16) -> Option<Vec<IpAddr>> {
    let count = u16::from_be_bytes([message[6], message[7]]);
    let mut found = Vec::new();
    for _ in 0..count {
        at = after_name(message, at)?;
        let head = message.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let data = message.get(at + 10..at + 10 + length)?;
        if u16::from_be_bytes([head[0], head[1]]) == kind {
            found.push(match kind {
                TYPE_A => <[u8; 4]>::try_from(data).ok()?.into(),
                _ => <[u8; 16]>::try_from(data).ok()?.into(),
            });
        }
        at += 10 + length;
    }
    Some(found)
}

/// The offset behind the name at `at`; a compression pointer ends it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file() {
        let text = "127.0.0.1 localhost\n::1 localhost # x\n10.0.0.7\tweb  Web.local # db\nbad x\n";
        assert_eq!(in_hosts(text, "LOCALHOST").len(), 2);
        assert_eq!(in_hosts(text, "web.local"), [IpAddr::from([10, 0, 0, 7])]);
        assert!(in_hosts(text, "db").is_empty());
        assert!(in_hosts(text, "10.0.0.7").is_empty());
    }

    #[test]
    fn search_order_follows_ndots() {
        let config = Config::parse(
            "nameserver 10.0.0.1\nnameserver nonsense\nsearch a.b c.\noptions timeout:1 ndots:2\n",
        );
        assert_eq!(config.servers.len(), 1);
        assert_eq!(config.candidates("x.y"), ["x.y.a.b", "x.y.c", "x.y"]);
        assert_eq!(config.candidates("x.y.z")[0], "x.y.z");
        assert_eq!(config.candidates("x."), ["x"]);
    }

    #[test]
    fn reply_with_alias_and_address() {
        let question = question(7, "web.test", TYPE_A).unwrap();
        let mut reply = question.clone();
        reply[2] = 0x81;
        reply[7] = 2;
        // An alias record is passed over, its data is one label and a pointer.
        reply.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'x', 0xc0, 12]);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 1, 2, 3]);
        let found = answer(&reply, &question, TYPE_A).unwrap().unwrap();
        assert_eq!(found, [IpAddr::from([10, 1, 2, 3])]);

        for end in 12..reply.len() {
            let cut = answer(&reply[..end], &question, TYPE_A);
            assert!(cut.is_none_or(|result| result.is_err()), "cut at {end}");
        }
        reply[0] ^= 1;
        assert!(answer(&reply, &question, TYPE_A).is_none());
    }

    #[test]
    fn names_that_cannot_be_asked() {
        for name in ["", "a..b", &"x".repeat(64), &"x.".repeat(130)] {
            assert!(question(1, name, TYPE_A).is_none(), "{name:?}");
        }
    }
}
