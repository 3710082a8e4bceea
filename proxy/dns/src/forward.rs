//! Names outside of the cluster: asked of the host's resolvers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::cache::{Cache, Key};
use crate::wire::{Answer, HEADER_BYTES, OPT, Query, UDP_PAYLOAD_BYTES};

/// Most resolvers that are asked.
pub const UPSTREAMS_MAX_COUNT: usize = 3;
/// Most queries under way at once; more are answered with SERVFAIL.
pub const QUERIES_MAX_COUNT: usize = 1024;
/// How long one resolver may take for one try.
const TRY: Duration = Duration::from_secs(2);
/// How often all resolvers are asked in turn: with two of them together less
/// than the 10 s that a client's own two tries take.
const ROUNDS: usize = 2;
/// Longest UDP answer, in bytes.
const UDP_ANSWER_MAX_BYTES: usize = 4096;

/// Asks resolvers and remembers what they said.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Mutex<Vec<SocketAddr>>,
    cache: Mutex<Cache>,
    free: Semaphore,
}

/// What is asked elsewhere.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The question as it is sent.
    pub question: Vec<u8>,
    /// Recursion is desired.
    pub recursion: bool,
    /// EDNS: whether, and whether DNSSEC records are welcome.
    pub edns: Option<bool>,
}

impl Wanted {
    /// What a query asks.
    #[must_use]
    pub fn of(query: &Query<'_>) -> Self {
        Self {
            question: query.question.to_vec(),
            recursion: query.recursion,
            edns: query.edns.map(|edns| edns.dnssec),
        }
    }

    fn key(&self) -> Key {
        Key {
            question: self.question.to_ascii_lowercase().into(),
            edns: self.edns.is_some(),
            dnssec: self.edns == Some(true),
        }
    }

    fn message(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER_BYTES + self.question.len() + 11);
        message.extend_from_slice(&id.to_be_bytes());
        message.extend_from_slice(&[u8::from(self.recursion), 0, 0, 1, 0, 0, 0, 0, 0]);
        message.push(u8::from(self.edns.is_some()));
        message.extend_from_slice(&self.question);
        if let Some(dnssec) = self.edns {
            message.push(0);
            message.extend_from_slice(&OPT.to_be_bytes());
            message.extend_from_slice(&UDP_PAYLOAD_BYTES.to_be_bytes());
            message.extend_from_slice(&[0, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]);
        }
        message
    }
}

impl Forwarder {
    /// A forwarder to these resolvers.
    #[must_use]
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        let forwarder = Self {
            upstreams: Mutex::default(),
            cache: Mutex::default(),
            free: Semaphore::new(QUERIES_MAX_COUNT),
        };
        forwarder.set_upstreams(upstreams);
        forwarder
    }

    /// Asks others from now on.
    pub fn set_upstreams(&self, mut upstreams: Vec<SocketAddr>) {
        upstreams.truncate(UPSTREAMS_MAX_COUNT);
        *self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = upstreams;
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer that is known already; its id is of no meaning.
    #[must_use]
    pub fn known(&self, wanted: &Wanted) -> Option<Vec<u8>> {
        self.cache().get(&wanted.key(), Instant::now())
    }

    /// The answer of a resolver; its id is of no meaning. `None`: none has
    /// one.
    pub async fn ask(&self, wanted: &Wanted) -> Option<Vec<u8>> {
        if let Some(known) = self.known(wanted) {
            return Some(known);
        }
        let Ok(_place) = self.free.try_acquire() else {
            tracing::debug!("too many DNS queries are under way");
            return None;
        };
        let upstreams = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut failed = None;
        for _ in 0..ROUNDS {
            for upstream in &upstreams {
                let found = tokio::time::timeout(TRY, exchange(*upstream, wanted)).await;
                match found {
                    Ok(Ok((message, answer))) => {
                        // SERVFAIL and REFUSED: another one may know better.
                        if matches!(answer.rcode, 0 | 3) {
                            self.cache()
                                .put(wanted.key(), &message, &answer, Instant::now());
                            return Some(message);
                        }
                        failed = Some(message);
                    }
                    Ok(Err(error)) => tracing::debug!(%upstream, %error, "ask a resolver"),
                    Err(_) => tracing::debug!(%upstream, "a resolver does not answer"),
                }
            }
            if failed.is_some() {
                break;
            }
        }
        failed
    }
}

fn bad(text: &'static str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, text)
}

/// A number that a stranger cannot guess.
fn random_id() -> std::io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// Asks one resolver by UDP, and by TCP where the answer does not fit. Each
/// query has a socket and so a port of its own.
async fn exchange(upstream: SocketAddr, wanted: &Wanted) -> std::io::Result<(Vec<u8>, Answer)> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    let id = random_id()?;
    socket.send(&wanted.message(id)).await?;
    let mut buffer = vec![0; UDP_ANSWER_MAX_BYTES];
    loop {
        let got = socket.recv(&mut buffer).await?;
        // What does not fit the question is not the answer; wait on.
        let Some(answer) = Answer::read(&buffer[..got], id, &wanted.question) else {
            continue;
        };
        if answer.truncated {
            return exchange_tcp(upstream, wanted).await;
        }
        buffer.truncate(got);
        return Ok((buffer, answer));
    }
}

async fn exchange_tcp(upstream: SocketAddr, wanted: &Wanted) -> std::io::Result<(Vec<u8>, Answer)> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id = random_id()?;
    let message = wanted.message(id);
    let length = u16::try_from(message.len()).map_err(|_| bad("a query of more than 64 KiB"))?;
    let framed = [&length.to_be_bytes(), &message[..]].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    let read = Answer::read(&answer, id, &wanted.question);
    let read = read.ok_or_else(|| bad("an answer to another question"))?;
    Ok((answer, read))
}

/// The resolvers that a `resolv.conf` names (`resolv.conf(5)`): at most
/// three, on port 53.
#[must_use]
pub fn resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    let words = resolv_conf.lines().map(str::split_whitespace);
    words
        .filter_map(|mut words| (words.next()? == "nameserver").then(|| words.next())?)
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .take(UPSTREAMS_MAX_COUNT)
        .collect()
}
