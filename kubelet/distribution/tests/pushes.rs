//! Pushes to registries that are slow, refuse, cut, lie and redirect.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::real::import;
use common::tls::Tls;
use common::{Host, Reply, Request, Server, image, layer, reply};
use rkube_distribution::{Error, Pushed, Result, chain};
use rkube_image::Digest;
use rkube_image::pull::{Cancel, Silent};
use serde_json::json;

const IMAGE: &str = "local/app:1";
/// `u:p`
const BASIC: &str = "Basic dTpw";

/// What a registry was sent, by digest or tag.
type Kept = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// What an honest registry says to a push.
fn honest(r: &Request, kept: &Kept) -> Reply {
    let (path, query) = r.path.split_once('?').unwrap_or((&r.path, ""));
    let name = path.rsplit('/').next().unwrap().to_owned();
    match r.method.as_str() {
        "HEAD" if kept.lock().unwrap().contains_key(&name) => reply(200, ""),
        "POST" => reply(202, "").header("Location", format!("{path}one?state=x")),
        "PUT" if path.contains("/manifests/") => {
            kept.lock().unwrap().insert(name, r.body.clone());
            reply(201, "")
        }
        "PUT" => {
            let digest = Digest::of(&r.body).to_string();
            if !query.contains("state=x") || !query.contains(&digest.replace(':', "%3A")) {
                return reply(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
            }
            kept.lock().unwrap().insert(digest, r.body.clone());
            reply(201, "")
        }
        _ => reply(404, ""),
    }
}

fn registry(special: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (Server, Kept) {
    slow_registry(Duration::ZERO, special)
}

fn slow_registry(
    pause: Duration,
    special: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Kept) {
    let kept = Kept::default();
    let own = Arc::clone(&kept);
    let server = Server::start_slow(HashMap::new(), pause, move |r| {
        Some(special(r).unwrap_or_else(|| honest(r, &own)))
    });
    (server, kept)
}

fn host_with(bytes: usize) -> Host {
    let host = Host::new();
    import(&host, IMAGE, &layer("file", bytes));
    host
}

fn push(host: &Host, to: &str) -> Result<Pushed> {
    let to = to.parse().unwrap();
    let (progress, cancel) = (Arc::new(Silent), Cancel::default());
    host.registries
        .push_image(&host.store, IMAGE, &to, &(progress as _), &cancel)
}

/// All of the image is there.
fn assert_whole(host: &Host, kept: &Kept) {
    let export = host.store.export(IMAGE).unwrap();
    let kept = kept.lock().unwrap();
    for blob in export.layers.iter().chain([&export.config]) {
        assert_eq!(kept[&blob.digest.to_string()].len() as u64, blob.size);
    }
    assert_eq!(kept["1"], export.manifest);
}

fn is_upload(r: &Request) -> bool {
    r.method == "PUT" && r.path.contains("/blobs/")
}

#[test]
fn a_slow_upload_that_goes_on_takes_as_long_as_it_takes() {
    let (server, kept) = slow_registry(Duration::from_millis(120), |_| None);
    // 4.8 s, where a pause of 2 s ends an upload.
    let host = host_with(40 << 20);
    let pushed = push(&host, &format!("{}/app:1", server.host)).unwrap();
    assert!(pushed.sent_bytes > 40 << 20);
    assert_whole(&host, &kept);
    let uploads = server.log.lock().unwrap();
    assert_eq!(uploads.iter().filter(|r| is_upload(r)).count(), 2);
}

#[test]
fn a_registry_that_takes_no_more_has_stalled() {
    let (server, kept) = slow_registry(Duration::from_secs(30), |_| None);
    let host = host_with(40 << 20);
    let error = push(&host, &format!("{}/app:1", server.host)).unwrap_err();
    assert!(
        matches!(error, Error::Transport { .. }),
        "{}",
        chain(&error)
    );
    assert!(!kept.lock().unwrap().contains_key("1"));
}

#[test]
fn what_may_pass_is_sent_again_and_what_cannot_is_told() {
    // An upload is cut, refused for now, and its place is forgotten.
    let (server, kept) = registry(|r| match (is_upload(r), r.seen) {
        (true, 0) => Some(reply(500, "")),
        (true, 1) => Some(reply(429, "").header("Retry-After", "0")),
        (true, 2) => Some(reply(408, "")),
        _ if r.method == "POST" && r.seen == 1 => Some(reply(503, "")),
        _ if r.method == "HEAD" && r.seen == 0 => Some(reply(502, "")),
        _ if r.path.ends_with("/manifests/1") && r.seen == 0 => Some(reply(500, "")),
        _ => None,
    });
    let host = host_with(3000);
    push(&host, &format!("{}/app:1", server.host)).unwrap();
    assert_whole(&host, &kept);

    for (status, most) in [(500, 16), (429, 16), (400, 3), (403, 3), (413, 3)] {
        let (server, kept) = registry(move |r| {
            let text = r#"{"errors":[{"code":"X","message":"because"}]}"#;
            is_upload(r).then(|| reply(status, text))
        });
        let error = push(&host, &format!("{}/app:1", server.host)).unwrap_err();
        assert!(
            chain(&error).contains("because"),
            "{status}: {}",
            chain(&error)
        );
        let log = server.log.lock().unwrap();
        let uploads = log.iter().filter(|r| is_upload(r)).count();
        assert!((1..=most).contains(&uploads), "{status}: {uploads}");
        assert!(!kept.lock().unwrap().contains_key("1"), "{status}");
    }
}

#[test]
fn uploads_go_where_the_registry_says_and_credentials_do_not() {
    let (elsewhere, kept) = registry(|_| None);
    let far = format!("http://{}/v2/app/blobs/uploads/far?state=x", elsewhere.host);
    let (server, own) = registry(move |r| {
        if r.headers.get("authorization").is_none_or(|v| v != BASIC) {
            return Some(reply(401, "").header("WWW-Authenticate", "Basic realm=\"r\""));
        }
        (r.method == "POST").then(|| reply(202, "").header("Location", far.clone()))
    });
    let host = host_with(3000);
    // The repository's own credential is the wrong one: the registry's is next.
    let auth = |password: &str| json!({"username": "u", "password": password});
    let (one, all) = (format!("{}/app", server.host), server.host.clone());
    let auths = json!({"auths": {one: auth("old"), all: auth("p")}});
    host.write("config.json", &auths.to_string());
    push(&host, &format!("{}/app:1", server.host)).unwrap();
    assert!(own.lock().unwrap().contains_key("1"));
    assert_eq!(kept.lock().unwrap().len(), 2);
    let seen = elsewhere.requests("/uploads/far");
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|r| !r.headers.contains_key("authorization"))
    );

    // Relative to the request, without a place, and no address at all.
    let location = |text: &'static str| {
        registry(move |r| {
            (r.method == "POST").then(|| {
                let answer = reply(202, "");
                if text.is_empty() {
                    answer
                } else {
                    answer.header("Location", text)
                }
            })
        })
    };
    let (relative, kept) = location("../uploads/near?state=x");
    push(&host, &format!("{}/app:1", relative.host)).unwrap();
    assert_whole(&host, &kept);
    for (text, part) in [
        ("", "no place"),
        ("ftp://a/b", "neither http"),
        ("http://[/", "address"),
    ] {
        let (server, _) = location(text);
        let error = push(&host, &format!("{}/app:1", server.host)).unwrap_err();
        assert!(chain(&error).contains(part), "{text}: {}", chain(&error));
    }
}

