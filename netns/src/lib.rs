//! The network of pods on one host: routed veth pairs without a bridge,
//! address assignment, host ports and masquerading.
//!
//! Purpose: give a network namespace an address that this host, its other
//! pods and (masqueraded) the outside can be reached from, and take it back
//! without a trace. [`Host`] is the way in.
//!
//! Boundary: knows Linux and no Kubernetes. A pod is an opaque id and a
//! network namespace descriptor; who makes the namespace and when it ends is
//! the caller's business. nftables is spoken by rkube-nft, NETLINK_ROUTE by
//! [`route`] alone.
//!
//! Invariants:
//! - Everything global on the host (table, links, group, range) derives from
//!   the instance id; another instance's objects are never touched.
//! - Intent is journalled before the first side effect, so [`Host::reset`]
//!   finds what any crash left.
//! - The caller's thread never changes its network namespace.
//! - A pod's links, addresses and routes hang on its host link and go with
//!   its network namespace; nothing deletes links one by one on the hot path.
//! - At rest there are no system calls: no polling, no daemon thread.
//!
//! How a pod is wired (a for the host side, b for the pod's `eth0`):
//!
//! ```text
//!  host: a = rk<iid><hash>, up     <- route POD/32 dev a, permanent neighbour
//!        holds the range's first address (/32), so the host has a source
//!        address towards pods, and pods reach the host there
//!  pod:  b = eth0, POD/32          <- default via 169.254.1.1 onlink,
//!                                     permanent neighbour = a's MAC
//! ```

pub mod attach;
mod base;
pub mod error;
pub mod host;
pub mod ipam;
pub mod journal;
pub mod names;
pub mod ns;
mod reset;
pub mod route;
pub mod ruleset;
pub mod sysctl;
mod wiring;

pub use attach::{AttachRequest, Attachment, HostPort, Plan, Proto};
pub use error::Error;
pub use host::{AdoptReport, Host, HostConfig, has_nf_tables};
pub use ipam::Lease;
pub use names::{Iid, Mac};
pub use ns::in_netns;
