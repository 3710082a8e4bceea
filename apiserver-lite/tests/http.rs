//! The rules of lists, watches, pages, deletions and errors, over real sockets.
#![allow(missing_docs)]

#[path = "common/http.rs"]
#[allow(unreachable_pub)]
mod client;

use client::Http;
use serde_json::{Value, json};
use tempfile::TempDir;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn start() -> (TempDir, Http) {
    let folder = tempfile::tempdir().expect("a folder");
    let http = Http::start(folder.path()).await;
    (folder, http)
}

async fn make(http: &Http, name: &str) -> Value {
    let body = json!({"metadata": {"name": name, "labels": {"l": name}}, "data": {"k": "v"}});
    let answer = http.post(MAPS, &body).await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    answer.json()
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision")
        .parse()
        .expect("a number")
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused() {
    let (_folder, http) = start().await;
    make(&http, "a").await;
    let newest = http.server.engine.store().revision();
    let ahead = newest + 1000;
    for (query, code) in [
        // By the watch cache, and by the storage below it.
        ("resourceVersion=x".to_owned(), 500),
        ("resourceVersion=x&limit=1".to_owned(), 400),
        (
            "resourceVersion=x&resourceVersionMatch=Exact".to_owned(),
            400,
        ),
        ("resourceVersionMatch=Exact".to_owned(), 422),
        (
            "resourceVersionMatch=Exact&resourceVersion=0".to_owned(),
            422,
        ),
        (
            "resourceVersionMatch=Other&resourceVersion=1".to_owned(),
            422,
        ),
        ("sendInitialEvents=true".to_owned(), 422),
        ("watch=true&sendInitialEvents=true".to_owned(), 422),
        (
            format!("watch=true&resourceVersionMatch=NotOlderThan&resourceVersion={newest}"),
            422,
        ),
        ("continue=xyz".to_owned(), 400),
        ("labelSelector=a%20in%20(".to_owned(), 400),
        ("fieldSelector=data.k%3Dv".to_owned(), 400),
        (format!("resourceVersion={ahead}"), 504),
        (format!("watch=true&resourceVersion={ahead}"), 504),
        (format!("resourceVersion={newest}"), 200),
        (
            format!("resourceVersion={newest}&resourceVersionMatch=Exact"),
            200,
        ),
        ("resourceVersion=0".to_owned(), 200),
    ] {
        let answer = http.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(answer.code, code, "{query}: {:?}", answer.body);
        if code == 504 {
            let status = answer.json();
            assert_eq!(
                status["details"]["causes"][0]["reason"],
                "ResourceVersionTooLarge"
            );
            assert_eq!(answer.header("retry-after"), "1");
        }
    }
}

#[tokio::test]
async fn a_list_with_a_revision_is_that_old_or_newer() {
    let (_folder, http) = start().await;
    let first = revision(&make(&http, "a").await);
    make(&http, "b").await;
    let count = async |query: String| {
        let list = http.get(&format!("{MAPS}?{query}")).await.json();
        assert!(revision(&list) > 0);
        list["items"].as_array().expect("items").len()
    };
    assert_eq!(count(format!("resourceVersion={first}")).await, 2);
    let exact = format!("resourceVersion={first}&resourceVersionMatch=Exact");
    assert_eq!(count(exact).await, 1);
    assert_eq!(count(format!("resourceVersion={first}&limit=5")).await, 1);
    assert_eq!(count("labelSelector=l%3Db".to_owned()).await, 1);
    let list = http.get(MAPS).await.json();
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("ConfigMapList"), &json!("v1"))
    );
    assert!(
        list["items"][0].get("kind").is_none(),
        "items carry no type"
    );
    assert_eq!(revision(&list), http.server.engine.store().revision());
}

