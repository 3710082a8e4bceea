//! Images from files: every form, what is refused, what is in use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::{Case, skip};
use crate::command::{Cmd, Output};
use crate::host::TestHost;
use crate::images;
use crate::pods::{pod, tool};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("images::busybox_runs", busybox_runs),
        Case::new("images::minbase_runs", minbase_runs).within_secs(300),
        Case::new("images::forms_of_skopeo", forms_of_skopeo).host_only(),
        Case::new("images::root_file_systems", root_file_systems),
        Case::new("images::in_use_is_kept", in_use_is_kept),
        Case::new("images::many_layers", many_layers),
        Case::new("images::whiteouts_and_links", whiteouts_and_links),
        Case::new(
            "images::hostile_archives_are_refused",
            hostile_archives_are_refused,
        ),
    ]
}

fn import(host: &TestHost, source: &Path, name: &str) -> anyhow::Result<Cmd> {
    host.rkube([
        Path::new("image"),
        Path::new("import"),
        source,
        Path::new(name),
    ])
}

/// What a shell in the image prints.
fn shell(host: &TestHost, image: &str, text: &str) -> anyhow::Result<Vec<String>> {
    let mut made = pod("p", &[tool("a", &["sh", "-c", text])]);
    made["spec"]["containers"][0]["image"] = image.into();
    host.lines_of(made)
}

fn busybox_runs(host: &TestHost) -> anyhow::Result<()> {
    import(host, &images::busybox()?, "local/busybox:1")?.ok()?;
    let lines = shell(
        host,
        "local/busybox:1",
        "id -un; echo $((6*7)); stat -c %a /tmp; ls / | tr '\\n' ' '",
    )?;
    ensure!(
        lines[..3] == ["root", "42", "1777"] && lines[3].contains("bin"),
        "{lines:?}"
    );
    let list = host.rkube(["image", "ls", "-o", "name"])?.ok()?.stdout;
    ensure!(list.contains("local/busybox:1"), "{list}");
    let shown = host
        .rkube(["image", "inspect", "local/busybox:1"])?
        .ok()?
        .stdout;
    ensure!(shown.contains("sha256:"), "{shown}");
    // The same again takes no new layer.
    let again = import(host, &images::busybox()?, "local/busybox:2")?.ok()?;
    ensure!(again.stdout.contains("0 of them new"), "{again}");
    Ok(())
}

fn minbase_runs(host: &TestHost) -> anyhow::Result<()> {
    let tar = match images::minbase() {
        Ok(tar) => tar,
        Err(e) => return Err(skip(format!("no minbase tree can be made here: {e:#}"))),
    };
    import(host, &tar, "local/minbase:1")?
        .within(Duration::from_secs(200))
        .ok()?;
    let lines = shell(
        host,
        "local/minbase:1",
        "dpkg --get-selections | grep -c install; getent passwd daemon; su daemon -s /bin/sh -c id",
    )?;
    let count: u32 = lines.first().context("no line")?.parse()?;
    ensure!(
        count > 50 && lines[1].starts_with("daemon:") && lines[2].starts_with("uid=1(daemon)"),
        "{lines:?}"
    );
    Ok(())
}

