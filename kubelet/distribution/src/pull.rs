//! Pulling: from a reference to an image in the store.
//!
//! The network runs on one thread (a runtime of its own, on the caller's
//! thread); each layer that is being fetched has a thread that feeds the
//! store's pipe. So bulk transfers never run on a writer's event loop.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use rkube_image::document::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, Manifest, OCI_INDEX, OCI_MANIFEST, choose,
};
use rkube_image::limits::{MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use rkube_image::pull::{Cancel, LayerEvent, Opened, PullRequest, PulledImage};
use rkube_image::{Digest, Ingest, IngestOptions, Names, Reference, Store, TakenLayer};
use tokio::sync::{Notify, mpsc};

use crate::Registries;
use crate::blob::{ChannelReader, News, Wanted, pull_scope, stream};
use crate::config::{Config, Endpoint};
use crate::credentials;
use crate::error::{Error, Result, chain};
use crate::limits::{BLOB_QUEUE_CHUNKS, MAX_PARALLEL_LAYERS};
use crate::session::{Answer, Ask, Session};

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is sent as `Accept` for manifests.
fn accepted() -> String {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ")
}

/// A document that was fetched, with the digest that it was checked against.
struct Fetched {
    bytes: Vec<u8>,
    digest: Digest,
}

/// What is known of the image before its layers come.
struct Resolved {
    manifest: Fetched,
    parsed: Manifest,
    /// Digest of the index that it is from.
    index: Option<Digest>,
    config: Vec<u8>,
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
        let flight = self.flight(&request.reference.to_string());
        let _guard = flight
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if request.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let config = Config::load(&self.config_path())?;
        let endpoints = config.endpoints(&request.reference)?;
        let only = endpoints.len() == 1;
        let mut all = Vec::new();
        for endpoint in endpoints {
            let host = endpoint.host.clone();
            match self.pull_from(store, request, endpoint) {
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
        store: &Store,
        request: &PullRequest,
        endpoint: Endpoint,
    ) -> Result<PulledImage> {
        let runtime = self.runtime()?;
        let transport = self.transport();
        let mut keys = self.keys(request, &endpoint)?.into_iter().peekable();
        while let Some(key) = keys.next() {
            let session = Session::new(&transport, endpoint.clone(), key.credential, &key.who);
            let resolved = runtime.block_on(until_cancelled(
                &request.cancel,
                resolve(&session, store, request),
            ));
            let resolved = match resolved {
                Err(Error::Denied { .. }) if keys.peek().is_some() => continue,
                other => other?,
            };
            let opened = if session.used_credential() {
                key.opened
            } else {
                Opened::Anonymous
            };
            let job = Job {
                store,
                request,
                session: &session,
                fetched: AtomicU64::new(0),
            };
            return job.layers(&runtime, resolved, opened);
        }
        Err(Error::Cancelled)
    }

    /// The request's credentials in their order, else the node's; without any,
    /// nobody's (as the kubelet tries them).
    fn keys(&self, request: &PullRequest, endpoint: &Endpoint) -> Result<Vec<Key>> {
        let (host, repository) = (&*endpoint.host, &*endpoint.repository);
        let mut out = Vec::new();
        for (keyring, ring) in request.keyrings.iter().enumerate() {
            for credential in ring.find_at(host, repository) {
                out.push(Key {
                    credential: Some(credential.clone()),
                    who: "a pull secret".to_owned(),
                    opened: Opened::Request {
                        keyring,
                        fingerprint: credential.fingerprint(),
                    },
                });
            }
        }
        for found in credentials::find(&self.credential_files(), host, repository)? {
            out.push(Key {
                credential: Some(found.credential),
                who: format!("credentials of {}", found.from),
                opened: Opened::Node,
            });
        }
        if out.is_empty() {
            out.push(Key {
                credential: None,
                who: String::new(),
                opened: Opened::Anonymous,
            });
        }
        Ok(out)
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
    let mut index = None;
    for _ in 0..=MAX_INDEX_DEPTH {
        match Document::parse(&at.bytes, &what)? {
            Document::Manifest(parsed) => {
                let config = configuration(session, store, &parsed.config, &what).await?;
                return Ok(Resolved {
                    manifest: at,
                    parsed,
                    index,
                    config,
                });
            }
            Document::Index(list) => {
                index.get_or_insert(at.digest);
                let next = choose(&what, &list.manifests, &request.platform)?;
                at = match store.small_blob(&next.digest) {
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

async fn configuration(
    session: &Session<'_>,
    store: &Store,
    config: &Descriptor,
    what: &str,
) -> Result<Vec<u8>> {
    if let Some(bytes) = store.small_blob(&config.digest) {
        return Ok(bytes);
    }
    let (sender, mut receiver) = mpsc::channel(BLOB_QUEUE_CHUNKS);
    let wanted = Wanted {
        index: 0,
        digest: config.digest,
        size: config.size,
        offset: 0,
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

/// The layers of one image on their way.
struct Job<'j> {
    store: &'j Store,
    request: &'j PullRequest,
    session: &'j Session<'j>,
    fetched: AtomicU64,
}

/// What the workers ask of the thread that has the network.
enum Order {
    /// A blob.
    Stream(Wanted),
    /// One has failed: end all streams.
    Stop,
}

/// What came of one layer.
type Slot = Option<rkube_image::Result<TakenLayer>>;

impl Job<'_> {
    fn layers(
        &self,
        runtime: &tokio::runtime::Runtime,
        resolved: Resolved,
        opened: Opened,
    ) -> Result<PulledImage> {
        let what = self.request.reference.familiar();
        let manifest = &resolved.manifest;
        let ingest = self.store.ingest(
            IngestOptions::default(),
            &what,
            &manifest.bytes,
            &resolved.parsed,
            resolved.config,
        )?;
        let sizes: Vec<_> = ingest.layers().iter().map(|l| (l.digest, l.size)).collect();
        self.request.progress.begin(&sizes);
        let taken = self.take_all(runtime, &ingest)?;
        let repository = self.request.reference.repository();
        let named = |digest: &Digest| format!("{repository}@{digest}");
        let reference = match self.request.reference.digest() {
            Some(digest) => named(&digest),
            None => self.request.reference.to_string(),
        };
        let mut digests = vec![named(&manifest.digest)];
        digests.extend(resolved.index.iter().map(named));
        let names = Names {
            references: vec![reference],
            digests,
        };
        let image = ingest.commit(taken, names)?;
        Ok(PulledImage {
            image,
            opened,
            fetched_bytes: self.fetched.load(Ordering::Relaxed),
            endpoint: self.session.endpoint.host.clone(),
        })
    }

    /// Worker threads take the layers, this thread serves them the network.
    fn take_all(
        &self,
        runtime: &tokio::runtime::Runtime,
        ingest: &Ingest<'_>,
    ) -> Result<Vec<TakenLayer>> {
        let layers = ingest.layers();
        // Equal layers are taken once.
        let first_of = |index: usize| {
            let same = |l: &Descriptor| l.digest == layers[index].digest;
            layers.iter().position(same).unwrap_or(index)
        };
        let unique: Vec<usize> = (0..layers.len()).filter(|i| first_of(*i) == *i).collect();
        let slots: Vec<Mutex<Slot>> = layers.iter().map(|_| Mutex::default()).collect();
        let next = AtomicUsize::new(0);
        let (orders, wanted) = mpsc::unbounded_channel::<Order>();
        let workers = unique.len().min(MAX_PARALLEL_LAYERS);
        let served = std::thread::scope(|scope| {
            for number in 0..workers {
                let orders = orders.clone();
                let (unique, slots, next) = (&unique, &slots, &next);
                let work = move || {
                    while let Some(index) = unique.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let taken = self.take_one(ingest, *index, &orders);
                        let failed = taken.is_err();
                        if let Ok(mut slot) = slots[*index].lock() {
                            *slot = Some(taken);
                        }
                        if failed {
                            // The others end where they are.
                            next.store(usize::MAX / 2, Ordering::Relaxed);
                            let _ = orders.send(Order::Stop);
                            break;
                        }
                    }
                };
                std::thread::Builder::new()
                    .name(format!("rkube-pull-{number}"))
                    .spawn_scoped(scope, work)
                    .map_err(|source| Error::Transport {
                        request: "start a thread".into(),
                        source,
                    })?;
            }
            drop(orders);
            runtime.block_on(until_cancelled(&self.request.cancel, self.serve(wanted)))
        });
        let mut taken: Vec<Option<TakenLayer>> = vec![None; layers.len()];
        let mut failure = None;
        for (index, slot) in slots.into_iter().enumerate() {
            match slot
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
            {
                Some(Ok(layer)) => taken[index] = Some(layer),
                // The first that failed by itself says why.
                Some(Err(e)) if failure.is_none() => failure = Some(e),
                _ => {}
            }
        }
        // What the network says is the reason of what a reader saw.
        served?;
        if let Some(e) = failure {
            return Err(e.into());
        }
        let all: Option<Vec<_>> = (0..layers.len())
            .map(|i| taken[first_of(i)].clone())
            .collect();
        all.ok_or(Error::Cancelled)
    }

    fn take_one(
        &self,
        ingest: &Ingest<'_>,
        index: usize,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> rkube_image::Result<TakenLayer> {
        let progress = &self.request.progress;
        if let Some(known) = ingest.known(index)? {
            progress.layer(index, LayerEvent::Exists);
            return Ok(known);
        }
        progress.layer(index, LayerEvent::Bytes(0));
        let layer = &ingest.layers()[index];
        let open = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
            let (sender, receiver) = mpsc::channel(BLOB_QUEUE_CHUNKS);
            let order = Wanted {
                index,
                digest: layer.digest,
                size: layer.size,
                offset,
                chunks: sender,
            };
            let gone = |_| io::Error::new(io::ErrorKind::Interrupted, "the transfer was ended");
            orders.send(Order::Stream(order)).map_err(gone)?;
            Ok(Box::new(ChannelReader::new(receiver)))
        };
        let taken = ingest.take(index, &open)?;
        progress.layer(index, LayerEvent::Done);
        Ok(taken)
    }

    /// Streams what is ordered until all workers are done; the first error
    /// ends all.
    async fn serve(&self, mut orders: mpsc::UnboundedReceiver<Order>) -> Result<()> {
        let mut running = FuturesUnordered::new();
        let mut open = true;
        while open || !running.is_empty() {
            tokio::select! {
                order = orders.recv(), if open => match order {
                    Some(Order::Stream(wanted)) => running.push(self.one(wanted)),
                    Some(Order::Stop) => return Ok(()),
                    None => open = false,
                },
                Some(done) = running.next() => done?,
            }
        }
        Ok(())
    }

    async fn one(&self, wanted: Wanted) -> Result<()> {
        let index = wanted.index;
        let last = AtomicU64::new(wanted.offset);
        let news = |news: News| match news {
            News::At(at) => {
                let before = last.swap(at, Ordering::Relaxed);
                self.fetched.fetch_add(at - before, Ordering::Relaxed);
                self.request.progress.layer(index, LayerEvent::Bytes(at));
            }
            News::Retrying => self.request.progress.layer(index, LayerEvent::Retrying),
        };
        stream(self.session, wanted, &news).await
    }
}

/// The reference as a registry wants it after the repository.
pub(crate) fn tag_or_digest(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}
