//! Pulling: from a reference to an image in the store.
//!
//! Content is found by its digest, and digests are no secrets: what the store
//! has of other repositories is taken only where the endpoint shows that it
//! has it too. Documents are fetched again, of layers a piece is
//! (`layers.rs`).

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use rkube_image::document::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
};
use rkube_image::limits::{MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use rkube_image::pull::{Cancel, Opened, PullRequest, PulledImage};
use rkube_image::{Digest, Reference, Store};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};

use crate::Registries;
use crate::blob::{Wanted, pull_scope, stream};
use crate::config::{Config, Endpoint};
use crate::credentials;
use crate::error::{Error, Result, chain};
use crate::layers::Job;
use crate::limits::BLOB_QUEUE_CHUNKS;
use crate::session::{Answer, Ask, Session};

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is sent as `Accept` for manifests.
fn accepted() -> String {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ")
}

/// A document that was fetched, with the digest that it was checked against.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
}

/// What is known of the image before its layers come.
pub(crate) struct Resolved {
    pub(crate) manifest: Fetched,
    pub(crate) parsed: Manifest,
    /// Digest of the index that it is from.
    pub(crate) index: Option<Digest>,
    pub(crate) config: Vec<u8>,
    /// The store has had this very image from this repository.
    pub(crate) known: bool,
}

/// A way to open an endpoint.
struct Key {
    credential: Option<rkube_image::Credential>,
    who: String,
    opened: Opened,
}

impl Registries {
    /// Brings an image into the store. The registry is always asked, and what
    /// the store has already is not fetched.
    ///
    /// # Errors
    /// What was attempted on which endpoint, and what it answered. Nothing of
    /// the image is visible then; whole and partial blobs wait for the next
    /// try.
    pub fn pull_image(&self, store: &Store, request: &PullRequest) -> Result<PulledImage> {
        // The same image at once is fetched once; the second finds it there.
        let runtime = self.runtime()?;
        let flight = self.flight(&request.reference.to_string());
        let turn = async { Ok(flight.lock().await) };
        let _turn = runtime.block_on(until_cancelled(&request.cancel, turn))?;
        if request.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let config = Config::load(&self.config_path())?;
        let endpoints = config.endpoints(&request.reference)?;
        let only = endpoints.len() == 1;
        let mut all = Vec::new();
        for endpoint in endpoints {
            let host = endpoint.host.clone();
            match self.pull_from(&runtime, store, request, endpoint) {
                Ok(pulled) => return Ok(pulled),
                Err(e @ Error::Cancelled) => return Err(e),
                Err(e) if only => return Err(e),
                Err(e) => {
                    let text = chain(&e);
                    request.progress.note(&format!("{host}: {text}"));
                    all.push(text);
                }
            }
        }
        Err(Error::Endpoints {
            image: request.reference.to_string(),
            all,
        })
    }

    fn pull_from(
        &self,
        runtime: &Runtime,
        store: &Store,
        request: &PullRequest,
        endpoint: Endpoint,
    ) -> Result<PulledImage> {
        let transport = self.transport();
        let mut refused = None;
        for key in self.keys(request, &endpoint) {
            let key = match (key, refused.take()) {
                (Ok(key), _) => key,
                (Err(e), None) => return Err(e),
                // What the registry says of the others tells more.
                (Err(e), Some(refused)) => {
                    request.progress.note(&chain(&e));
                    return Err(refused);
                }
            };
            let session = Session::new(&transport, endpoint.clone(), key.credential, &key.who);
            let resolved = runtime.block_on(until_cancelled(
                &request.cancel,
                resolve(&session, store, request),
            ));
            let resolved = match resolved {
                Err(e) if may_be_hidden(&e) => {
                    refused = Some(e);
                    continue;
                }
                other => other?,
            };
            let opened = if session.used_credential() {
                key.opened
            } else {
                Opened::Anonymous
            };
            return Job::new(store, request, &session).layers(runtime, resolved, opened);
        }
        Err(refused.unwrap_or(Error::Cancelled))
    }

    /// The request's credentials in their order, then the node's; without any,
    /// nobody's (as the kubelet tries them). The node's are looked for when it
    /// is their turn: programs of the node's have no say before.
    fn keys<'k>(
        &'k self,
        request: &'k PullRequest,
        endpoint: &'k Endpoint,
    ) -> impl Iterator<Item = Result<Key>> + 'k {
        let (host, repository) = (&*endpoint.host, &*endpoint.repository);
        let own: Vec<Key> = request
            .keyrings
            .iter()
            .enumerate()
            .flat_map(|(keyring, ring)| {
                let found = ring.find_at(host, repository).into_iter();
                found.map(move |credential| Key {
                    credential: Some(credential.clone()),
                    who: "a pull secret".to_owned(),
                    opened: Opened::Request {
                        keyring,
                        fingerprint: credential.fingerprint(),
                    },
                })
            })
            .collect();
        let none = own.is_empty();
        let nodes = std::iter::once(()).flat_map(move |()| {
            let found = credentials::find(&self.credential_files(), host, repository);
            let keys: Vec<Result<Key>> = match found {
                Ok(all) if all.is_empty() && none => vec![Ok(Key {
                    credential: None,
                    who: String::new(),
                    opened: Opened::Anonymous,
                })],
                Ok(all) => all.into_iter().map(|f| Ok(Key::of_node(f))).collect(),
                Err(e) => vec![Err(e)],
            };
            keys
        });
        own.into_iter().map(Ok).chain(nodes)
    }
}

