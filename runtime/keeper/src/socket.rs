//! SOCK_SEQPACKET messages with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::plan::MAX_PLAN_FDS;
use crate::protocol::MAX_PACKET_BYTES;

/// Most descriptors of one packet (`SCM_MAX_FD` of `net/scm.h`).
const MAX_PACKET_FDS: usize = MAX_PLAN_FDS + 1;

/// A packet that was received.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes; none when the peer has closed.
    pub bytes: Vec<u8>,
    /// Its descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends one packet.
///
/// # Errors
/// sendmsg(2)'s; EPIPE when the peer has closed, EAGAIN with a full queue of
/// a non-blocking socket.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, bytes, fds, SendFlags::empty())
}

/// Sends one packet with one descriptor, and makes no other system call: it
/// needs no memory but the stack.
///
/// # Errors
/// As [`send`].
pub fn send_one(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        let parts = [IoSlice::new(bytes)];
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Sends one packet with flags of sendmsg(2).
///
/// # Errors
/// As [`send`]; EAGAIN with `DONTWAIT` and a full queue.
pub fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = Vec::new();
    let mut control = if fds.is_empty() {
        SendAncillaryBuffer::default()
    } else {
        space.resize(
            rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS)),
            MaybeUninit::uninit(),
        );
        SendAncillaryBuffer::new(&mut space)
    };
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            flags | SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one packet.
///
/// # Errors
/// recvmsg(2)'s; EMSGSIZE when a packet is larger than
/// [`MAX_PACKET_BYTES`] or has lost descriptors.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Packet, Errno> {
    let mut bytes = vec![0_u8; MAX_PACKET_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let lost = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    if received.flags.intersects(lost) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(received.bytes);
    bytes.shrink_to_fit();
    Ok(Packet { bytes, fds })
}

/// Both ends of a new packet socket.
///
/// # Errors
/// socketpair(2)'s.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
}

/// Borrowed views of owned descriptors.
#[must_use]
pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