#[tokio::test]
async fn old_revisions_are_gone_for_lists_pages_and_watches() {
    let (_folder, http) = start().await;
    let first = revision(&make(&http, "a").await);
    for name in ["b", "c", "d"] {
        make(&http, name).await;
    }
    let page = http.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!(page["metadata"]["remainingItemCount"], 2);
    let token = page["metadata"]["continue"]
        .as_str()
        .expect("a token")
        .to_owned();
    make(&http, "e").await;
    let store = http.server.engine.store();
    store.compact(store.revision()).expect("compacts");
    let exact = format!("{MAPS}?resourceVersion={first}&resourceVersionMatch=Exact");
    let gone = http.get(&exact).await;
    assert_eq!(
        (gone.code, &gone.json()["reason"]),
        (410, &json!("Expired"))
    );
    let gone = http.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(gone.code, 410);
    let fresh = gone.json()["metadata"]["continue"]
        .as_str()
        .expect("a fresh token")
        .to_owned();
    let rest = http
        .get(&format!("{MAPS}?limit=10&continue={fresh}"))
        .await
        .json();
    let names: Vec<&str> = rest["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, ["c", "d", "e"], "the rest as it is now");
    let mut watch = http
        .watch(&format!("{MAPS}?watch=1&resourceVersion={first}"), &[])
        .await;
    let error = watch.next().await.expect("an error");
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert!(watch.next().await.is_none(), "it is the last frame");
}

#[tokio::test]
async fn a_watch_can_begin_with_all_objects() {
    let (_folder, http) = start().await;
    make(&http, "a").await;
    let newest = revision(&make(&http, "b").await);
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = http.watch(&format!("{MAPS}?{query}"), &[]).await;
    assert_eq!(watch.kind_and_name().await, ("ADDED".into(), "a".into()));
    assert_eq!(watch.kind_and_name().await, ("ADDED".into(), "b".into()));
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(revision(&bookmark["object"]), newest);
    make(&http, "c").await;
    assert_eq!(watch.kind_and_name().await, ("ADDED".into(), "c".into()));
    // From a revision: only what came after it.
    let mut later = http
        .watch(&format!("{MAPS}?watch=1&resourceVersion={newest}"), &[])
        .await;
    assert_eq!(later.kind_and_name().await, ("ADDED".into(), "c".into()));
    let object = http.get(&format!("{MAPS}/c")).await.json();
    http.send("DELETE", &format!("{MAPS}/c"), &[], "").await;
    let deleted = later.next().await.expect("a frame");
    assert_eq!(deleted["type"], "DELETED");
    assert!(
        revision(&deleted["object"]) > revision(&object),
        "the deletion's own revision"
    );
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let (_folder, http) = start().await;
    let first = revision(&make(&http, "a").await);
    let query = format!(
        "watch=1&resourceVersion={first}&timeoutSeconds=1&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dnone"
    );
    let mut watch = http.watch(&format!("{MAPS}?{query}"), &[]).await;
    let last = revision(&make(&http, "b").await);
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(
        (&bookmark["type"], revision(&bookmark["object"])),
        (&json!("BOOKMARK"), last)
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn tables_for_lists_and_watches() {
    let (_folder, http) = start().await;
    make(&http, "a").await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = http.send("GET", MAPS, &accept, "").await.json();
    assert_eq!(
        (&table["kind"], &table["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    let mut watch = http.watch(&format!("{MAPS}?watch=1"), &accept).await;
    let first = watch.next().await.expect("a frame");
    assert!(first["object"]["columnDefinitions"].is_array());
    make(&http, "b").await;
    let second = watch.next().await.expect("a frame");
    assert!(
        second["object"]["columnDefinitions"].is_null(),
        "columns are sent once"
    );
    assert_eq!(
        second["object"]["rows"][0]["object"]["kind"],
        "PartialObjectMetadata"
    );
    let partial = [(
        "accept",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    )];
    let list = http.send("GET", MAPS, &partial, "").await.json();
    assert!(list["items"][0].get("data").is_none() && list["items"][0]["metadata"]["name"] == "a");
    let yaml = http
        .send(
            "GET",
            &format!("{MAPS}/a"),
            &[("accept", "application/yaml")],
            "",
        )
        .await;
    assert!(
        String::from_utf8_lossy(&yaml.body).contains("kind: ConfigMap\n"),
        "{:?}",
        yaml.body
    );
    let none = http.send("GET", MAPS, &[("accept", "text/html")], "").await;
    assert_eq!(none.code, 406);
}

#[tokio::test]
async fn failures_say_what_is_wrong() {
    let (_folder, http) = start().await;
    make(&http, "a").await;
    let object = format!("{MAPS}/a");
    let typed = |kind: &'static str| [("content-type", kind)];
    let json_type = typed("application/json");
    let big = format!("{{\"data\": {{\"k\": \"{}\"}}}}", "x".repeat(4 << 20));
    let merge = typed("application/merge-patch+json");
    for (method, path, headers, body, code, reason) in [
        ("GET", "/api/v1/nope", &json_type[..], "", 404, "NotFound"),
        ("GET", "/apis/nope/v1", &json_type, "", 404, ""),
        ("POST", &object, &json_type, "{}", 405, "MethodNotAllowed"),
        (
            "POST",
            "/api/v1/configmaps",
            &json_type,
            "{}",
            405,
            "MethodNotAllowed",
        ),
        (
            "POST",
            MAPS,
            &typed("text/plain"),
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        (
            "PATCH",
            &object,
            &json_type,
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        (
            "PATCH",
            &object,
            &typed("application/apply-patch+yaml"),
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        ("PATCH", &object, &merge, "[]", 400, "BadRequest"),
        (
            "PATCH",
            &object,
            &merge,
            r#"{"metadata":{"name":"b"}}"#,
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            &object,
            &merge,
            r#"{"metadata":{"uid":"b"}}"#,
            422,
            "Invalid",
        ),
        (
            "PATCH",
            &object,
            &merge,
            r#"{"metadata":{"resourceVersion":"1"}}"#,
            409,
            "Conflict",
        ),
        (
            "POST",
            MAPS,
            &json_type,
            r#"{"metadata":{"name":"x","namespace":"other"}}"#,
            400,
            "BadRequest",
        ),
        (
            "POST",
            MAPS,
            &json_type,
            r#"{"kind":"Secret","metadata":{"name":"x"}}"#,
            400,
            "BadRequest",
        ),
        (
            "POST",
            MAPS,
            &json_type,
            r#"{"metadata":{"name":"x","resourceVersion":"1"}}"#,
            500,
            "",
        ),
        (
            "POST",
            MAPS,
            &json_type,
            big.as_str(),
            413,
            "RequestEntityTooLarge",
        ),
        (
            "DELETE",
            &object,
            &json_type,
            r#"{"preconditions":{"uid":"x"}}"#,
            409,
            "Conflict",
        ),
        (
            "GET",
            MAPS,
            &[("authorization", "Bearer wrong")],
            "",
            401,
            "Unauthorized",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/pods/x/log",
            &json_type,
            "",
            503,
            "ServiceUnavailable",
        ),
    ] {
        let answer = http.send(method, path, headers, body.to_owned()).await;
        assert_eq!(
            answer.code, code,
            "{method} {path} {body:.60}: {:?}",
            answer.body
        );
        let told = answer.json();
        assert_eq!(
            told["reason"].as_str().unwrap_or(""),
            reason,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn nothing_is_stored_by_a_dry_run() {
    let (_folder, http) = start().await;
    let before = http.server.engine.store().revision();
    let body = json!({"metadata": {"generateName": "x-"}});
    let made = http.post(&format!("{MAPS}?dryRun=All"), &body).await;
    assert_eq!(made.code, 201);
    assert!(
        made.json()["metadata"]["name"]
            .as_str()
            .expect("a name")
            .starts_with("x-")
    );
    assert!(made.json()["metadata"].get("resourceVersion").is_none());
    assert_eq!(http.server.engine.store().revision(), before);
    make(&http, "a").await;
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = r#"{"data":{"k":"w"}}"#;
    let patched = http
        .send("PATCH", &format!("{MAPS}/a?dryRun=All"), &merge, patch)
        .await
        .json();
    assert_eq!(patched["data"]["k"], "w");
    http.send("DELETE", &format!("{MAPS}/a?dryRun=All"), &[], "")
        .await;
    assert_eq!(
        http.get(&format!("{MAPS}/a")).await.json()["data"]["k"],
        "v"
    );
}

#[tokio::test]
async fn budgets_stop_evictions_and_finalizers_hold() {
    let (_folder, http) = start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(http.post(pods, &pod).await.code, 201);
    let merge = [("content-type", "application/merge-patch+json")];
    let running =
        r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    http.send("PATCH", &format!("{pods}/p/status"), &merge, running)
        .await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    assert_eq!(http.post(budgets, &budget).await.code, 201);
    let status = r#"{"status":{"observedGeneration":1,"disruptionsAllowed":0,"currentHealthy":1,"desiredHealthy":1,"expectedPods":1}}"#;
    let told = http
        .send("PATCH", &format!("{budgets}/b/status"), &merge, status)
        .await;
    assert_eq!(told.code, 200, "{:?}", told.body);
    let eviction = json!({"metadata": {"name": "p"}});
    let refused = http.post(&format!("{pods}/p/eviction"), &eviction).await;
    assert_eq!(refused.code, 429, "{:?}", refused.body);
    assert_eq!(
        refused.json()["details"]["causes"][0]["reason"],
        "DisruptionBudget"
    );
    let status = r#"{"status":{"disruptionsAllowed":1}}"#;
    http.send("PATCH", &format!("{budgets}/b/status"), &merge, status)
        .await;
    let evicted = http.post(&format!("{pods}/p/eviction"), &eviction).await;
    assert_eq!(evicted.code, 201, "{:?}", evicted.body);
    let budget = http.get(&format!("{budgets}/b")).await.json();
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    let pod = http.get(&format!("{pods}/p")).await.json();
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(pod["status"]["conditions"][1]["type"], "DisruptionTarget");

    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/x"]}});
    http.post(MAPS, &held).await;
    let marked = http
        .send("DELETE", &format!("{MAPS}/held"), &[], "")
        .await
        .json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = r#"{"metadata":{"finalizers":["example.com/x","example.com/y"]}}"#;
    assert_eq!(
        http.send("PATCH", &format!("{MAPS}/held"), &merge, more)
            .await
            .code,
        422
    );
    let none = r#"{"metadata":{"finalizers":null}}"#;
    assert_eq!(
        http.send("PATCH", &format!("{MAPS}/held"), &merge, none)
            .await
            .code,
        200
    );
    assert_eq!(http.get(&format!("{MAPS}/held")).await.code, 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let (_folder, http) = start().await;
    for name in ["a", "b", "c"] {
        make(&http, name).await;
    }
    let path = format!("{MAPS}?labelSelector=l%21%3Db");
    let deleted = http.send("DELETE", &path, &[], "").await;
    assert_eq!(deleted.code, 200);
    assert_eq!(deleted.json()["items"].as_array().map(Vec::len), Some(2));
    let left = http.get(MAPS).await.json();
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn large_lists_are_compressed_and_complete() {
    use std::io::Read as _;
    let (_folder, http) = start().await;
    let body = |i: usize| json!({"metadata": {"name": format!("m{i:02}")}, "data": {"k": "x".repeat(20_000)}});
    for i in 0..20 {
        assert_eq!(http.post(MAPS, &body(i)).await.code, 201);
    }
    let plain = http.get(MAPS).await;
    let packed = http
        .send("GET", MAPS, &[("accept-encoding", "gzip")], "")
        .await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.body.len() < plain.body.len() / 10);
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_end(&mut unpacked)
        .expect("gzip");
    assert_eq!(unpacked, plain.body);
    assert_eq!(plain.json()["items"].as_array().map(Vec::len), Some(20));
    let http2 = http.get_http2(MAPS).await;
    assert_eq!(http2.body, plain.body);
}

#[tokio::test]
async fn a_stopping_server_ends_its_watches() {
    let (_folder, http) = start().await;
    let mut watch = http.watch(&format!("{MAPS}?watch=1"), &[]).await;
    make(&http, "a").await;
    assert_eq!(watch.kind_and_name().await.0, "ADDED");
    let stopped = tokio::spawn(http.server.server.stop());
    assert!(watch.next().await.is_none());
    drop(watch);
    stopped.await.expect("it stops");
}

#[tokio::test]
async fn warnings_audit_and_metrics() {
    let (_folder, http) = start().await;
    let body = json!({"metadata": {"name": "x"}, "provisioner": "p", "what": 1});
    let answer = http
        .post("/apis/storage.k8s.io/v1/storageclasses", &body)
        .await;
    assert_eq!(answer.code, 201, "{:?}", answer.body);
    let warnings: Vec<_> = answer
        .headers
        .get_all("warning")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    assert!(
        warnings
            .iter()
            .any(|w| w.contains(r#"unknown field \"what\""#)),
        "{warnings:?}"
    );
    assert!(
        warnings
            .iter()
            .any(|w| w.starts_with("299 - \"rkube stores StorageClass")),
        "{warnings:?}"
    );
    assert_eq!(answer.header("audit-id").len(), 36);
    let metrics = http.get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(
        text.contains("apiserver_request_total{verb=\"POST\",group=\"storage.k8s.io\""),
        "{text}"
    );
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/readyz/etcd",
        "/version",
        "/",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/apis/apps/v1",
    ] {
        assert_eq!(http.get(path).await.code, 200, "{path}");
    }
}
