//! The command line's ways: each option that the other cases do not use, the
//! progress of a transfer on a terminal and off one, and skopeo with TLS and a
//! password.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{digest_of, image, import_busybox, login, skopeo, trust};
use crate::case::Case;
use crate::command::{Cmd, Output};
use crate::host::TestHost;
use crate::registry::{Options, Registry, USER};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("registry::options", options).within_secs(300),
        Case::new("registry::options_of_archives", options_of_archives).within_secs(300),
        Case::new("registry::progress", progress).within_secs(300),
        Case::new("registry::skopeo_with_tls_and_password", skopeo_with_tls).within_secs(300),
    ]
}

/// `rkube image ARGS...` with a variable of the environment.
fn image_with(host: &TestHost, name: &str, value: &str, args: &[&str]) -> anyhow::Result<Cmd> {
    Ok(image(host, args)?.env(name, value))
}

fn config(registry: &Registry) -> Value {
    json!({"auths": {&registry.host: {"username": USER.0, "password": USER.1}}})
}

/// Each way to give a credential opens the registry, and none is used that was
/// not meant.
fn options(host: &TestHost) -> anyhow::Result<()> {
    let password = Options {
        password: true,
        ..Options::default()
    };
    let registry = Registry::start(host, "private", password)?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    let dir = host.files().join("docker");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("config.json");
    std::fs::write(&file, config(&registry).to_string())?;
    let (dir, file) = (dir.to_string_lossy(), file.to_string_lossy());

    let quiet = image(
        host,
        &[
            "push",
            "--quiet",
            "--authfile",
            &file,
            "local/busybox:1",
            &name,
        ],
    )?
    .ok()?;
    ensure!(quiet.stderr.is_empty(), "{quiet}");
    let refused = image(host, &["pull", &name])?.exits(1)?;
    ensure!(refused.stderr.contains("no credentials"), "{refused}");
    let variables = [("REGISTRY_AUTH_FILE", &*file), ("DOCKER_CONFIG", &*dir)];
    for (variable, value) in variables {
        let pulled = image_with(host, variable, value, &["pull", "--quiet", &name])?.ok()?;
        ensure!(pulled.stderr.is_empty(), "{variable}: {pulled}");
        ensure!(digest_of(&pulled)? == digest_of(&quiet)?, "{pulled}");
    }
    // The file that is named is the only one.
    let none = host.files().join("none.json");
    std::fs::write(&none, "{}")?;
    let args = ["pull", "--authfile", &none.to_string_lossy(), &name];
    let refused = image_with(host, "DOCKER_CONFIG", &dir, &args)?.exits(1)?;
    ensure!(refused.stderr.contains("no credentials"), "{refused}");

    let other = host.files().join("other.json");
    let other = other.to_string_lossy();
    let args = ["login", "-u", USER.0, "-p", USER.1, "--authfile", &other];
    image(host, &[&args[..], &[&registry.host]].concat())?.ok()?;
    image(host, &["pull", "--authfile", &other, &name])?.ok()?;
    let args = ["logout", "--authfile", &other, &registry.host];
    image(host, &args)?.ok()?;
    image(host, &args)?.exits(1)?;
    // Without a terminal nobody is asked; on one, the password is not shown.
    let refused = image(host, &["login", &registry.host])?.output()?;
    ensure!(refused.stderr.contains("--password-stdin"), "{refused}");
    let line = terminal(host, &["login", "--authfile", &other, &registry.host])?;
    // What is typed before the question for the password is thrown away.
    let typed = format!(
        "(echo {}; for i in $(seq 30); do sleep 1; echo {}; done) | script -qec '{line}' /dev/null",
        USER.0, USER.1
    );
    let asked = Cmd::new("sh", ["-c", &typed]).ok()?;
    ensure!(asked.stdout.contains("password: "), "{asked}");
    image(host, &["pull", "--authfile", &other, &name])?.ok()?;

    for (platform, fits) in [
        ("linux/amd64", cfg!(target_arch = "x86_64")),
        ("plan9/mips", false),
    ] {
        let args = ["pull", "--authfile", &file, "--platform", platform, &name];
        let pulled = image(host, &args)?.output()?;
        // A manifest without an index is for one platform, whatever is asked.
        ensure!(pulled.status.success() || !fits, "{platform}: {pulled}");
    }
    let refused = image(host, &["pull", "--platform", "linux", &name])?.output()?;
    ensure!(!refused.status.success(), "{refused}");
    Ok(())
}

