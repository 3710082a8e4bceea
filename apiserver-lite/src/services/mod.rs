//! Addresses and ports of Services: given on creation and on changes that
//! need them, as upstream's `pkg/registry/core/service/storage` does.
//!
//! The plug-in is the last that may change a Service. What it knows of taken
//! numbers is a memory of the store and of writes under way, never the truth:
//! before a number is refused, or a range is called full, the store is asked
//! whether the holder still has it. So nothing must be told of deletions and
//! of writes that failed, and a start needs no repair but reading all
//! Services once.

mod allocator;
mod builtin;
mod pool;
mod problem;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::RangeInclusive;

pub use allocator::ServiceAllocator;
pub use builtin::ensure;

/// What Services get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Ranges of cluster addresses, one or one of each family: address and
    /// prefix length. The first one's family is the default.
    pub ranges: Vec<(IpAddr, u8)>,
    /// Ports that every node has for Services.
    pub node_ports: RangeInclusive<u16>,
}

/// Upstream's default for node ports.
pub const NODE_PORTS_DEFAULT: RangeInclusive<u16> = 30_000..=32_767;

impl Default for ServicesConfig {
    fn default() -> Self {
        Self {
            ranges: vec![(IpAddr::from([10, 96, 0, 0]), 16)],
            node_ports: NODE_PORTS_DEFAULT,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServicesConfigError {
    /// Not one range, and not one of each family.
    #[error("Service ranges must be one, or one of IPv4 and one of IPv6; there are {count}")]
    Ranges {
        /// How many there are.
        count: usize,
    },
    /// A range with no or hardly any address.
    #[error("Service range {address}/{prefix} must have a prefix of at most {longest} bits")]
    Prefix {
        /// The range's address.
        address: IpAddr,
        /// Its prefix length.
        prefix: u8,
        /// The longest possible one.
        longest: u8,
    },
    /// No ports.
    #[error("the range of node ports is empty or has port 0: {first}-{last}")]
    NodePorts {
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
}
