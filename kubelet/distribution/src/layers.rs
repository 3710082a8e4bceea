//! The layers of an image that is pulled.
//!
//! The network runs on one thread (a runtime of its own, on the caller's
//! thread); each layer that is being fetched has a thread that feeds the
//! store's pipe. So bulk transfers never run on a writer's event loop.

use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rkube_image::document::Descriptor;
use rkube_image::pull::{LayerEvent, Opened, PullRequest, PulledImage};
use rkube_image::{BlobSource, Digest, Ingest, IngestOptions, Names, Store, TakenLayer};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::blob::{ChannelReader, News, Wanted, stream};
use crate::error::{Error, Result};
use crate::limits::{BLOB_QUEUE_CHUNKS, MAX_PARALLEL_LAYERS, PROOF_BYTES};
use crate::pull::{Resolved, until_cancelled};
use crate::session::Session;

/// The layers of one image on their way.
pub(crate) struct Job<'j> {
    store: &'j Store,
    request: &'j PullRequest,
    session: &'j Session<'j>,
    fetched: AtomicU64,
    /// Whether one has failed: then the others end.
    failed: AtomicBool,
}

/// What the workers ask of the thread that has the network.
enum Order {
    /// A blob.
    Stream(Wanted),
    /// One has failed: end all streams.
    Stop,
}

/// One layer, as the endpoint has it.
struct Source<'s> {
    job: &'s Job<'s>,
    index: usize,
    layer: &'s Descriptor,
    known: bool,
    orders: &'s mpsc::UnboundedSender<Order>,
}

impl BlobSource for Source<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.part(offset, self.layer.size)
    }

    fn is_over(&self) -> bool {
        self.job.failed.load(Ordering::Relaxed) || self.job.request.cancel.is_cancelled()
    }

    fn least_bytes(&self) -> u64 {
        if self.known { 0 } else { PROOF_BYTES }
    }
}

impl Source<'_> {
    fn part(&self, offset: u64, until: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let (sender, receiver) = mpsc::channel(BLOB_QUEUE_CHUNKS);
        let order = Wanted {
            index: self.index,
            digest: self.layer.digest,
            size: self.layer.size,
            offset,
            until,
            chunks: sender,
        };
        let gone = |_| io::Error::new(io::ErrorKind::Interrupted, "the transfer was ended");
        self.orders.send(Order::Stream(order)).map_err(gone)?;
        Ok(Box::new(ChannelReader::new(receiver)))
    }

    /// Has the endpoint show that it has what the store has: a piece that it
    /// cannot know before. Who only knows digests has none.
    fn prove(&self, ingest: &Ingest<'_>) -> rkube_image::Result<()> {
        let read = |source| rkube_image::Error::Read {
            what: format!("layer {} ({})", self.index, self.layer.digest),
            source,
        };
        let length = self.layer.size.min(PROOF_BYTES);
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| read(e.into()))?;
        let offset = u64::from_le_bytes(random) % (self.layer.size - length + 1);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let own = ingest.peek(self.index, offset, bytes)?;
        let mut theirs = Vec::with_capacity(bytes);
        let mut reader = self.part(offset, offset + length).map_err(read)?;
        reader.read_to_end(&mut theirs).map_err(read)?;
        if own == theirs {
            return Ok(());
        }
        Err(rkube_image::Error::Malformed {
            what: format!("layer {} ({})", self.index, self.layer.digest),
            reason: format!(
                "the registry does not have it: bytes {offset} to {} are others than those of the layer with this digest",
                offset + length
            ),
        })
    }
}

