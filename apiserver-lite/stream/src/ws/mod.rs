//! WebSocket (RFC 6455), both sides, without extensions.
//!
//! Own framing instead of a library: exec and port-forward carry streams, so
//! the payload of a frame is handed on as it arrives and no message is ever
//! held whole; the frames themselves are two hundred lines.

pub mod conn;
pub mod frame;
pub mod handshake;

pub use conn::{Chunk, Event, WsReader, WsWriter};
pub use frame::{Opcode, Role};
