//! The driver against an engine of memory, on virtual time: what is wanted
//! here is the order of records, reports and restarts. The real engine is
//! driven by the black-box suites.

mod images;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rkube_engine::api::*;
use serde_json::{Value, json};

use super::fake::*;
use super::lock;
use crate::manager::{
    Applied, Bundle, Config, IfExists, Manager, ManagerError, PodView, event_channel,
};
use crate::node::{NodeFacts, Paths};
use crate::time::Clock;

mod asked;
mod update;

struct Host {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    clock: Clock,
}

impl Host {
    fn new(clock: Clock) -> Self {
        let fake = Fake {
            inner: Mutex::default(),
            clock: clock.clone(),
            tokio: tokio::runtime::Handle::current(),
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            fake: Arc::new(fake),
            clock,
        }
    }

    fn paused() -> Self {
        Self::new(Clock::of_tokio(
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        ))
    }

    /// A new writer.
    async fn manager(&self) -> Manager<Engine> {
        let (sink, events) = event_channel();
        lock(&self.fake.inner).sink = Some(sink);
        let manager = Manager::new(Config {
            runtime: Arc::new(Engine(Arc::clone(&self.fake))),
            paths: Paths::new(self.dir.path()),
            node: NodeFacts {
                single_process_oom_kill: false,
                name: "n".into(),
                addresses: vec!["192.0.2.1".parse().unwrap()],
                cpu_millis: 2000,
                memory_bytes: 1 << 30,
                cluster_dns: vec![],
                cluster_domain: "cluster.local".into(),
            },
            clock: self.clock.clone(),
            events,
            surroundings: Arc::new(crate::surroundings::Alone),
        });
        manager.recover().await.unwrap();
        manager
    }

    fn pods(&self) -> usize {
        std::fs::read_dir(Paths::new(self.dir.path()).pods()).map_or(0, Iterator::count)
    }
}

fn bundle(name: &str, spec: Value) -> Bundle {
    let pod = serde_json::from_value(
        json!({"metadata": {"name": name, "uid": format!("u-{name}")}, "spec": spec}),
    )
    .unwrap();
    Bundle {
        pod,
        ..Bundle::default()
    }
}

fn state(view: &PodView) -> Value {
    serde_json::to_value(view.pod.status.as_ref()).unwrap()
}

async fn until(
    manager: &Manager<Engine>,
    uid: &str,
    what: impl Fn(&PodView) -> bool,
) -> Arc<PodView> {
    let mut view = manager.follow(uid).unwrap();
    let found = tokio::time::timeout(Duration::from_secs(36_000), view.wait_for(|v| what(v))).await;
    match found {
        Ok(Ok(view)) => Arc::clone(&view),
        _ => panic!("never: {:#?}", manager.get(uid).map(|v| state(&v))),
    }
}

fn phase(view: &PodView) -> String {
    state(view)["phase"].as_str().unwrap_or_default().to_owned()
}

