//! Serves sockets: queries in, answers out.

use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::answer::{Outcome, Zone, answer};
use crate::forward::{Forwarder, Wanted};
use crate::index::Index;
use crate::wire::{
    A, AAAA, Answer, CNAME, HEADER_BYTES, IN, Malformed, Name, Owner, Query, Rcode, Records, Reply,
    Section, code_only, limit,
};

/// Longest query by UDP, in bytes; a longer one is malformed anyway.
const UDP_QUERY_MAX_BYTES: usize = 4096;
/// Most TCP connections of one listener.
pub(crate) const CONNECTIONS_MAX_COUNT: usize = 256;
/// How long a TCP client may be silent (RFC 7766 6.2.3 leaves it to us).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of descriptors, which others give back.
const PAUSE: Duration = Duration::from_millis(100);
/// Most aliases that are followed from one to the next.
const ALIASES_MAX_COUNT: usize = 8;

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) index: RwLock<Index>,
    pub(crate) zone: Zone,
    pub(crate) forwarder: Forwarder,
    turn: AtomicUsize,
}

/// What to do with a message.
enum Next {
    /// The answer is written.
    Send,
    /// No answer.
    Drop,
    /// The answer takes time.
    Later(Later),
}

/// A query that others must help with.
struct Later {
    message: Vec<u8>,
    chase: bool,
}

impl Core {
    pub(crate) fn new(zone: Zone, forwarder: Forwarder) -> Self {
        Self {
            index: RwLock::default(),
            zone,
            forwarder,
            turn: AtomicUsize::new(0),
        }
    }

    fn local(&self, query: &Query<'_>, tcp: bool, out: &mut Vec<u8>) -> Outcome {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        answer(query, &index, &self.zone, tcp, turn, out)
    }

    /// The answer, if it is at hand.
    fn handle(&self, message: &[u8], tcp: bool, out: &mut Vec<u8>) -> Next {
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(Malformed::Silent) => return Next::Drop,
            Err(Malformed::Code(id, rcode)) => {
                code_only(out, id, rcode);
                return Next::Send;
            }
        };
        let chase = match self.local(&query, tcp, out) {
            Outcome::Done => return Next::Send,
            Outcome::Chase => true,
            Outcome::Forward => false,
        };
        if !chase && let Some(known) = self.forwarder.known(&Wanted::of(&query)) {
            hand_on(&query, &known, tcp, out);
            return Next::Send;
        }
        Next::Later(Later {
            message: message.to_vec(),
            chase,
        })
    }

    /// The answer with the help of others.
    async fn later(&self, later: &Later, tcp: bool) -> Vec<u8> {
        let mut out = Vec::new();
        // It was read before.
        let Ok(query) = Query::read(&later.message) else {
            return out;
        };
        if later.chase {
            self.chase(&query, tcp, &mut out).await;
            return out;
        }
        match self.forwarder.ask(&Wanted::of(&query)).await {
            Some(found) => hand_on(&query, &found, tcp, &mut out),
            None => {
                let max = limit(query.edns, tcp);
                Reply::new(&mut out, &query, max, false).finish(Rcode::ServFail);
            }
        }
        out
    }

    /// An alias and the addresses of its target.
    async fn chase(&self, query: &Query<'_>, tcp: bool, out: &mut Vec<u8>) {
        let mut chain: Vec<Found> = Vec::new();
        let mut name = query.name;
        let mut rcode = Rcode::NoError;
        for _ in 0..ALIASES_MAX_COUNT {
            let question = [
                name.as_bytes(),
                &query.kind.to_be_bytes(),
                &IN.to_be_bytes(),
            ]
            .concat();
            let inner = Query {
                name,
                question: &question,
                edns: None,
                ..*query
            };
            let mut message = Vec::new();
            // Unlimited, like over TCP.
            let outcome = self.local(&inner, true, &mut message);
            if outcome == Outcome::Forward {
                let wanted = Wanted {
                    recursion: true,
                    ..Wanted::of(&inner)
                };
                match self.forwarder.ask(&wanted).await {
                    Some(found) => {
                        chain.extend(addresses(&found, &question, query.kind));
                        let code = found.get(3).map_or(2, |flags| flags & 0xf);
                        rcode = match code {
                            0 => Rcode::NoError,
                            3 => Rcode::NxDomain,
                            _ => Rcode::ServFail,
                        };
                    }
                    None => rcode = Rcode::ServFail,
                }
                break;
            }
            let found = addresses(&message, &question, query.kind);
            let target = found.iter().rev().find_map(|found| found.target);
            chain.extend(found);
            match (outcome, target) {
                (Outcome::Chase, Some(target)) => name = target,
                _ => {
                    if message.get(3).is_some_and(|flags| flags & 0xf == 3) {
                        rcode = Rcode::NxDomain;
                    }
                    break;
                }
            }
        }
        let mut reply = Reply::new(out, query, limit(query.edns, tcp), true);
        for found in &chain {
            let owner = match &found.owner {
                owner if *owner == query.name => Owner::Question,
                owner => Owner::Name(owner.as_bytes()),
            };
            let data = &found.data;
            reply.record(Section::Answer, owner, found.kind, found.ttl, &[data]);
        }
        reply.finish(rcode);
    }
}

