//! Pushing: an image of the store into a repository, blobs first. What the
//! repository has is not sent, what another repository of the same registry
//! has is mounted from there.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rkube_image::document::Descriptor;
use rkube_image::pull::{Cancel, LayerEvent, Progress};
use rkube_image::{Digest, Export, Reference, Store};

use crate::Registries;
use crate::blob::FileBody;
use crate::config::{Config, Endpoint};
use crate::credentials;
use crate::error::{Error, Result};
use crate::limits::MAX_PARALLEL_LAYERS;
use crate::pace::LastSent;
use crate::pull::{may_be_hidden, tag_or_digest, until_cancelled};
use crate::session::{Answer, Ask, Place, Session};
use crate::transport::full;
use crate::url::Url;

/// What a push did.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the manifest, as the registry has it now.
    pub digest: Digest,
    /// Where it went.
    pub reference: Reference,
    /// Bytes that were sent.
    pub sent_bytes: u64,
}

impl Registries {
    /// Pushes an image of the store; `reference` says where to.
    ///
    /// # Errors
    /// What was attempted and what the registry answered.
    pub fn push_image(
        &self,
        store: &Store,
        query: &str,
        reference: &Reference,
        progress: &Arc<dyn Progress>,
        cancel: &Cancel,
    ) -> Result<Pushed> {
        if reference.digest().is_some() {
            return Err(rkube_image::Error::InvalidReference {
                reference: reference.to_string(),
                reason: "an image is pushed to a tag, its digest is what it is",
            }
            .into());
        }
        let export = store.export(query)?;
        let config = Config::load(&self.config_path())?;
        // Mirrors are read only: the last endpoint is the registry itself.
        let endpoint = config.endpoints(reference)?.pop().ok_or(Error::Cancelled)?;
        let found = credentials::find(
            &self.credential_files(),
            &endpoint.host,
            &endpoint.repository,
        )?;
        let mut keys: Vec<_> = found.into_iter().map(Some).collect();
        if keys.is_empty() {
            keys.push(None);
        }
        let siblings = siblings(&config, &export, reference, &endpoint);
        let (transport, runtime) = (self.transport(), self.runtime()?);
        let mut pushed = Err(Error::Cancelled);
        for key in keys {
            let (credential, who) = match key {
                Some(found) => (
                    Some(found.credential),
                    format!("credentials of {}", found.from),
                ),
                None => (None, String::new()),
            };
            let session = Session::new(&transport, endpoint.clone(), credential, &who);
            let job = Job {
                session: &session,
                export: &export,
                siblings: siblings.clone(),
                scope: String::new(),
                progress,
            };
            pushed = runtime.block_on(until_cancelled(cancel, job.scoped().run(reference)));
            // What was sent so far is found there by the next.
            if !pushed.as_ref().is_err_and(may_be_hidden) {
                break;
            }
        }
        let sent_bytes = pushed?;
        let name = format!("{}@{}", reference.repository(), export.manifest_digest);
        store.note_digest(&export.manifest_digest, &name)?;
        Ok(Pushed {
            digest: export.manifest_digest,
            reference: reference.clone(),
            sent_bytes,
        })
    }
}

/// Other repositories of the same registry that have this image, as they are
/// called there.
fn siblings(
    config: &Config,
    export: &Export<'_>,
    reference: &Reference,
    endpoint: &Endpoint,
) -> Vec<String> {
    /// Each one asked costs a request for each blob.
    const MAX_SIBLINGS: usize = 2;
    let names = export
        .digests
        .iter()
        .filter_map(|n| Reference::parse(n).ok());
    let other = names.filter(|r| r.repository() != reference.repository());
    let there = other.filter_map(|r| config.endpoints(&r).ok()?.pop());
    let same = there.filter(|e| e.host == endpoint.host && e.repository != endpoint.repository);
    let mut out: Vec<String> = same.map(|e| e.repository).collect();
    out.sort_unstable();
    out.dedup();
    out.truncate(MAX_SIBLINGS);
    out
}

/// What came of asking for a blob of another repository.
enum Mounted {
    Done,
    /// An upload was begun in its place.
    Begun(Url),
    No,
}

struct Job<'j> {
    session: &'j Session<'j>,
    export: &'j Export<'j>,
    siblings: Vec<String>,
    scope: String,
    progress: &'j Arc<dyn Progress>,
}

