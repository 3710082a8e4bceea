//! Named limits. What a registry, a token server or a helper says is bounded
//! by one of these; reaching it is an error that names it.

use std::time::Duration;

/// Connecting to one address.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// From a request to the head of its answer.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// From the last piece of an upload that went out to the next piece, or to the
/// answer: the registry verifies the blob.
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two pieces of a body; a slower registry has stalled.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// In this time [`PROGRESS_BYTES`] have to come, or the registry counts as
/// stalled: 1 KiB/s. Time in which the disk is waited for does not count.
pub const LEAST_PROGRESS_TIME: Duration = Duration::from_secs(64);
/// How long a registry is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From a request to the head of its answer.
    pub head: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// In which [`PROGRESS_BYTES`] of a body have to come.
    pub least: Duration,
    /// From the last piece of an upload that went out to the next, or to the
    /// answer.
    pub upload: Duration,
    /// First pause between tries; it doubles.
    pub first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: HEAD_TIMEOUT,
            idle: IDLE_TIMEOUT,
            least: LEAST_PROGRESS_TIME,
            upload: UPLOAD_TIMEOUT,
            first_pause: FIRST_PAUSE,
        }
    }
}

/// Tries of one request that is answered by nothing, 429 or 5xx.
pub const MAX_TRIES: u32 = 6;
/// How often one blob's transfer may be cut and go on.
pub const MAX_BLOB_CUTS: u32 = 32;
/// Bytes that have to come between two cuts for the tries to count anew.
pub const PROGRESS_BYTES: u64 = 64 << 10;
/// A registry shows by so much of a layer that it has it, where the store has
/// it from another.
pub const PROOF_BYTES: u64 = 64 << 10;
/// First pause between tries; it doubles.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between tries.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A `Retry-After` that is longer is an error, not a wait.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Redirects that one request follows.
pub const MAX_REDIRECTS: u32 = 5;
/// Largest answer of a token server.
pub const MAX_TOKEN_BYTES: usize = 1 << 20;
/// How much of an error's body is read.
pub const MAX_ERROR_BYTES: usize = 64 << 10;
/// How much of a registry's message is shown.
pub const MAX_SHOWN_CHARS: usize = 300;
/// Most challenges and parameters in `WWW-Authenticate`.
pub const MAX_CHALLENGE_PARTS: usize = 32;
/// Longest `WWW-Authenticate` or `Location`, in bytes.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
/// Most header fields of an answer.
pub const MAX_HEADERS: usize = 100;
/// Buffer of one connection; the head of an answer must fit.
pub const CONNECTION_BUFFER_BYTES: usize = 128 << 10;
/// Pieces of a blob that wait for the unpacking thread.
pub const BLOB_QUEUE_CHUNKS: usize = 8;
/// Layers that are transferred at a time.
pub const MAX_PARALLEL_LAYERS: usize = 4;
/// Idle connections that are kept for the next request.
pub const MAX_IDLE_CONNECTIONS: usize = 8;
/// Largest `registries.conf`.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most registries and mirrors in it.
pub const MAX_CONFIG_ENTRIES: usize = 1024;
/// Largest file of certificates.
pub const MAX_CA_BYTES: u64 = 16 << 20;
/// Largest answer of a credential helper.
pub const MAX_HELPER_BYTES: usize = 64 << 10;
/// How long a credential helper may take.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest `/etc/hosts` or `/etc/resolv.conf`.
pub const MAX_RESOLVER_FILE_BYTES: u64 = 1 << 20;
/// Name servers that are asked (`MAXNS`, resolv.h).
pub const MAX_NAME_SERVERS: usize = 3;
/// Addresses of one name that are tried.
pub const MAX_ADDRESSES: usize = 16;
