//! A synchronous netlink socket: framing, acknowledgements, extended errors.
//!
//! The kernel works on a request inside `send`, so every acknowledgement is
//! queued when `send` returns; reading them never blocks and never needs a
//! timeout.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rkube_sys::netlink::{NetlinkOption, enable_netlink_option};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::attr::Reader;

/// Bytes of `struct nlmsghdr`.
pub const HEADER_BYTES: usize = 16;
/// `NLM_F_REQUEST`.
pub const F_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const F_ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`: answer with all objects.
pub const F_DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const F_REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const F_APPEND: u16 = 0x800;

/// `NFNLGRP_NFTABLES` (7) as a bit of `nl_groups`.
const GROUP_NFTABLES: u32 = 1 << 6;
const F_CAPPED: u16 = 0x100;
const F_ACK_TLVS: u16 = 0x200;
const F_DUMP_INTR: u16 = 0x10;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const ERR_ATTR_MSG: u16 = 1;
const ERR_ATTR_OFFS: u16 = 2;

/// Receive buffer; the kernel sizes dump chunks at 32 KiB at most.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Send buffer that a large batch asks for; the kernel doubles it.
const SEND_BUFFER_MAX_BYTES: usize = 64 * 1024 * 1024;
/// How often a dump that a concurrent change interrupted is taken again.
const DUMP_ATTEMPTS_MAX: u32 = 16;

/// A netlink protocol number (`linux/netlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables and conntrack.
    Netfilter,
}

/// What the kernel answered to a request it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// The errno.
    pub errno: Errno,
    /// The extended acknowledgement's text, where the kernel gave one.
    pub message: Option<String>,
    /// Byte offset of the offending attribute in the message.
    pub offset: Option<u32>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.errno)?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " (at byte {offset} of the message)")?;
        }
        Ok(())
    }
}

impl std::error::Error for KernelError {}

/// Why a netlink exchange did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made.
    #[error("open a netlink socket ({protocol:?})")]
    Open {
        /// Which protocol.
        protocol: Protocol,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// `send(2)` was refused.
    #[error("send {bytes} bytes for `{what}` to the kernel")]
    Send {
        /// The request in words.
        what: String,
        /// Size of the request.
        bytes: usize,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// `recv(2)` was refused.
    #[error("receive the kernel's answer to `{what}`")]
    Receive {
        /// The request in words.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The kernel refused the request.
    #[error("{what}")]
    Refused {
        /// The request in words.
        what: String,
        /// The kernel's answer.
        #[source]
        source: KernelError,
    },
    /// The answer had no acknowledgement or was cut short.
    #[error("{what}: the kernel's answer is incomplete")]
    Incomplete {
        /// The request in words.
        what: String,
    },
    /// A part of the request does not fit its length field.
    #[error("{what}: an attribute exceeds 65535 bytes")]
    TooLong {
        /// The request in words.
        what: String,
    },
}

impl Error {
    /// The errno behind this error, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open { source, .. }
            | Self::Send { source, .. }
            | Self::Receive { source, .. } => Some(*source),
            Self::Refused { source, .. } => Some(source.errno),
            Self::Incomplete { .. } | Self::TooLong { .. } => None,
        }
    }
}

/// One message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_seq`.
    pub seq: u32,
    /// Everything after the header.
    pub body: Vec<u8>,
}

