//! How much at once, and how long.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::status::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Reads answered at a time (`--max-requests-inflight`).
pub(super) const READS_IN_FLIGHT_MAX: usize = 400;
/// Writes answered at a time (`--max-mutating-requests-inflight`).
pub(super) const WRITES_IN_FLIGHT_MAX: usize = 200;
/// How long a request that is no watch or connection may take (`--request-timeout`).
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take for the TLS handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's header.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(32);
/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 16_384;
/// Streams of one HTTP/2 connection (`--http2-max-streams-per-connection`).
pub(super) const STREAMS_PER_CONNECTION_MAX: u32 = 250;
/// Bytes of a request's header, both versions (Go's `DefaultMaxHeaderBytes`).
pub(super) const HEADER_BYTES_MAX: usize = 1 << 20;
/// Answers from this size on are compressed (`defaultGzipThresholdBytes`).
pub(super) const GZIP_BYTES_MIN: usize = 128 << 10;
/// How long open connections may take to end when the server stops.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Permits for requests.
#[derive(Debug, Clone)]
pub(super) struct InFlight {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self {
            reads: Arc::new(Semaphore::new(READS_IN_FLIGHT_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_IN_FLIGHT_MAX)),
        }
    }
}

impl InFlight {
    /// A permit for as long as the request runs.
    ///
    /// # Errors
    /// 429 where too many run.
    pub(super) fn enter(&self, is_write: bool) -> Result<OwnedSemaphorePermit, Status> {
        let semaphore = if is_write { &self.writes } else { &self.reads };
        Arc::clone(semaphore)
            .try_acquire_owned()
            .map_err(|_| Status::too_many_requests("Too many requests, please try again later.", 1))
    }

    /// Reads and writes under way.
    pub(super) fn counts(&self) -> (usize, usize) {
        (
            READS_IN_FLIGHT_MAX - self.reads.available_permits(),
            WRITES_IN_FLIGHT_MAX - self.writes.available_permits(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_is_told_to_wait() {
        let in_flight = InFlight::default();
        let permits: Vec<_> = (0..WRITES_IN_FLIGHT_MAX)
            .map(|_| in_flight.enter(true).unwrap())
            .collect();
        let status = in_flight.enter(true).unwrap_err();
        assert_eq!(
            (status.code, &status.details["retryAfterSeconds"]),
            (429, &1.into())
        );
        drop(in_flight.enter(false).unwrap());
        drop(permits);
        drop(in_flight.enter(true).unwrap());
        assert_eq!(in_flight.counts(), (0, 0));
    }
}
