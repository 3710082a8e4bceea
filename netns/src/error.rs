//! What can go wrong in the pod network.

use std::net::IpAddr;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why a pod network operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request; the message says which.
    #[error(transparent)]
    Netlink(#[from] rkube_nft::Error),
    /// A thread could not be moved into a network namespace.
    #[error("setns of a worker thread into the network namespace (CLONE_NEWNET)")]
    EnterNamespace {
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A worker thread could not be started.
    #[error("start a worker thread for the network namespace")]
    Thread {
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A worker thread panicked, which is a bug.
    #[error("the worker thread in the network namespace panicked")]
    Panicked,
    /// The journal could not be read or written.
    #[error("{action} the network journal {}", path.display())]
    Journal {
        /// "open", "append to", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A line in the middle of the journal is damaged.
    #[error(
        "line {line} of the network journal {} is damaged: addresses in use may be unknown; \
         end the pods and run `rkube reset`",
        path.display()
    )]
    JournalDamaged {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
    },
    /// A kernel setting could not be read or written.
    #[error("{action} {}", path.display())]
    Sysctl {
        /// "read" or "write VALUE to".
        action: String,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The instance id is malformed.
    #[error("instance id `{iid}` is not 8 hexadecimal digits")]
    BadInstance {
        /// As given.
        iid: String,
    },
    /// The pod id is malformed.
    #[error("pod id `{pod}` is empty, longer than 253 bytes or has control characters")]
    BadPodId {
        /// As given, escaped.
        pod: String,
    },
    /// The pod range cannot be used.
    #[error("pod range {range} is too small: at most /29 for IPv4, /124 for IPv6")]
    RangeTooSmall {
        /// The range.
        range: String,
    },
    /// The pod range overlaps a route of the host.
    #[error(
        "pod range {range} overlaps the host's route {route} (dev {dev}); choose another pod range"
    )]
    RangeOverlap {
        /// The range.
        range: String,
        /// Destination of the route.
        route: String,
        /// Its device.
        dev: String,
    },
    /// No free address is left.
    #[error("no free address in pod range {range}")]
    RangeExhausted {
        /// The range.
        range: String,
    },
    /// A requested address is not usable.
    #[error("address {address} is not an assignable address of the pod range")]
    AddressOutsideRange {
        /// The address.
        address: IpAddr,
    },
    /// A requested address belongs to another pod.
    #[error("address {address} is in use by pod {pod}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        pod: String,
    },
    /// A host port belongs to another pod.
    #[error("host port {port} is in use by pod {pod}")]
    HostPortTaken {
        /// Protocol, address and port.
        port: String,
        /// Its owner.
        pod: String,
    },
    /// A port number is 0, or a host address is neither unset nor of a
    /// family the pod has.
    #[error("host port {port} is not valid: {reason}")]
    BadHostPort {
        /// Protocol, address and port.
        port: String,
        /// Why.
        reason: &'static str,
    },
    /// Another live process owns the nftables table.
    #[error(
        "nftables table inet {table} belongs to another running process (netlink port {owner})"
    )]
    TableOwned {
        /// The table.
        table: String,
        /// Netlink port id, usually the process id.
        owner: u32,
    },
    /// A link that was just made is not there.
    #[error("link {name} is not there")]
    LinkMissing {
        /// The link.
        name: String,
    },
    /// Teardown went on after errors; these are all of them.
    #[error("{} errors: {}", errors.len(), errors.iter().map(chain).collect::<Vec<_>>().join("; "))]
    Several {
        /// In the order they happened.
        errors: Vec<Error>,
    },
}

impl Error {
    /// The kernel's errno, if there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink(error) => error.errno(),
            Self::EnterNamespace { source } => Some(*source),
            _ => None,
        }
    }

    /// `Ok` for no errors, the error itself for one.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several { errors }),
        }
    }
}

/// An error with its sources: several chains cannot be one source chain.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
