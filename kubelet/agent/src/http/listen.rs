//! Where the node's port listens.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;

use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted (`SOMAXCONN` of Linux since 5.4).
const BACKLOG: u32 = 4096;

/// Listens. An unspecified IPv6 address is for IPv4 too, whatever
/// `net.ipv6.bindv6only` says; where the kernel has no IPv6, for IPv4 alone.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    match bound(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && lacks_v6(&error) => {
            bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        listener => listener,
    }
}

/// `ipv6.disable=1` has no such family, `net.ipv6.conf.*.disable_ipv6` no address in it.
fn lacks_v6(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn bound(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            set_ipv6_v6only(socket.as_fd(), !address.ip().is_unspecified())?;
            socket
        }
    };
    // A node that comes back need not wait for connections of before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    #[tokio::test]
    async fn both_families_reach_an_unspecified_address() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = listen(any).unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let stream = tokio::net::TcpStream::connect((ip, port)).await;
            stream.unwrap_or_else(|e| panic!("{ip}: {e}"));
            listener.accept().await.unwrap();
        }
        // One address is that alone.
        let one = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = one.local_addr().unwrap().port();
        let other = tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
        assert!(other.is_err());
    }

    #[test]
    fn a_kernel_without_the_family_is_told_apart() {
        for (errno, lacks) in [
            (Errno::AFNOSUPPORT, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::ADDRINUSE, false),
            (Errno::ACCESS, false),
        ] {
            assert_eq!(lacks_v6(&errno.into()), lacks, "{errno}");
        }
    }
}
