//! Logs over WebSocket: each message is a piece of the log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::error::StreamError;
use crate::exec::CLOSE_TIMEOUT;
use crate::node::LogBody;
use crate::upgrade::Upgrade;
use crate::ws::{Event, Opcode, Role, WsReader, WsWriter};

/// Bytes of one message.
const MESSAGE_BYTES: usize = 32 << 10;

impl Upgrade<bool> {
    /// Sends a log until it ends or the client is gone.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn serve<IO>(&self, io: IO, mut body: LogBody) -> Result<(), StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let base64 = self.kind;
        let (read, write) = tokio::io::split(io);
        let mut reader = WsReader::new(read, Role::Server);
        let writer = WsWriter::new(write, Role::Server);
        let incoming = async {
            loop {
                match reader.next().await? {
                    Some(Event::Data(_)) => {}
                    Some(Event::Ping(payload)) => writer.pong(&payload).await?,
                    Some(Event::Close(_)) | None => return Ok(()),
                }
            }
        };
        tokio::pin!(incoming);
        let outgoing = async {
            let mut buffer = vec![0; MESSAGE_BYTES];
            while let Ok(count @ 1..) = body.read(&mut buffer).await {
                let bytes = &buffer[..count];
                if base64 {
                    let text = STANDARD.encode(bytes);
                    writer.send(Opcode::Text, &[], text.as_bytes()).await?;
                } else {
                    writer.send(Opcode::Binary, &[], bytes).await?;
                }
            }
            writer.close(1000).await
        };
        tokio::select! {
            sent = outgoing => sent?,
            ended = &mut incoming => return ended,
        }
        // A client that does not answer the close is left.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, incoming).await;
        writer.shutdown().await
    }
}