fn reasons(manager: &Manager<Engine>, uid: &str) -> Vec<String> {
    manager
        .journal()
        .list(Some(uid))
        .into_iter()
        .filter_map(|e| e.reason)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_ends_and_leaves_nothing() {
    let host = Host::paused();
    let manager = host.manager().await;
    let one = bundle(
        "a",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "run:5:0"}]}),
    );
    let applied = manager.apply(one, IfExists::Attach).await.unwrap();
    assert!(matches!(applied, Applied::Created(_)));
    let view = until(&manager, "u-a", |v| phase(v) == "Running").await;
    assert_eq!(state(&view)["podIP"], "10.0.0.2");
    let view = until(&manager, "u-a", |v| v.finished).await;
    assert_eq!(phase(&view), "Succeeded");
    assert_eq!(
        host.fake.calls(),
        ["sandbox", "start c/0", "remove sandbox"]
    );
    let dir = Paths::new(host.dir.path()).pod("u-a");
    assert!(dir.join("state.json").exists() && !dir.join("volumes").exists());
    for reason in ["Pulled", "Created", "Started"] {
        assert!(
            reasons(&manager, "u-a").contains(&reason.to_owned()),
            "{reason}"
        );
    }
    manager.delete("u-a", None).await.unwrap();
    manager.gone("u-a").await;
    assert!(manager.list().is_empty() && host.pods() == 0);
    assert!(manager.paths().logs().read_dir().unwrap().next().is_none());
    assert!(matches!(
        manager.delete("u-a", None).await,
        Err(ManagerError::NotFound { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_counts_waits_and_is_told() {
    let host = Host::paused();
    let manager = host.manager().await;
    let begin = tokio::time::Instant::now();
    manager
        .apply(
            bundle(
                "a",
                json!({"containers": [{"name": "c", "image": "run:1:3"}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    let view = until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 3
    })
    .await;
    // 1 s, restart, 1 s, 10 s, 1 s, 20 s.
    assert_eq!(begin.elapsed().as_secs(), 33);
    let c = &state(&view)["containerStatuses"][0];
    assert_eq!(
        (
            &c["lastState"]["terminated"]["exitCode"],
            &c["lastState"]["terminated"]["reason"]
        ),
        (&json!(3), &json!("Error"))
    );
    assert!(reasons(&manager, "u-a").contains(&"BackOff".to_owned()));
    assert!(
        host.fake.calls().contains(&"remove c/1".to_owned()),
        "old attempts go"
    );
    // kill -9 of the writer: counts, waits and what runs live on.
    abort(&manager);
    let manager = host.manager().await;
    let view = until(&manager, "u-a", |v| v.pod.status.is_some()).await;
    assert_eq!(state(&view)["containerStatuses"][0]["restartCount"], 3);
    let view = until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 4
    })
    .await;
    assert_eq!(begin.elapsed().as_secs(), 74);
    assert_eq!(state(&view)["startTime"], "2023-11-14T22:13:20Z");
}

/// Ends the writer where it is, as SIGKILL does.
fn abort(manager: &Manager<Engine>) {
    manager.abort_for_tests();
}

#[tokio::test(start_paused = true)]
async fn a_new_writer_adopts_what_runs_and_hears_what_it_missed() {
    let host = Host::paused();
    let manager = host.manager().await;
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "run:100:7"}, {"name": "d", "image": "serve"}]});
    manager
        .apply(bundle("a", spec), IfExists::Attach)
        .await
        .unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    abort(&manager);
    // The container ends while nobody looks.
    lock(&host.fake.inner).sink = None;
    tokio::time::sleep(Duration::from_secs(200)).await;
    let calls = host.fake.calls();
    let manager = host.manager().await;
    let view = until(&manager, "u-a", |v| v.pod.status.is_some()).await;
    let status = state(&view);
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        7
    );
    assert_eq!(
        status["containerStatuses"][1]["state"]["running"]["startedAt"],
        "2023-11-14T22:13:20Z"
    );
    assert_eq!(
        host.fake.calls(),
        Vec::<String>::new(),
        "nothing is started again after {calls:?}"
    );
    // A planned change of writers.
    manager.leave().await;
    let manager = host.manager().await;
    manager.delete("u-a", None).await.unwrap();
    manager.gone("u-a").await;
    assert_eq!(host.fake.calls(), ["signal d 15", "remove sandbox"]);
}