impl Key {
    fn of_node(found: credentials::Found) -> Self {
        Self {
            credential: Some(found.credential),
            who: format!("credentials of {}", found.from),
            opened: Opened::Node,
        }
    }
}

/// Whether another credential may see more: some registries say of what one
/// may not see that it is not there.
pub(crate) fn may_be_hidden(error: &Error) -> bool {
    match error {
        Error::Denied { .. } => true,
        Error::Status { status, .. } => *status == http::StatusCode::NOT_FOUND,
        _ => false,
    }
}

/// Runs until it is done or cancelled.
pub(crate) async fn until_cancelled<T>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let notify = Arc::new(Notify::new());
    let told = Arc::clone(&notify);
    cancel.on_cancel(move || told.notify_one());
    tokio::select! {
        result = work => result,
        () = notify.notified() => Err(Error::Cancelled),
    }
}

/// Manifest and configuration of the image for the platform.
async fn resolve(session: &Session<'_>, store: &Store, request: &PullRequest) -> Result<Resolved> {
    let image = &request.reference;
    let what = image.familiar();
    let mut at = match (image.digest(), image.tag()) {
        (Some(digest), _) => fetch_manifest(session, &digest.to_string(), Some(&digest)).await?,
        (None, tag) => fetch_manifest(session, tag.unwrap_or("latest"), None).await?,
    };
    let repository = image.repository();
    let mut index = None;
    for _ in 0..=MAX_INDEX_DEPTH {
        match Document::parse(&at.bytes, &what)? {
            Document::Manifest(parsed) => {
                let known = store.is_of(&repository, &at.digest)?;
                let have = known.then(|| store.small_blob(&parsed.config.digest));
                let config = match have.flatten() {
                    Some(bytes) => bytes,
                    None => configuration(session, &parsed.config, &what).await?,
                };
                return Ok(Resolved {
                    manifest: at,
                    parsed,
                    index,
                    config,
                    known,
                });
            }
            Document::Index(list) => {
                index.get_or_insert(at.digest);
                let next = choose(&what, &list.manifests, &request.platform)?;
                let known = store.is_of(&repository, &next.digest)?;
                let have = known.then(|| store.small_blob(&next.digest));
                at = match have.flatten() {
                    Some(bytes) => Fetched {
                        bytes,
                        digest: next.digest,
                    },
                    None => {
                        fetch_manifest(session, &next.digest.to_string(), Some(&next.digest))
                            .await?
                    }
                };
            }
        }
    }
    Err(rkube_image::Error::Limit {
        what,
        limit: MAX_INDEX_DEPTH as u64,
        unit: "nested indexes",
    }
    .into())
}

async fn fetch_manifest(
    session: &Session<'_>,
    name: &str,
    expected: Option<&Digest>,
) -> Result<Fetched> {
    let repository = &session.endpoint.repository;
    let path = format!("/v2/{repository}/manifests/{name}");
    let scope = pull_scope(repository);
    let ask = Ask::get(&path, &scope).header(ACCEPT, accepted());
    let limit = usize::try_from(MAX_MANIFEST_BYTES).unwrap_or(usize::MAX);
    let mut tries = 0;
    let (request, told, kind, bytes) = loop {
        tries += 1;
        let answer = session.send(&ask).await?;
        let request = format!("GET {}", answer.url.shown());
        let told = told_digest(&answer);
        let kind = answer.header(&CONTENT_TYPE).unwrap_or_default().to_owned();
        match session.read_body(answer, limit, &request).await {
            Ok(bytes) => break (request, told, kind, bytes),
            Err(e) if e.is_transient() => match session.pause(tries, &e) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(e),
            },
            Err(e) => return Err(e),
        }
    };
    let digest = Digest::of(&bytes);
    let wrong = |expected: &Digest| Error::Digest {
        what: request.clone(),
        expected: expected.to_string(),
        actual: digest.to_string(),
    };
    if let Some(expected) = expected.filter(|e| **e != digest) {
        return Err(wrong(expected));
    }
    // A registry that tells another digest than it sends is not to be trusted.
    if let Some(told) = told.filter(|t| *t != digest) {
        return Err(wrong(&told));
    }
    if kind.contains("text/html") {
        return Err(Error::Protocol {
            request,
            reason: "it answers with a web page: no registry is there".into(),
        });
    }
    Ok(Fetched { bytes, digest })
}

fn told_digest(answer: &Answer) -> Option<Digest> {
    answer.header(&DIGEST_HEADER)?.parse().ok()
}

async fn configuration(session: &Session<'_>, config: &Descriptor, what: &str) -> Result<Vec<u8>> {
    let (sender, mut receiver) = mpsc::channel(BLOB_QUEUE_CHUNKS);
    let wanted = Wanted {
        index: 0,
        digest: config.digest,
        size: config.size,
        offset: 0,
        until: config.size,
        chunks: sender,
    };
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(chunk)) = receiver.recv().await {
            bytes.extend_from_slice(&chunk);
        }
    };
    // Its size was checked against the limit with the manifest.
    let (sent, ()) = tokio::join!(stream(session, wanted, &|_| ()), read);
    sent?;
    let actual = Digest::of(&bytes);
    if actual == config.digest {
        Ok(bytes)
    } else {
        Err(Error::Digest {
            what: format!("{what}: configuration"),
            expected: config.digest.to_string(),
            actual: actual.to_string(),
        })
    }
}

/// The reference as a registry wants it after the repository.
pub(crate) fn tag_or_digest(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}
