//! Images from and to a real registry: Debian's docker-registry on the test
//! host's loopback, with skopeo as the other side.

mod flags;
mod room;
mod ways;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::{Case, lacking};
use crate::command::{Cmd, Output};
use crate::host::TestHost;
use crate::images;
use crate::pods::{pod, status, with};
use crate::registry::{Options, Registry, USER};

pub(super) fn cases() -> Vec<Case> {
    let own = vec![
        Case::new("registry::there_and_back", there_and_back).within_secs(300),
        Case::new("registry::minbase_there_and_back", minbase_there_and_back).within_secs(600),
        Case::new("registry::tls_and_password", tls_and_password).within_secs(300),
        Case::new("registry::private_images", private_images).within_secs(300),
        Case::new("registry::what_skopeo_writes", what_skopeo_writes).within_secs(300),
        Case::new("registry::reasons", reasons).within_secs(300),
        Case::new("registry::archives_and_names", archives_and_names).within_secs(300),
        Case::new("registry::damage_is_found", damage_is_found).within_secs(300),
    ];
    [own, room::cases(), ways::cases(), flags::cases()].concat()
}

/// `rkube image ARGS...`.
fn image(host: &TestHost, args: &[&str]) -> anyhow::Result<Cmd> {
    Ok(host
        .rkube(["image"].iter().chain(args))?
        .within(Duration::from_secs(240)))
}

fn import_busybox(host: &TestHost, name: &str) -> anyhow::Result<()> {
    let tar = images::busybox()?;
    image(host, &["import", &tar.to_string_lossy(), name])?.ok()?;
    Ok(())
}

/// A pod whose image is pulled each time.
fn pulling(image: &str, text: &str) -> Value {
    let container = json!({
        "name": "a", "image": image, "imagePullPolicy": "Always", "command": ["sh", "-c", text],
    });
    pod("p", &[container])
}

/// The digest that `image push` and `image pull` print last.
fn digest_of(output: &Output) -> anyhow::Result<String> {
    let line = output.stdout.lines().last().context("no output")?;
    let (_, digest) = line.rsplit_once('@').context("no digest")?;
    Ok(digest.to_owned())
}

