//! What can go wrong on a stream.

use std::io;

/// An error of one connection; it ends that connection and nothing else.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke.
    #[error("{action} the {protocol} connection")]
    Io {
        /// `read from` or `write to`.
        action: &'static str,
        /// `WebSocket` or `SPDY`.
        protocol: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The peer sent what the protocol forbids.
    #[error("{protocol}: the peer broke the protocol: {what}")]
    Protocol {
        /// `WebSocket` or `SPDY`.
        protocol: &'static str,
        /// Which rule.
        what: &'static str,
    },
    /// The peer asked for more than a limit allows.
    #[error("{protocol}: {what} is {value}, more than the limit of {limit}")]
    Limit {
        /// `WebSocket` or `SPDY`.
        protocol: &'static str,
        /// What was counted, with its unit.
        what: &'static str,
        /// How much it was.
        value: u64,
        /// How much it may be.
        limit: u64,
    },
    /// The peer did not open the streams that it announced in time.
    #[error("waited {seconds} s for the client's streams, {got} of {wanted} came")]
    StreamsMissing {
        /// How long was waited.
        seconds: u64,
        /// How many came.
        got: usize,
        /// How many were announced.
        wanted: usize,
    },
    /// The connection ended while something was still to come.
    #[error("{protocol}: the connection was closed while {during}")]
    Closed {
        /// `WebSocket` or `SPDY`.
        protocol: &'static str,
        /// What was going on.
        during: &'static str,
    },
}
