//! Against registries that stall, cut, lie, redirect and refuse: clear errors,
//! tries that end, and nothing half stored.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Host, Reply, Request, Server, image, layer, plain, reply};
use rkube_distribution::{Error, chain};
use rkube_image::Digest;
use rkube_image::pull::{Opened, PullRequest};

const TAG: &str = "v1";

fn is_blob(r: &Request, digest: &Digest) -> bool {
    r.path.ends_with(&format!("/blobs/{digest}"))
}

#[test]
fn an_image_comes_whole_and_the_second_time_nothing_is_fetched() {
    let made = image(
        vec![layer("a", 3000), layer("b", 700_000), layer("a", 3000)],
        TAG,
    );
    let server = Server::start(made.blobs, |_| None);
    let host = Host::new();
    let name = format!("{}/team/app:{TAG}", server.host);
    let pulled = host.pull(&name).unwrap();
    assert_eq!(pulled.opened, Opened::Anonymous);
    assert_eq!(pulled.image.manifest_digest, made.manifest);
    assert_eq!((pulled.image.layers, pulled.image.new_layers), (3, 3));
    let found = host.store.resolve(&name).unwrap();
    assert_eq!(
        found.digests,
        [format!("{}/team/app@{}", server.host, made.manifest)]
    );
    // By digest too, in the same repository.
    host.store
        .resolve(&format!("{}/team/app@{}", server.host, made.manifest))
        .unwrap();
    assert_eq!(host.partial(), 0);
    let before = server.requests("/blobs/").len();
    let again = host.pull(&name).unwrap();
    assert_eq!((again.fetched_bytes, again.image.new_layers), (0, 0));
    assert_eq!(server.requests("/blobs/").len(), before);
    let report = host.store.verify(&name).unwrap();
    assert!(
        report.problems.is_empty() && report.entries > 0,
        "{report:?}"
    );
}

