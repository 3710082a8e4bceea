//! One event as the line that is sent, encoded once for all who send the same.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rkube_api::resources::Resource;
use rkube_api::status::Status;
use rkube_api::table::Include;
use rkube_client::FrameKind;
use rkube_store::Revision;
use serde_json::Value;

use super::{bookmark_object, is_shared};
use crate::codec;
use crate::engine::event_object;
use crate::negotiate::Format;
use crate::objects::decode_bytes;

/// Frames kept for other watches; each is about the size of its object.
pub(super) const CACHED_FRAMES_MAX: usize = 1024;
/// Bytes of frames kept.
pub(super) const CACHED_BYTES_MAX: usize = 4 << 20;

/// Event, type and revision of a frame.
type CacheKey = (Revision, u8, usize);

#[derive(Default)]
struct Cached {
    frames: HashMap<CacheKey, Bytes>,
    order: VecDeque<CacheKey>,
    bytes: usize,
}

/// The frames of the last events.
#[derive(Default)]
pub struct FrameCache(Mutex<Cached>);

impl fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameCache").finish_non_exhaustive()
    }
}

impl FrameCache {
    fn get_or(&self, key: CacheKey, encode: impl FnOnce() -> Bytes) -> Bytes {
        {
            let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(frame) = cached.frames.get(&key) {
                return frame.clone();
            }
        }
        let frame = encode();
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.frames.insert(key, frame.clone()).is_none() {
            cached.order.push_back(key);
            cached.bytes += frame.len();
        }
        while cached.order.len() > CACHED_FRAMES_MAX || cached.bytes > CACHED_BYTES_MAX {
            let Some(oldest) = cached.order.pop_front() else {
                break;
            };
            if let Some(frame) = cached.frames.remove(&oldest) {
                cached.bytes -= frame.len();
            }
        }
        frame
    }
}

/// One line of a watch: `{"type":"ADDED","object":{...}}`.
#[derive(Debug, Clone)]
pub struct WatchFrame {
    /// What happened; `None` is an error, and the last frame.
    pub kind: Option<FrameKind>,
    line: Bytes,
    object_start: usize,
}

const CLOSE: &[u8] = b"}\n";

fn word(kind: Option<FrameKind>) -> &'static str {
    match kind {
        Some(FrameKind::Added) => "ADDED",
        Some(FrameKind::Modified) => "MODIFIED",
        Some(FrameKind::Deleted) => "DELETED",
        Some(FrameKind::Bookmark) => "BOOKMARK",
        None => "ERROR",
    }
}

fn head(kind: Option<FrameKind>) -> String {
    format!("{{\"type\":\"{}\",\"object\":", word(kind))
}

impl WatchFrame {
    fn new(kind: Option<FrameKind>, object: &[u8]) -> Self {
        let mut line = head(kind).into_bytes();
        let object_start = line.len();
        line.extend_from_slice(object);
        line.extend_from_slice(CLOSE);
        Self {
            kind,
            line: line.into(),
            object_start,
        }
    }

    /// The frame that ends a watch with an error.
    #[must_use]
    pub fn error(status: &Status) -> Self {
        Self::new(None, status.to_value().to_string().as_bytes())
    }

    /// The whole line, with its end.
    #[must_use]
    pub fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// The object in it.
    #[must_use]
    pub fn object(&self) -> Bytes {
        self.line
            .slice(self.object_start..self.line.len() - CLOSE.len())
    }
}

/// A stored object at a revision.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) stored: &'a [u8],
    pub(super) revision: Revision,
}

/// Encodes the frames of one watch.
#[derive(Debug)]
pub(super) struct Frames {
    resource: &'static Resource,
    format: Format,
    include: Include,
    first: bool,
    /// Frames are made from stored bytes, and kept for others.
    shared: bool,
}

impl Frames {
    pub(super) fn new(resource: &'static Resource, format: Format, include: Include) -> Self {
        Self {
            resource,
            format,
            include,
            first: true,
            shared: is_shared(resource, format),
        }
    }

    pub(super) fn encode(
        &mut self,
        cache: &FrameCache,
        kind: FrameKind,
        source: Source<'_>,
    ) -> WatchFrame {
        let first = std::mem::take(&mut self.first);
        let Source { stored, revision } = source;
        if !self.shared {
            return match decode_bytes(self.resource, stored, revision) {
                Ok(object) => {
                    let object =
                        event_object(self.resource, self.format, self.include, object, first);
                    WatchFrame::new(Some(kind), object.to_string().as_bytes())
                }
                Err(status) => WatchFrame::error(&status),
            };
        }
        let head = head(Some(kind));
        let object_start = head.len();
        // The table's entries live forever, so their addresses name them.
        let id = std::ptr::from_ref(self.resource).addr();
        let key = (revision, kind as u8, id);
        let line = cache.get_or(key, || {
            let mut line = head.into_bytes();
            line.reserve(stored.len() + 96);
            codec::write_object(&mut line, stored, revision, &self.resource.gvk);
            line.extend_from_slice(CLOSE);
            line.into()
        });
        WatchFrame {
            kind: Some(kind),
            line,
            object_start,
        }
    }

    pub(super) fn bookmark(&mut self, revision: Revision, initial_end: bool) -> WatchFrame {
        let object = bookmark_object(self.resource, revision, initial_end);
        let shaped = if self.format == Format::JSON {
            object
        } else {
            let first = std::mem::take(&mut self.first);
            let value: Value = serde_json::from_slice(&object).unwrap_or_default();
            let mut shaped = event_object(self.resource, self.format, self.include, value, first);
            if shaped["kind"] == "Table" {
                // A bookmark is no row to show; its metadata is what counts.
                shaped["rows"] = serde_json::json!([]);
            }
            shaped.to_string().into()
        };
        WatchFrame::new(Some(FrameKind::Bookmark), &shaped)
    }
}
