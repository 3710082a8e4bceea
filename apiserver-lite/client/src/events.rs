//! Events about objects: written in the background, repeated ones counted.
//!
//! Rules and constants: client-go's `tools/record` (`events_cache.go`): equal
//! events become one with a count, and one source may tell 25 events about
//! one object at once and then one in five minutes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::{Client, Object, Patch};
use crate::error::ApiError;

/// Most events that wait to be written; more are dropped with a warning.
pub const MAX_WAITING_EVENTS_COUNT: usize = 1000;
/// Most events that are remembered to count repetitions (`maxLruCacheEntries`).
const MAX_REMEMBERED_COUNT: usize = 4096;
/// Events about one object that may come at once (`defaultSpamBurst`).
const SPAM_BURST_COUNT: u32 = 25;
/// Time after which one more may come (`defaultSpamQPS` is 1/300 s).
const SPAM_REFILL: Duration = Duration::from_secs(300);
/// Longest message, in bytes (`NoteLengthLimit`).
const MAX_MESSAGE_BYTES: usize = 1024;

/// How an event is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl EventType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A reference to an object, for events about it.
#[must_use]
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// One thing to tell.
#[derive(Debug, Clone)]
struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    /// What was done, for events in the form of `events.k8s.io`.
    action: Option<&'static str>,
    at: Timestamp,
}

/// Writes events of one component. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    component: Arc<str>,
}

impl Recorder {
    /// A recorder that writes in a task of its own, which ends with the last
    /// clone. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(client: Client, component: &str) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING_EVENTS_COUNT);
        let component: Arc<str> = component.into();
        rkube_task::spawn(write_all(client, Arc::clone(&component), receiver));
        Self { sender, component }
    }

    /// Tells something about an object, in the form of controllers' events.
    pub fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: &str) {
        self.tell(about, kind, reason, message, None);
    }

    /// Tells something in the form of `events.k8s.io` events: with an action
    /// and an event time. The scheduler's are such.
    pub fn action(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        action: &'static str,
        message: &str,
    ) {
        self.tell(about, kind, reason, message, Some(action));
    }

    fn tell(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: &str,
        action: Option<&'static str>,
    ) {
        let note = Note {
            about,
            kind,
            reason: reason.to_owned(),
            message: cut(message),
            action,
            at: crate::clock::now(),
        };
        if self.sender.try_send(note).is_err() {
            tracing::warn!(component = &*self.component, reason, "an event was dropped");
        }
    }
}

fn cut(message: &str) -> String {
    let end = (0..=MAX_MESSAGE_BYTES.min(message.len()))
        .rev()
        .find(|i| message.is_char_boundary(*i));
    message[..end.unwrap_or(0)].to_owned()
}

async fn write_all(client: Client, component: Arc<str>, mut notes: mpsc::Receiver<Note>) {
    let mut memory = Memory::default();
    while let Some(note) = notes.recv().await {
        let step = memory.step(&note, Instant::now());
        if let Err(error) = write(&client, &component, &note, step, &mut memory).await {
            // As upstream: an event is worth no second try against a refusal.
            tracing::debug!(component = &*component, reason = %note.reason, %error, "write an event");
        }
    }
}

async fn write(
    client: &Client,
    component: &str,
    note: &Note,
    step: Step,
    memory: &mut Memory,
) -> Result<(), ApiError> {
    let events = client.namespaced::<Event>(namespace(note));
    match step {
        Step::Drop => Ok(()),
        Step::Create { name } => {
            events.create(&body(component, note, &name)).await?;
            Ok(())
        }
        Step::Repeat { name, count } => {
            let patch = Patch::Strategic(repeated(note, count));
            match events.patch(&name, &patch).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_not_found() => {
                    // It has aged out: begin anew.
                    let name = memory.begin(note);
                    events.create(&body(component, note, &name)).await?;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    }
}

fn namespace(note: &Note) -> &str {
    match note.about.namespace.as_deref() {
        None | Some("") => "default",
        Some(namespace) => namespace,
    }
}

/// `2006-01-02T15:04:05Z`.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2006-01-02T15:04:05.000000Z`.
fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn body(component: &str, note: &Note, name: &str) -> Value {
    let mut body = json!({
        "metadata": {"name": name, "namespace": namespace(note)},
        "involvedObject": note.about,
        "reason": note.reason,
        "message": note.message,
        "type": note.kind.as_str(),
        "reportingComponent": component,
    });
    if let Some(action) = note.action {
        body["action"] = action.into();
        body["eventTime"] = micros(note.at).into();
        body["reportingInstance"] = component.into();
    } else {
        body["source"] = json!({"component": component});
        body["firstTimestamp"] = seconds(note.at).into();
        body["lastTimestamp"] = seconds(note.at).into();
        body["count"] = 1.into();
        body["reportingInstance"] = "".into();
    }
    body
}

fn repeated(note: &Note, count: u32) -> Value {
    if note.action.is_some() {
        json!({"series": {"count": count, "lastObservedTime": micros(note.at)}})
    } else {
        json!({"count": count, "lastTimestamp": seconds(note.at), "message": note.message})
    }
}

/// What becomes of a note.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A new event of this name.
    Create { name: String },
    /// An event that is there came again.
    Repeat { name: String, count: u32 },
    /// Too many about one object.
    Drop,
}

/// What tells an event from another.
type Key = (String, EventType, String, String);

struct Bucket {
    tokens: u32,
    since: Instant,
}

/// What was told before.
#[derive(Default)]
struct Memory {
    seen: HashMap<Key, (String, u32)>,
    order: VecDeque<Key>,
    buckets: HashMap<String, Bucket>,
}

fn object_key(note: &Note) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let about = &note.about;
    format!(
        "{}/{}/{}/{}/{}",
        part(&about.kind),
        namespace(note),
        part(&about.name),
        part(&about.uid),
        part(&about.field_path)
    )
}