#[tokio::test(start_paused = true)]
async fn a_writer_killed_at_any_moment_loses_no_count() {
    for steps in 0..60 {
        let host = Host::paused();
        let mut manager = host.manager().await;
        manager.apply(bundle("a", json!({"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "run:1:1"}]})), IfExists::Attach).await.unwrap();
        for _ in 0..steps {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(37)).await;
        }
        abort(&manager);
        manager = host.manager().await;
        until(&manager, "u-a", |v| {
            state(v)["containerStatuses"][0]["restartCount"] == 2
        })
        .await;
        let starts: Vec<_> = host
            .fake
            .calls()
            .into_iter()
            .filter(|c| c.starts_with("start"))
            .collect();
        assert_eq!(
            starts,
            ["start c/0", "start c/1", "start c/2"],
            "killed after {steps}"
        );
        abort(&manager);
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_taken_attached_to_and_replaced() {
    let host = Host::paused();
    let manager = host.manager().await;
    let spec = |image: &str| json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "c", "image": image}]});
    let anonymous = |image: &str| {
        let mut b = bundle("a", spec(image));
        b.pod.metadata.uid = None;
        b
    };
    let first = manager
        .apply(anonymous("stubborn"), IfExists::Attach)
        .await
        .unwrap();
    let uid = first.view().uid.clone();
    assert_eq!(uid.len(), 36);
    let again = manager
        .apply(anonymous("stubborn"), IfExists::Attach)
        .await
        .unwrap();
    assert!(matches!(&again, Applied::Attached(v) if v.uid == uid));
    assert!(matches!(
        manager.apply(anonymous("serve"), IfExists::Attach).await,
        Err(ManagerError::Exists { .. })
    ));
    until(&manager, &uid, |v| phase(v) == "Running").await;
    let begin = tokio::time::Instant::now();
    let new = manager
        .apply(anonymous("serve"), IfExists::Replace)
        .await
        .unwrap();
    assert_ne!(new.view().uid, uid);
    assert_eq!(
        begin.elapsed().as_secs(),
        5,
        "the old one had its grace period"
    );
    assert!(host.fake.calls().contains(&"signal c 9".to_owned()));
    let mut bad = anonymous("x");
    bad.pod.metadata.uid = Some("../x".into());
    assert!(matches!(
        manager.apply(bad, IfExists::Attach).await,
        Err(ManagerError::BadUid { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_waited_for() {
    let host = Host::paused();
    let manager = host.manager().await;
    let waits = |reason: &'static str| {
        move |v: &PodView| state(v)["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    manager
        .apply(
            bundle(
                "a",
                json!({"containers": [{"name": "c", "image": "missing"}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    let view = until(&manager, "u-a", waits("ErrImagePull")).await;
    assert!(
        state(&view)["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .contains("the registry has no such image")
    );
    until(&manager, "u-a", waits("ImagePullBackOff")).await;
    lock(&host.fake.inner).images.push("missing".into());
    let begin = tokio::time::Instant::now();
    manager.images_changed();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "an import is seen at once");

    let env = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]);
    manager
        .apply(
            bundle(
                "b",
                json!({"containers": [{"name": "c", "image": "serve", "env": env}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    until(&manager, "u-b", waits("CreateContainerConfigError")).await;
    let volume = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    manager
        .apply(
            bundle(
                "d",
                json!({"volumes": volume, "containers": [{"name": "c", "image": "serve"}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    until(&manager, "u-d", |v| state(v)["reason"] == "FailedMount").await;
    assert!(reasons(&manager, "u-d").contains(&"FailedMount".to_owned()));
    manager
        .apply(
            bundle(
                "e",
                json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "broken"}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    let view = until(&manager, "u-e", |v| v.finished).await;
    let end = &state(&view)["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    for uid in ["u-b", "u-d", "u-e"] {
        manager.delete(uid, None).await.unwrap();
        manager.gone(uid).await;
    }
    assert_eq!(host.pods(), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_group_find_each_other() {
    let host = Host::paused();
    let manager = host.manager().await;
    for name in ["web", "db"] {
        let b = Bundle {
            group: Some("g".into()),
            ..bundle(
                name,
                json!({"containers": [{"name": "c", "image": "serve"}]}),
            )
        };
        manager.apply(b, IfExists::Attach).await.unwrap();
        until(&manager, &format!("u-{name}"), |v| phase(v) == "Running").await;
    }
    let hosts =
        |uid: &str| std::fs::read_to_string(manager.paths().pod(uid).join("etc-hosts")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        hosts("u-web").contains("10.0.0.3\tdb\tdb.default\n"),
        "{}",
        hosts("u-web")
    );
    assert!(hosts("u-db").contains("10.0.0.2\tweb\tweb.default\n"));
    let config = lock(&host.fake.inner).configs[0].clone();
    assert!(config.mounts.iter().any(|m| m.target == "/etc/hosts"));
    manager.delete("u-db", Some(0)).await.unwrap();
    manager.gone("u-db").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!hosts("u-web").contains("db.default"));
}

#[tokio::test(start_paused = true)]
async fn termination_messages_and_oom_kills() {
    let host = Host::paused();
    let manager = host.manager().await;
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "file", "image": "run:5:1"},
        {"name": "log", "image": "run:5:1", "terminationMessagePolicy": "FallbackToLogsOnError"}]});
    manager
        .apply(bundle("a", spec), IfExists::Attach)
        .await
        .unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    let paths = manager.paths().clone();
    std::fs::write(paths.pod("u-a").join("containers/file/0"), "x".repeat(5000)).unwrap();
    let log = paths.logs().join("default_a_u-a/log/0.log");
    std::fs::write(&log, "2024-01-01T00:00:00Z stderr F last words\n").unwrap();
    let sink = lock(&host.fake.inner).sink.clone().unwrap();
    let id = ContainerId {
        sandbox: "u-a".into(),
        name: "file".into(),
        attempt: 0,
    };
    sink.send_async(Event::Oom {
        id,
        kills: 1,
        limit_bytes: Some(64),
        culprit: Some((7, "hog".into())),
    })
    .await;
    let view = until(&manager, "u-a", |v| v.finished).await;
    let message = |i: usize| {
        state(&view)["containerStatuses"][i]["state"]["terminated"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(message(0).len(), 4096);
    assert_eq!(message(1), "last words\n");
    let oom = manager
        .journal()
        .list(Some("u-a"))
        .into_iter()
        .find(|e| e.reason.as_deref() == Some("OOMKilling"))
        .unwrap();
    assert!(oom.message.unwrap().contains("process 7 (hog)"));
}

#[tokio::test(start_paused = true)]
async fn leftovers_of_another_boot_are_cleaned() {
    let host = Host::paused();
    let manager = host.manager().await;
    manager
        .apply(
            bundle(
                "a",
                json!({"containers": [{"name": "c", "image": "serve"}]}),
            ),
            IfExists::Attach,
        )
        .await
        .unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    abort(&manager);
    let record = manager.paths().pod("u-a").join("pod.json");
    let text = std::fs::read_to_string(&record)
        .unwrap()
        .replace(&crate::record::boot_id(), "another");
    std::fs::write(&record, text).unwrap();
    let again = host.manager().await;
    assert!(again.list().is_empty() && host.pods() == 0);
    assert_eq!(host.fake.calls().last().unwrap(), "remove sandbox");
    assert!(!Path::new(&again.paths().logs().join("default_a_u-a")).exists());
}

/// Nothing flushes a record; a power cut may leave the name without the bytes.
#[tokio::test(start_paused = true)]
async fn torn_records_are_cleaned_where_nothing_runs() {
    let host = Host::paused();
    let spec = json!({"containers": [{"name": "c", "image": "serve"}]});
    let manager = host.manager().await;
    manager
        .apply(bundle("a", spec), IfExists::Attach)
        .await
        .unwrap();
    until(&manager, "u-a", |v| phase(v) == "Running").await;
    abort(&manager);
    std::fs::write(manager.paths().pod("u-a").join("pod.json"), "").unwrap();
    let logs = manager.paths().logs().join("default_a_u-a");
    assert!(logs.exists());
    // Its pause process lives: the file alone is damaged.
    let alive = host.manager().await;
    assert!(alive.list().is_empty() && host.pods() == 1 && logs.exists());
    lock(&host.fake.inner).sandboxes.clear();
    let rebooted = host.manager().await;
    assert!(rebooted.list().is_empty() && host.pods() == 0 && !logs.exists());
}

/// On real time, with real programs.
#[tokio::test]
async fn exec_probes_and_hooks_run() {
    let host = Host::new(Clock::system());
    let manager = host.manager().await;
    let flag = host.dir.path().join("ready");
    let test = json!(["test", "-e", flag.to_str().unwrap()]);
    let touch = json!(["touch", host.dir.path().join("hook").to_str().unwrap()]);
    let spec = json!({"containers": [{"name": "c", "image": "serve",
        "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
        "readinessProbe": {"exec": {"command": test}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["sleep", "100"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 4},
        "lifecycle": {"postStart": {"exec": {"command": touch}}}}]});
    manager
        .apply(bundle("a", spec), IfExists::Attach)
        .await
        .unwrap();
    let ready = |v: &PodView| state(v)["containerStatuses"][0]["ready"] == true;
    let view = until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["started"] == true
    })
    .await;
    assert!(!ready(&view));
    assert!(host.dir.path().join("hook").exists());
    let failed = |m: &Manager<Engine>| {
        let events = m.journal().list(Some("u-a"));
        events.iter().any(|e| {
            e.message
                .as_ref()
                .is_some_and(|m| m.contains("Readiness probe failed: exit code 1"))
        })
    };
    while !failed(&manager) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(&flag, "").unwrap();
    until(&manager, "u-a", ready).await;
    until(&manager, "u-a", |v| {
        state(v)["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let events = manager.journal().list(Some("u-a"));
    let text: Vec<String> = events.iter().filter_map(|e| e.message.clone()).collect();
    assert!(
        text.iter().any(|m| m.contains("no answer within 1 s")),
        "{text:?}"
    );
    manager.delete("u-a", Some(0)).await.unwrap();
    manager.gone("u-a").await;
}
