//! Images from and to registries, by the OCI distribution specification and
//! Docker's API version 2.
//!
//! Purpose: from a reference to an image in `rkube-image`'s store, and back:
//! which hosts to ask ([`config`]), whom to be there (credentials, tokens),
//! what to believe (nothing that has not the digest it was asked for by).
//!
//! Boundary: feeds blobs into the store and reads them from it; no Kubernetes.
//! Pod workers see it through [`rkube_image::pull::Puller`].
//!
//! Invariants:
//! - What comes over the network is bounded by [`limits`] and checked while it
//!   streams; an image is visible when all of it is there, or not at all.
//! - Credentials go to the host that they are for and to its token server,
//!   never along a redirect to another host, never over plain HTTP unless the
//!   user calls the registry insecure or it is on this machine.
//! - What may pass (429, 5xx, a cut connection) is tried again with growing
//!   pauses, a few times; what cannot pass is told at once.
//! - Everything runs on the caller's thread and threads of its own.

mod answers;
mod backoff;
mod blob;
mod challenge;
pub mod config;
mod credentials;
mod error;
mod file;
mod layers;
pub mod limits;
mod login;
mod pace;
mod proxy;
mod pull;
mod push;
mod resolve;
mod session;
mod tls;
mod transport;
mod url;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rkube_image::Store;
use rkube_image::pull::{PullError, PullFailure, PullRequest, PulledImage, Puller};

pub use error::{Error, Result, chain};
pub use limits::Patience;
pub use proxy::Proxies;
pub use push::Pushed;

/// Held by who pulls an image.
type Flight = tokio::sync::Mutex<()>;

/// The registries as a root's configuration has them: `registries.conf`,
/// `certs.d/` and `config.json` below `etc/rkube`. Files are read anew for
/// each image, so that a change needs no restart.
#[derive(Debug)]
pub struct Registries {
    dir: PathBuf,
    credential_files: Vec<PathBuf>,
    flights: Mutex<HashMap<String, Arc<Flight>>>,
    patience: Patience,
    proxies: Proxies,
}

impl Registries {
    /// Those of a root directory, reached as the environment says
    /// (`HTTPS_PROXY`, `NO_PROXY`).
    #[must_use]
    pub fn of_root(root: &Path) -> Self {
        let dir = root.join("etc/rkube");
        Self {
            credential_files: vec![dir.join("config.json")],
            dir,
            flights: Mutex::default(),
            patience: Patience::default(),
            proxies: Proxies::of_environment(),
        }
    }

    /// Looks for credentials in these files instead of the root's.
    #[must_use]
    pub fn with_credential_files(mut self, files: Vec<PathBuf>) -> Self {
        self.credential_files = files;
        self
    }

    /// Waits for registries as long as that.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Reaches registries through these proxies instead of the environment's.
    #[must_use]
    pub fn with_proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// The node's file of credentials, in the form of Docker's `config.json`.
    #[must_use]
    pub fn credential_file(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn credential_files(&self) -> Vec<PathBuf> {
        self.credential_files.clone()
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("registries.conf")
    }

    fn certs_d(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    fn transport(&self) -> transport::Transport {
        transport::Transport::new(self.certs_d(), self.proxies.clone(), self.patience)
    }

    fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        built.map_err(|source| Error::Transport {
            request: "start the async runtime".into(),
            source,
        })
    }

    /// The lock of one image's pulls.
    fn flight(&self, image: &str) -> Arc<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are over.
        flights.retain(|_, f| Arc::strong_count(f) > 1);
        Arc::clone(flights.entry(image.to_owned()).or_default())
    }
}

impl Puller for Registries {
    fn pull(&self, store: &Store, request: &PullRequest) -> Result<PulledImage, PullError> {
        self.pull_image(store, request).map_err(|e| PullError {
            kind: kind(&e),
            message: chain(&e),
        })
    }
}

fn kind(error: &Error) -> PullFailure {
    match error {
        Error::Cancelled => PullFailure::Cancelled,
        Error::Denied { .. } => PullFailure::Denied,
        Error::Status { status, .. } if status.as_u16() == 404 => PullFailure::NotFound,
        Error::Resolve { .. } | Error::Connect { .. } | Error::Transport { .. } => {
            PullFailure::Unreachable
        }
        _ => PullFailure::Other,
    }
}

/// What the fuzz targets reach: decoders of what peers and files say.
#[doc(hidden)]
pub mod fuzzing {
    use std::path::Path;

    /// `WWW-Authenticate`.
    pub fn challenge(text: &str) -> usize {
        crate::challenge::parse([text]).len()
    }

    /// `registries.conf`.
    #[must_use]
    pub fn config(bytes: &[u8]) -> bool {
        crate::config::Config::parse(bytes, Path::new("registries.conf")).is_ok()
    }

    /// Small documents of registries, token servers and credential helpers, and
    /// `Content-Range`.
    ///
    /// # Panics
    /// What is shown of one is not short and harmless.
    pub fn answers(bytes: &[u8]) {
        let message = crate::answers::message_of(bytes);
        assert!(message.chars().count() <= crate::limits::MAX_SHOWN_CHARS + 3);
        assert!(!message.chars().any(char::is_control));
        if let Some(token) = crate::answers::token_of(bytes) {
            assert!(http::HeaderValue::from_str(&format!("Bearer {token}")).is_ok());
        }
        crate::credentials::credential_of("helper", bytes).ok();
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = crate::blob::range_start(text);
        }
    }

    /// `Retry-After` and `Location`.
    #[must_use]
    pub fn header(text: &str) -> bool {
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        let base = crate::url::Url::of_host(true, "registry.test", "/v2/");
        let joined = base.is_ok_and(|b| b.join(text, "fuzz").is_ok());
        crate::backoff::retry_after(text, epoch).is_some() || joined
    }
}
