//! Ways to a registry: with and without TLS and credentials, over mirrors and
//! rewrites, with credential helpers; and what the other side reads.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{digest_of, image, import_busybox, login, pulling, skopeo, trust, try_up, waits};
use crate::case::{Case, lacking};
use crate::host::TestHost;
use crate::images;
use crate::pods::status;
use crate::registry::{Options, Registry, USER};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("registry::every_way_in", every_way_in).within_secs(600),
        Case::new("registry::what_skopeo_reads", what_skopeo_reads).within_secs(600),
        Case::new("registry::mirrors_and_rewrites", mirrors_and_rewrites).within_secs(300),
        Case::new("registry::credential_helpers", credential_helpers).within_secs(300),
    ]
}

/// An image of Debian's packages, big and small, goes there and comes back
/// by a pod that pulls always.
fn every_way_in(host: &TestHost) -> anyhow::Result<()> {
    let minbase = match images::minbase() {
        Ok(tar) => tar,
        Err(e) => return Err(lacking(&format!("no minbase tree can be made here: {e:#}"))),
    };
    for (tls, password) in [(false, true), (true, false), (true, true)] {
        let name = format!("tls-{tls}-password-{password}");
        let port = None;
        let options = Options {
            tls,
            password,
            port,
        };
        let registry = Registry::start(host, &name, options)?;
        if tls {
            trust(host, &registry)?;
        }
        if password {
            login(host, &registry, USER.1)?.ok()?;
        }
        import_busybox(host, "local/busybox:1")?;
        let mut there = vec![("local/busybox:1", registry.image("team/busybox:1"))];
        // The large one by the way that has all of it; the plain one is
        // `minbase_there_and_back`.
        if tls && password {
            image(
                host,
                &["import", &minbase.to_string_lossy(), "local/minbase:1"],
            )?
            .ok()?;
            there.push(("local/minbase:1", registry.image("debian:minbase")));
        }
        for (own, remote) in &there {
            image(host, &["push", own, remote])?.ok()?;
            image(host, &["rm", own])?.ok()?;
            let lines = host
                .lines_of(pulling(remote, "cat /etc/passwd | head -n 1"))
                .with_context(|| format!("{name}: {remote}"))?;
            ensure!(lines[0].starts_with("root:"), "{name}: {lines:?}");
            let verified = image(host, &["verify", remote])?.ok()?;
            ensure!(verified.stdout.contains("sound"), "{verified}");
            image(host, &["rm", remote])?.ok()?;
        }
    }
    Ok(())
}

fn what_skopeo_reads(host: &TestHost) -> anyhow::Result<()> {
    let minbase = match images::minbase() {
        Ok(tar) => tar,
        Err(e) => return Err(lacking(&format!("no minbase tree can be made here: {e:#}"))),
    };
    let registry = Registry::start(host, "plain", Options::default())?;
    image(
        host,
        &["import", &minbase.to_string_lossy(), "local/minbase:1"],
    )?
    .ok()?;
    let ours = registry.image("by/rkube:1");
    let pushed = digest_of(&image(host, &["push", "local/minbase:1", &ours])?.ok()?)?;
    let archive = host.files().join("saved.tar");
    let archive = archive.to_string_lossy();
    image(host, &["save", "-o", &archive, "local/minbase:1"])?.ok()?;
    image(host, &["rm", "local/minbase:1"])?.ok()?;
    // What rkube wrote, skopeo reads: from the registry and from both readings
    // of its archive. What skopeo makes of it, rkube reads.
    let theirs = registry.image("by/skopeo:1");
    let from = format!("docker://{ours}");
    for (source, to) in [
        (from.clone(), format!("docker://{theirs}")),
        (
            from,
            format!(
                "docker-archive:{}:by/archive:1",
                host.files().join("d.tar").display()
            ),
        ),
        (
            format!("oci-archive:{archive}"),
            format!(
                "oci-archive:{}:by/oci:1",
                host.files().join("o.tar").display()
            ),
        ),
        (
            format!("docker-archive:{archive}"),
            format!("dir:{}", host.files().join("dir").display()),
        ),
    ] {
        let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        let args = [
            &["copy", "--quiet"],
            &tls[..],
            &[source.as_str(), to.as_str()],
        ]
        .concat();
        skopeo(host, &args).with_context(|| format!("{source} to {to}"))?;
    }
    let text = "dpkg --get-selections | grep -c install";
    let lines = host.lines_of(pulling(&theirs, text))?;
    let count: u32 = lines.first().context("no line")?.parse()?;
    ensure!(count > 50, "{lines:?}");
    let verified = image(host, &["verify", &theirs])?.ok()?;
    ensure!(verified.stdout.contains("sound"), "{verified}");
    for file in ["d.tar", "o.tar"] {
        let path = host.files().join(file);
        let loaded = image(host, &["load", "-i", &path.to_string_lossy()])?.ok()?;
        // The same file system: its layer is there already.
        ensure!(loaded.stdout.contains("0 of them new"), "{file}: {loaded}");
    }
    let again = image(host, &["pull", &ours])?.ok()?;
    ensure!(digest_of(&again)? == pushed, "{again}");
    Ok(())
}

