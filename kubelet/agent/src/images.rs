//! Images that nobody uses, looked for from time to time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use rkube_client::{EventType, Recorder};
use rkube_engine::Engine;
use rkube_kubelet::manager::Manager;

/// How often (the kubelet's `ImageGCPeriod`).
pub const IMAGE_GC_PERIOD: Duration = Duration::from_secs(300);

/// The node as events of the kubelet name it: by its name, also as uid.
#[must_use]
pub fn node_reference(node: &Node) -> ObjectReference {
    let name = node.metadata.name.clone();
    ObjectReference {
        kind: Some("Node".to_owned()),
        uid: name.clone(),
        name,
        ..ObjectReference::default()
    }
}

/// Collects for ever, and tells of room that cannot be made.
pub async fn run(
    engine: Arc<Engine>,
    manager: Manager<Engine>,
    recorder: Recorder,
    node: ObjectReference,
) {
    let collect = move || {
        let engine = Arc::clone(&engine);
        async move {
            let work = rkube_task::spawn_blocking(move || engine.collect_images());
            match work.await {
                Ok(Ok(collected)) => Ok(collected.short_bytes),
                Ok(Err(error)) => Err(rkube_engine::chain(&error)),
                Err(error) => Err(error.to_string()),
            }
        }
    };
    let tell = |reason: &str, message: &str| {
        recorder.event(node.clone(), EventType::Warning, reason, message);
    };
    every_period(collect, || manager.forget_removed_images(), tell).await;
}

/// `collect` gives the bytes that are missing; `after` follows each one that
/// worked.
async fn every_period<F: Future<Output = Result<u64, String>>>(
    collect: impl Fn() -> F,
    after: impl Fn(),
    tell: impl Fn(&str, &str),
) {
    loop {
        match collect().await {
            Ok(short_bytes) => {
                after();
                if short_bytes > 0 {
                    let text = format!(
                        "The disk of the images is full: {short_bytes} bytes more were to be freed than unused images take"
                    );
                    tell("FreeDiskSpaceFailed", &text);
                }
            }
            Err(error) => tell("ImageGCFailed", &error),
        }
        tokio::time::sleep(IMAGE_GC_PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_five_minutes_and_what_does_not_work_is_told() {
        let answers = [Ok(0), Ok(7), Err("no table".to_owned()), Ok(0)];
        let (count, after) = (Cell::new(0), Cell::new(0));
        let told = RefCell::new(Vec::new());
        let collect = || {
            let answer = answers.get(count.get()).cloned().unwrap_or(Ok(0));
            count.set(count.get() + 1);
            std::future::ready(answer)
        };
        let work = every_period(
            collect,
            || after.set(after.get() + 1),
            |reason, message| told.borrow_mut().push(format!("{reason}: {message}")),
        );
        let _ = tokio::time::timeout(3 * IMAGE_GC_PERIOD + Duration::from_secs(1), work).await;
        assert_eq!((count.get(), after.get()), (4, 3));
        let told = told.into_inner();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("FreeDiskSpaceFailed: ") && told[0].contains(" 7 bytes"));
        assert_eq!(told[1], "ImageGCFailed: no table");
    }
}
