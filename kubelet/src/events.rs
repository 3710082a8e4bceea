//! What happened to pods, as v1 Events: bounded in memory and on disk.
//!
//! The journal is a file of JSON lines; an event that repeats is written
//! again with its new count, and the last line of a name counts. It is a
//! convenience for people: a journal that cannot be written is warned about
//! and never stops a pod.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::broadcast;

use crate::pod;
use crate::time::{Clock, api_time};

/// Most events that are kept.
pub const MAX_EVENTS: usize = 1000;
/// The journal is written anew when it has grown to this size.
pub const MAX_JOURNAL_BYTES: u64 = 2 * 1024 * 1024;
/// The longest message (upstream's limit).
pub const MAX_MESSAGE_BYTES: usize = 1024;
/// Events that a slow watcher may be behind before it misses some.
const WATCH_BACKLOG_EVENTS: usize = 256;

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As expected.
    Normal,
    /// Not as expected.
    Warning,
}

/// Events of all pods.
#[derive(Debug)]
pub struct Journal {
    inner: Mutex<Inner>,
    watchers: broadcast::Sender<Event>,
    clock: Clock,
    host: String,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Option<std::fs::File>,
    bytes: u64,
    events: VecDeque<Event>,
    next: u64,
}

impl Journal {
    /// Opens the journal and reads what it has; lines that are no events are
    /// left out.
    #[must_use]
    pub fn open(path: &Path, clock: Clock, host: String) -> Self {
        let text = std::fs::read(path).unwrap_or_default();
        let mut events: VecDeque<Event> = VecDeque::new();
        for line in text.split(|b| *b == b'\n') {
            if let Ok(event) = serde_json::from_slice::<Event>(line) {
                events.retain(|e| e.metadata.name != event.metadata.name);
                events.push_back(event);
            }
        }
        while events.len() > MAX_EVENTS {
            events.pop_front();
        }
        let number = |e: &Event| {
            let name = e.metadata.name.as_deref()?;
            u64::from_str_radix(name.rsplit('.').next()?, 16).ok()
        };
        let next = events
            .iter()
            .filter_map(number)
            .max()
            .map_or(0, |n| n.wrapping_add(1));
        let mut inner = Inner {
            path: path.to_path_buf(),
            file: None,
            bytes: 0,
            events,
            next,
        };
        inner.rewrite();
        Self {
            inner: Mutex::new(inner),
            watchers: broadcast::channel(WATCH_BACKLOG_EVENTS).0,
            clock,
            host,
        }
    }