#[test]
fn a_blob_that_cannot_be_mounted_is_sent_by_the_upload_that_was_begun_for_it() {
    let host = host_with(3000);
    let (server, _) = registry(|r| {
        let second = r.method == "HEAD" && r.path.contains("/second/");
        second.then(|| reply(404, ""))
    });
    host.write(
        "registries.conf",
        &format!(
            "[[registry]]\nprefix = 'hub.test'\nlocation = '{}/hub'\n",
            server.host
        ),
    );
    push(&host, "hub.test/first/app:1").unwrap();
    push(&host, "hub.test/second/app:1").unwrap();
    let asked = server.requests("mount=");
    assert_eq!(asked.len(), 2);
    // The other repository by its name there.
    assert!(
        asked.iter().all(|r| r.path.contains("from=hub/first/app")),
        "{asked:?}"
    );
    // Each begun upload was used.
    let log = server.log.lock().unwrap();
    let of = |method: &str| {
        let hits = log.iter().filter(|r| r.method == method);
        hits.filter(|r| r.path.contains("/second/app/blobs/uploads/"))
            .count()
    };
    assert_eq!((of("POST"), of("PUT")), (2, 2));
}

#[test]
fn from_https_nothing_goes_to_http() {
    let made = image(vec![layer("a", 3000)], "1");
    let (plain, sent) = registry(|_| None);
    let far = plain.host.clone();
    let kept = Kept::default();
    let behind = Server::start(made.blobs.clone(), move |r| {
        let to = format!("http://{far}{}one?state=x", r.path);
        match r.method.as_str() {
            "GET" if r.path.contains("/blobs/") => Some(reply(307, "").header("Location", to)),
            "GET" => None,
            "POST" => Some(reply(202, "").header("Location", to)),
            _ => Some(honest(r, &kept)),
        }
    });
    let tls = Tls::before(&behind.host);
    let host = host_with(3000);
    let name = format!("{}/app:1", tls.host);
    let error = chain(&host.pull(&name).unwrap_err());
    assert!(error.contains("certs.d"), "{error}");
    host.write(&format!("certs.d/{}/ca.crt", tls.host), &tls.authority);
    let error = chain(&host.pull(&name).unwrap_err());
    assert!(error.contains("from https to http"), "{error}");
    let error = chain(&push(&host, &name).unwrap_err());
    assert!(error.contains("by http instead of https"), "{error}");
    assert!(plain.requests("").is_empty() && sent.lock().unwrap().is_empty());
    // By the user's own word it does.
    let insecure = format!("[[registry]]\nlocation = '{}'\ninsecure = true\n", tls.host);
    host.write("registries.conf", &insecure);
    push(&host, &name).unwrap();
    assert_eq!(sent.lock().unwrap().len(), 2);
}
