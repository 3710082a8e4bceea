//! The way of the engine's events to the workers of their pods.

use rkube_engine::api;
use tokio::sync::{mpsc, watch};

use crate::manager::Pods;
use crate::worker::{Message, lock};

/// Events of the engine that may wait for the dispatcher; the engine's
/// thread waits when there are more.
pub const ENGINE_BACKLOG_EVENTS: usize = 1024;
/// Where the engine tells what happened by itself.
#[derive(Debug, Clone)]
pub struct EventSink(mpsc::Sender<api::Event>);

impl EventSink {
    /// Hands an event over, from a thread that may block; `false` once
    /// nobody listens any more.
    pub fn send(&self, event: api::Event) -> bool {
        self.0.blocking_send(event).is_ok()
    }

    /// Hands an event over from a task.
    pub async fn send_async(&self, event: api::Event) -> bool {
        self.0.send(event).await.is_ok()
    }
}

/// The other end of an [`EventSink`].
#[derive(Debug)]
pub struct EventSource(mpsc::Receiver<api::Event>);

/// A pair through which the engine's events reach the manager; made first,
/// since the engine wants the sink when it is opened.
#[must_use]
pub fn event_channel() -> (EventSink, EventSource) {
    let (sender, receiver) = mpsc::channel(ENGINE_BACKLOG_EVENTS);
    (EventSink(sender), EventSource(receiver))
}

/// Routes events to the workers of their pods.
pub(crate) async fn dispatch(
    mut events: EventSource,
    pods: Pods,
    mut begin: watch::Receiver<bool>,
) {
    if begin.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    drop(begin);
    while let Some(event) = events.0.recv().await {
        let uid = match &event {
            api::Event::Exited { id, .. }
            | api::Event::Oom { id, .. }
            | api::Event::Pressure { id, .. } => &id.sandbox,
            api::Event::SandboxLost { id } => id,
        };
        let mailbox = lock(&pods).get(uid).map(|h| h.mailbox.clone());
        match mailbox {
            // Waits for a busy worker: an exit must not be lost.
            Some(mailbox) => {
                let _ = mailbox.send(Message::Engine(event)).await;
            }
            None => tracing::debug!(?event, "an event of a pod that is not known"),
        }
    }
}
