//! An API server in memory: lists and watches of what a test puts in.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "tests, and each uses its part"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use rkube_client::{
    ApiError, BoxFuture, Client, Frame, FrameKind, Frames, Informers, Request, Transport, Verb,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Default)]
struct Inner {
    revision: u64,
    objects: BTreeMap<(String, String, String), Value>,
    watchers: Vec<(String, mpsc::UnboundedSender<Frame>)>,
    /// Events by revision, for watches that begin behind the newest.
    history: Vec<(u64, String, Frame)>,
}

/// The server; clones are the same.
#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<Inner>>);

impl fmt::Debug for FakeApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeApi")
    }
}

impl FakeApi {
    pub fn informers(&self) -> Informers {
        Informers::new(Client::new(Arc::new(self.clone())))
    }

    /// Adds or replaces an object of a resource (a plural).
    pub fn put(&self, plural: &str, mut object: Value) {
        let mut inner = self.0.lock().unwrap();
        inner.revision += 1;
        let revision = inner.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let key = key(plural, &object);
        let old = inner.objects.insert(key, object.clone());
        let kind = if old.is_some() {
            FrameKind::Modified
        } else {
            FrameKind::Added
        };
        inner.tell(plural, kind, &object);
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut inner = self.0.lock().unwrap();
        inner.revision += 1;
        let revision = inner.revision;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = inner.objects.remove(&key).unwrap();
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        inner.tell(plural, FrameKind::Deleted, &object);
    }
}

fn key(plural: &str, object: &Value) -> (String, String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}

impl Inner {
    fn tell(&mut self, plural: &str, kind: FrameKind, object: &Value) {
        let frame = Frame {
            kind,
            object: object.to_string().into(),
        };
        self.history
            .push((self.revision, plural.to_owned(), frame.clone()));
        self.watchers
            .retain(|(p, sender)| p != plural || sender.send(frame.clone()).is_ok());
    }
}

struct Events(mpsc::UnboundedReceiver<Frame>);

impl Frames for Events {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Frame, ApiError>>> {
        Box::pin(async { self.0.recv().await.map(Ok) })
    }
}

impl Transport for FakeApi {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<bytes::Bytes, ApiError>> {
        assert_eq!(request.verb, Verb::List);
        let inner = self.0.lock().unwrap();
        let plural = &request.target.resource;
        let items: Vec<&Value> = inner
            .objects
            .iter()
            .filter(|((p, ..), _)| p == plural)
            .map(|(_, object)| object)
            .collect();
        let list = json!({
            "metadata": {"resourceVersion": inner.revision.to_string()}, "items": items,
        });
        Box::pin(std::future::ready(Ok(list.to_string().into())))
    }

    fn watch(&self, request: Request) -> BoxFuture<'_, Result<Box<dyn Frames>, ApiError>> {
        let mut inner = self.0.lock().unwrap();
        let from: u64 = request
            .query
            .iter()
            .find(|(name, _)| *name == "resourceVersion")
            .map_or(0, |(_, value)| value.parse().unwrap());
        let (sender, receiver) = mpsc::unbounded_channel();
        for (revision, plural, frame) in &inner.history {
            if *revision > from && *plural == request.target.resource {
                sender.send(frame.clone()).unwrap();
            }
        }
        inner.watchers.push((request.target.resource, sender));
        Box::pin(std::future::ready(Ok(
            Box::new(Events(receiver)) as Box<dyn Frames>
        )))
    }
}
