//! Throw-away network namespaces.
//!
//! A namespace belongs to a thread: whatever the thread starts is born in it,
//! so no launcher program is needed, and `/sys` keeps showing the cgroups
//! (`ip netns exec` would hide them).

use std::os::fd::OwnedFd;

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Moves the calling thread into a new network namespace and sets its loopback
/// link up. The namespace ends with the last process or socket in it.
///
/// # Errors
/// Not root, or the kernel refuses.
pub fn enter_new() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
    loopback_up()
}

/// Inode of the calling thread's network namespace.
///
/// # Errors
/// `/proc` is not mounted.
pub fn own_inode() -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let path = "/proc/thread-self/ns/net";
    Ok(std::fs::metadata(path)
        .with_context(|| format!("stat {path}"))?
        .ino())
}

/// Names of the links in the calling thread's namespace, loopback aside.
///
/// # Errors
/// `/proc` is not mounted.
pub fn links() -> anyhow::Result<Vec<String>> {
    let path = "/proc/thread-self/net/dev";
    let table = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| name != "lo")
        .collect())
}

/// Sets `lo` up in the calling thread's namespace.
///
/// # Errors
/// The netlink request is refused; the kernel's errno is named.
pub fn loopback_up() -> anyhow::Result<()> {
    let socket: OwnedFd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("open a route netlink socket")?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(
        &socket,
        &link_up_request(LOOPBACK_INDEX),
        SendFlags::empty(),
        &kernel,
    )
    .context("send RTM_NEWLINK")?;
    let mut reply = [0u8; 256];
    let (got, _) = recv(&socket, &mut reply[..], RecvFlags::empty()).context("read the ack")?;
    match ack_errno(&reply[..got])? {
        0 => Ok(()),
        errno => bail!("set lo up: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

/// Index of `lo` in every namespace.
const LOOPBACK_INDEX: i32 = 1;
// linux/rtnetlink.h, linux/netlink.h, linux/if.h
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;

/// `struct nlmsghdr` and `struct ifinfomsg` that set a link's IFF_UP.
fn link_up_request(index: i32) -> [u8; 32] {
    let mut m = [0u8; 32];
    m[0..4].copy_from_slice(&32u32.to_ne_bytes());
    m[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    m[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    m[8..12].copy_from_slice(&1u32.to_ne_bytes());
    m[20..24].copy_from_slice(&index.to_ne_bytes());
    m[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    m[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    m
}

/// Errno in an NLMSG_ERROR message, 0 for an acknowledgement.
fn ack_errno(message: &[u8]) -> anyhow::Result<i32> {
    ensure!(
        message.len() >= 20,
        "netlink answer of {} bytes",
        message.len()
    );
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    ensure!(kind == NLMSG_ERROR, "netlink answer of type {kind}");
    Ok(-i32::from_ne_bytes([
        message[16],
        message[17],
        message[18],
        message[19],
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_a_namespace_of_its_own() {
        let outside = own_inode().unwrap();
        let inside = std::thread::spawn(|| {
            enter_new().unwrap();
            assert_eq!(links().unwrap(), Vec::<String>::new());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            own_inode().unwrap()
        });
        assert_ne!(inside.join().unwrap(), outside);
        assert_eq!(own_inode().unwrap(), outside);
    }
}
