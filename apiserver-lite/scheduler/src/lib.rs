//! The scheduler: binds pods to nodes.
//!
//! Purpose: a [`queue`] of pods that wait, a [`cache`] of nodes with an
//! incremental snapshot, a scheduling [`cycle`] through the plug-in points of
//! upstream's [`framework`], and the default [`plugins`].
//!
//! Boundary: knows the API through the client only, and no Linux. Queue,
//! cache and cycle are plain data and pure functions; [`Scheduler`] is the
//! thin driver around them.
//!
//! Invariants:
//! - One cycle runs at a time, on one snapshot. A pod that has its node is
//!   assumed there before the next cycle begins.
//! - A pod is in the queue once; an event that comes while its cycle runs is
//!   not missed.
//! - Only pods that name this scheduler and no node are touched.

pub mod cache;
pub mod cycle;
mod driver;
pub mod framework;
pub mod info;
pub mod plugins;
pub mod queue;
pub mod resource;
pub mod terms;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use driver::{Config, Scheduler};
