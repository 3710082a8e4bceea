//! What the layers above ask of a registry client, and what it answers.
//!
//! The client itself is a crate above this one; pod workers and the command
//! line see it through [`Puller`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::Keyring;
use crate::digest::Digest;
use crate::import::{ImportedImage, Platform};
use crate::reference::Reference;
use crate::store::Store;

/// What is to be pulled, and with what.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Which image of an index.
    pub platform: Platform,
    /// Credentials that are tried first, in this order (a pod's pull secrets).
    pub keyrings: Vec<Keyring>,
    /// Whom to tell how it goes.
    pub progress: Arc<dyn Progress>,
    /// Ends it early.
    pub cancel: Cancel,
    /// Is asked before the image becomes visible.
    pub before_commit: Option<BeforeCommit>,
}

/// Hears of an image's id just before the store has it; an error ends the pull.
#[derive(Clone)]
pub struct BeforeCommit(Arc<CommitHook>);

type CommitHook = dyn Fn(&Digest) -> io::Result<()> + Send + Sync;

impl BeforeCommit {
    /// Calls this.
    pub fn new(hook: impl Fn(&Digest) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// Tells of an image.
    ///
    /// # Errors
    /// Why the image must not become visible.
    pub fn call(&self, id: &Digest) -> io::Result<()> {
        (self.0)(id)
    }
}

impl std::fmt::Debug for BeforeCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BeforeCommit")
    }
}

impl PullRequest {
    /// A request for this host without credentials of its own.
    #[must_use]
    pub fn new(reference: Reference) -> Self {
        Self {
            reference,
            platform: Platform::host(),
            keyrings: Vec::new(),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            before_commit: None,
        }
    }
}

/// Whose credential opened the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// None was needed.
    Anonymous,
    /// The node's own.
    Node,
    /// One of the request's keyring with this index.
    Request {
        /// Index into [`PullRequest::keyrings`].
        keyring: usize,
        /// [`crate::Credential::fingerprint`].
        fingerprint: Digest,
    },
}

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// As the store has it now.
    pub image: ImportedImage,
    /// Whose credential opened the registry.
    pub opened: Opened,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// The endpoint that had it, `host[:port]`.
    pub endpoint: String,
}

/// The kind of a failure, for those who decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullFailure {
    /// The registry cannot be reached or does not answer in time.
    Unreachable,
    /// The credentials are missing or not good enough.
    Denied,
    /// There is no such image.
    NotFound,
    /// It was cancelled.
    Cancelled,
    /// Everything else: the image, the disk, the registry's answers.
    Other,
}

/// Why a pull did not happen: the whole chain in one line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    /// The kind.
    pub kind: PullFailure,
    /// What was attempted, on what, what the peer answered.
    pub message: String,
}

/// A registry client. Calls block for as long as the network takes.
pub trait Puller: Send + Sync + std::fmt::Debug {
    /// Brings an image into the store, or only moves its name there if all of
    /// it is present; the registry is always asked.
    ///
    /// # Errors
    /// See [`PullFailure`].
    fn pull(&self, store: &Store, request: &PullRequest) -> Result<PulledImage, PullError>;
}

/// What becomes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerEvent {
    /// It waits for its turn.
    Waiting,
    /// The store has it.
    Exists,
    /// So many bytes of it are here.
    Bytes(u64),
    /// The way was cut; it goes on after a while.
    Retrying,
    /// It is here and unpacked (or, of a push, there).
    Done,
}

/// Is told how a transfer goes, from several threads.
pub trait Progress: Send + Sync + std::fmt::Debug {
    /// The image's layers with their sizes in bytes.
    fn begin(&self, _layers: &[(Digest, u64)]) {}
    /// Something became of a layer, by its index in `begin`.
    fn layer(&self, _index: usize, _event: LayerEvent) {}
    /// Something that a user may want to know, in one line.
    fn note(&self, _text: &str) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Ends transfers early, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Mutex<CancelState>>);

type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct CancelState {
    done: bool,
    callbacks: Vec<Callback>,
}

impl std::fmt::Debug for CancelState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelState")
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl Cancel {
    /// Cancels; again changes nothing.
    pub fn cancel(&self) {
        let callbacks = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.done = true;
            std::mem::take(&mut state.callbacks)
        };
        for callback in callbacks {
            callback();
        }
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).done
    }

    /// Calls back when it is cancelled; at once if it was.
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) {
        {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.done {
                state.callbacks.push(Box::new(callback));
                return;
            }
        }
        callback();
    }
}
