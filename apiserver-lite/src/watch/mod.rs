//! Watches: the changes of a selection, as frames.
//!
//! A watch is a cursor over the store's history; nothing is queued for it here. Frames in plain
//! JSON are encoded once and shared by all watches that send the same.

mod frames;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rkube_api::resources::Resource;
use rkube_api::status::Status;
use rkube_api::table::Include;
use rkube_client::FrameKind;
use rkube_store::{Event, Record, Revision, StoreError, Watcher};
use serde_json::json;
use tokio::time::{Instant, Sleep};

use crate::convert::is_same_form;
use crate::engine::{Engine, random};
use crate::negotiate::{Encoding, Format};
use crate::objects::{key, prefix, store_status, stored_as};
use crate::options::RevisionMatch;
use crate::request::Request;
use crate::select::Selection;

pub use frames::FrameCache;
pub use frames::WatchFrame;
use frames::{Frames, Source};

/// Shortest time after which a watch without `timeoutSeconds` ends; the longest is twice that
/// (`--min-request-timeout` of upstream, 1800 s).
pub const WATCH_TIMEOUT_MIN: Duration = Duration::from_secs(1800);

/// How often a watch that is quiet tells how far it has read.
pub const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Longest `timeoutSeconds` that is taken; more is that.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A watch under way.
#[derive(Debug)]
pub struct Watch {
    engine: Engine,
    selection: Selection,
    frames: Frames,
    watcher: Option<Watcher>,
    /// Objects to begin with.
    initial: std::vec::IntoIter<Record>,
    /// The bookmark after them, where one is wanted.
    initial_end: Option<Revision>,
    events: VecDeque<Arc<Event>>,
    bookmarks: bool,
    /// Both timers last, so that an event does not set them anew.
    next_bookmark: Pin<Box<Sleep>>,
    deadline: Pin<Box<Sleep>>,
    failure: Option<Status>,
    /// The revision of the last event or bookmark sent.
    told: Revision,
}

impl Watch {
    pub(crate) async fn start(engine: &Engine, request: &Request) -> Result<Self, Status> {
        let options = &request.options;
        options.check_list(true)?;
        if request.format.encoding != Encoding::Json {
            return Err(Status::not_acceptable(&["application/json"]));
        }
        let selection = Selection::new(request.resource, options)?;
        let prefix = watched_prefix(request, &selection);
        let begin = Begin::of(request);
        if let Some(wanted) = begin.reach
            && wanted > engine.store().revision()
        {
            engine.reach(wanted).await?;
        }
        let mut watch = Self {
            engine: engine.clone(),
            frames: Frames::new(
                request.resource,
                request.format,
                options.include.unwrap_or(Include::Metadata),
            ),
            selection,
            watcher: None,
            initial: Vec::new().into_iter(),
            initial_end: None,
            events: VecDeque::new(),
            bookmarks: options.bookmarks,
            next_bookmark: Box::pin(tokio::time::sleep(BOOKMARK_INTERVAL)),
            deadline: Box::pin(tokio::time::sleep(timeout(options.timeout_s)?)),
            failure: None,
            told: 0,
        };
        let after = match begin.after {
            Some(after) => after,
            None if begin.initial => {
                let page = engine
                    .store()
                    .range(&rkube_store::Range::prefix(prefix.as_bytes()))
                    .map_err(|e| store_status(&e))?;
                let selection = &watch.selection;
                let records: Vec<Record> = page
                    .records
                    .into_iter()
                    .filter(|r| selection.matches(&r.value))
                    .collect();
                watch.initial = records.into_iter();
                if options.bookmarks && options.initial_events == Some(true) {
                    watch.initial_end = Some(page.revision);
                }
                page.revision
            }
            None => engine.store().revision(),
        };
        match engine.store().watch(prefix.as_bytes(), after) {
            Ok(watcher) => watch.watcher = Some(watcher),
            Err(StoreError::Compacted { asked, compacted }) => {
                watch.failure = Some(too_old(asked, compacted));
            }
            Err(error) => return Err(store_status(&error)),
        }
        watch.told = after;
        Ok(watch)
    }