#[test]
fn a_cut_transfer_goes_on_with_what_is_missing() {
    let made = image(vec![layer("big", 2_000_000)], TAG);
    let digest = made.layers[0].0;
    let blobs = made.blobs.clone();
    let server = Server::start(made.blobs, move |r| {
        if !is_blob(r, &digest) {
            return None;
        }
        let whole = plain(r, &blobs);
        match r.seen {
            0 => Some(Reply {
                cut: Some(100_000),
                ..whole
            }),
            1 => Some(reply(500, "")),
            2 => Some(Reply {
                stall: Some(200_000),
                ..whole
            }),
            3 => Some(reply(429, "").header("Retry-After", "0")),
            _ => None,
        }
    });
    let host = Host::new();
    let pulled = host.pull(&format!("{}/a:{TAG}", server.host)).unwrap();
    let ranges: Vec<_> = server
        .requests("/blobs/")
        .into_iter()
        .filter(|r| is_blob(r, &digest))
        .map(|r| r.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    assert!(
        ranges[0].is_none() && ranges[1..].iter().all(Option::is_some),
        "{ranges:?}"
    );
    let bytes = made.layers[0].1.len() as u64;
    // Nothing was fetched twice but what a cut lost on its way.
    assert!(pulled.fetched_bytes >= bytes && pulled.fetched_bytes < bytes + 400_000);
}

#[test]
fn the_next_pull_goes_on_where_this_one_was_given_up() {
    let made = image(vec![layer("big", 2_000_000)], TAG);
    let digest = made.layers[0].0;
    let blobs = made.blobs.clone();
    let sick = Server::start(made.blobs.clone(), move |r| {
        is_blob(r, &digest).then(|| Reply {
            cut: Some(1000),
            ..plain(r, &blobs)
        })
    });
    let well = Server::start(made.blobs, |_| None);
    let host = Host::new();
    let error = host.pull(&format!("{}/a:{TAG}", sick.host)).unwrap_err();
    assert!(
        matches!(error, Error::Transport { .. }),
        "{}",
        chain(&error)
    );
    host.assert_nothing();
    assert_eq!(host.partial(), 1);
    let pulled = host.pull(&format!("{}/a:{TAG}", well.host)).unwrap();
    let asked = well.requests(&digest.to_string());
    assert!(asked[0].headers.contains_key("range"), "{asked:?}");
    assert!(pulled.fetched_bytes < made.layers[0].1.len() as u64);
    // Bytes that a power cut has torn are not believed: all comes anew.
    let host = Host::new();
    let _ = host.pull(&format!("{}/a:{TAG}", sick.host));
    let partial = host.dir.path().join("images/partial").join(digest.hex());
    std::fs::write(&partial, vec![0_u8; 5000]).unwrap();
    host.pull(&format!("{}/a:{TAG}", well.host)).unwrap();
    assert!(
        host.store
            .verify(&format!("{}/a:{TAG}", well.host))
            .unwrap()
            .problems
            .is_empty()
    );
}

#[test]
fn ranges_that_are_ignored_cost_time_and_nothing_else() {
    let made = image(vec![layer("big", 300_000)], TAG);
    let digest = made.layers[0].0;
    let whole = made.layers[0].1.clone();
    let server = Server::start(made.blobs, move |r| {
        let cut = (r.seen == 0).then_some(100_000);
        is_blob(r, &digest).then(|| Reply {
            cut,
            ..reply(200, whole.clone())
        })
    });
    let host = Host::new();
    host.pull(&format!("{}/a:{TAG}", server.host)).unwrap();
}

#[test]
fn lies_about_content_are_told_and_leave_nothing() {
    let made = image(vec![layer("a", 100_000)], TAG);
    let layer_digest = made.layers[0].0;
    let truth = made.layers[0].1.clone();
    let manifest = made.blobs[TAG].clone();
    let config: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let config: Digest = config["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let other = {
        let mut other = truth.clone();
        other[600] ^= 1;
        other
    };
    type Lie = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;
    let cases: Vec<(&str, Lie, &str)> = vec![
        (
            "another layer",
            {
                let other = other.clone();
                Box::new(move |r| is_blob(r, &layer_digest).then(|| reply(200, other.clone())))
            },
            "digest",
        ),
        (
            "a longer layer",
            {
                let longer = [truth.clone(), vec![0; 512]].concat();
                Box::new(move |r| is_blob(r, &layer_digest).then(|| reply(200, longer.clone())))
            },
            "the manifest says",
        ),
        (
            "a longer layer without a length",
            {
                let longer = [truth.clone(), vec![0; 512]].concat();
                Box::new(move |r| {
                    let reply = reply(200, longer.clone()).header("Transfer-Encoding", "chunked");
                    is_blob(r, &layer_digest).then_some(reply)
                })
            },
            "sends more than",
        ),
        (
            "another configuration",
            Box::new(move |r| is_blob(r, &config).then(|| reply(200, "{}"))),
            "bytes",
        ),
        (
            "another digest of the manifest",
            {
                let manifest = manifest.clone();
                Box::new(move |r| {
                    r.path.contains("/manifests/").then(|| {
                        reply(200, manifest.clone())
                            .header("Docker-Content-Digest", Digest::of(b"x").to_string())
                    })
                })
            },
            "digest",
        ),
        (
            "no manifest",
            Box::new(|r| {
                r.path
                    .contains("/manifests/")
                    .then(|| reply(200, "{\"schemaVersion\":2}"))
            }),
            "missing field",
        ),
        (
            "an endless manifest",
            Box::new(|r| {
                r.path
                    .contains("/manifests/")
                    .then(|| reply(200, vec![b' '; 5 << 20]))
            }),
            "more than",
        ),
        (
            "a web page",
            Box::new(|r| {
                r.path
                    .contains("/manifests/")
                    .then(|| reply(200, "<html>").header("Content-Type", "text/html"))
            }),
            "web page",
        ),
        (
            "another range",
            {
                let truth = truth.clone();
                Box::new(move |r| {
                    is_blob(r, &layer_digest).then(|| match r.seen {
                        0 => Reply {
                            cut: Some(70_000),
                            ..reply(200, truth.clone())
                        },
                        _ => reply(206, &truth[..10]).header("Content-Range", "bytes 0-9/100"),
                    })
                })
            },
            "from",
        ),
        (
            "endless redirects",
            Box::new(|r| {
                r.path
                    .contains("/blobs/")
                    .then(|| reply(307, "").header("Location", r.path.clone()))
            }),
            "redirects too often",
        ),
        (
            "an endless head",
            Box::new(|r| {
                r.path
                    .contains("/manifests/")
                    .then(|| reply(200, "").header("X", "y".repeat(1 << 20)))
            }),
            "",
        ),
    ];
    for (name, lie, part) in cases {
        let server = Server::start(made.blobs.clone(), lie);
        let host = Host::new();
        let error = host
            .pull(&format!("{}/a:{TAG}", server.host))
            .expect_err(name);
        let text = chain(&error);
        assert!(text.contains(part), "{name}: {text}");
        host.assert_nothing();
        assert!(
            server.log.lock().unwrap().len() < 100,
            "{name}: it is tried without end"
        );
    }
}

#[test]
fn refusals_are_tried_again_where_that_helps_and_told_where_not() {
    let made = image(vec![layer("a", 1000)], TAG);
    let busy = Server::start(made.blobs.clone(), |r| {
        match (r.path.contains("/manifests/"), r.seen) {
            (true, 0) => Some(reply(429, "").header("Retry-After", "0")),
            (true, 1) => Some(reply(503, "")),
            (true, 2) => Some(Reply {
                cut: Some(0),
                ..reply(200, "x")
            }),
            _ => None,
        }
    });
    Host::new().pull(&format!("{}/a:{TAG}", busy.host)).unwrap();
    assert_eq!(busy.requests("/manifests/").len(), 4);

    for (status, tries) in [(500, 6), (429, 6), (404, 1), (400, 1), (401, 1), (403, 1)] {
        let server = Server::start(made.blobs.clone(), move |_| {
            Some(reply(
                status,
                r#"{"errors":[{"code":"X","message":"because"}]}"#,
            ))
        });
        let host = Host::new();
        let error = host.pull(&format!("{}/a:{TAG}", server.host)).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("because") && text.contains("manifests/v1"),
            "{status}: {text}"
        );
        assert_eq!(server.requests("").len(), tries, "{status}");
        host.assert_nothing();
    }
    // A wait that is too long is an error, at once.
    let server = Server::start(made.blobs, |_| {
        Some(reply(429, "").header("Retry-After", "86400"))
    });
    let error = Host::new()
        .pull(&format!("{}/a:{TAG}", server.host))
        .unwrap_err();
    assert!(matches!(error, Error::Status { .. }));
    assert_eq!(server.requests("").len(), 1);
    // Nobody listens.
    let error = Host::new().pull("127.0.0.1:1/a:v1").unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

fn authorized(r: &Request, value: &str) -> bool {
    r.headers.get("authorization").is_some_and(|v| v == value)
}

#[test]
fn credentials_go_where_they_belong_and_nowhere_else() {
    let made = image(vec![layer("a", 50_000)], TAG);
    let blobs = made.blobs.clone();
    let elsewhere = Server::start(blobs, |_| None);
    let far = elsewhere.host.clone();
    // u:p
    let basic = "Basic dTpw";
    let registry = Server::start(made.blobs.clone(), move |r| {
        if !authorized(r, basic) {
            return Some(reply(401, "").header("WWW-Authenticate", "Basic realm=\"r\""));
        }
        let to = format!("http://{far}{}", r.path);
        r.path
            .contains("/blobs/")
            .then(|| reply(307, "").header("Location", to))
    });
    let host = Host::new();
    let auth = |password: &str| {
        let text =
            serde_json::json!({"auths": {&registry.host: {"username": "u", "password": password}}});
        host.write("config.json", &text.to_string());
    };
    let name = format!("{}/a:{TAG}", registry.host);
    let error = host.pull(&name).unwrap_err();
    assert!(
        matches!(&error, Error::Denied { tried, .. } if tried == "no credentials"),
        "{error}"
    );
    auth("wrong");
    let error = chain(&host.pull(&name).unwrap_err());
    assert!(
        error.contains("config.json") && !error.contains("wrong"),
        "{error}"
    );
    auth("p");
    assert_eq!(host.pull(&name).unwrap().opened, Opened::Node);
    let seen = elsewhere.requests("/blobs/");
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|r| !r.headers.contains_key("authorization")),
        "{seen:?}"
    );
}