/// A netlink socket. It belongs to the network namespace it was made in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    next_seq: u32,
    send_buffer: usize,
    receive: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let open = |source| Error::Open { protocol, source };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            number,
        )
        .map_err(open)?;
        // Both only improve error texts; every kernel we support has them.
        for option in [NetlinkOption::ExtAck, NetlinkOption::CapAck] {
            enable_netlink_option(fd.as_fd(), option).map_err(open)?;
        }
        if protocol == Protocol::Route {
            enable_netlink_option(fd.as_fd(), NetlinkOption::GetStrictCheck).map_err(open)?;
        }
        Ok(Self {
            fd,
            next_seq: 1,
            send_buffer: 0,
            receive: Vec::new(),
        })
    }

    /// Opens an nfnetlink socket that hears of every change of nftables
    /// (`NFNLGRP_NFTABLES`) in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open_changes() -> Result<Self, Error> {
        let socket = Self::open(Protocol::Netfilter)?;
        let address = rustix::net::netlink::SocketAddrNetlink::new(0, GROUP_NFTABLES);
        rustix::net::bind(&socket.fd, &address).map_err(|source| Error::Open {
            protocol: Protocol::Netfilter,
            source,
        })?;
        Ok(socket)
    }

    /// The number that the kernel tells this socket's messages by; given with
    /// the first message that is sent.
    ///
    /// # Errors
    /// [`Error::Receive`].
    pub fn port(&self) -> Result<u32, Error> {
        let failed = |source| Error::Receive {
            what: "name of the socket".to_owned(),
            source,
        };
        let address = rustix::net::getsockname(&self.fd).map_err(failed)?;
        let address = rustix::net::netlink::SocketAddrNetlink::try_from(address).map_err(failed)?;
        Ok(address.pid())
    }

    /// What is waiting on a socket of [`Socket::open_changes`]: kind, sender's
    /// port and body of each message. Never blocks.
    ///
    /// # Errors
    /// [`Error::Receive`]; ENOBUFS means that messages were lost.
    pub fn changes(&mut self) -> Result<Vec<(u32, Reply)>, Error> {
        let what = "changes of nftables";
        let mut all = Vec::new();
        while let Some(got) = self.receive_chunk(what, RecvFlags::DONTWAIT)? {
            let messages = Messages::new(&self.receive[..got]);
            all.extend(messages.map(|message| (message.port, message.to_reply())));
        }
        Ok(all)
    }

    /// Reserves `count` sequence numbers and returns the first.
    pub fn reserve_seq(&mut self, count: u32) -> u32 {
        if self.next_seq.checked_add(count).is_none() {
            self.next_seq = 1;
        }
        let first = self.next_seq;
        self.next_seq += count;
        first
    }

    /// Sends a prepared buffer in one call, growing the send buffer if needed.
    pub(crate) fn send(&mut self, what: &str, bytes: &[u8]) -> Result<(), Error> {
        let failed = |source| Error::Send {
            what: what.to_owned(),
            bytes: bytes.len(),
            source,
        };
        // The kernel's default is 208 KiB, of which it also pays its own
        // bookkeeping; ask early so that one batch stays one message.
        let wanted = bytes.len().saturating_mul(2).min(SEND_BUFFER_MAX_BYTES);
        if bytes.len() > 64 * 1024 && wanted > self.send_buffer {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, wanted)
                .map_err(failed)?;
            self.send_buffer = wanted;
        }
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(failed(Errno::MSGSIZE)),
                Err(Errno::INTR) => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }

    fn receive_chunk(&mut self, what: &str, flags: RecvFlags) -> Result<Option<usize>, Error> {
        if self.receive.is_empty() {
            // Zeroed by the kernel, page by page as they are touched.
            self.receive = vec![0; RECEIVE_BUFFER_BYTES];
        }
        loop {
            match rustix::net::recv(&self.fd, &mut self.receive[..], flags | RecvFlags::TRUNC) {
                Ok((_, actual)) if actual > self.receive.len() => {
                    return Err(Error::Receive {
                        what: what.to_owned(),
                        source: Errno::MSGSIZE,
                    });
                }
                Ok((got, _)) => return Ok(Some(got)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(source) => {
                    return Err(Error::Receive {
                        what: what.to_owned(),
                        source,
                    });
                }
            }
        }
    }

    /// Sends messages numbered from `first` to `last`, the last one with
    /// [`F_ACK`], and returns data messages and refusals in the order the
    /// kernel gave them.
    ///
    /// # Errors
    /// All of [`Error`] but `Refused`: refusals come back beside their
    /// sequence numbers, because a batch may tolerate some.
    pub fn exchange(
        &mut self,
        what: &str,
        bytes: &[u8],
        first: u32,
        last: u32,
    ) -> Result<Answer, Error> {
        self.send(what, bytes)?;
        let mut answer = Answer::default();
        let mut acknowledged = false;
        while !acknowledged {
            let Some(got) = self.receive_chunk(what, RecvFlags::DONTWAIT)? else {
                break;
            };
            for message in Messages::new(&self.receive[..got]) {
                if message.seq < first || message.seq > last {
                    continue;
                }
                if message.kind == MSG_ERROR {
                    match parse_error(message.body, message.flags) {
                        Some(error) => answer.refused.push((message.seq, error)),
                        None => answer.acks += 1,
                    }
                    acknowledged |= message.seq == last;
                } else {
                    answer.replies.push(message.to_reply());
                }
            }
        }
        // A refusal of the whole batch (EPERM) comes without the last ack.
        if !acknowledged && answer.refused.is_empty() {
            return Err(Error::Incomplete {
                what: what.to_owned(),
            });
        }
        Ok(answer)
    }

    /// Sends one dump request (built by `build` for a sequence number) and
    /// hands every message to `each`; a dump that the kernel marks as
    /// interrupted is taken again, so `each` may see `Restart`.
    ///
    /// # Errors
    /// All of [`Error`].
    pub fn dump(
        &mut self,
        what: &str,
        build: impl Fn(u32) -> Vec<u8>,
    ) -> Result<Vec<Reply>, Error> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let seq = self.reserve_seq(1);
            self.send(what, &build(seq))?;
            if let Some(replies) = self.collect_dump(what, seq)? {
                return Ok(replies);
            }
        }
        Err(Error::Receive {
            what: what.to_owned(),
            source: Errno::INTR,
        })
    }

    /// `None` means that the dump was interrupted by a change.
    fn collect_dump(&mut self, what: &str, seq: u32) -> Result<Option<Vec<Reply>>, Error> {
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let Some(got) = self.receive_chunk(what, RecvFlags::empty())? else {
                return Err(Error::Incomplete {
                    what: what.to_owned(),
                });
            };
            for message in Messages::new(&self.receive[..got]) {
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & F_DUMP_INTR != 0;
                match message.kind {
                    MSG_DONE | MSG_ERROR => {
                        return match parse_error(message.body, message.flags) {
                            Some(source) if source.errno == Errno::INTR => Ok(None),
                            Some(source) => Err(Error::Refused {
                                what: what.to_owned(),
                                source,
                            }),
                            None => Ok((!interrupted).then_some(replies)),
                        };
                    }
                    _ => replies.push(message.to_reply()),
                }
            }
        }
    }
}

