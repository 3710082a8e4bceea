//! A byte stream inside the binary messages of a WebSocket
//! (`SPDY/3.1+portforward.k8s.io`, KEP-4006).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use crate::error::StreamError;
use crate::pipe::PIPE_BYTES;
use crate::ws::{Event, Opcode, Role, WsReader, WsWriter};

/// Bytes of one message.
const MESSAGE_BYTES: usize = 32 << 10;

/// The inner byte stream and the future that drives it, which ends when
/// either side has ended.
pub fn open<IO>(io: IO, role: Role) -> (DuplexStream, impl Future<Output = ()> + Send)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (inner, outer) = tokio::io::duplex(PIPE_BYTES);
    let drive = async move {
        if let Err(error) = run(io, role, outer).await {
            tracing::debug!(%error, "a tunnel through WebSocket ended");
        }
    };
    (inner, drive)
}

async fn run<IO>(io: IO, role: Role, outer: DuplexStream) -> Result<(), StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let mut reader = WsReader::new(read, role);
    let writer = WsWriter::new(write, role);
    let (mut from_inner, mut to_inner) = tokio::io::split(outer);
    let inwards = async {
        while let Some(event) = reader.next().await? {
            match event {
                Event::Data(chunk) => {
                    if to_inner.write_all(&chunk.bytes).await.is_err() {
                        break;
                    }
                }
                Event::Ping(payload) => writer.pong(&payload).await?,
                Event::Close(_) => break,
            }
        }
        Ok::<_, StreamError>(())
    };
    let outwards = async {
        let mut buffer = vec![0; MESSAGE_BYTES];
        while let Ok(count @ 1..) = from_inner.read(&mut buffer).await {
            writer.send(Opcode::Binary, &[], &buffer[..count]).await?;
        }
        Ok::<_, StreamError>(())
    };
    let result = tokio::select! {
        result = inwards => result,
        result = outwards => result,
    };
    // The peer may have closed first.
    let _ = writer.close(1000).await;
    let _ = writer.shutdown().await;
    result
}
