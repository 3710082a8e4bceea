//! Jobs that succeed, fail, wait and expire.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use rkube_client::Patch;
use serde_json::{Value, json};

use crate::Cluster;

fn job(name: &str, image: &str, spec: &Value) -> Value {
    let base = json!({"metadata": {"name": name}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}}}});
    rkube_api::patch::merge(base, json!({ "spec": spec })).unwrap()
}

fn has(job: &Job, kind: &str) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|c| c.type_ == kind && c.status == "True")?;
    found.reason.clone()
}

fn no_finalizers(pods: &[Pod]) -> bool {
    pods.iter()
        .all(|p| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_run_to_their_end() {
    let cluster = Cluster::start(1).await;
    let api = cluster.client.namespaced::<Job>("default");
    let five = json!({"completions": 5, "parallelism": 2});
    api.create(&job("five", "done", &five)).await.unwrap();
    let done = |j: &[Job]| has(&j[0], "Complete").is_some();
    let jobs = cluster.until::<Job>("complete", done).await;
    let status = jobs[0].status.as_ref().unwrap();
    assert_eq!(
        (status.succeeded, status.failed, status.active),
        (Some(5), None, None)
    );
    assert_eq!(
        has(&jobs[0], "Complete").as_deref(),
        Some("CompletionsReached")
    );
    assert!(status.completion_time.is_some());
    let pods = cluster.until::<Pod>("free pods", no_finalizers).await;
    assert_eq!(pods.len(), 5);
    // It goes as soon as it is over, with its pods.
    api.patch(
        "five",
        &Patch::Merge(json!({"spec": {"ttlSecondsAfterFinished": 0}})),
    )
    .await
    .unwrap();
    cluster.until::<Job>("expired", <[_]>::is_empty).await;
    cluster.until::<Pod>("no pods", <[_]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_fail_and_wait() {
    let cluster = Cluster::start(1).await;
    let api = cluster.client.namespaced::<Job>("default");
    api.create(&job("bad", "fails", &json!({"backoffLimit": 0})))
        .await
        .unwrap();
    let failed = |j: &[Job]| has(&j[0], "Failed").is_some();
    let jobs = cluster.until::<Job>("failed", failed).await;
    assert_eq!(
        has(&jobs[0], "Failed").as_deref(),
        Some("BackoffLimitExceeded")
    );
    assert_eq!(jobs[0].status.as_ref().unwrap().failed, Some(1));
    cluster
        .until::<Pod>("free pods", |p| p.len() == 1 && no_finalizers(p))
        .await;
    // A name that the server makes is in the labels too.
    let mut nameless = job("x", "done", &json!({}));
    nameless["metadata"] = json!({"generateName": "some-"});
    let made = api.create(&nameless).await.unwrap();
    let labels = made
        .spec
        .unwrap()
        .template
        .metadata
        .unwrap()
        .labels
        .unwrap();
    assert_eq!(
        Some(&labels["batch.kubernetes.io/job-name"]),
        made.metadata.name.as_ref()
    );

    api.delete("bad", &rkube_client::DeleteParams::default())
        .await
        .unwrap();

    let indexed =
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "suspend": true});
    api.create(&job("later", "done", &indexed)).await.unwrap();
    let waits = |j: &[Job]| j.iter().any(|j| has(j, "Suspended").is_some());
    cluster.until::<Job>("suspended", waits).await;
    api.patch("later", &Patch::Merge(json!({"spec": {"suspend": false}})))
        .await
        .unwrap();
    let is_done =
        |j: &Job| j.metadata.name.as_deref() == Some("later") && has(j, "Complete").is_some();
    let done = |j: &[Job]| j.iter().any(is_done);
    let jobs = cluster.until::<Job>("resumed and complete", done).await;
    let job = jobs.iter().find(|j| is_done(j)).unwrap();
    let indexes = job.status.as_ref().unwrap().completed_indexes.as_deref();
    assert_eq!(indexes, Some("0-2"));
    cluster.stop().await;
}
