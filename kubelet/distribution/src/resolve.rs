//! Addresses of a host name: `/etc/hosts`, then the name servers of
//! `/etc/resolv.conf` (hosts(5), resolv.conf(5)).
//!
//! Not `getaddrinfo`: a static glibc would load the host's modules for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::limits::{MAX_ADDRESSES, MAX_NAME_SERVERS, MAX_RESOLVER_FILE_BYTES};

/// Largest answer over UDP that we take (we ask for no more than 512).
const UDP_ANSWER_BYTES: usize = 4096;
/// Longest wait for one answer; resolv.conf may say less.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks names up.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    hosts: PathBuf,
    conf: PathBuf,
}

/// What resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Conf {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Resolver {
    /// Addresses of a host, in the order in which they are tried.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let fail = |reason: String| Error::Resolve {
            host: host.to_owned(),
            reason,
        };
        let listed = hosts(&read(&self.hosts)?, host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        // RFC 6761, 6.3: never the network's business.
        if host == "localhost" || host.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let conf = parse_conf(&read(&self.conf)?);
        let mut last = format!("no name server in {}", self.conf.display());
        for name in candidates(host, &conf) {
            match ask_all(&name, &conf).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => last = "there is no such host".into(),
                Err(e) => last = e,
            }
        }
        Err(fail(last))
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = crate::file::read(path, MAX_RESOLVER_FILE_BYTES)?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// Addresses that hosts(5) gives to a name, IPv4 first.
fn hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let mut out: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(ip) = words.next().and_then(|w| w.parse().ok()) else {
            continue;
        };
        if words.any(|w| w.eq_ignore_ascii_case(host)) && out.len() < MAX_ADDRESSES {
            out.push(ip);
        }
    }
    out.sort_by_key(IpAddr::is_ipv6);
    out
}

fn parse_conf(text: &str) -> Conf {
    let mut conf = Conf {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: 1,
        timeout: Duration::from_secs(5),
        attempts: 2,
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A scope (`fe80::1%eth0`) names a link that is not looked up.
                let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
                if let Some(ip) = ip.filter(|_| conf.servers.len() < MAX_NAME_SERVERS) {
                    conf.servers.push(SocketAddr::new(ip, 53));
                }
            }
            Some("search" | "domain") => conf.search = words.take(32).map(str::to_owned).collect(),
            Some("options") => {
                for word in words {
                    let number = |name: &str| -> Option<u32> {
                        word.strip_prefix(name)?.strip_prefix(':')?.parse().ok()
                    };
                    if let Some(n) = number("ndots") {
                        conf.ndots = usize::try_from(n.min(15)).unwrap_or(15);
                    } else if let Some(n) = number("timeout") {
                        conf.timeout = Duration::from_secs(n.into()).min(MAX_TIMEOUT);
                    } else if let Some(n) = number("attempts") {
                        conf.attempts = n.clamp(1, 5);
                    }
                }
            }
            _ => {}
        }
    }
    if conf.servers.is_empty() {
        conf.servers
            .push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
    }
    conf
}

/// The absolute names that a name may mean, in order.
fn candidates(host: &str, conf: &Conf) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.to_owned()];
    }
    let own = format!("{host}.");
    let searched = conf
        .search
        .iter()
        .map(|d| format!("{host}.{}.", d.trim_end_matches('.')));
    let dots = host.bytes().filter(|b| *b == b'.').count();
    if dots >= conf.ndots {
        std::iter::once(own).chain(searched).collect()
    } else {
        searched.chain([own]).collect()
    }
}

/// Both kinds of addresses of one absolute name; none if there is no such.
async fn ask_all(name: &str, conf: &Conf) -> std::result::Result<Vec<IpAddr>, String> {
    let (v4, v6) = tokio::join!(
        ask(name, RecordType::A, conf),
        ask(name, RecordType::AAAA, conf)
    );
    match (v4, v6) {
        (Err(e), Err(_)) => Err(e),
        (v4, v6) => {
            let mut out = v4.unwrap_or_default();
            out.extend(v6.unwrap_or_default());
            out.truncate(MAX_ADDRESSES);
            Ok(out)
        }
    }
}

async fn ask(
    name: &str,
    kind: RecordType,
    conf: &Conf,
) -> std::result::Result<Vec<IpAddr>, String> {
    let parsed = Name::from_ascii(name).map_err(|e| format!("{name:?} is no host name: {e}"))?;
    let mut last = String::new();
    for _ in 0..conf.attempts {
        for server in &conf.servers {
            match exchange(*server, &parsed, kind, conf.timeout).await {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError => return Ok(take(&message)),
                    ResponseCode::NXDomain => return Ok(Vec::new()),
                    code => last = format!("name server {} answers {code}", server.ip()),
                },
                Err(e) => last = format!("name server {}: {e}", server.ip()),
            }
        }
    }
    Err(last)
}

/// The server follows aliases and sends the chain with the addresses.
fn take(message: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    let all = message.answers.iter().filter_map(|r| address(&r.data));
    all.take(MAX_ADDRESSES).collect()
}

async fn exchange(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    patience: Duration,
) -> io::Result<Message> {
    let mut id = [0_u8; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = u16::from_ne_bytes(id);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let query = message.to_vec().map_err(io::Error::other)?;
    let ours = |m: &Message| {
        let question = m.queries.first();
        m.metadata.id == id
            && m.metadata.message_type == MessageType::Response
            && question.is_some_and(|q| q.name() == name && q.query_type() == kind)
    };
    let udp = async {
        let any: SocketAddr = if server.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(&query).await?;
        let mut buf = vec![0; UDP_ANSWER_BYTES];
        loop {
            let n = socket.recv(&mut buf).await?;
            // What is not the answer to this question is somebody's forgery.
            if let Ok(answer) = Message::from_vec(&buf[..n])
                && ours(&answer)
            {
                return io::Result::Ok(answer);
            }
        }
    };
    let answer = timeout(patience, udp).await.map_err(|_| late())??;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let tcp = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&query).await?;
        let mut buf = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut buf).await?;
        Message::from_vec(&buf).map_err(io::Error::other)
    };
    let answer = timeout(patience, tcp).await.map_err(|_| late())??;
    if ours(&answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("it answers another question"))
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_manual_says() {
        let text =
            "127.0.0.1 localhost\n::1 reg reg.local # x\n10.0.0.1\tREG\n# 10.0.0.2 reg\nbad reg\n";
        let ip = |t: &str| t.parse::<IpAddr>().unwrap();
        assert_eq!(hosts(text, "reg"), [ip("10.0.0.1"), ip("::1")]);
        assert!(hosts(text, "x").is_empty());
        let conf = parse_conf(
            "nameserver 10.0.0.1\nnameserver ::1\nsearch a.b c\noptions ndots:2 timeout:1 attempts:9\n",
        );
        assert_eq!(conf.servers.len(), 2);
        assert_eq!(
            (conf.ndots, conf.attempts, conf.timeout.as_secs()),
            (2, 5, 1)
        );
        assert_eq!(candidates("x.y", &conf), ["x.y.a.b.", "x.y.c.", "x.y."]);
        assert_eq!(
            candidates("x.y.z", &conf),
            ["x.y.z.", "x.y.z.a.b.", "x.y.z.c."]
        );
        assert_eq!(candidates("x.", &conf), ["x."]);
        assert_eq!(parse_conf("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }
}
