//! docker-registry with a token server of the test's own: tokens are JSON web
//! tokens that the registry checks against the test's certificate.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::real::Real;
use common::{Host, Server, layer, reply};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rkube_image::pull::{Cancel, Progress, Silent};
use rkube_image::{Credential, Reference};
use serde_json::{Value, json};

/// Signs tokens for docker-registry.
struct Signer {
    key: EcdsaKeyPair,
    der: Vec<u8>,
    pem: String,
}

impl Signer {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["tokens.test".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        let rng = SystemRandom::new();
        let pkcs8 = key.serialize_der();
        Self {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &rng).unwrap(),
            der: cert.der().to_vec(),
            pem: cert.pem(),
        }
    }

    /// A token for these scopes, good for so many seconds.
    fn token(&self, scopes: &[String], seconds: u64) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|s| {
                let mut parts = s.splitn(3, ':');
                let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.der)]});
        let claims = json!({
            "iss": "tokens.test", "sub": "user", "aud": "registry.test",
            "exp": now + seconds, "nbf": now - 60, "iat": now - 60, "jti": "1", "access": access,
        });
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), text.as_bytes())
            .unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The scopes of a token request's query.
fn scopes(path: &str) -> Vec<String> {
    let query = path.split_once('?').map_or("", |(_, q)| q);
    let values = query.split('&').filter_map(|p| p.strip_prefix("scope="));
    values
        .map(|v| {
            v.replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",")
        })
        .collect()
}

#[test]
fn tokens_open_what_they_are_for() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Arc::new(Signer::new());
    std::fs::write(dir.path().join("root.pem"), &signer.pem).unwrap();
    let given = Arc::new(AtomicUsize::new(0));
    let (own, count) = (Arc::clone(&signer), Arc::clone(&given));
    let tokens = Server::start(Default::default(), move |r| {
        // user:secret
        let known = r
            .headers
            .get("authorization")
            .is_some_and(|v| v == "Basic dXNlcjpzZWNyZXQ=");
        if !known && r.headers.contains_key("authorization") {
            return Some(reply(
                401,
                r#"{"details":"incorrect username or password"}"#,
            ));
        }
        count.fetch_add(1, Ordering::Relaxed);
        let mut wanted = scopes(&r.path);
        // Nobody may read what is public, and no more.
        wanted.retain(|s| known || s.starts_with("repository:public/"));
        if !known {
            wanted.iter_mut().for_each(|s| *s = s.replace(",push", ""));
        }
        Some(reply(
            200,
            json!({"token": own.token(&wanted, 300)}).to_string(),
        ))
    });
    let extra = format!(
        "auth: {{token: {{realm: 'http://{}/token', service: registry.test, issuer: tokens.test, rootcertbundle: {}}}}}\n",
        tokens.host,
        dir.path().join("root.pem").display()
    );
    let Some(real) = Real::start(dir.path(), &extra) else {
        return;
    };
    let host = Host::new();
    common::real::import(&host, "local/app:1", &layer("file", 500_000));
    let at = |path: &str| {
        format!("{}/{path}", real.host)
            .parse::<Reference>()
            .unwrap()
    };
    let silent: Arc<dyn Progress> = Arc::new(Silent);
    let push = |to: &Reference| {
        host.registries
            .push_image(&host.store, "local/app:1", to, &silent, &Cancel::default())
    };
    let error = rkube_distribution::chain(&push(&at("public/app:1")).unwrap_err());
    assert!(error.contains("access denied (no credentials)"), "{error}");
    let file = host.registries.credential_file();
    let login = |password: &str| {
        host.registries
            .login(&file, &real.host, &Credential::basic("user", password))
    };
    assert!(login("wrong").is_err());
    login("secret").unwrap();
    let pushed = push(&at("public/app:1")).unwrap();
    // Another repository of the registry: the blobs are mounted, which needs a
    // token for both.
    assert_eq!(push(&at("private/app:1")).unwrap().sent_bytes, 0);
    let before = given.load(Ordering::Relaxed);
    let guest = Host::new();
    let pulled = guest.pull(&at("public/app:1").to_string()).unwrap();
    assert_eq!(pulled.image.manifest_digest, pushed.digest);
    assert_eq!(
        given.load(Ordering::Relaxed),
        before + 1,
        "one token for the whole image"
    );
    assert!(guest.pull(&at("private/app:1").to_string()).is_err());
    host.pull(&at("private/app:1").to_string()).unwrap();
}