    /// Notes an event of a pod or of one of its containers. The same one
    /// again is counted.
    pub fn note(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        let field_path = container.map(|name| {
            let init = pod::container(pod, name).is_some_and(|(kind, _)| kind != pod::Kind::Main);
            format!(
                "spec.{}{{{name}}}",
                if init { "initContainers" } else { "containers" }
            )
        });
        let mut message = message.to_owned();
        if message.len() > MAX_MESSAGE_BYTES {
            let cut = (0..=MAX_MESSAGE_BYTES)
                .rev()
                .find(|i| message.is_char_boundary(*i))
                .unwrap_or(0);
            message.truncate(cut);
        }
        let now = api_time(self.clock.now());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let same = inner.events.iter().position(|e| {
            e.involved_object.uid.as_deref() == Some(pod::uid(pod))
                && e.involved_object.field_path == field_path
                && e.reason.as_deref() == Some(reason)
                && e.message.as_deref() == Some(message.as_str())
        });
        let event = if let Some(mut event) = same.and_then(|at| inner.events.remove(at)) {
            event.count = Some(event.count.unwrap_or(1).saturating_add(1));
            event.last_timestamp = Some(now);
            event
        } else {
            let name = format!("{}.{:016x}", pod::name(pod), inner.next);
            inner.next = inner.next.wrapping_add(1);
            Event {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(pod::namespace(pod).to_owned()),
                    creation_timestamp: Some(now.clone()),
                    ..ObjectMeta::default()
                },
                involved_object: ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod::name(pod).to_owned()),
                    namespace: Some(pod::namespace(pod).to_owned()),
                    uid: Some(pod::uid(pod).to_owned()),
                    field_path,
                    ..ObjectReference::default()
                },
                type_: Some(
                    if severity == Severity::Normal {
                        "Normal"
                    } else {
                        "Warning"
                    }
                    .to_owned(),
                ),
                reason: Some(reason.to_owned()),
                message: Some(message),
                source: Some(EventSource {
                    component: Some("rkube".to_owned()),
                    host: Some(self.host.clone()),
                }),
                reporting_component: Some("rkube".to_owned()),
                reporting_instance: Some(self.host.clone()),
                first_timestamp: Some(now.clone()),
                last_timestamp: Some(now),
                count: Some(1),
                ..Event::default()
            }
        };
        inner.append(&event);
        inner.events.push_back(event.clone());
        while inner.events.len() > MAX_EVENTS {
            inner.events.pop_front();
        }
        drop(inner);
        // Nobody may be watching.
        let _ = self.watchers.send(event);
    }

    /// All events, the latest last; of one pod where a uid is given.
    #[must_use]
    pub fn list(&self, uid: Option<&str>) -> Vec<Event> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted =
            |e: &&Event| uid.is_none_or(|uid| e.involved_object.uid.as_deref() == Some(uid));
        inner.events.iter().filter(wanted).cloned().collect()
    }

    /// Events from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.watchers.subscribe()
    }
}

impl Inner {
    fn append(&mut self, event: &Event) {
        if self.bytes > MAX_JOURNAL_BYTES {
            self.rewrite();
        }
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        if let Some(file) = &mut self.file {
            match file.write_all(&line) {
                Ok(()) => {
                    self.bytes = self
                        .bytes
                        .saturating_add(line.len().try_into().unwrap_or(0))
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "the journal of events is not written any more");
                    self.file = None;
                }
            }
        }
    }

    /// Writes the file anew with what is kept in memory.
    fn rewrite(&mut self) {
        let mut bytes = Vec::new();
        for event in &self.events {
            if serde_json::to_writer(&mut bytes, event).is_ok() {
                bytes.push(b'\n');
            }
        }
        let result = crate::record::replace(&self.path, &bytes)
            .and_then(|()| std::fs::OpenOptions::new().append(true).open(&self.path));
        self.bytes = bytes.len().try_into().unwrap_or(0);
        match result {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the journal of events cannot be written");
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    #[test]
    fn events_are_counted_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e/events.jsonl");
        let open = || Journal::open(&path, Clock::system(), "n".into());
        let pod = pod_of(json!({"containers": [{"name": "a"}]}));
        let journal = open();
        let mut watch = journal.watch();
        for _ in 0..3 {
            journal.note(&pod, Some("a"), Severity::Warning, "BackOff", "again");
        }
        journal.note(&pod, None, Severity::Normal, "Killing", &"é".repeat(1000));
        let list = journal.list(Some("u-1"));
        assert_eq!((list.len(), list[0].count), (2, Some(3)));
        assert_eq!(
            list[0].involved_object.field_path.as_deref(),
            Some("spec.containers{a}")
        );
        assert!(list[1].message.as_ref().unwrap().len() <= MAX_MESSAGE_BYTES);
        assert_eq!(watch.try_recv().unwrap().reason.as_deref(), Some("BackOff"));
        assert!(journal.list(Some("other")).is_empty());
        drop(journal);
        // A crash may leave half a line.
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"meta")
            .unwrap();
        let journal = open();
        assert_eq!(journal.list(None), list);
        for i in 0..MAX_EVENTS + 10 {
            journal.note(&pod, None, Severity::Normal, "R", &i.to_string());
        }
        assert_eq!(journal.list(None).len(), MAX_EVENTS);
    }
}