/// Outcome of [`Socket::exchange`].
#[derive(Debug, Default)]
pub struct Answer {
    /// Data messages.
    pub replies: Vec<Reply>,
    /// Refused messages: sequence number and reason.
    pub refused: Vec<(u32, KernelError)>,
    /// Positive acknowledgements.
    pub acks: usize,
}

/// Writes a `struct nlmsghdr` at the start of `to` (at least 16 bytes).
pub(crate) fn put_header(to: &mut [u8], len: u32, kind: u16, flags: u16, seq: u32) {
    to[0..4].copy_from_slice(&len.to_ne_bytes());
    to[4..6].copy_from_slice(&kind.to_ne_bytes());
    to[6..8].copy_from_slice(&flags.to_ne_bytes());
    to[8..12].copy_from_slice(&seq.to_ne_bytes());
    to[12..16].copy_from_slice(&0u32.to_ne_bytes());
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    port: u32,
    body: &'a [u8],
}

impl Message<'_> {
    fn to_reply(&self) -> Reply {
        Reply {
            kind: self.kind,
            seq: self.seq,
            body: self.body.to_vec(),
        }
    }
}

struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER_BYTES] = self.rest.first_chunk()?;
        let [
            l0,
            l1,
            l2,
            l3,
            k0,
            k1,
            f0,
            f1,
            s0,
            s1,
            s2,
            s3,
            p0,
            p1,
            p2,
            p3,
        ] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.rest.get(HEADER_BYTES..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            body,
        })
    }
}

/// Reads `struct nlmsgerr` (or the errno of NLMSG_DONE) and the extended
/// acknowledgement behind it. `None`: no error.
fn parse_error(body: &[u8], flags: u16) -> Option<KernelError> {
    let code = body
        .first_chunk::<4>()
        .map_or(0, |b| i32::from_ne_bytes(*b));
    if code == 0 {
        return None;
    }
    let mut error = KernelError {
        errno: Errno::from_raw_os_error(code.saturating_neg()),
        message: None,
        offset: None,
    };
    if flags & F_ACK_TLVS != 0 {
        // Behind the code stands the refused message: only its header when
        // capped, all of it otherwise.
        let refused_len = if flags & F_CAPPED != 0 {
            Some(HEADER_BYTES)
        } else {
            body.get(4..8)
                .and_then(|b| usize::try_from(u32::from_ne_bytes(b.try_into().ok()?)).ok())
                .map(|len| len.next_multiple_of(4))
        };
        let tlvs = refused_len
            .and_then(|len| body.get(4 + len..))
            .unwrap_or(&[]);
        for attr in Reader::new(tlvs) {
            match attr.kind {
                ERR_ATTR_MSG => error.message = Some(attr.text()),
                ERR_ATTR_OFFS => {
                    error.offset = attr.payload.try_into().ok().map(u32::from_ne_bytes)
                }
                _ => {}
            }
        }
    }
    Some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_answers_do_not_panic() {
        for bytes in [
            &[][..],
            &[1; 15],
            &[255; 16],
            &[0; 16],
            &[17, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Messages::new(bytes).count(), 0);
        }
        for body in [&[][..], &[255; 3], &[255; 8], &[255; 40]] {
            let _ = parse_error(body, F_ACK_TLVS);
            let _ = parse_error(body, F_ACK_TLVS | F_CAPPED);
        }
    }
}
