//! Port-forward over WebSocket messages: port `i` of the query has channel
//! `2i` for data and `2i + 1` for its error, and each channel begins with the
//! port as two bytes, the lower first.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::error::StreamError;
use crate::exec::CLOSE_TIMEOUT;
use crate::exec::websocket::{Demux, send};
use crate::node::Ports;
use crate::pipe::{Reader, Writer, pipe};
use crate::ws::{Event, Role, WsReader, WsWriter};

/// Bytes that are sent at a time.
const DATA_BYTES: usize = 32 << 10;

pub(crate) async fn serve<IO>(
    io: IO,
    base64: bool,
    ports: Arc<dyn Ports>,
    listed: Vec<u16>,
) -> Result<(), StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(io);
    let mut reader = WsReader::new(read, Role::Server);
    let writer = WsWriter::new(write, Role::Server);
    let mut sinks = Vec::new();
    let mut running = JoinSet::new();
    for (channel, port) in (0u8..).step_by(2).zip(listed) {
        for channel in [channel, channel + 1] {
            send(&writer, base64, channel, &port.to_le_bytes()).await?;
        }
        let (sink, source) = pipe();
        sinks.push(Some(sink));
        let out = writer.clone();
        let connect = ports.connect(port);
        running.spawn(async move {
            let result = match connect.await {
                Ok(port) => forward(port, source, &out, base64, channel).await,
                Err(why) => send(&out, base64, channel + 1, why.as_bytes()).await,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a forwarded connection broke");
            }
        });
    }
    let receiving = receive(&mut reader, &writer, base64, &mut sinks);
    let all_ended = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        result = receiving => return result,
        () = all_ended => {}
    }
    writer.close(1000).await?;
    let rest =
        async { while let Ok(Some(Event::Data(_) | Event::Ping(_))) = reader.next().await {} };
    // A client that does not answer the close is left.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, rest).await;
    writer.shutdown().await
}

async fn receive<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut WsReader<R>,
    writer: &WsWriter<W>,
    base64: bool,
    sinks: &mut [Option<Writer>],
) -> Result<(), StreamError> {
    let mut demux = Demux::new(base64);
    while let Some(event) = reader.next().await? {
        match event {
            Event::Data(chunk) => {
                let Some((channel, bytes)) = demux.feed(&chunk)? else {
                    continue;
                };
                let slot = sinks.get_mut(usize::from(channel / 2));
                if let (Some(slot), 0) = (slot, channel % 2)
                    && let Some(sink) = slot
                    && sink.write_all(&bytes).await.is_err()
                {
                    *slot = None;
                }
            }
            Event::Ping(payload) => writer.pong(&payload).await?,
            Event::Close(_) => break,
        }
    }
    Ok(())
}

async fn forward<W: AsyncWrite + Unpin>(
    port: Box<dyn crate::node::Duplex>,
    mut source: Reader,
    writer: &WsWriter<W>,
    base64: bool,
    channel: u8,
) -> Result<(), StreamError> {
    let (mut from_port, mut to_port) = tokio::io::split(port);
    let up = async {
        // A port that reads no more still may be read from.
        let _ = tokio::io::copy(&mut source, &mut to_port).await;
        let _ = to_port.shutdown().await;
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut buffer = vec![0; DATA_BYTES];
        while let Ok(count @ 1..) = from_port.read(&mut buffer).await {
            send(writer, base64, channel, &buffer[..count]).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = up => Ok(()),
        result = down => result,
    }
}
