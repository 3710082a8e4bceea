//! What pulls share: blobs that two of them want, layers that another brought,
//! and images that only some may have.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Gate, Host, Made, Reply, Request, Server, Watch, image, layer, plain, reply};
use rkube_distribution::{Error, chain};
use rkube_image::pull::{Opened, PullRequest};
use rkube_image::{Credential, Digest, Keyring};
use serde_json::{Value, json};

const TAG: &str = "v1";
/// `u:p`
const BASIC: &str = "Basic dTpw";

fn wants(r: &Request, digest: &Digest) -> bool {
    r.method == "GET" && r.path.ends_with(&format!("/blobs/{digest}"))
}

fn private(made: &Made) -> Server {
    Server::start(made.blobs.clone(), |r| {
        let known = r.headers.get("authorization").is_some_and(|v| v == BASIC);
        (!known).then(|| reply(401, "").header("WWW-Authenticate", "Basic realm=\"r\""))
    })
}

/// Pulls as a pod with a pull secret.
fn pull_with_secret(host: &Host, server: &Server) -> rkube_image::pull::PulledImage {
    let mut request = PullRequest::new(format!("{}/a:{TAG}", server.host).parse().unwrap());
    request.keyrings = vec![Keyring::single(&server.host, Credential::basic("u", "p"))];
    host.registries.pull_image(&host.store, &request).unwrap()
}

fn index_of(made: &Made) -> Vec<u8> {
    let bytes = &made.blobs[&made.manifest.to_string()];
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": made.manifest.to_string(), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    })
    .to_string()
    .into_bytes()
}

#[test]
fn who_only_knows_a_digest_gets_nothing_of_a_private_image() {
    let made = image(vec![layer("secret", 300_000), layer("b", 1000)], TAG);
    let server = private(&made);
    let host = Host::new();
    let pulled = pull_with_secret(&host, &server);
    assert!(matches!(pulled.opened, Opened::Request { .. }));

    // Its pod's status tells the digest of the manifest.
    let index = index_of(&made);
    let only_index = Server::start([(TAG.to_owned(), index.clone())].into(), |_| None);
    let error = host
        .pull(&format!("{}/x:{TAG}", only_index.host))
        .unwrap_err();
    assert!(chain(&error).contains("404"), "{}", chain(&error));

    // With all documents, but not one layer: it lies about those.
    let documents: std::collections::HashMap<_, _> = made
        .blobs
        .iter()
        .filter(|(name, _)| made.layers.iter().all(|(d, _)| d.to_string() != **name))
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect();
    let sizes: Vec<(Digest, usize)> = made.layers.iter().map(|(d, l)| (*d, l.len())).collect();
    let liar = Server::start(documents, move |r| {
        let (_, size) = sizes
            .iter()
            .find(|(d, _)| r.path.ends_with(&d.to_string()))?;
        let range = r
            .headers
            .get("range")
            .and_then(|v| v.strip_prefix("bytes="));
        let Some((from, to)) = range.and_then(|v| v.split_once('-')) else {
            return Some(reply(200, vec![0; *size]));
        };
        let from: usize = from.parse().unwrap();
        let to = to.parse().unwrap_or(size - 1);
        let told = format!("bytes {from}-{to}/{size}");
        Some(reply(206, vec![0; to + 1 - from]).header("Content-Range", told))
    });
    let error = host.pull(&format!("{}/x:{TAG}", liar.host)).unwrap_err();
    assert!(chain(&error).contains("does not have"), "{}", chain(&error));
    // Nor by its digest.
    let by_digest = format!("{}/x@{}", liar.host, made.manifest);
    host.pull(&by_digest).unwrap_err();

    // Who has them need not send them whole.
    let honest = Server::start(made.blobs.clone(), |_| None);
    let pulled = host.pull(&format!("{}/x:{TAG}", honest.host)).unwrap();
    assert_eq!(pulled.image.new_layers, 0);
    assert!(pulled.fetched_bytes < 200_000, "{}", pulled.fetched_bytes);
    let asked = honest.requests("/blobs/").len();
    assert_eq!(asked, 1 + made.layers.len(), "configuration and layers");
    // Once is enough.
    let again = host.pull(&format!("{}/x:{TAG}", honest.host)).unwrap();
    assert_eq!(again.fetched_bytes, 0);
    assert_eq!(honest.requests("/blobs/").len(), asked);
}

