//! Port-forward: connections to the ports of a pod.

mod channels;
pub mod client;
mod spdy;
pub mod tunnel;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::StreamError;
use crate::node::{Ports, Refused};
use crate::upgrade::{ForwardKind, Upgrade};

/// Ports of one WebSocket with two channels a port: a channel is a byte.
pub const MAX_CHANNEL_PORTS_COUNT: usize = 127;

/// Reads the `ports` of the query (`PodPortForwardOptions`): needed where
/// channels are given to ports beforehand, ignored elsewhere.
///
/// # Errors
/// A value that is no port, too many of them, or none where one is needed.
pub fn parse_ports<'a>(
    kind: ForwardKind,
    values: impl Iterator<Item = &'a str>,
) -> Result<Vec<u16>, Refused> {
    if !matches!(kind, ForwardKind::Channels { .. }) {
        return Ok(Vec::new());
    }
    let mut ports = Vec::new();
    for value in values.flat_map(|value| value.split(',')) {
        match value.trim().parse() {
            Ok(0) | Err(_) => {
                return Err(Refused::bad_request(format!("invalid port {value:?}")));
            }
            Ok(port) => ports.push(port),
        }
    }
    match ports.len() {
        0 => Err(Refused::bad_request(
            "query parameter \"ports\" is required",
        )),
        1..=MAX_CHANNEL_PORTS_COUNT => Ok(ports),
        count => Err(Refused::bad_request(format!(
            "{count} ports, at most {MAX_CHANNEL_PORTS_COUNT} fit"
        ))),
    }
}

impl Upgrade<ForwardKind> {
    /// Serves port-forward on the upgraded connection until the client is
    /// gone. `listed` comes from [`parse_ports`].
    ///
    /// # Errors
    /// The connection broke, or the client broke the protocol.
    pub async fn serve<IO>(
        &self,
        io: IO,
        ports: Arc<dyn Ports>,
        listed: Vec<u16>,
    ) -> Result<(), StreamError>
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        match self.kind {
            ForwardKind::Spdy => spdy::serve(io, ports).await,
            ForwardKind::Tunnel => {
                let (inner, drive) = tunnel::open(io, crate::ws::Role::Server);
                let (served, ()) = tokio::join!(spdy::serve(inner, ports), drive);
                served
            }
            ForwardKind::Channels { base64 } => channels::serve(io, base64, ports, listed).await,
        }
    }
}
