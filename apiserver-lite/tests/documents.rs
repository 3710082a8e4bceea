//! What is told of the API itself: its documents, and kinds that are not all there, in answers
//! and in LIMITS.md.
#![allow(missing_docs, dead_code)]

#[path = "common/http.rs"]
#[allow(unreachable_pub)]
mod client;

use std::collections::BTreeMap;

use client::Http;
use rkube_api::kinds::{Lack, lack};
use rkube_apiserver::engine::served_by_default;
use serde_json::json;

/// Each kind that is not all there says so, and what it is that it lacks.
#[tokio::test]
async fn what_a_kind_lacks_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let http = Http::start(folder.path()).await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}}}});
    let class = json!({"metadata": {"name": "c"}, "handler": "h"});
    let set = json!({"metadata": {"name": "s"}});
    let map = json!({"metadata": {"name": "m"}});
    for (path, body, told) in [
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            claim,
            "no controller works on them yet",
        ),
        (
            "/apis/node.k8s.io/v1/runtimeclasses",
            class,
            "the rest of their rules is not there yet",
        ),
        (
            "/apis/networking.k8s.io/v1/ingressclasses",
            set,
            "their rules and controllers are not there yet",
        ),
        ("/api/v1/namespaces/default/configmaps", map, ""),
    ] {
        let answer = http.post(path, &body).await;
        assert_eq!(answer.code, 201, "{path}: {:?}", answer.body);
        let warning = answer.header("warning");
        let is_told = warning.starts_with("299 - \"rkube ") && warning.contains(told);
        assert_eq!(is_told, !told.is_empty(), "{path}: {warning}");
    }
}

/// LIMITS.md names every kind that is not all there, by what it lacks.
#[test]
fn limits_name_what_kinds_lack() {
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in served_by_default() {
        let gvk = resource.gvk;
        // What is only asked is not stored.
        let is_stored = resource.serves("update");
        let head = match lack(gvk.group, gvk.kind).filter(|_| is_stored) {
            None => continue,
            Some(Lack::Controller) => "* Checked and stored, without a controller: ",
            Some(Lack::Rules) => "* Served without rules of their own: ",
            Some(Lack::Both) => "* Stored, without rules and controllers: ",
        };
        let list = lists.entry(head).or_default();
        if !list.contains(&gvk.kind) {
            list.push(gvk.kind);
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../LIMITS.md");
    let limits = std::fs::read_to_string(path).expect("LIMITS.md");
    let words: Vec<&str> = limits.split_whitespace().collect();
    let limits = words.join(" ");
    for (head, mut kinds) in lists {
        kinds.sort_unstable();
        let line = format!("{head}{}.", kinds.join(", "));
        assert!(limits.contains(&line), "LIMITS.md lacks: {line}");
    }
}

/// Length-delimited fields of a protobuf message, by number; numbers are passed over.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let varint = |bytes: &mut &[u8]| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().expect("a varint");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    };
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let head = varint(&mut bytes);
        let number = varint(&mut bytes);
        if head & 7 == 2 {
            let length = usize::try_from(number).expect("a length");
            let (field, rest) = bytes.split_at(length);
            all.push((head >> 3, field));
            bytes = rest;
        }
    }
    all
}

/// The only field of a number.
fn field(bytes: &[u8], number: u64) -> &[u8] {
    let mut all = fields(bytes).into_iter().filter(|(n, _)| *n == number);
    let found = all.next().map(|(_, field)| field);
    found.unwrap_or_else(|| panic!("no field {number}"))
}

/// The value of a `NamedSchema` of this name.
fn named<'b>(list: &'b [u8], name: &str) -> &'b [u8] {
    let all = fields(list);
    let found = all.iter().find(|(_, one)| field(one, 1) == name.as_bytes());
    let (_, found) = found.unwrap_or_else(|| panic!("no {name}"));
    field(found, 2)
}

/// The protobuf that kubectl up to 1.27 asks for (`openapi.v2.Document` of gnostic).
#[tokio::test]
async fn openapi_v2_as_protobuf() {
    let folder = tempfile::tempdir().expect("a folder");
    let http = Http::start(folder.path()).await;
    let accept = [(
        "accept",
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    )];
    let answer = http.send("GET", "/openapi/v2", &accept, "").await;
    assert_eq!(answer.code, 200);
    assert_eq!(
        answer.header("content-type"),
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    let document = &answer.body[..];
    assert_eq!(field(document, 1), b"2.0");
    let deployment = named(field(document, 9), "io.k8s.api.apps.v1.DeploymentSpec");
    let required: Vec<&[u8]> = fields(deployment)
        .into_iter()
        .filter_map(|(number, field)| (number == 19).then_some(field))
        .collect();
    assert_eq!(required, [&b"selector"[..], b"template"]);
    let properties = field(deployment, 25);
    let replicas = named(properties, "replicas");
    assert_eq!(field(replicas, 2), b"int32");
    assert_eq!(field(field(replicas, 22), 1), b"integer");
    assert!(field(replicas, 4).starts_with(b"Number of desired pods"));
    let template = named(properties, "template");
    assert_eq!(
        field(template, 1),
        b"#/definitions/io.k8s.api.core.v1.PodTemplateSpec"
    );
    // As many definitions as the same document in JSON has.
    let json = http.get("/openapi/v2").await.json();
    let count = json["definitions"].as_object().map(serde_json::Map::len);
    assert_eq!(Some(fields(field(document, 9)).len()), count);
}
