//! Events of pods, out of the journal of their workers, into the API.

use k8s_openapi::api::core::v1::Event;
use rkube_client::{EventType, Recorder};
use rkube_kubelet::manager::{Manager, Source};
use tokio::sync::broadcast::error::RecvError;

use rkube_engine::api::ContainerRuntime;

/// The component that events of a node name.
pub const COMPONENT: &str = "kubelet";

/// Passes events on until the journal is closed. Those of pods that `rkube
/// run` started stay on the host.
pub async fn forward<R: ContainerRuntime>(manager: Manager<R>, recorder: Recorder) {
    let mut events = manager.journal().watch();
    loop {
        match events.recv().await {
            Ok(event) => {
                let uid = event.involved_object.uid.as_deref().unwrap_or_default();
                let foreign = manager.get(uid).is_some_and(|v| v.source == Source::File);
                if !foreign {
                    tell(&recorder, &event);
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events are told too late to be passed on");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn tell(recorder: &Recorder, event: &Event) {
    let kind = match event.type_.as_deref() {
        Some("Warning") => EventType::Warning,
        _ => EventType::Normal,
    };
    recorder.event(
        event.involved_object.clone(),
        kind,
        event.reason.as_deref().unwrap_or_default(),
        event.message.as_deref().unwrap_or_default(),
    );
}