impl Job<'_> {
    fn scoped(mut self) -> Self {
        let repository = &self.session.endpoint.repository;
        let mut scope = format!("repository:{repository}:pull,push");
        for sibling in &self.siblings {
            scope.push_str(&format!(" repository:{sibling}:pull"));
        }
        self.scope = scope;
        self
    }

    async fn run(&self, reference: &Reference) -> Result<u64> {
        let mut seen = std::collections::HashSet::new();
        let mut blobs: Vec<&Descriptor> = self.export.layers.iter().collect();
        blobs.push(&self.export.config);
        blobs.retain(|b| seen.insert(b.digest));
        let sizes: Vec<_> = blobs.iter().map(|b| (b.digest, b.size)).collect();
        self.progress.begin(&sizes);
        let each = blobs.into_iter().enumerate().map(|(i, b)| self.blob(i, b));
        let mut running = stream::iter(each).buffer_unordered(MAX_PARALLEL_LAYERS);
        let mut sent = 0;
        while let Some(bytes) = running.next().await {
            sent += bytes?;
        }
        self.manifest(reference).await?;
        Ok(sent)
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.session.endpoint.repository)
    }

    /// Brings one blob there; the bytes that were sent.
    async fn blob(&self, index: usize, blob: &Descriptor) -> Result<u64> {
        let path = self.path(&format!("blobs/{}", blob.digest));
        let ask = Ask::get(&path, &self.scope)
            .method(Method::HEAD)
            .wanted(&[404]);
        if self.session.send(&ask).await?.status().is_success() {
            self.progress.layer(index, LayerEvent::Exists);
            return Ok(0);
        }
        let mut begun = None;
        for sibling in &self.siblings {
            match self.mount(blob, sibling).await? {
                Mounted::Done => {
                    self.progress.layer(index, LayerEvent::Exists);
                    return Ok(0);
                }
                Mounted::Begun(place) => {
                    begun = Some(place);
                    break;
                }
                Mounted::No => {}
            }
        }
        self.upload(index, blob, begun).await?;
        self.progress.layer(index, LayerEvent::Done);
        Ok(blob.size)
    }

    /// Has the registry take the blob over from another repository.
    async fn mount(&self, blob: &Descriptor, from: &str) -> Result<Mounted> {
        let path = self.path(&format!("blobs/uploads/?mount={}&from={from}", blob.digest));
        let ask = Ask::get(&path, &self.scope)
            .method(Method::POST)
            .wanted(&[202, 404]);
        let answer = match self.session.send(&ask).await {
            Ok(answer) => answer,
            // It may not read there: then it is sent.
            Err(Error::Denied { .. } | Error::Status { .. }) => return Ok(Mounted::No),
            Err(e) => return Err(e),
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Mounted::Done),
            StatusCode::ACCEPTED => self.place(&answer).map(Mounted::Begun),
            _ => Ok(Mounted::No),
        }
    }

    /// Where the registry wants an upload.
    fn place(&self, answer: &Answer) -> Result<Url> {
        let request = format!("POST {}", answer.url.shown());
        let place = answer.header(&LOCATION).ok_or_else(|| Error::Protocol {
            request: request.clone(),
            reason: "no place for the upload (Location)".into(),
        })?;
        let place = answer.url.join(place, &request)?;
        if answer.url.tls && !place.tls && !self.session.endpoint.insecure {
            return Err(Error::Protocol {
                request,
                reason: "it wants the blob by http instead of https".into(),
            });
        }
        Ok(place)
    }

    /// An upload is begun anew for each try: its place is good for one.
    async fn upload(&self, index: usize, blob: &Descriptor, begun: Option<Url>) -> Result<()> {
        let (mut tries, mut begun) = (0, begun);
        loop {
            tries += 1;
            let error = match self.upload_once(index, blob, begun.take()).await {
                Ok(()) => return Ok(()),
                Err(e) if e.is_transient() => e,
                Err(e) => return Err(e),
            };
            let Some(pause) = self.session.pause(tries, &error) else {
                return Err(error);
            };
            self.progress.layer(index, LayerEvent::Retrying);
            tokio::time::sleep(pause).await;
        }
    }

    async fn upload_once(&self, index: usize, blob: &Descriptor, begun: Option<Url>) -> Result<()> {
        let place = match begun {
            Some(place) => place,
            None => {
                let path = self.path("blobs/uploads/");
                let begin = Ask::get(&path, &self.scope).method(Method::POST);
                self.place(&self.session.send(&begin).await?)?
            }
        };
        let file = Arc::new(self.export.open(&blob.digest)?);
        let last = Arc::new(LastSent::now());
        let sent: Arc<dyn Fn(u64) + Send + Sync> = {
            let (progress, last) = (Arc::clone(self.progress), Arc::clone(&last));
            Arc::new(move |at| {
                last.note();
                progress.layer(index, LayerEvent::Bytes(at));
            })
        };
        let body = || {
            let body = FileBody::new(Arc::clone(&file), blob.size, Arc::clone(&sent));
            Ok((body.boxed_unsync(), blob.size))
        };
        let ask = Ask {
            method: Method::PUT,
            place: Place::Url(place.with_query("digest", &blob.digest.to_string())),
            body: Some(&body),
            upload: Some(&last),
            again: false,
            ..Ask::get("", &self.scope)
        };
        let ask = ask.header(CONTENT_TYPE, "application/octet-stream");
        self.session.send(&ask).await.map(drop)
    }

    async fn manifest(&self, reference: &Reference) -> Result<()> {
        let path = self.path(&format!("manifests/{}", tag_or_digest(reference)));
        let bytes = bytes::Bytes::from(self.export.manifest.clone());
        let body = || {
            let length = bytes.len() as u64;
            Ok((full(bytes.clone()), length))
        };
        let ask = Ask {
            body: Some(&body),
            ..Ask::get(&path, &self.scope).method(Method::PUT)
        };
        let ask = ask.header(CONTENT_TYPE, self.export.media_type.clone());
        self.session.send(&ask).await.map(drop)
    }
}
