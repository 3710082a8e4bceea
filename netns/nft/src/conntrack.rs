//! Forgets connections: UDP flows must not outlive the translation they were
//! made with, or a client that keeps sending from one port talks into the
//! void for as long as it sends.

use std::net::IpAddr;

use crate::attr::{Attr, Reader, Writer};
use crate::netlink::{Error, F_ACK, F_DUMP, F_REQUEST, Socket};
use crate::uapi::SUBSYS_CTNETLINK;

// linux/netfilter/nfnetlink_conntrack.h
const MSG_GET: u16 = SUBSYS_CTNETLINK << 8 | 1;
const MSG_DELETE: u16 = SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)` and its like of the kernel's
/// `net/netfilter/nf_internals.h`: source address is bit 0, protocol bit 3,
/// source port bit 4, destination port bit 5.
const FILTER_PROTO_NUM: u32 = 1 << 3;

/// Bytes of `struct nfgenmsg`.
const GENMSG_BYTES: usize = 4;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Source port, 0 where the protocol has none.
    pub src_port: u16,
    /// Destination port, 0 where the protocol has none.
    pub dst_port: u16,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// As the first packet came.
    pub orig: Tuple,
    /// As answers come: the source is where a DNAT sends to.
    pub reply: Tuple,
    orig_bytes: Vec<u8>,
    id: Option<u32>,
}

/// All tracked connections of one protocol and family.
///
/// # Errors
/// All of [`Error`].
pub fn list(socket: &mut Socket, v6: bool, proto: u8) -> Result<Vec<Connection>, Error> {
    // Kernels from 5.8 filter; older ones send all and we filter below.
    let replies = socket.dump("list tracked connections", |seq| {
        let mut w = Writer::new();
        w.message(MSG_GET, F_REQUEST | F_DUMP, seq, |w| {
            w.raw(&[family(v6), 0, 0, 0]);
            w.nest(CTA_TUPLE_ORIG, |w| {
                w.nest(CTA_TUPLE_PROTO, |w| w.attr(CTA_PROTO_NUM, &[proto]));
            });
            w.nest(CTA_FILTER, |w| {
                w.attr(CTA_FILTER_ORIG_FLAGS, &FILTER_PROTO_NUM.to_ne_bytes());
                w.attr(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
            });
        });
        w.as_bytes().to_vec()
    })?;
    Ok(replies
        .iter()
        .filter_map(|reply| parse(reply.body.get(GENMSG_BYTES..)?))
        .filter(|connection| connection.orig.proto == proto && connection.orig.src.is_ipv6() == v6)
        .collect())
}

/// Forgets the connections of `proto` that `choose` picks; returns how many.
///
/// # Errors
/// All of [`Error`]. A connection that ended meanwhile is no error.
pub fn forget(
    socket: &mut Socket,
    v6: bool,
    proto: u8,
    choose: impl Fn(&Connection) -> bool,
) -> Result<usize, Error> {
    let what = "forget a tracked connection";
    let mut forgotten = 0;
    for connection in list(socket, v6, proto)?.iter().filter(|c| choose(c)) {
        let seq = socket.reserve_seq(1);
        let mut w = Writer::new();
        w.message(MSG_DELETE, F_REQUEST | F_ACK, seq, |w| {
            w.raw(&[family(v6), 0, 0, 0]);
            w.nest(CTA_TUPLE_ORIG, |w| w.raw(&connection.orig_bytes));
            if let Some(id) = connection.id {
                w.be32(CTA_ID, id);
            }
        });
        let answer = socket.exchange(what, w.as_bytes(), seq, seq)?;
        match answer.refused.into_iter().next() {
            None => forgotten += 1,
            Some((_, source)) if source.errno == rustix::io::Errno::NOENT => {}
            Some((_, source)) => {
                return Err(Error::Refused {
                    what: what.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(forgotten)
}

// AF_INET and AF_INET6.
fn family(v6: bool) -> u8 {
    if v6 { 10 } else { 2 }
}

fn parse(bytes: &[u8]) -> Option<Connection> {
    let attrs = Reader::new(bytes);
    let orig = attrs.get(CTA_TUPLE_ORIG)?;
    Some(Connection {
        orig: parse_tuple(orig)?,
        reply: parse_tuple(attrs.get(CTA_TUPLE_REPLY)?)?,
        orig_bytes: orig.payload.to_vec(),
        id: attrs.get(CTA_ID).and_then(|a| a.be32()),
    })
}

fn parse_tuple(attr: Attr<'_>) -> Option<Tuple> {
    let ip = attr.nested().get(CTA_TUPLE_IP)?.nested();
    let proto = attr.nested().get(CTA_TUPLE_PROTO)?.nested();
    let address = |first: u16, v6: u16| -> Option<IpAddr> {
        if let Some(a) = ip.get(first) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(a.payload).ok()?));
        }
        Some(IpAddr::from(
            <[u8; 16]>::try_from(ip.get(v6)?.payload).ok()?,
        ))
    };
    let port = |kind: u16| proto.get(kind).and_then(|a| a.be16()).unwrap_or(0);
    Some(Tuple {
        src: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        dst: address(CTA_IP_V4_SRC + 1, CTA_IP_V6_SRC + 1)?,
        proto: *proto.get(CTA_PROTO_NUM)?.payload.first()?,
        src_port: port(CTA_PROTO_SRC_PORT),
        dst_port: port(CTA_PROTO_DST_PORT),
    })
}
