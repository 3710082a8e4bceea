//! Exec and attach: the channels of a remote command.

pub mod client;
mod resize;
mod spdy;
pub(crate) mod websocket;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::StreamError;
use crate::node::{Streams, Work};
use crate::upgrade::{ExecKind, Upgrade};

/// How long a client may take to open the streams that it announced; as
/// upstream's default.
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of a connection is waited for after this side has ended.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of output that are sent at a time.
const OUTPUT_BYTES: usize = 32 << 10;

impl Upgrade<ExecKind> {
    /// Serves an exec or attach on the upgraded connection until the work is
    /// over and its status is sent, or the client is gone (the work is
    /// dropped then).
    ///
    /// # Errors
    /// The connection broke before the status was sent, or the client broke
    /// the protocol.
    pub async fn serve<IO>(&self, io: IO, streams: Streams, work: Work) -> Result<(), StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        match self.kind {
            ExecKind::WebSocket(channels) => websocket::serve(io, channels, streams, work).await,
            ExecKind::Spdy(version) => spdy::serve(io, version, streams, work).await,
        }
    }
}
