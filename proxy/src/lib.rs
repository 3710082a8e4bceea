//! The Service proxy: Services and EndpointSlices as nftables maps.
//!
//! **Purpose.** Make addresses and ports of Services lead to their endpoints
//! on one node: [`Proxy::start`] follows the API and keeps a table of constant
//! rules and named maps in step with it, over one netlink socket.
//!
//! **Boundary.** Reads the API through the client, writes rules through
//! `rkube-nft` and routes through `rkube-netns`. The pod network itself, host
//! ports and masquerading of what leaves the cluster are `rkube-netns`', in a
//! table of its own; the two never change each other's.
//!
//! **Invariants.**
//! - [`compile::compile`] is a pure function of one Service, its slices and
//!   the node; [`state::State`] is the sum of them, whatever the order.
//! - The kernel's maps are the state: a delta leads to the same elements as
//!   making everything anew (a property test).
//! - A change is one transaction. Nothing of a Service is programmed in part.
//! - Services add elements, never rules; a chain is added for a number of
//!   endpoints that was not there before.
//! - All names and bits derive from the instance, so two nodes on one machine
//!   never meet.

pub mod compile;
pub mod config;
mod driver;
pub mod endpoints;
pub mod error;
mod flows;
mod health;
pub mod maps;
pub mod model;
pub mod routes;
pub mod ruleset;
mod splice;
pub mod state;
pub mod table;
mod watch;

pub use config::ProxyConfig;
pub use driver::Proxy;
pub use endpoints::NodeFacts;
pub use error::Error;
pub use routes::Routes;