fn there_and_back(host: &TestHost) -> anyhow::Result<()> {
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    let pushed = digest_of(&image(host, &["push", "local/busybox:1", &name])?.ok()?)?;
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let lines = host.lines_of(pulling(&name, "echo $((6*7))"))?;
    ensure!(lines == ["42"], "{lines:?}");
    // The second time the registry is asked and nothing is fetched.
    let again = image(host, &["pull", &name])?.ok()?;
    ensure!(
        again.stdout.contains("0B fetched") && digest_of(&again)? == pushed,
        "{again}"
    );
    let by_digest = format!("{}@{pushed}", registry.image("team/busybox"));
    ensure!(host.lines_of(pulling(&by_digest, "echo yes"))? == ["yes"]);
    // What the status says, and where it came from.
    host.up(&[with(
        pulling(&name, "sleep 1000"),
        "metadata",
        json!({"name": "q"}),
    )])?;
    let shown = host.inspect("q")?;
    let id = status(&shown, "a")["imageID"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(id == by_digest, "imageID is {id}");
    for reason in ["Pulling", "Pulled"] {
        host.wait_event("q", reason)?;
    }
    host.rm(&["q"])?;
    // The same blobs are not sent twice, also to another repository.
    let other = image(host, &["push", &name, &registry.image("other/busybox:2")])?.ok()?;
    ensure!(other.stdout.contains(": 0B sent"), "{other}");
    Ok(())
}

fn minbase_there_and_back(host: &TestHost) -> anyhow::Result<()> {
    let tar = match images::minbase() {
        Ok(tar) => tar,
        Err(e) => return Err(lacking(&format!("no minbase tree can be made here: {e:#}"))),
    };
    let registry = Registry::start(host, "plain", Options::default())?;
    image(host, &["import", &tar.to_string_lossy(), "local/minbase:1"])?.ok()?;
    let name = registry.image("debian:minbase");
    image(host, &["push", "local/minbase:1", &name])?.ok()?;
    image(host, &["rm", "local/minbase:1"])?.ok()?;
    let lines = host.lines_of(pulling(&name, "dpkg --get-selections | grep -c install"))?;
    let count: u32 = lines.first().context("no line")?.parse()?;
    ensure!(count > 50, "{lines:?}");
    let verified = image(host, &["verify", &name])?.ok()?;
    ensure!(verified.stdout.contains("sound"), "{verified}");
    Ok(())
}

/// Makes the node trust a registry's certificate.
fn trust(host: &TestHost, registry: &Registry) -> anyhow::Result<()> {
    let dir = host.root().join("etc/rkube/certs.d").join(&registry.host);
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(&registry.certificate, dir.join("ca.crt"))?;
    Ok(())
}

fn login(host: &TestHost, registry: &Registry, password: &str) -> anyhow::Result<Cmd> {
    let args = ["login", "-u", USER.0, "--password-stdin", &registry.host];
    Ok(image(host, &args)?.stdin(password))
}

fn tls_and_password(host: &TestHost) -> anyhow::Result<()> {
    let options = Options {
        tls: true,
        password: true,
        port: None,
    };
    let registry = Registry::start(host, "tls", options)?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    let push = || image(host, &["push", "local/busybox:1", &name]);
    let refused = push()?.exits(1)?;
    ensure!(refused.stderr.contains("certs.d"), "{refused}");
    trust(host, &registry)?;
    let refused = push()?.exits(1)?;
    ensure!(refused.stderr.contains("access denied"), "{refused}");
    let refused = login(host, &registry, "wrong")?.exits(1)?;
    ensure!(!refused.stderr.contains("wrong"), "{refused}");
    login(host, &registry, USER.1)?.ok()?;
    push()?.ok()?;
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let lines = host.lines_of(pulling(&name, "echo in"))?;
    ensure!(lines == ["in"], "{lines:?}");
    image(host, &["logout", &registry.host])?.ok()?;
    let refused = image(host, &["pull", &name])?.exits(1)?;
    ensure!(refused.stderr.contains("no credentials"), "{refused}");
    Ok(())
}

/// A Secret that opens a registry, as `kubectl create secret docker-registry`
/// makes it.
fn pull_secret(registry: &Registry) -> Value {
    let config = json!({"auths": {&registry.host: {"username": USER.0, "password": USER.1}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config.to_string()},
    })
}

fn waits(shown: &Value, reason: &str) -> bool {
    status(shown, "a")["state"]["waiting"]["reason"] == reason
}

/// `rkube run --detach` of pods that are not expected to come up.
fn try_up(host: &TestHost, objects: &[Value]) -> anyhow::Result<()> {
    let file = host.manifest(objects)?;
    let file = file.to_string_lossy();
    // It gives up waiting; the pods stay.
    host.rkube(["run", "--detach", "--timeout", "1", "-f", &*file])?
        .output()?;
    Ok(())
}

fn private_images(host: &TestHost) -> anyhow::Result<()> {
    let options = Options {
        password: true,
        ..Options::default()
    };
    let registry = Registry::start(host, "private", options)?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    login(host, &registry, USER.1)?.ok()?;
    image(host, &["push", "local/busybox:1", &name])?.ok()?;
    image(host, &["logout", &registry.host])?.ok()?;
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
    ensure!(!list.contains("busybox"), "{list}");
    let named = |name: &str, policy: &str, secret: bool| {
        let made = pulling(&registry.image("team/busybox:1"), "sleep 1000");
        let made = with(made, "metadata", json!({"name": name}));
        let made = with(
            made,
            "spec.containers.0",
            json!({"imagePullPolicy": policy}),
        );
        if secret {
            with(
                made,
                "spec",
                json!({"imagePullSecrets": [{"name": "pull"}]}),
            )
        } else {
            made
        }
    };
    // A pod with the secret gets it.
    host.up(&[pull_secret(&registry), named("with", "IfNotPresent", true)])?;
    // One without does not, though the image is here now.
    try_up(host, &[named("without", "IfNotPresent", false)])?;
    let shown = host.wait_pod("without", "a refusal", |p| {
        waits(p, "ErrImagePull") || waits(p, "ImagePullBackOff")
    })?;
    let message = &status(&shown, "a")["state"]["waiting"]["message"];
    ensure!(message.to_string().contains("access denied"), "{message}");
    try_up(host, &[named("never", "Never", false)])?;
    host.wait_pod("never", "a refusal", |p| waits(p, "ErrImageNeverPull"))?;
    // The same credential is proof enough, without the registry.
    let (secret, second) = (
        pull_secret(&registry),
        named("with-too", "IfNotPresent", true),
    );
    drop(registry);
    host.rm(&["without", "never"])?;
    host.up(&[secret, second])?;
    host.rm(&["with", "with-too"])?;
    Ok(())
}

fn skopeo(host: &TestHost, args: &[&str]) -> anyhow::Result<Output> {
    if !Path::new("/usr/bin/skopeo").exists() {
        return Err(lacking("skopeo is not installed"));
    }
    let fixed = ["--insecure-policy"];
    Cmd::new("skopeo", fixed.iter().chain(args))
        .env("TMPDIR", host.files())
        .within(Duration::from_secs(120))
        .ok()
}

fn what_skopeo_writes(host: &TestHost) -> anyhow::Result<()> {
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/busybox:1")?;
    let archive = host.files().join("saved.tar");
    let archive = archive.to_string_lossy();
    image(host, &["save", "-o", &archive, "local/busybox:1"])?.ok()?;
    // rkube's archive and its push are read by skopeo, and say the same.
    let ours = registry.image("by/rkube:1");
    let pushed = digest_of(&image(host, &["push", "local/busybox:1", &ours])?.ok()?)?;
    let inspect = format!("docker://{ours}");
    let shown = skopeo(host, &["inspect", "--tls-verify=false", &inspect])?;
    ensure!(shown.json()?["Digest"] == pushed.as_str(), "{shown}");
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let (oci, docker) = (
        format!("oci-archive:{archive}"),
        format!("docker-archive:{archive}"),
    );
    for (tag, source, options) in [
        ("oci", &oci, &["--format", "oci"][..]),
        ("docker", &oci, &["--format", "v2s2"]),
        (
            "zstd",
            &oci,
            &["--format", "oci", "--dest-compress-format", "zstd"],
        ),
        (
            "gzip",
            &docker,
            &["--dest-compress-format", "gzip", "--dest-compress"],
        ),
    ] {
        let name = registry.image(&format!("by/skopeo:{tag}"));
        let to = format!("docker://{name}");
        let mut args = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        args.extend(options);
        args.extend([source.as_str(), &to]);
        skopeo(host, &args).with_context(|| tag.to_owned())?;
        let lines = host
            .lines_of(pulling(&name, "echo read"))
            .with_context(|| tag.to_owned())?;
        ensure!(lines == ["read"], "{tag}: {lines:?}");
    }
    // All of them are one file system: its layer is unpacked once.
    let list = image(host, &["ls", "-o", "json"])?.ok()?.json()?;
    ensure!(list.as_array().is_some_and(|l| l.len() >= 3), "{list}");
    let layers = std::fs::read_dir(host.root().join("var/lib/rkube/images/layers"))?.count();
    ensure!(layers == 2, "{layers} layers: busybox and the built-in one");
    Ok(())
}

fn reasons(host: &TestHost) -> anyhow::Result<()> {
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("late/busybox:1");
    let port = registry.port();
    // Nothing is there yet: the pod waits, and runs once it is.
    try_up(
        host,
        &[with(
            pulling(&name, "sleep 1000"),
            "metadata",
            json!({"name": "late"}),
        )],
    )?;
    let shown = host.wait_pod("late", "a failed pull", |p| {
        waits(p, "ErrImagePull") || waits(p, "ImagePullBackOff")
    })?;
    let message = status(&shown, "a")["state"]["waiting"]["message"].to_string();
    ensure!(message.contains("404"), "{message}");
    host.wait_event("late", "Failed")?;
    host.wait_pod("late", "ImagePullBackOff", |p| waits(p, "ImagePullBackOff"))?;
    host.wait_event("late", "BackOff")?;
    image(host, &["push", "local/busybox:1", &name])?.ok()?;
    host.wait_pod("late", "to run", |p| p["status"]["phase"] == "Running")?;
    host.rm(&["late"])?;
    // A registry that is gone, a name that is none, a policy that asks nobody.
    drop(registry);
    let cases = [
        (
            "gone",
            format!("127.0.0.1:{}/x:1", port.unwrap_or(1)),
            "Always",
            "ErrImagePull",
        ),
        (
            "bad",
            "UPPER/CASE/x".to_owned(),
            "Always",
            "InvalidImageName",
        ),
        (
            "never",
            "nothing/here:1".to_owned(),
            "Never",
            "ErrImageNeverPull",
        ),
    ];
    for (pod_name, name, policy, reason) in &cases {
        let made = pulling(name, "true");
        let made = with(made, "metadata", json!({"name": pod_name}));
        let made = with(
            made,
            "spec.containers.0",
            json!({"imagePullPolicy": policy}),
        );
        try_up(host, &[made])?;
        host.wait_pod(pod_name, reason, |p| {
            waits(p, reason) || (*reason == "ErrImagePull" && waits(p, "ImagePullBackOff"))
        })?;
    }
    host.rm(&["gone", "bad", "never"])?;
    Ok(())
}

fn archives_and_names(host: &TestHost) -> anyhow::Result<()> {
    import_busybox(host, "local/busybox:1")?;
    image(host, &["tag", "local/busybox:1", "local/second:2"])?.ok()?;
    let archive = host.files().join("two.tar");
    let archive = archive.to_string_lossy();
    image(
        host,
        &["save", "-o", &archive, "local/busybox:1", "local/second:2"],
    )?
    .ok()?;
    image(host, &["rm", "local/busybox:1", "local/second:2"])?.ok()?;
    let loaded = image(host, &["load", "-i", &archive])?.ok()?;
    ensure!(loaded.stdout.contains("local/busybox:1"), "{loaded}");
    let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
    ensure!(list.contains("local/busybox:1"), "{list}");
    let history = image(host, &["history", "local/busybox:1"])?.ok()?;
    ensure!(history.stdout.contains("rkube image import"), "{history}");
    let usage = image(host, &["df", "-o", "json"])?.ok()?.json()?;
    let reclaimable = usage["images"]["reclaimable_bytes"].as_u64().unwrap_or(0);
    ensure!(reclaimable > 1_000_000, "{usage}");
    // What is pinned stays, whatever is pruned.
    image(host, &["pin", "local/busybox:1"])?.ok()?;
    let pruned = image(host, &["prune", "--all"])?.ok()?;
    ensure!(!pruned.stdout.contains("busybox"), "{pruned}");
    image(host, &["unpin", "local/busybox:1"])?.ok()?;
    let pruned = image(host, &["prune", "--all"])?.ok()?;
    ensure!(
        pruned.stdout.contains("untagged docker.io/local/busybox:1"),
        "{pruned}"
    );
    let left = std::fs::read_dir(host.root().join("var/lib/rkube/images/blobs/sha256"))?.count();
    ensure!(left == 0, "{left} blobs are left");
    Ok(())
}

fn damage_is_found(host: &TestHost) -> anyhow::Result<()> {
    import_busybox(host, "local/busybox:1")?;
    let sound = image(host, &["verify"])?.ok()?;
    ensure!(sound.stdout.contains("sound"), "{sound}");
    let layers = host.root().join("var/lib/rkube/images/layers");
    let layer = std::fs::read_dir(&layers)?
        .next()
        .context("no layer")??
        .path();
    let passwd = layer.join("diff/etc/passwd");
    let before = std::fs::read(&passwd)?;
    let mut changed = before.clone();
    changed[0] = b'R';
    std::fs::write(&passwd, &changed)?;
    let damaged = image(host, &["verify", "local/busybox:1"])?.exits(1)?;
    ensure!(
        damaged
            .stdout
            .contains("etc/passwd: its content is another"),
        "{damaged}"
    );
    std::fs::write(&passwd, &before)?;
    std::fs::write(layer.join("diff/etc/extra"), "x")?;
    let damaged = image(host, &["verify"])?.exits(1)?;
    ensure!(
        damaged
            .stdout
            .contains("etc/extra: it is not of this layer"),
        "{damaged}"
    );
    std::fs::remove_file(layer.join("diff/etc/extra"))?;
    image(host, &["verify"])?.ok()?;
    Ok(())
}