/// A record of a chain of aliases.
struct Found {
    owner: Name,
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
    target: Option<Name>,
}

/// Aliases and addresses of an answer, with names in full.
fn addresses(message: &[u8], question: &[u8], kind: u16) -> Vec<Found> {
    let id = message
        .first_chunk()
        .map_or(0, |id| u16::from_be_bytes(*id));
    let Some(answer) = Answer::read(message, id, question) else {
        return Vec::new();
    };
    let records = Records::new(message, answer.records_at, answer.counts[0]);
    records
        .flatten()
        .filter_map(|record| {
            let (data, target) = match record.kind {
                CNAME => {
                    let (target, _) = Name::read(message, record.data_at)?;
                    (target.as_bytes().to_vec(), Some(target))
                }
                A | AAAA if record.kind == kind => {
                    (message[record.data_at..record.data_end].to_vec(), None)
                }
                _ => return None,
            };
            Some(Found {
                owner: record.owner,
                kind: record.kind,
                ttl: record.ttl,
                data,
                target,
            })
        })
        .collect()
}

/// Another server's answer as the answer to a query.
fn hand_on(query: &Query<'_>, found: &[u8], tcp: bool, out: &mut Vec<u8>) {
    if found.len() > limit(query.edns, tcp) {
        // Nothing of it: the client comes back by TCP.
        let rcode = Rcode::NoError;
        Reply::new(out, query, limit(query.edns, tcp), false).finish(rcode);
        out[2] |= 2;
        return;
    }
    out.clear();
    out.extend_from_slice(found);
    out[..2].copy_from_slice(&query.id.to_be_bytes());
    // Not authoritative; recursion desired as the client said, and available.
    out[2] = out[2] & !0x05 | u8::from(query.recursion);
    out[3] |= 0x80;
    // The name in the case of this client.
    out[HEADER_BYTES..HEADER_BYTES + query.question.len()].copy_from_slice(query.question);
}

/// Sockets that are served; dropping it ends that.
#[derive(Debug)]
pub struct Serving {
    tasks: Vec<AbortHandle>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Serves sockets. UDP sockets should be bound to one address, from which the
/// answers then come.
pub(crate) fn serve(
    core: &Arc<Core>,
    udp: Vec<StdUdpSocket>,
    tcp: Vec<StdTcpListener>,
) -> std::io::Result<Serving> {
    let mut serving = Serving { tasks: Vec::new() };
    for socket in udp {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let task = rkube_task::spawn(serve_udp(Arc::clone(core), socket));
        serving.tasks.push(task.abort_handle());
    }
    for listener in tcp {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let task = rkube_task::spawn(serve_tcp(Arc::clone(core), listener));
        serving.tasks.push(task.abort_handle());
    }
    Ok(serving)
}

async fn serve_udp(core: Arc<Core>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; UDP_QUERY_MAX_BYTES];
    let mut out = Vec::with_capacity(UDP_QUERY_MAX_BYTES);
    loop {
        // An error is an ICMP message about an earlier answer.
        let Ok((got, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        match core.handle(&buffer[..got], false, &mut out) {
            Next::Drop => {}
            Next::Send => send(&socket, &out, from).await,
            Next::Later(later) => {
                let (core, socket) = (Arc::clone(&core), Arc::clone(&socket));
                rkube_task::spawn(async move {
                    let out = core.later(&later, false).await;
                    send(&socket, &out, from).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, out: &[u8], to: SocketAddr) {
    // A client that is gone needs no answer.
    let _ = socket.send_to(out, to).await;
}

async fn serve_tcp(core: Arc<Core>, listener: TcpListener) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX_COUNT));
    loop {
        // Beyond the limit, connections wait in the listener's backlog.
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let core = Arc::clone(&core);
        rkube_task::spawn(async move {
            let _permit = permit;
            // A client that breaks off is its own business.
            let _ = talk(&core, stream).await;
        });
    }
}

/// Queries of one connection, one after the other.
async fn talk(core: &Core, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = Vec::new();
    loop {
        let query = async {
            let length = stream.read_u16().await?;
            let mut message = vec![0; usize::from(length)];
            stream.read_exact(&mut message).await?;
            std::io::Result::Ok(message)
        };
        let Ok(message) = tokio::time::timeout(TCP_IDLE, query).await else {
            return Ok(());
        };
        let message = message?;
        match core.handle(&message, true, &mut out) {
            Next::Drop => return Ok(()),
            Next::Send => {}
            Next::Later(later) => out = core.later(&later, true).await,
        }
        // Answers are bounded by 65,535 bytes.
        let length = u16::try_from(out.len()).unwrap_or(0);
        let framed = [&length.to_be_bytes(), &out[..]].concat();
        tokio::time::timeout(TCP_IDLE, stream.write_all(&framed))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
    }
}
