//! The client's side of port-forward: the ports of a pod at the other end of
//! a connection. So a server hands a client on to a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::AbortHandle;

use super::spdy::{PORT, REQUEST_ID, STREAM_TYPE};
use super::tunnel;
use crate::error::StreamError;
use crate::node::{Duplex, Ports};
use crate::spdy::mux::{self, Mux, SpdyStream};
use crate::ws::Role;

/// Longest error of one connection, in bytes.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// Ports at the other end. Dropping it closes the connection.
#[derive(Debug)]
pub struct RemotePorts {
    mux: Mux,
    next: AtomicU64,
    tasks: Vec<AbortHandle>,
}

impl Drop for RemotePorts {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl RemotePorts {
    /// Over a connection on which SPDY was agreed.
    ///
    /// # Errors
    /// zlib refuses its dictionary (a defect).
    pub fn spdy<IO>(io: IO) -> Result<Arc<Self>, StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self::over(io, Vec::new())
    }

    /// Over a WebSocket on which the tunnel was agreed.
    ///
    /// # Errors
    /// zlib refuses its dictionary (a defect).
    pub fn tunnel<IO>(io: IO) -> Result<Arc<Self>, StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (inner, drive) = tunnel::open(io, Role::Client);
        Self::over(inner, vec![rkube_task::spawn(drive).abort_handle()])
    }

    fn over<IO>(io: IO, mut tasks: Vec<AbortHandle>) -> Result<Arc<Self>, StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mux, _incoming, drive) = mux::connect(io, Role::Client)?;
        tasks.push(rkube_task::spawn(drive).abort_handle());
        Ok(Arc::new(Self {
            mux,
            next: AtomicU64::new(0),
            tasks,
        }))
    }
}

impl Ports for RemotePorts {
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let mux = self.mux.clone();
        Box::pin(async move {
            let headers = |kind: &str| {
                [
                    (STREAM_TYPE, kind),
                    (PORT, &port.to_string()),
                    (REQUEST_ID, &request.to_string()),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec()
            };
            let failed = |error: StreamError| error.to_string();
            let error = mux.open(headers("error")).await.map_err(failed)?;
            // Nothing is sent on it: this half ends at once.
            drop(error.writer);
            let data = mux.open(headers("data")).await.map_err(failed)?;
            first_answer(error.reader, data).await
        })
    }
}

/// The connection, unless the node reports an error before the first byte
/// and before the end of the error stream.
async fn first_answer(
    error: crate::pipe::Reader,
    data: SpdyStream,
) -> Result<Box<dyn Duplex>, String> {
    let SpdyStream { reader, writer, .. } = data;
    let mut reader = tokio::io::BufReader::new(reader);
    let mut text = String::new();
    let mut error = error.take(MAX_ERROR_BYTES);
    {
        use tokio::io::AsyncBufReadExt;
        tokio::select! {
            biased;
            read = error.read_to_string(&mut text) => {
                if read.is_ok() && !text.is_empty() {
                    return Err(text);
                }
            }
            // Bytes, or an end: the connection stands.
            _ = reader.fill_buf() => {}
            // A server that says nothing first: the client has to.
            () = tokio::time::sleep(QUIET) => {}
        }
    }
    Ok(Box::new(tokio::io::join(reader, writer)))
}

/// How long a node's refusal of a port is waited for where the port says
/// nothing by itself. A refusal that comes later ends the data stream.
const QUIET: std::time::Duration = std::time::Duration::from_millis(50);
