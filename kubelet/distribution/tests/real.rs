//! Against Debian's docker-registry, with TLS: push, mount, pull, tags. The
//! black-box suite has the whole matrix; this is what `cargo test` sees.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::real::{Real, import};
use common::{Host, layer};
use rkube_image::pull::{Cancel, Progress, Silent};
use rkube_image::{Credential, Reference};

/// bcrypt of `secret` (cost 4) for user `user`.
const HTPASSWD: &str = "user:$2b$04$wlAGm5wdly4G03MgC/EpzuZCqTLW49u5UHYLQc/JX9p5rmy99H5Sm\n";

fn silent() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

#[test]
fn an_image_goes_there_and_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let Some(real) = Real::start(dir.path(), "") else {
        return;
    };
    let host = Host::new();
    import(&host, "local/app:1", &layer("file", 3_000_000));
    let to = |path: &str| {
        format!("{}/{path}", real.host)
            .parse::<Reference>()
            .unwrap()
    };
    let push = |query: &str, to: &Reference| {
        host.registries
            .push_image(&host.store, query, to, &silent(), &Cancel::default())
            .unwrap()
    };
    let first = push("local/app:1", &to("team/app:1"));
    assert!(first.sent_bytes > 3_000_000);
    // All of it is there; then another repository of the registry has it.
    assert_eq!(push("local/app:1", &to("team/app:2")).sent_bytes, 0);
    assert_eq!(push("local/app:1", &to("other/app:1")).sent_bytes, 0);
    let guest = Host::new();
    for name in ["team/app:1", "team/app:2", "other/app:1"] {
        let pulled = guest.pull(&to(name).to_string()).unwrap();
        assert_eq!(pulled.image.manifest_digest, first.digest, "{name}");
    }
    let by_digest = format!("{}/team/app@{}", real.host, first.digest);
    assert_eq!(
        Host::new().pull(&by_digest).unwrap().image.manifest_digest,
        first.digest
    );
    let error = guest.pull(&to("team/none:1").to_string()).unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
}

#[test]
fn tls_with_its_own_authority_and_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let (crt, pem) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&crt, cert.pem()).unwrap();
    std::fs::write(&pem, key.serialize_pem()).unwrap();
    std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
    let extra = format!(
        "  tls: {{certificate: {}, key: {}}}\nauth: {{htpasswd: {{realm: r, path: {}}}}}\n",
        crt.display(),
        pem.display(),
        dir.path().join("htpasswd").display()
    );
    let Some(real) = Real::start(dir.path(), &extra) else {
        return;
    };
    let host = Host::new();
    import(&host, "local/app:1", &layer("file", 1000));
    let to: Reference = format!("{}/app:1", real.host).parse().unwrap();
    let push = || {
        host.registries.push_image(
            &host.store,
            "local/app:1",
            &to,
            &silent(),
            &Cancel::default(),
        )
    };
    // Nobody vouches for it yet.
    let error = rkube_distribution::chain(&push().unwrap_err());
    assert!(error.contains("certs.d"), "{error}");
    host.write(&format!("certs.d/{}/ca.crt", real.host), &cert.pem());
    let error = rkube_distribution::chain(&push().unwrap_err());
    assert!(error.contains("no credentials"), "{error}");
    let file = host.registries.credential_file();
    let login = |password: &str| {
        host.registries
            .login(&file, &real.host, &Credential::basic("user", password))
    };
    assert!(login("wrong").is_err() && !file.exists());
    login("secret").unwrap();
    let pushed = push().unwrap();
    assert_eq!(
        host.pull(&to.to_string()).unwrap().image.manifest_digest,
        pushed.digest
    );
    assert!(host.registries.logout(&file, &real.host).unwrap());
    assert!(host.pull(&to.to_string()).is_err());
    // Insecure by the user's own word: no authority is asked.
    let guest = Host::new();
    guest.write(
        "registries.conf",
        &format!(
            "[[registry]]\nlocation = '{}'\ninsecure = true\n",
            real.host
        ),
    );
    guest
        .registries
        .login(
            &guest.registries.credential_file(),
            &real.host,
            &Credential::basic("user", "secret"),
        )
        .unwrap();
    guest.pull(&to.to_string()).unwrap();
}