#[test]
fn a_whole_blob_that_no_image_has_yet_is_not_given_away_either() {
    let made = image(vec![layer("secret", 300_000), layer("b", 1000)], TAG);
    let second = made.layers[1].0;
    let broken = Server::start(made.blobs.clone(), move |r| {
        wants(r, &second).then(|| reply(404, ""))
    });
    let host = Host::new();
    host.pull(&format!("{}/a:{TAG}", broken.host)).unwrap_err();
    let first = made.layers[0].0;
    let liar = Server::start(made.blobs.clone(), move |r| {
        wants(r, &first).then(|| reply(404, ""))
    });
    host.pull(&format!("{}/a:{TAG}", liar.host)).unwrap_err();
    host.assert_nothing();
}

/// An image whose configuration says something else of its layers.
fn lying_about(made: &Made) -> Made {
    let bytes = &made.blobs[&made.manifest.to_string()];
    let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
    let name = manifest["config"]["digest"].as_str().unwrap().to_owned();
    let mut config: Value = serde_json::from_slice(&made.blobs[&name]).unwrap();
    config["rootfs"]["diff_ids"][0] = Digest::of(b"a lie").to_string().into();
    let config = config.to_string().into_bytes();
    let mut blobs = made.blobs.clone();
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    blobs.insert(Digest::of(&config).to_string(), config);
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    blobs.insert(digest.to_string(), bytes.clone());
    blobs.insert(TAG.to_owned(), bytes);
    Made {
        blobs,
        layers: made.layers.clone(),
        manifest: digest,
    }
}

/// A registry that keeps back one layer.
fn gated(made: &Made, digest: Digest) -> (Server, Gate) {
    let gate = Gate::default();
    let (door, blobs) = (gate.clone(), made.blobs.clone());
    let server = Server::start(made.blobs.clone(), move |r| {
        (wants(r, &digest) && door.pass()).then(|| plain(r, &blobs))
    });
    (server, gate)
}

/// A host that waits for a registry as long as a test may take.
fn patient() -> Host {
    let mut host = Host::new();
    host.registries = rkube_distribution::Registries::of_root(host.dir.path());
    host
}

fn watched(server: &Server, name: &str) -> (PullRequest, Gate) {
    let mut request = PullRequest::new(format!("{}/{name}:{TAG}", server.host).parse().unwrap());
    let watch = Watch::default();
    let done = watch.done.clone();
    request.progress = Arc::new(watch);
    (request, done)
}

#[test]
fn a_blob_that_one_pull_has_brought_is_not_torn_by_another() {
    let made = image(vec![layer("a", 400_000), layer("b", 5000)], TAG);
    let (server, gate) = gated(&made, made.layers[1].0);
    let lie = lying_about(&made);
    let liar = Server::start(lie.blobs.clone(), |_| None);
    let host = patient();
    let (request, done) = watched(&server, "a");
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| host.registries.pull_image(&host.store, &request));
        assert!(done.pass());
        host.pull(&format!("{}/x:{TAG}", liar.host)).unwrap_err();
        gate.open();
        pull.join().unwrap().unwrap();
    });
    let report = host.store.verify(&request.reference.to_string()).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    // What another process may have held for a moment goes with a sweep.
    rkube_image::Store::open(host.store.path()).unwrap();
    assert_eq!(host.partial(), 0);
}

#[test]
fn two_images_that_share_a_layer_unpack_it_once() {
    let base = layer("base", 400_000);
    let one = image(vec![base.clone(), layer("one", 5000)], TAG);
    let two = image(vec![base.clone(), layer("two", 6000)], TAG);
    let (server, gate) = gated(&one, one.layers[1].0);
    let other = Server::start(two.blobs.clone(), |_| None);
    let host = patient();
    let (request, done) = watched(&server, "one");
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| host.registries.pull_image(&host.store, &request));
        assert!(done.pass());
        // The first is not done, and the second is not kept waiting.
        let second = host.pull(&format!("{}/two:{TAG}", other.host)).unwrap();
        assert_eq!(second.image.new_layers, 1);
        gate.open();
        assert_eq!(pull.join().unwrap().unwrap().image.new_layers, 2);
    });
    for server in [&server, &other] {
        let base = server.requests(&Digest::of(&base).to_string());
        let whole = base.iter().filter(|r| !r.headers.contains_key("range"));
        assert_eq!(whole.count(), usize::from(server.host != other.host));
    }
    for image in host.store.list().unwrap() {
        let report = host.store.verify(&image.references[0]).unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
    }
}

#[test]
fn what_failed_first_is_told() {
    let made = image(vec![layer("a", 400_000), layer("b", 5000)], TAG);
    let [first, second] = [made.layers[0].0, made.layers[1].0];
    let blobs = made.blobs.clone();
    let server = Server::start(made.blobs.clone(), move |r| {
        if wants(r, &first) {
            let stall = Some(100_000);
            return Some(Reply {
                stall,
                ..plain(r, &blobs)
            });
        }
        let mut whole = plain(r, &blobs);
        if let Some(byte) = whole.body.get_mut(600).filter(|_| wants(r, &second)) {
            *byte ^= 1;
        }
        Some(whole)
    });
    let error = patient()
        .pull(&format!("{}/a:{TAG}", server.host))
        .unwrap_err();
    let text = chain(&error);
    assert!(text.contains(&second.to_string()), "{text}");
    assert!(!text.contains(&first.to_string()), "{text}");
}

