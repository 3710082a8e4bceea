//! Pods that are to start, restart, or have other limits.

use super::*;
use crate::manager::{Ask, AskError, ManagerError};
use crate::record::Source;
use crate::translate::limits::{Amount, LimitsChange};

fn memory(container: &str, amount: &str) -> Ask {
    Ask::Limit(LimitsChange {
        container: container.to_owned(),
        memory_limit: Some(match amount {
            "none" => Amount::Unlimited,
            text => Amount::Of(text.to_owned()),
        }),
        ..LimitsChange::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_stopped_pod_starts_and_its_record_says_so() {
    let host = Host::paused();
    let manager = host.manager().await;
    let one = bundle(
        "a",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "serve"}]}),
    );
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    manager.stop("u-a", None).await.unwrap();
    let ending = manager.ask("u-a", Ask::Start).await;
    assert!(
        matches!(
            ending,
            Err(ManagerError::Refused {
                source: AskError::Ending,
                ..
            })
        ) || {
            manager.over("u-a").await;
            true
        }
    );
    manager.over("u-a").await;
    manager.ask("u-a", Ask::Start).await.unwrap();
    let view = until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 1 && phase(v) == "Running"
    })
    .await;
    assert!(!view.finished && view.pod.metadata.deletion_timestamp.is_none());
    let paths = Paths::new(host.dir.path());
    let (wanted, known) = crate::record::read(&paths, "u-a").unwrap().unwrap();
    assert!(wanted.deletion.is_none() && !known.unwrap().finished);
    manager.delete("u-a", Some(0)).await.unwrap();
    manager.gone("u-a").await;
}

#[tokio::test(start_paused = true)]
async fn limits_are_the_kernels_first_then_the_record_s() {
    let host = Host::paused();
    let manager = host.manager().await;
    let one = bundle(
        "a",
        json!({"containers": [{"name": "c", "image": "serve"}]}),
    );
    manager.apply(one, IfExists::Attach).await.unwrap();
    until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    let limit = |view: &PodView| {
        let spec = view.pod.spec.clone().unwrap();
        let limits = spec.containers[0].resources.clone()?.limits?;
        limits.get("memory").map(|q| q.0.clone())
    };
    host.fake.calls();
    manager.ask("u-a", memory("c", "64Mi")).await.unwrap();
    // The pod holds nothing back while its container changes.
    assert_eq!(
        host.fake.calls(),
        [
            "update pod None",
            "update c/0 Some(67108864)",
            "update pod Some(67108864)"
        ]
    );
    let paths = Paths::new(host.dir.path());
    let (wanted, _) = crate::record::read(&paths, "u-a").unwrap().unwrap();
    let recorded = wanted.pod.spec.unwrap().containers[0].resources.clone();
    assert_eq!(recorded.unwrap().limits.unwrap()["memory"].0, "64Mi");
    // What the kernel refuses is undone and not recorded.
    let refused = manager.ask("u-a", memory("c", "100")).await.unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(source, "change the limits of container c: 100 is in use");
    assert_eq!(
        host.fake.calls(),
        [
            "update pod Some(67108864)",
            "update c/0 Some(100)",
            "update c/0 Some(67108864)",
            "update pod Some(67108864)"
        ]
    );
    let view = until(&manager, "u-a", |v| limit(v).is_some()).await;
    assert_eq!(limit(&view).as_deref(), Some("64Mi"));
    let (wanted, _) = crate::record::read(&paths, "u-a").unwrap().unwrap();
    let recorded = wanted.pod.spec.unwrap().containers[0].resources.clone();
    assert_eq!(recorded.unwrap().limits.unwrap()["memory"].0, "64Mi");
    // A later run has them, and one that was taken away is none.
    let restart = Ask::Restart {
        containers: vec!["c".to_owned()],
        grace_seconds: None,
    };
    manager.ask("u-a", restart).await.unwrap();
    until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let configs = super::super::lock(&host.fake.inner).configs.clone();
    assert_eq!(configs[1].resources.memory_limit_bytes, Some(64 << 20));
    host.fake.calls();
    manager.ask("u-a", memory("c", "none")).await.unwrap();
    assert_eq!(
        host.fake.calls(),
        [
            "update pod Some(-1)",
            "update c/1 Some(-1)",
            "update pod None"
        ]
    );
    let none = manager.ask("u-a", memory("z", "1Mi")).await;
    assert!(matches!(none, Err(ManagerError::Refused { .. })));
    manager.delete("u-a", Some(0)).await.unwrap();
    manager.gone("u-a").await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_api_are_the_api_s() {
    let host = Host::paused();
    let manager = host.manager().await;
    let one = Bundle {
        source: Source::Api,
        ..bundle(
            "a",
            json!({"containers": [{"name": "c", "image": "serve"}]}),
        )
    };
    manager.apply(one, IfExists::Attach).await.unwrap();
    let refused = manager.ask("u-a", Ask::Start).await;
    assert!(matches!(refused, Err(ManagerError::OfApi { .. })));
    manager.delete("u-a", Some(0)).await.unwrap();
    manager.gone("u-a").await;
}