impl<'j> Job<'j> {
    pub(crate) fn new(
        store: &'j Store,
        request: &'j PullRequest,
        session: &'j Session<'j>,
    ) -> Self {
        Self {
            store,
            request,
            session,
            fetched: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn layers(
        &self,
        runtime: &Runtime,
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
        let taken = self.take_all(runtime, &ingest, resolved.known)?;
        if let Some(hook) = &self.request.before_commit {
            hook.call(&ingest.id()).map_err(|source| Error::Transport {
                request: format!("note who pulls {what}"),
                source,
            })?;
        }
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
        runtime: &Runtime,
        ingest: &Ingest<'_>,
        known: bool,
    ) -> Result<Vec<TakenLayer>> {
        let layers = ingest.layers();
        // Equal layers are taken once.
        let first_of = |index: usize| {
            let same = |l: &Descriptor| l.digest == layers[index].digest;
            layers.iter().position(same).unwrap_or(index)
        };
        let unique: Vec<usize> = (0..layers.len()).filter(|i| first_of(*i) == *i).collect();
        let slots: Vec<OnceLock<TakenLayer>> = layers.iter().map(|_| OnceLock::new()).collect();
        // The first that failed says why; the others see what became of that.
        let first = OnceLock::new();
        let next = AtomicUsize::new(0);
        let (orders, wanted) = mpsc::unbounded_channel::<Order>();
        let workers = unique.len().min(MAX_PARALLEL_LAYERS);
        let served = std::thread::scope(|scope| {
            for number in 0..workers {
                let orders = orders.clone();
                let (unique, slots, next, first) = (&unique, &slots, &next, &first);
                let work = move || {
                    while let Some(index) = unique.get(next.fetch_add(1, Ordering::Relaxed))
                        && !self.failed.load(Ordering::Relaxed)
                    {
                        let failed = match self.take_one(ingest, *index, known, &orders) {
                            Ok(taken) => slots[*index].set(taken).is_err(),
                            Err(e) => {
                                let _ = first.set(e);
                                true
                            }
                        };
                        if failed {
                            self.failed.store(true, Ordering::Relaxed);
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
            let served =
                runtime.block_on(until_cancelled(&self.request.cancel, self.serve(wanted)));
            // Who waits for another pull need not.
            self.failed.fetch_or(served.is_err(), Ordering::Relaxed);
            served
        });
        // What the network says is the reason of what a reader saw.
        served?;
        if let Some(e) = first.into_inner() {
            // A worker may have heard of it before this thread.
            let cancelled = self.request.cancel.is_cancelled();
            return Err(if cancelled {
                Error::Cancelled
            } else {
                e.into()
            });
        }
        let all: Option<Vec<_>> = (0..layers.len())
            .map(|i| slots[first_of(i)].get().cloned())
            .collect();
        all.ok_or(Error::Cancelled)
    }

    fn take_one(
        &self,
        ingest: &Ingest<'_>,
        index: usize,
        known: bool,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> rkube_image::Result<TakenLayer> {
        let progress = &self.request.progress;
        let source = Source {
            job: self,
            index,
            layer: &ingest.layers()[index],
            known,
            orders,
        };
        let mut here = ingest.known(index)?;
        if here.is_none() {
            progress.layer(index, LayerEvent::Bytes(0));
            if let Some(taken) = ingest.take(index, &source)? {
                progress.layer(index, LayerEvent::Done);
                return Ok(taken);
            }
            here = ingest.known(index)?;
        }
        let Some(here) = here else {
            return Err(rkube_image::Error::Malformed {
                what: format!("layer {}", source.layer.digest),
                reason: "another pull brought it, and it is gone".into(),
            });
        };
        if !known {
            source.prove(ingest)?;
        }
        progress.layer(index, LayerEvent::Exists);
        Ok(here)
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
        // A piece of what is there already is no progress of a layer.
        let piece = wanted.until < wanted.size;
        let news = |news: News| match news {
            News::At(at) => {
                let before = last.swap(at, Ordering::Relaxed);
                self.fetched.fetch_add(at - before, Ordering::Relaxed);
                if piece {
                    return;
                }
                self.request.progress.layer(index, LayerEvent::Bytes(at));
            }
            News::Retrying => self.request.progress.layer(index, LayerEvent::Retrying),
        };
        stream(self.session, wanted, &news).await
    }
}
