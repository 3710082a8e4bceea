//! What the proxy may fail with.

use std::net::SocketAddr;

/// An operation that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nftables or conntrack refused.
    #[error("program the Services into nftables table {table}")]
    Table {
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: rkube_nft::Error,
    },
    /// Another process holds the table.
    #[error(
        "nftables table {table} is owned by another running process (netlink port {owner}): stop it first"
    )]
    Owned {
        /// The table.
        table: String,
        /// The owner's netlink port.
        owner: u32,
    },
    /// Links, addresses or routes could not be changed.
    #[error("set {what}")]
    Route {
        /// What was to be set.
        what: String,
        /// Why not.
        #[source]
        source: rkube_netns::Error,
    },
    /// The proxy's thread could not be started.
    #[error("start the proxy's thread")]
    Thread {
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A socket could not be bound.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