fn mirrors_and_rewrites(host: &TestHost) -> anyhow::Result<()> {
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/busybox:1")?;
    for path in ["hub/library/busybox:latest", "new/home/app:1"] {
        image(host, &["push", "local/busybox:1", &registry.image(path)])?.ok()?;
    }
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let at = &registry.host;
    let text = format!(
        "[[registry]]\nprefix = 'docker.io'\n[[registry.mirror]]\nlocation = '{at}/hub'\ninsecure = true\n\
         [[registry]]\nprefix = 'old.example/team'\nlocation = '{at}/new/home'\ninsecure = true\n\
         [[registry]]\nprefix = 'evil.example'\nblocked = true\n"
    );
    let dir = host.root().join("etc/rkube");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("registries.conf"), text)?;
    // A short name is Docker Hub's, here by its mirror.
    ensure!(host.lines_of(pulling("busybox", "echo hub"))? == ["hub"]);
    ensure!(host.lines_of(pulling("old.example/team/app:1", "echo moved"))? == ["moved"]);
    let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
    for name in ["docker.io/library/busybox:latest", "old.example/team/app:1"] {
        ensure!(list.contains(name), "{name}: {list}");
    }
    let refused = image(host, &["pull", "evil.example/app:1"])?.exits(1)?;
    ensure!(refused.stderr.contains("blocked"), "{refused}");
    try_up(host, &[pulling("evil.example/app:1", "true")])?;
    let shown = host.wait_pod("p", "a refusal", |p| waits(p, "ErrImagePull"))?;
    let message = status(&shown, "a")["state"]["waiting"]["message"].to_string();
    ensure!(message.contains("blocked"), "{message}");
    host.rm(&["p"])?;
    Ok(())
}

/// A credential helper that keeps one file (docker/docker-credential-helpers:
/// the credential's JSON, or the server, on standard input).
const HELPER: &str = r#"#!/bin/sh
store=$(dirname "$0")/kept
case $1 in
store) cat > "$store" ;;
get) read -r server
    grep -qs "\"ServerURL\":\"$server\"" "$store" || { echo 'credentials not found in native keychain'; exit 1; }
    cat "$store" ;;
erase) rm -f "$store" ;;
esac
"#;

fn credential_helpers(host: &TestHost) -> anyhow::Result<()> {
    let options = Options {
        password: true,
        ..Options::default()
    };
    let registry = Registry::start(host, "private", options)?;
    let dir = host.files().join("bin");
    std::fs::create_dir_all(&dir)?;
    let program = dir.join("docker-credential-kept");
    std::fs::write(&program, HELPER)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", dir.display());
    let config = json!({"credHelpers": {&registry.host: "kept"}});
    let etc = host.root().join("etc/rkube");
    std::fs::create_dir_all(&etc)?;
    std::fs::write(etc.join("config.json"), config.to_string())?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    let push = || {
        Ok::<_, anyhow::Error>(image(host, &["push", "local/busybox:1", &name])?.env("PATH", &path))
    };
    let refused = push()?.exits(1)?;
    ensure!(refused.stderr.contains("no credentials"), "{refused}");
    login(host, &registry, USER.1)?.env("PATH", &path).ok()?;
    // The helper has it, and no file of ours.
    let kept: Value = serde_json::from_slice(&std::fs::read(dir.join("kept"))?)?;
    ensure!(kept["Username"] == USER.0 && kept["Secret"] == USER.1);
    let text = std::fs::read_to_string(etc.join("config.json"))?;
    ensure!(!text.contains("auths"), "{text}");
    push()?.ok()?;
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    image(host, &["pull", &name])?.env("PATH", &path).ok()?;
    // The pod's writer started without the helper on its path: it says so.
    let refused = image(host, &["pull", &name])?
        .env("PATH", "/nowhere")
        .exits(1)?;
    ensure!(
        refused.stderr.contains("docker-credential-kept"),
        "{refused}"
    );
    image(host, &["logout", &registry.host])?
        .env("PATH", &path)
        .ok()?;
    ensure!(!dir.join("kept").exists());
    let refused = image(host, &["pull", &name])?.env("PATH", &path).exits(1)?;
    ensure!(refused.stderr.contains("no credentials"), "{refused}");
    Ok(())
}
