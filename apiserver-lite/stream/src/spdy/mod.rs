//! SPDY/3.1 (the Chromium project's draft 3.1), both sides, as far as
//! Kubernetes speaks it.
//!
//! Flow control: the clients that are out there (all built on one Go library)
//! send no WINDOW_UPDATE and ignore those that they get, so a sender that
//! waited for one would hang after 64 KiB. This side therefore announces what
//! it has consumed, for peers that count, and does not wait for the peer's
//! windows: TCP and the bounded pipes hold a fast sender back.

pub mod frame;
pub mod headers;
pub mod mux;

pub use mux::{Incoming, Mux, SpdyStream};
