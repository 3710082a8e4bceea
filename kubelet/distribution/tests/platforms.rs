//! Indexes: the image of the platform that is asked for, whatever form the
//! list has, and nothing else of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;

use common::{Host, Server, image, layer};
use rkube_distribution::{Error, chain};
use rkube_image::pull::PullRequest;
use rkube_image::{Digest, Platform};
use serde_json::json;

const TAG: &str = "v1";

fn platform(architecture: &str, variant: Option<&str>) -> Platform {
    Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: variant.map(Into::into),
    }
}

/// Three images behind an index of one of the two kinds; with `nested`, the
/// index is behind another one.
fn listed(kind: &str, nested: bool) -> (HashMap<String, Vec<u8>>, Vec<Digest>) {
    let mut blobs = HashMap::new();
    let (mut entries, mut digests) = (Vec::new(), Vec::new());
    for (name, p) in [
        ("amd64", json!({"os": "linux", "architecture": "amd64"})),
        (
            "arm64",
            json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ),
        (
            "arm",
            json!({"os": "linux", "architecture": "arm", "variant": "v7"}),
        ),
    ] {
        let made = image(vec![layer(name, 2000)], name);
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": made.manifest.to_string(), "size": made.blobs[name].len(), "platform": p,
        }));
        digests.push(made.manifest);
        blobs.extend(made.blobs);
    }
    let mut keep = |value: serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        blobs.insert(digest.to_string(), bytes.clone());
        blobs.insert(TAG.to_owned(), bytes.clone());
        (digest, bytes.len())
    };
    let (digest, size) = keep(json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}));
    if nested {
        let inner: Vec<_> = ["amd64", "arm64"]
            .map(|a| {
                json!({"mediaType": kind, "digest": digest.to_string(), "size": size,
                    "platform": {"os": "linux", "architecture": a}})
            })
            .to_vec();
        keep(json!({"schemaVersion": 2, "mediaType": kind, "manifests": inner}));
    }
    (blobs, digests)
}

#[test]
fn the_image_of_the_platform_is_pulled_and_no_other() {
    for (kind, nested) in [
        ("application/vnd.oci.image.index.v1+json", false),
        ("application/vnd.oci.image.index.v1+json", true),
        (
            "application/vnd.docker.distribution.manifest.list.v2+json",
            false,
        ),
    ] {
        let (blobs, digests) = listed(kind, nested);
        let index = Digest::of(&blobs[TAG]);
        let server = Server::start(blobs, |_| None);
        let name = format!("{}/team/app:{TAG}", server.host);
        for (wanted, digest) in [
            (platform("amd64", None), digests[0]),
            (platform("arm64", None), digests[1]),
            (platform("arm64", Some("v8")), digests[1]),
        ] {
            let host = Host::new();
            let mut request = PullRequest::new(name.parse().unwrap());
            request.platform = wanted.clone();
            let pulled = host.registries.pull_image(&host.store, &request).unwrap();
            assert_eq!(pulled.image.manifest_digest, digest, "{kind} {wanted}");
            assert_eq!(pulled.image.new_layers, 1);
            // It is known by the digest of the index too.
            let by_index = format!("{}/team/app@{index}", server.host);
            assert_eq!(
                host.store.resolve(&by_index).unwrap().manifest_digest,
                digest
            );
        }
        let host = Host::new();
        let mut request = PullRequest::new(name.parse().unwrap());
        request.platform = platform("riscv64", None);
        let error = host
            .registries
            .pull_image(&host.store, &request)
            .unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("linux/riscv64") && text.contains("linux/amd64"),
            "{text}"
        );
        host.assert_nothing();
    }
}

#[test]
fn an_index_without_end_is_an_error() {
    // Whatever is asked for, an index comes that names another one: its digest
    // cannot be right, which is told before it is followed.
    let server = Server::start(HashMap::new(), |r| {
        let entry = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": Digest::of(b"x").to_string(), "size": 10,
            "platform": {"os": "linux", "architecture": "amd64"},
        });
        let text = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        r.path
            .contains("/manifests/")
            .then(|| common::reply(200, text))
    });
    let host = Host::new();
    let error = host.pull(&format!("{}/a:{TAG}", server.host)).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert!(server.requests("").len() < 4);
}
