//! Credentials that are tokens: refresh tokens (`identitytoken`), those of
//! helpers (`<token>`), and tokens of the registry itself (`registrytoken`).
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Host, Server, image, layer, reply};
use rkube_distribution::chain;
use rkube_image::pull::Opened;
use serde_json::json;

const TAG: &str = "v1";

fn form(body: &[u8]) -> String {
    String::from_utf8(body.to_vec()).unwrap()
}

#[test]
fn a_refresh_token_is_posted_to_the_token_server_and_nowhere_else() {
    let made = image(vec![layer("a", 50_000)], TAG);
    let tokens = Server::start(made.blobs.clone(), |r| {
        let text = form(&r.body);
        let fits = [
            "grant_type=refresh_token",
            "refresh_token=re%2Ffresh",
            "service=reg",
        ];
        let fits = fits.iter().all(|part| text.contains(part));
        if r.method != "POST" || !fits || r.headers.contains_key("authorization") {
            return Some(reply(401, r#"{"details":"no"}"#));
        }
        Some(reply(200, r#"{"access_token":"short"}"#))
    });
    let realm = tokens.host.clone();
    let registry = Server::start(made.blobs, move |r| {
        let known = r
            .headers
            .get("authorization")
            .is_some_and(|v| v == "Bearer short");
        let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"reg\"");
        (!known).then(|| reply(401, "").header("WWW-Authenticate", challenge))
    });
    let host = Host::new();
    let name = format!("{}/team/a:{TAG}", registry.host);
    let auth = |token: &str| {
        let auths = json!({"auths": {&registry.host: {"identitytoken": token}}});
        host.write("config.json", &auths.to_string());
    };
    auth("other");
    let error = chain(&host.pull(&name).unwrap_err());
    assert!(
        error.contains("config.json") && !error.contains("other"),
        "{error}"
    );
    auth("re/fresh");
    assert_eq!(host.pull(&name).unwrap().opened, Opened::Node);
    let asked = tokens.requests("/token");
    assert!(form(&asked.last().unwrap().body).contains("scope=repository%3Ateam%2Fa%3Apull"));
    assert!(registry.requests("").iter().all(|r| r.body.is_empty()));
}

#[test]
fn a_token_of_the_registry_is_sent_as_it_is() {
    let made = image(vec![layer("a", 50_000)], TAG);
    let registry = Server::start(made.blobs, |r| {
        let known = r
            .headers
            .get("authorization")
            .is_some_and(|v| v == "Bearer ready");
        let challenge = "Bearer realm=\"http://127.0.0.1:1/token\",service=\"reg\"";
        (!known).then(|| reply(401, "").header("WWW-Authenticate", challenge))
    });
    let host = Host::new();
    let auths = json!({"auths": {&registry.host: {"registrytoken": "ready"}}});
    host.write("config.json", &auths.to_string());
    let pulled = host
        .pull(&format!("{}/team/a:{TAG}", registry.host))
        .unwrap();
    assert_eq!(pulled.opened, Opened::Node);
}