fn options_of_archives(host: &TestHost) -> anyhow::Result<()> {
    import_busybox(host, "local/busybox:1")?;
    let file = host.files().join("saved.tar");
    let file = file.to_string_lossy();
    image(host, &["save", "--output", &file, "local/busybox:1"])?.ok()?;
    let bytes = std::fs::read(&*file)?;
    // Through pipes: what comes out is what the file has.
    let line = format!(
        "{} --root {} image save local/busybox:1 | cmp - {file}",
        host.program()?.display(),
        host.root().display()
    );
    Cmd::new("sh", ["-c", &line]).ok()?;
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    let loaded = image(host, &["load", "-o", "json"])?.stdin(bytes).ok()?;
    ensure!(
        loaded.json()?.to_string().contains("local/busybox:1"),
        "{loaded}"
    );
    let history = image(host, &["history", "-o", "json", "local/busybox:1"])?.ok()?;
    ensure!(history.json()?.is_array(), "{history}");
    let tar = crate::images::busybox()?;
    let args = [
        "import",
        "-o",
        "json",
        &tar.to_string_lossy(),
        "local/again:1",
    ];
    let imported = image(host, &args)?.ok()?;
    ensure!(
        imported.json()?.to_string().contains("local/again:1"),
        "{imported}"
    );
    // Only what has no name goes.
    image(host, &["tag", "local/busybox:1", "local/again:1"])?.ok()?;
    image(host, &["prune"])?.ok()?;
    let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
    ensure!(
        list.contains("busybox") && list.contains("local/again:1"),
        "{list}"
    );
    Ok(())
}

/// The command line of `rkube image ARGS...` for script(1), which is the
/// terminal.
fn terminal(host: &TestHost, args: &[&str]) -> anyhow::Result<String> {
    Ok(format!(
        "stty cols 100; {} --root {} image {}",
        host.program()?.display(),
        host.root().display(),
        args.join(" ")
    ))
}

/// Lines of an output that tell of a layer by the beginning of its digest.
fn layers_told(output: &str, digests: &[String]) -> usize {
    let told = |d: &&String| output.contains(&d[7..19]);
    digests.iter().filter(told).count()
}

fn layers(output: &Output) -> anyhow::Result<Vec<String>> {
    let shown = output.json()?;
    let shown = shown.get(0).unwrap_or(&shown);
    let list = shown["manifest"]["layers"].as_array();
    let digest = |l: &Value| l["digest"].as_str().map(str::to_owned);
    let list = list.context("no layers")?;
    Ok(list.iter().filter_map(digest).collect())
}

fn progress(host: &TestHost) -> anyhow::Result<()> {
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/busybox:1")?;
    let name = registry.image("team/busybox:1");
    let digests = layers(&image(host, &["inspect", "local/busybox:1"])?.ok()?)?;
    ensure!(!digests.is_empty());
    let pushed = image(host, &["push", "local/busybox:1", &name])?.ok()?;
    ensure!(
        layers_told(&pushed.stderr, &digests) == digests.len(),
        "{pushed}"
    );
    ensure!(!pushed.stderr.contains('\u{1b}'), "{pushed}");
    image(host, &["rm", "local/busybox:1"])?.ok()?;
    // Off a terminal, lines; on one, a bar each that is drawn over.
    let piped = image(host, &["pull", &name])?.ok()?;
    ensure!(
        layers_told(&piped.stderr, &digests) == digests.len(),
        "{piped}"
    );
    ensure!(!piped.stderr.contains('\u{1b}'), "{piped}");
    image(host, &["rm", &name])?.ok()?;
    let line = terminal(host, &["pull", &name])?;
    let drawn = Cmd::new("script", ["-qec", &line, "/dev/null"]).ok()?;
    ensure!(
        layers_told(&drawn.stdout, &digests) == digests.len(),
        "{drawn}"
    );
    ensure!(drawn.stdout.contains('\u{1b}'), "{drawn}");
    Ok(())
}

fn skopeo_with_tls(host: &TestHost) -> anyhow::Result<()> {
    let both = Options {
        tls: true,
        password: true,
        port: None,
    };
    let registry = Registry::start(host, "tls", both)?;
    let certificates = host.files().join("certificates");
    std::fs::create_dir_all(&certificates)?;
    std::fs::copy(&registry.certificate, certificates.join("ca.crt"))?;
    let certificates = certificates.to_string_lossy();
    trust(host, &registry)?;
    login(host, &registry, USER.1)?.ok()?;
    import_busybox(host, "local/busybox:1")?;
    let ours = registry.image("by/rkube:1");
    image(host, &["push", "local/busybox:1", &ours])?.ok()?;
    let who = format!("{}:{}", USER.0, USER.1);
    let theirs = registry.image("by/skopeo:1");
    let copy = |who: &str| {
        let (from, to) = (format!("docker://{ours}"), format!("docker://{theirs}"));
        let args = [
            "copy",
            "--quiet",
            "--src-creds",
            who,
            "--dest-creds",
            who,
            "--src-cert-dir",
            &certificates,
            "--dest-cert-dir",
            &certificates,
            &from,
            &to,
        ];
        skopeo(host, &args)
    };
    ensure!(copy("user:wrong").is_err());
    copy(&who)?;
    let pulled = image(host, &["pull", &theirs])?.ok()?;
    // skopeo compresses it: the same file system, which is there already.
    ensure!(pulled.stdout.contains("0 of them new"), "{pulled}");
    Ok(())
}