#[test]
fn tokens_are_fetched_renewed_and_given_to_their_registry() {
    let made = image(vec![layer("a", 50_000), layer("b", 60_000)], TAG);
    let given = std::sync::atomic::AtomicUsize::new(0);
    let tokens = Server::start(made.blobs.clone(), move |r| {
        if !authorized(r, "Basic dTpw") {
            return Some(reply(
                401,
                r#"{"details":"incorrect username or password"}"#,
            ));
        }
        let number = given.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(reply(200, format!(r#"{{"token":"t{number}"}}"#)))
    });
    let realm = tokens.host.clone();
    // The first token runs out in the middle.
    let registry = Server::start(made.blobs.clone(), move |r| {
        let wanted = if r.path.contains("/blobs/") {
            "Bearer t1"
        } else {
            "Bearer t0"
        };
        let challenge = format!(
            "Bearer realm=\"http://{realm}/token\",service=\"reg\",scope=\"repository:x:pull\""
        );
        (!authorized(r, wanted)).then(|| reply(401, "").header("WWW-Authenticate", challenge))
    });
    let host = Host::new();
    let name = format!("{}/team/a:{TAG}", registry.host);
    let anonymous = host.pull(&name).unwrap_err();
    assert!(
        chain(&anonymous).contains("incorrect username"),
        "{anonymous}"
    );
    let mut request = PullRequest::new(name.parse().unwrap());
    let bad = rkube_image::Credential::basic("u", "wrong");
    let good = rkube_image::Credential::basic("u", "p");
    let ring =
        |c: &rkube_image::Credential| rkube_image::Keyring::single(&registry.host, c.clone());
    request.keyrings = vec![ring(&bad), ring(&good)];
    let pulled = host.registries.pull_image(&host.store, &request).unwrap();
    assert_eq!(
        pulled.opened,
        Opened::Request {
            keyring: 1,
            fingerprint: good.fingerprint()
        }
    );
    let asked = tokens.requests("/token");
    assert!(
        asked
            .iter()
            .all(|r| r.path.contains("scope=repository%3Ateam%2Fa%3Apull")),
        "{asked:?}"
    );
    assert!(asked.iter().all(|r| r.path.contains("service=reg")));
    // A token server without TLS elsewhere gets no password.
    let registry = Server::start(made.blobs, |_| {
        let challenge = "Bearer realm=\"http://token.example/t\"";
        Some(reply(401, "").header("WWW-Authenticate", challenge))
    });
    request = PullRequest::new(format!("{}/a:{TAG}", registry.host).parse().unwrap());
    request.keyrings = vec![rkube_image::Keyring::single(&registry.host, good)];
    let error = host
        .registries
        .pull_image(&host.store, &request)
        .unwrap_err();
    assert!(chain(&error).contains("without TLS"), "{error}");
}

#[test]
fn mirrors_come_first_and_their_failures_are_told() {
    let made = image(vec![layer("a", 1000)], TAG);
    let broken = Server::start(made.blobs.clone(), |_| Some(reply(404, "")));
    let mirror = Server::start(made.blobs, |_| None);
    let host = Host::new();
    host.write(
        "registries.conf",
        &format!(
            "[[registry]]\nprefix = 'registry.invalid/hub'\nlocation = '{}/void'\n[[registry.mirror]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{}/mirror'\n",
            broken.host, broken.host, mirror.host
        ),
    );
    let pulled = host.pull("registry.invalid/hub/app:v1").unwrap();
    assert_eq!(pulled.endpoint, mirror.host);
    assert_eq!(broken.requests("")[0].path, "/v2/app/manifests/v1");
    assert_eq!(mirror.requests("")[0].path, "/v2/mirror/app/manifests/v1");
    // It is stored under the name that was asked for.
    host.store.resolve("registry.invalid/hub/app:v1").unwrap();
    host.write(
        "registries.conf",
        "[[registry]]\nprefix = 'registry.invalid'\nblocked = true\n",
    );
    let error = host.pull("registry.invalid/hub/app:v1").unwrap_err();
    assert!(matches!(error, Error::Blocked { .. }));
}

#[test]
fn a_cancelled_pull_ends_and_leaves_nothing_visible() {
    let made = image(vec![layer("a", 500_000)], TAG);
    let digest = made.layers[0].0;
    let blobs = made.blobs.clone();
    let server = Server::start(made.blobs, move |r| {
        is_blob(r, &digest).then(|| Reply {
            stall: Some(100_000),
            ..plain(r, &blobs)
        })
    });
    let mut host = Host::new();
    host.registries = rkube_distribution::Registries::of_root(host.dir.path());
    let request = PullRequest::new(format!("{}/a:{TAG}", server.host).parse().unwrap());
    let cancel = request.cancel.clone();
    let error = std::thread::scope(|scope| {
        let pull = scope.spawn(|| host.registries.pull_image(&host.store, &request));
        while server.requests(&digest.to_string()).is_empty() {
            std::thread::yield_now();
        }
        cancel.cancel();
        pull.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, Error::Cancelled), "{error}");
    host.assert_nothing();
}

#[test]
fn the_same_image_at_once_is_fetched_once() {
    let made = image(vec![layer("a", 800_000)], TAG);
    let digest = made.layers[0].0;
    let server = Server::start(made.blobs, |_| None);
    let host = Host::new();
    let name = format!("{}/a:{TAG}", server.host);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| host.pull(&name).unwrap()))
            .collect();
        pulls.into_iter().for_each(|p| drop(p.join().unwrap()));
    });
    assert_eq!(server.requests(&digest.to_string()).len(), 1);
}
