//! Streams for exec, attach, logs and port-forward: WebSocket (v1, v4, v5) and SPDY/3.1.
//!
//! Purpose: everything between an upgraded connection and the neutral
//! interface of a node ([`node`]): which protocol was asked for
//! ([`upgrade`]), its frames, its channels, its status at the end. Both sides
//! of each protocol are here, so that the tests and the API server can be
//! clients too.
//!
//! Boundary: frames and channels over any byte stream; knows neither pods nor
//! API objects, opens no socket, checks no permission.
//!
//! Invariants:
//! - Nothing is buffered without a bound: a slow reader makes its writer wait,
//!   through the pipes ([`pipe`]) and in the end through TCP.
//! - Every length that a peer names is checked against a named limit before
//!   memory is spent on it.
//! - A dropped connection drops the node's future: whoever serves a stream
//!   learns of a client that went away by being cancelled.

pub mod error;
pub mod exec;
pub mod forward;
pub mod logs;
pub mod node;
pub mod pipe;
pub mod spdy;
pub mod upgrade;
pub mod ws;

pub use error::StreamError;