#[test]
fn layers_come_at_the_same_time() {
    let made = image(vec![layer("a", 4000), layer("b", 5000)], TAG);
    let [first, second] = [made.layers[0].0, made.layers[1].0];
    let gate = Gate::default();
    let (door, blobs) = (gate.clone(), made.blobs.clone());
    let server = Server::start(made.blobs.clone(), move |r| {
        if wants(r, &second) {
            door.open();
        }
        (wants(r, &first) && door.pass()).then(|| plain(r, &blobs))
    });
    patient().pull(&format!("{}/a:{TAG}", server.host)).unwrap();
}

#[test]
fn a_pull_that_waits_for_another_can_be_cancelled() {
    let made = image(vec![layer("a", 4000)], TAG);
    let shared = image(vec![layer("a", 4000), layer("b", 5000)], TAG);
    let (server, gate) = gated(&made, made.layers[0].0);
    let other = Server::start(shared.blobs.clone(), |_| None);
    let host = patient();
    let pull = |request: &PullRequest| host.registries.pull_image(&host.store, request);
    let first = PullRequest::new(format!("{}/a:{TAG}", server.host).parse().unwrap());
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| pull(&first));
        while server.requests("/blobs/").len() < 2 {
            std::thread::yield_now();
        }
        // The same image, and another one that wants the same blob.
        for host in [&server.host, &other.host] {
            let request = PullRequest::new(format!("{host}/a:{TAG}").parse().unwrap());
            let waits = scope.spawn({
                let request = request.clone();
                move || pull(&request)
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!waits.is_finished());
            request.cancel.cancel();
            let error = waits.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error}");
        }
        assert!(!begun.is_finished());
        gate.open();
        begun.join().unwrap().unwrap();
    });
}

#[test]
fn a_registry_that_trickles_has_stalled() {
    let made = image(vec![layer("a", 400_000)], TAG);
    let digest = made.layers[0].0;
    let blobs = made.blobs.clone();
    let trickle = Some(Duration::from_millis(50));
    let server = Server::start(made.blobs.clone(), move |r| {
        wants(r, &digest).then(|| Reply {
            trickle,
            ..plain(r, &blobs)
        })
    });
    let error = Host::new()
        .pull(&format!("{}/a:{TAG}", server.host))
        .unwrap_err();
    assert!(chain(&error).contains("too slow"), "{}", chain(&error));
    // Documents too.
    let server = Server::start(made.blobs.clone(), move |r| {
        let body = vec![b' '; 100_000];
        r.path.contains("/manifests/").then(|| Reply {
            trickle,
            ..reply(200, body)
        })
    });
    let error = Host::new()
        .pull(&format!("{}/a:{TAG}", server.host))
        .unwrap_err();
    assert!(chain(&error).contains("too slow"), "{}", chain(&error));
}

#[test]
fn a_pods_own_credential_does_without_the_nodes() {
    let made = image(vec![layer("a", 4000)], TAG);
    let server = private(&made);
    let host = Host::new();
    let helpers = json!({"credHelpers": {&server.host: "is-not-installed"}});
    host.write("config.json", &helpers.to_string());
    pull_with_secret(&host, &server);
    // Without one, the helper's failure is what matters.
    let error = host.pull(&format!("{}/a:{TAG}", server.host)).unwrap_err();
    assert!(matches!(error, Error::Helper { .. }), "{error}");
}

#[test]
fn a_registry_that_hides_what_one_may_not_see_is_asked_with_the_next_credential() {
    let made = image(vec![layer("a", 4000)], TAG);
    let server = Server::start(made.blobs.clone(), |r| {
        match r.headers.get("authorization").map(String::as_str) {
            None => Some(reply(401, "").header("WWW-Authenticate", "Basic realm=\"r\"")),
            Some(BASIC) => None,
            Some(_) => Some(reply(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#)),
        }
    });
    let host = Host::new();
    let mut request = PullRequest::new(format!("{}/a:{TAG}", server.host).parse().unwrap());
    let ring = |password| Keyring::single(&server.host, Credential::basic("u", password));
    request.keyrings = vec![ring("other"), ring("p")];
    let pulled = host.registries.pull_image(&host.store, &request).unwrap();
    assert!(matches!(pulled.opened, Opened::Request { keyring: 1, .. }));
}
