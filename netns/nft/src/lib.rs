//! Programs nftables and conntrack by netlink, without the `nft` binary.
//!
//! Purpose: encode the small, fixed set of rules that rkube needs and the
//! many set elements that change with pods and Services, and hand them to the
//! kernel as one atomic batch over one long-lived socket.
//!
//! Boundary: this crate knows the wire format (`linux/netfilter/nf_tables.h`,
//! `nfnetlink.h`, `nfnetlink_conntrack.h`) and nothing about pods. It has no
//! text parser and no general rule printer; `nft list ruleset` is the printer.
//!
//! Invariants:
//! - One [`Batch`] is one `sendmsg` and one kernel transaction: all or nothing.
//! - Every set carries its nft data types, because `nft list` aborts on sets
//!   it cannot print and an abort breaks every tool on the host.
//! - No anonymous sets: binding them walks lists in the kernel and makes a
//!   load quadratic.
//! - What the kernel answers is parsed with bounds checks; a short or odd
//!   message is an error, never a panic.
//!
//! The netlink framing ([`netlink`], [`attr`]) is public because the
//! NETLINK_ROUTE socket of rkube-netns shares it.

pub mod attr;
pub mod batch;
pub mod conntrack;
pub mod expr;
pub mod netlink;
pub mod object;
pub mod query;
mod uapi;
pub mod value;

pub use batch::Batch;
pub use expr::Expr;
pub use netlink::{Error, KernelError, Protocol, Socket};
pub use object::{Chain, ChainKind, Data, Element, Family, Hook, Set, SetKind, Table, Verdict};
pub use value::{DataType, Value};