fn key(note: &Note) -> Key {
    (
        object_key(note),
        note.kind,
        note.reason.clone(),
        note.message.clone(),
    )
}

impl Memory {
    fn step(&mut self, note: &Note, now: Instant) -> Step {
        if !self.take_token(object_key(note), now) {
            return Step::Drop;
        }
        if let Some((name, count)) = self.seen.get_mut(&key(note)) {
            *count = count.saturating_add(1);
            return Step::Repeat {
                name: name.clone(),
                count: *count,
            };
        }
        Step::Create {
            name: self.begin(note),
        }
    }

    /// Remembers a new event; answers its name.
    fn begin(&mut self, note: &Note) -> String {
        let about = note.about.name.as_deref().unwrap_or_default();
        let name = format!("{about}.{:x}", note.at.as_nanosecond());
        let key = key(note);
        if self.seen.insert(key.clone(), (name.clone(), 1)).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > MAX_REMEMBERED_COUNT {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        name
    }

    fn take_token(&mut self, object: String, now: Instant) -> bool {
        if self.buckets.len() >= MAX_REMEMBERED_COUNT {
            // Forget whoever has a full bucket by now; all, if nobody has.
            let full = SPAM_REFILL * SPAM_BURST_COUNT;
            self.buckets
                .retain(|_, b| now.duration_since(b.since) < full);
            if self.buckets.len() >= MAX_REMEMBERED_COUNT {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(object).or_insert(Bucket {
            tokens: SPAM_BURST_COUNT,
            since: now,
        });
        while bucket.tokens < SPAM_BURST_COUNT && now.duration_since(bucket.since) >= SPAM_REFILL {
            bucket.tokens += 1;
            bucket.since += SPAM_REFILL;
        }
        if bucket.tokens == SPAM_BURST_COUNT {
            bucket.since = now;
        }
        if bucket.tokens == 0 {
            return false;
        }
        bucket.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, message: &str) -> Note {
        Note {
            about: ObjectReference {
                kind: Some("Pod".into()),
                namespace: Some("ns".into()),
                name: Some(name.into()),
                ..ObjectReference::default()
            },
            kind: EventType::Normal,
            reason: "Created".into(),
            message: message.into(),
            action: None,
            at: Timestamp::from_nanosecond(0x1234).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repetitions_are_counted_and_floods_end() {
        let mut memory = Memory::default();
        let now = Instant::now();
        let first = memory.step(&note("a", "m"), now);
        assert_eq!(
            first,
            Step::Create {
                name: "a.1234".into()
            }
        );
        for count in 2..=25 {
            let step = memory.step(&note("a", "m"), now);
            assert_eq!(
                step,
                Step::Repeat {
                    name: "a.1234".into(),
                    count
                }
            );
        }
        assert_eq!(memory.step(&note("a", "m"), now), Step::Drop);
        assert!(matches!(
            memory.step(&note("b", "m"), now),
            Step::Create { .. }
        ));
        let later = now + SPAM_REFILL;
        assert!(matches!(
            memory.step(&note("a", "n"), later),
            Step::Create { .. }
        ));
        assert_eq!(memory.step(&note("a", "n"), later), Step::Drop);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_has_an_end() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for i in 0..MAX_REMEMBERED_COUNT + 10 {
            memory.step(&note(&i.to_string(), "m"), now);
        }
        assert_eq!(memory.seen.len(), MAX_REMEMBERED_COUNT);
        assert!(memory.buckets.len() <= MAX_REMEMBERED_COUNT);
    }

    #[test]
    fn both_forms_of_an_event() {
        let mut note = note("a", &"é".repeat(600));
        note.message = cut(&note.message);
        assert_eq!(note.message.len(), MAX_MESSAGE_BYTES);
        let legacy = body("deployment-controller", &note, "a.1");
        assert_eq!(legacy["source"]["component"], "deployment-controller");
        assert_eq!(legacy["firstTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(legacy["count"], 1);
        note.action = Some("Binding");
        let new = body("default-scheduler", &note, "a.1");
        assert_eq!(new["eventTime"], "1970-01-01T00:00:00.000004Z");
        assert!(new.get("count").is_none());
        assert_eq!(repeated(&note, 3)["series"]["count"], 3);
    }
}