    /// The next frame; `None` when the watch is over. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchFrame> {
        loop {
            if let Some(record) = self.initial.next() {
                let source = Source {
                    stored: &record.value,
                    revision: record.revision,
                };
                return Some(self.frame(FrameKind::Added, source));
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.bookmark(revision, true));
            }
            while let Some(event) = self.events.pop_front() {
                if let Some(frame) = self.event_frame(&event) {
                    self.told = event.revision;
                    return Some(frame);
                }
            }
            if let Some(status) = self.failure.take() {
                self.watcher = None;
                return Some(WatchFrame::error(&status));
            }
            let watcher = self.watcher.as_mut()?;
            tokio::select! {
                batch = watcher.next() => match batch {
                    Ok(batch) => self.events.extend(batch.events),
                    Err(StoreError::Lagged { read, compacted }) => {
                        self.failure = Some(too_old(read, compacted));
                    }
                    Err(StoreError::Closed) => return None,
                    Err(error) => self.failure = Some(store_status(&error)),
                },
                () = self.next_bookmark.as_mut(), if self.bookmarks => {
                    let next = Instant::now() + BOOKMARK_INTERVAL;
                    self.next_bookmark.as_mut().reset(next);
                    let revision = watcher.progress();
                    if revision > self.told {
                        return Some(self.bookmark(revision, false));
                    }
                }
                () = self.deadline.as_mut() => {
                    // The last word is how far the watch came, so that the next one begins there.
                    let revision = watcher.progress();
                    self.watcher = None;
                    if self.bookmarks && revision > self.told {
                        return Some(self.bookmark(revision, false));
                    }
                    return None;
                }
            }
        }
    }

    fn frame(&mut self, kind: FrameKind, source: Source<'_>) -> WatchFrame {
        self.frames.encode(self.engine.frames(), kind, source)
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> WatchFrame {
        self.told = revision;
        self.frames.bookmark(revision, initial_end)
    }

    /// What an event is to this selection: objects that come into it are added, those that
    /// leave it deleted, whatever happened to them in the store.
    fn event_frame(&mut self, event: &Event) -> Option<WatchFrame> {
        let is = |value: &[u8]| self.selection.matches(value);
        let new = event.value.as_ref().filter(|v| is(v));
        let old = event.previous.as_ref().filter(|p| is(&p.value));
        let (kind, stored) = match (new, old) {
            (Some(new), Some(_)) => (FrameKind::Modified, new.clone()),
            (Some(new), None) => (FrameKind::Added, new.clone()),
            (None, Some(old)) => (FrameKind::Deleted, old.value.clone()),
            (None, None) => return None,
        };
        let source = Source {
            stored: &stored,
            revision: event.revision,
        };
        Some(self.frame(kind, source))
    }
}

/// Where a watch begins.
struct Begin {
    /// After this revision, without objects to begin with.
    after: Option<Revision>,
    /// With all objects.
    initial: bool,
    /// The revision that must be there.
    reach: Option<Revision>,
}

impl Begin {
    fn of(request: &Request) -> Self {
        let options = &request.options;
        let revision = options.revision.filter(|r| *r > 0);
        let newer = options.revision_match == Some(RevisionMatch::NotOlderThan);
        match options.initial_events {
            Some(true) => Self {
                after: None,
                initial: true,
                reach: revision,
            },
            Some(false) if revision.is_none() || newer && options.revision.is_none() => Self {
                after: None,
                initial: false,
                reach: None,
            },
            Some(false) | None => Self {
                after: revision,
                initial: revision.is_none(),
                reach: revision,
            },
        }
    }
}

/// The keys watched: all of a resource, of a namespace, or one object's.
fn watched_prefix(request: &Request, selection: &Selection) -> String {
    let resource = request.resource;
    let namespace = match selection.namespace() {
        Some(one) if request.namespace.is_empty() && resource.namespaced => one,
        _ => &request.namespace,
    };
    match selection.name() {
        Some(name) if !name.is_empty() && (!resource.namespaced || !namespace.is_empty()) => {
            key(resource, namespace, name)
        }
        _ => prefix(resource, namespace),
    }
}

fn too_old(asked: Revision, compacted: Revision) -> Status {
    Status::expired(format!("too old resource version: {asked} ({compacted})"))
}

/// How long a watch lasts: as asked, or a time that no two watches share, so that clients do
/// not all come back at once.
fn timeout(asked_s: Option<u64>) -> Result<Duration, Status> {
    match asked_s {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds).min(TIMEOUT_MAX)),
        _ => {
            let spread = u64::from(u16::from_le_bytes(random()?)) * WATCH_TIMEOUT_MIN.as_secs()
                / u64::from(u16::MAX);
            Ok(WATCH_TIMEOUT_MIN + Duration::from_secs(spread))
        }
    }
}

/// The object of a bookmark.
fn bookmark_object(resource: &'static Resource, revision: Revision, initial_end: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({
        "kind": resource.gvk.kind,
        "apiVersion": resource.gvk.api_version(),
        "metadata": metadata,
    })
    .to_string()
    .into()
}

/// Whether frames of a format can be made from stored bytes and shared.
fn is_shared(resource: &'static Resource, format: Format) -> bool {
    format == Format::JSON && is_same_form(stored_as(resource), resource)
}