fn forms_of_skopeo(host: &TestHost) -> anyhow::Result<()> {
    if !Path::new("/usr/bin/skopeo").exists() {
        return Err(skip("skopeo is not installed"));
    }
    let tree = host.files().join("tree");
    std::fs::create_dir(&tree)?;
    tar::Archive::new(std::fs::File::open(images::busybox()?)?).unpack(&tree)?;
    let source = host.files().join("source.tar");
    images::save(
        &tree,
        &source,
        json!({"Env": ["FROM=config"], "Entrypoint": ["sh", "-c", "echo $FROM"]}),
    )?;
    let work = host.files().to_path_buf();
    let copy = |to: &str| -> anyhow::Result<()> {
        let args = [
            "copy",
            "--insecure-policy",
            "--quiet",
            &format!("docker-archive:{}", source.display()),
            to,
        ];
        Cmd::new("skopeo", args).env("TMPDIR", &work).ok().map(drop)
    };
    let at = |name: &str| work.join(name);
    copy(&format!(
        "docker-archive:{}:local/a:1",
        at("docker.tar").display()
    ))?;
    copy(&format!("oci:{}:local/b:1", at("layout").display()))?;
    copy(&format!(
        "oci-archive:{}:local/c:1",
        at("oci.tar").display()
    ))?;
    for (number, form) in ["source.tar", "docker.tar", "layout", "oci.tar"]
        .iter()
        .enumerate()
    {
        let name = format!("local/form{number}:1");
        import(host, &at(form), &name)?
            .ok()
            .with_context(|| (*form).to_owned())?;
        let mut made = pod("p", &[json!({"name": "a", "image": name})]);
        made["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
        let lines = host.lines_of(made).with_context(|| (*form).to_owned())?;
        ensure!(lines == ["config"], "{form}: {lines:?}");
    }
    // Names of the archive itself, where none is given.
    host.rkube([Path::new("image"), Path::new("import"), &at("docker.tar")])?
        .ok()?;
    let list = host.rkube(["image", "ls", "-o", "name"])?.ok()?.stdout;
    ensure!(list.contains("local/a:1"), "{list}");
    Ok(())
}

fn root_file_systems(host: &TestHost) -> anyhow::Result<()> {
    let tree = host.files().join("tree");
    std::fs::create_dir(&tree)?;
    tar::Archive::new(std::fs::File::open(images::busybox()?)?).unpack(&tree)?;
    let args = ["image", "import", "--rootfs"].map(Path::new);
    let more = [
        tree.as_path(),
        Path::new("local/tree:1"),
        Path::new("--entrypoint"),
        Path::new("echo"),
        Path::new("made"),
    ];
    host.rkube(args.into_iter().chain(more))?.ok()?;
    let lines = host.lines_of(pod("p", &[json!({"name": "a", "image": "local/tree:1"})]))?;
    ensure!(lines == ["made"], "{lines:?}");
    // By standard input, compressed.
    let file = host.files().join("busybox.tar.gz");
    let script = format!(
        "gzip -1 -c {} > {}",
        images::busybox()?.display(),
        file.display()
    );
    Cmd::new("sh", ["-c", &script]).ok()?;
    let line = format!(
        "{} --root {} image import - local/packed:1 < {}",
        host.program()?.display(),
        host.root().display(),
        file.display()
    );
    Cmd::new("sh", ["-c", &line]).ok()?;
    ensure!(shell(host, "local/packed:1", "echo yes")? == ["yes"]);
    Ok(())
}

fn in_use_is_kept(host: &TestHost) -> anyhow::Result<()> {
    import(host, &images::busybox()?, "local/busybox:1")?.ok()?;
    let mut made = pod("p", &[tool("a", &["sleep", "1000"])]);
    made["spec"]["containers"][0]["image"] = "local/busybox:1".into();
    host.up(&[made])?;
    let refused = host.rkube(["image", "rm", "local/busybox:1"])?.exits(1)?;
    ensure!(refused.stderr.contains("use"), "{refused}");
    host.tell("p", &["sh", "-c", "ls /bin > /dev/null"])?;
    host.rm(&["p"])?;
    host.rkube(["image", "rm", "local/busybox:1"])?.ok()?;
    let list = host.rkube(["image", "ls", "-o", "name"])?.ok()?.stdout;
    ensure!(!list.contains("busybox"), "{list}");
    let absent = host.rkube(["image", "rm", "local/busybox:1"])?.exits(1)?;
    ensure!(absent.stderr.contains("local/busybox:1"), "{absent}");
    Ok(())
}

/// A layer with these entries.
fn layer(host: &TestHost, name: &str, entries: &[(&str, &[u8])]) -> anyhow::Result<PathBuf> {
    let path = host.files().join(name);
    let mut tar = tar::Builder::new(std::fs::File::create(&path)?);
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(u64::try_from(content.len())?);
        tar.append_data(&mut header, name, *content)?;
    }
    tar.into_inner()?;
    Ok(path)
}

fn many_layers(host: &TestHost) -> anyhow::Result<()> {
    let mut layers = vec![images::busybox()?];
    for n in 1..128 {
        layers.push(layer(
            host,
            &format!("{n}.tar"),
            &[
                (&format!("layer-{n}"), b"x"),
                ("top", n.to_string().as_bytes()),
            ],
        )?);
    }
    let archive = host.files().join("many.tar");
    images::save_layers(&layers, &archive, json!({}))?;
    let out = import(host, &archive, "local/many:1")?.ok()?;
    ensure!(out.stdout.contains("128 layers"), "{out}");
    let lines = shell(
        host,
        "local/many:1",
        "ls / | grep -c layer-; cat /top; echo; echo changed > /layer-1 && cat /layer-1",
    )?;
    ensure!(lines == ["127", "127", "changed"], "{lines:?}");
    Ok(())
}

fn whiteouts_and_links(host: &TestHost) -> anyhow::Result<()> {
    let base = layer(
        host,
        "base.tar",
        &[
            ("d/a", b"a"),
            ("d/b", b"b"),
            ("e/a", b"a"),
            ("e/b", b"b"),
            ("file", b"old"),
        ],
    )?;
    let next = layer(
        host,
        "next.tar",
        &[
            ("d/.wh.a", b""),
            ("e/.wh..wh..opq", b""),
            ("e/c", b"c"),
            (".wh.file", b""),
        ],
    )?;
    let archive = host.files().join("whiteouts.tar");
    images::save_layers(&[images::busybox()?, base, next], &archive, json!({}))?;
    import(host, &archive, "local/whiteouts:1")?.ok()?;
    let lines = shell(
        host,
        "local/whiteouts:1",
        "ls /d /e; ls /file 2>/dev/null | wc -l",
    )?;
    ensure!(lines == ["/d:", "b", "", "/e:", "c", "0"], "{lines:?}");
    Ok(())
}

fn hostile_archives_are_refused(host: &TestHost) -> anyhow::Result<()> {
    let victim = host.files().join("victim");
    std::fs::write(&victim, "mine")?;
    let made = |name: &str,
                fill: &dyn Fn(&mut tar::Builder<std::fs::File>) -> anyhow::Result<()>|
     -> anyhow::Result<PathBuf> {
        let path = host.files().join(name);
        let mut tar = tar::Builder::new(std::fs::File::create(&path)?);
        fill(&mut tar)?;
        tar.into_inner()?;
        Ok(path)
    };
    let entry = |tar: &mut tar::Builder<std::fs::File>,
                 name: &[u8],
                 kind: tar::EntryType,
                 link: &[u8]|
     -> anyhow::Result<()> {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(0o644);
        let content: &[u8] = if kind == tar::EntryType::Regular {
            b"evil"
        } else {
            b""
        };
        header.set_size(u64::try_from(content.len())?);
        header.set_cksum();
        tar.append(&header, content)?;
        Ok(())
    };
    let regular = tar::EntryType::Regular;
    let up = format!("../../../../../../../../../../..{}", victim.display());
    let through = format!("link{}", victim.display());
    let archives = [
        made("up.tar", &|t| entry(t, up.as_bytes(), regular, b""))?,
        made("through.tar", &|t| {
            entry(t, b"link", tar::EntryType::Symlink, b"/")?;
            entry(t, through.as_bytes(), regular, b"")
        })?,
        made("hard.tar", &|t| {
            entry(
                t,
                b"hard",
                tar::EntryType::Link,
                victim.as_os_str().as_encoded_bytes(),
            )?;
            entry(t, b"hard", regular, b"")
        })?,
        made("absolute.tar", &|t| {
            entry(t, victim.as_os_str().as_encoded_bytes(), regular, b"")
        })?,
    ];
    for archive in &archives {
        let out: Output = import(host, archive, "local/hostile:1")?.output()?;
        // Refused or kept inside; the host's file stays as it is.
        ensure!(std::fs::read_to_string(&victim)? == "mine", "{out}");
    }
    let refused = import(host, &archives[0], "local/hostile:1")?.exits(1)?;
    ensure!(
        refused.stderr.contains(".."),
        "the entry is not named: {refused}"
    );
    let garbage = host.file("garbage.tar", vec![0x5a; 100_000])?;
    import(host, &garbage, "local/garbage:1")?.exits(1)?;
    let truncated = host.file(
        "truncated.tar",
        &std::fs::read(images::busybox()?)?[..700_000],
    )?;
    import(host, &truncated, "local/truncated:1")?.exits(1)?;
    let list = host.rkube(["image", "ls", "-o", "name"])?.ok()?.stdout;
    ensure!(
        !list.contains("garbage") && !list.contains("truncated"),
        "{list}"
    );
    Ok(())
}
