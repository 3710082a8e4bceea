//! `rkube run`: what it takes, what it prints, how it ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::Case;
use crate::command::Output;
use crate::host::TestHost;
use crate::pods::{TOOLBOX, pod, said, script, tool, with};
use crate::repo;
use crate::wait::WAIT_SECS;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("run::hello_end_to_end", hello_end_to_end),
        Case::new(
            "run::first_failure_is_the_exit_code",
            first_failure_is_the_exit_code,
        ),
        Case::new("run::detached_pods_stay", detached_pods_stay),
        Case::new("run::detach_tells_why_not", detach_tells_why_not),
        Case::new("run::dry_run_changes_nothing", dry_run_changes_nothing),
        Case::new(
            "run::stdin_directories_and_json",
            stdin_directories_and_json,
        ),
        Case::new(
            "run::errors_name_file_document_line_path",
            errors_name_file_document_line_path,
        ),
        Case::new(
            "run::other_kinds_name_the_server",
            other_kinds_name_the_server,
        ),
        Case::new(
            "run::unsupported_fields_are_warned_about",
            unsupported_fields_are_warned_about,
        ),
        Case::new("run::ctrl_c_ends_gracefully", ctrl_c_ends_gracefully),
        Case::new(
            "run::same_name_attaches_or_conflicts",
            same_name_attaches_or_conflicts,
        ),
        Case::new("run::lists_in_every_format", lists_in_every_format),
    ]
}

fn hello_end_to_end(host: &TestHost) -> anyhow::Result<()> {
    let file = repo::source_root().join("examples/hello.yaml");
    let text = if file.is_file() {
        std::fs::read(&file)?
    } else {
        HELLO.as_bytes().to_vec()
    };
    let file = host.file("hello.yaml", text)?;
    let out = host
        .rkube([Path::new("run"), Path::new("-f"), &file])?
        .ok()?;
    ensure!(
        said(&out, "client") == ["Hello from a pod made of plain Linux primitives."],
        "{out}"
    );
    ensure!(said(&out, "server") == ["serving on port 8080"], "{out}");
    for told in [
        "init container writer ended: Completed",
        "sidecar server started",
        "container client ended: Completed",
    ] {
        ensure!(out.stderr.contains(told), "no {told:?}: {out}");
    }
    let left = host.rkube(["ps", "--all", "-o", "name"])?.ok()?;
    ensure!(left.stdout.is_empty(), "{left}");
    Ok(())
}

/// In a VM the examples' folder is not there.
const HELLO: &str = include_str!("../../../examples/hello.yaml");

fn first_failure_is_the_exit_code(host: &TestHost) -> anyhow::Result<()> {
    let two = pod(
        "p",
        &[script("late", "sleep 2; exit 4"), script("early", "exit 3")],
    );
    host.run(&[two])?.exits(3)?;
    let init = with(
        pod("p", &[tool("a", &["true"])]),
        "spec",
        json!({"initContainers": [script("i", "exit 7")]}),
    );
    let out = host.run(&[init])?.exits(7)?;
    ensure!(!out.stderr.contains("container a started"), "{out}");
    // Ended by a signal: 128 + its number.
    host.run(&[pod("p", &[tool("a", &["crash", "KILL"])])])?
        .exits(137)?;
    let missing = host
        .run(&[pod("p", &[tool("a", &["no-such-program"])])])?
        .output()?;
    ensure!(missing.status.code().is_some_and(|c| c != 0), "{missing}");
    ensure!(
        missing.stderr.contains("no-such-program"),
        "the program is not named: {missing}"
    );
    let out = host.ran(&[pod("p", &[script("a", "echo out; true")])])?;
    ensure!(said(&out, "a") == ["out"], "{out}");
    Ok(())
}

fn detached_pods_stay(host: &TestHost) -> anyhow::Result<()> {
    let out = host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    ensure!(out.stdout.trim() == "default/p", "{out}");
    let seen = host.inspect("p")?;
    ensure!(seen["status"]["phase"] == "Running", "{seen:#}");
    let refused = host.rkube(["rm", "p"])?.exits(1)?;
    ensure!(refused.stderr.contains("has not ended"), "{refused}");
    host.rkube(["stop", "p"])?.ok()?;
    let ended = host.inspect("p")?;
    ensure!(ended["status"]["phase"] != "Running", "{ended:#}");
    host.rkube(["rm", "p"])?.ok()?;
    host.rkube(["inspect", "p"])?.exits(1)?;
    Ok(())
}

fn detach_tells_why_not(host: &TestHost) -> anyhow::Result<()> {
    let mut made = pod("p", &[tool("a", &["true"])]);
    made["spec"]["containers"][0]["image"] = "no.example/missing:1".into();
    let file = host.manifest(&[made])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .exits(1)?;
    ensure!(
        out.stderr.contains("no.example/missing:1"),
        "the image is not named: {out}"
    );
    host.rm(&["p"])?;
    let failed = host.manifest(&[pod("q", &[script("a", "exit 5")])])?;
    let args = ["run", "--detach", "-f"].map(Path::new);
    let out = host
        .rkube(args.into_iter().chain([failed.as_path()]))?
        .output()?;
    // It may have been seen running before it failed.
    ensure!(matches!(out.status.code(), Some(0 | 5)), "{out}");
    Ok(())
}

fn dry_run_changes_nothing(host: &TestHost) -> anyhow::Result<()> {
    let container = with(
        tool("a", &["true"]),
        "",
        json!({"ports": [{"containerPort": 80, "hostPort": 8080}]}),
    );
    let file = host.manifest(&[pod("p", &[container])])?;
    let args = ["run", "--dry-run", "-f"].map(Path::new);
    let out = host.rkube(args.into_iter().chain([file.as_path()]))?.ok()?;
    for part in [
        "ociVersion",
        "maskedPaths",
        "/proc/kcore",
        "8080",
        "seccomp",
    ] {
        ensure!(out.stdout.contains(part), "no {part} in {out}");
    }
    let made: Vec<_> = std::fs::read_dir(host.root())?.collect();
    ensure!(made.is_empty(), "{made:?}");
    ensure!(crate::net::links()?.is_empty());
    Ok(())
}

fn stdin_directories_and_json(host: &TestHost) -> anyhow::Result<()> {
    let text = |name: &str, says: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
             - {{name: {name}, image: {TOOLBOX}, command: [echo, {says}]}}\n"
        )
    };
    let both = text("one", "first") + &text("two", "second");
    let judge = |out: &Output| {
        ensure!(
            said(out, "one") == ["first"] && said(out, "two") == ["second"],
            "{out}"
        );
        Ok(())
    };
    judge(&host.rkube(["run", "-f", "-"])?.stdin(both).ok()?)?;
    let dir = host.files().join("dir");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("b.yml"), text("two", "second"))?;
    let json = json!({"kind": "List", "apiVersion": "v1", "items": [pod("one", &[tool("one", &["echo", "first"])])]});
    std::fs::write(dir.join("a.json"), json.to_string())?;
    std::fs::write(dir.join("README"), "no manifest")?;
    judge(
        &host
            .rkube([Path::new("run"), Path::new("-f"), &dir])?
            .ok()?,
    )
}

fn errors_name_file_document_line_path(host: &TestHost) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n\
         spec:\n  containers:\n  - name: a\n    image: {TOOLBOX}\n    comand: [true]\n"
    );
    let file = host.file("wrong.yaml", text)?;
    let out = host
        .rkube([Path::new("run"), Path::new("-f"), &file])?
        .exits(64)?;
    for part in [
        "wrong.yaml",
        "document 2",
        "line 12",
        "spec.containers[0].comand",
    ] {
        ensure!(out.stderr.contains(part), "no {part:?} in {out}");
    }
    for (fields, path) in [
        (
            json!({"terminationGracePeriodSeconds": "soon"}),
            "spec.terminationGracePeriodSeconds",
        ),
        (json!({"restartPolicy": "Sometimes"}), "spec.restartPolicy"),
        (json!({"containers": []}), "spec.containers"),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Zi"}}]}),
            "spec.volumes[0].emptyDir.sizeLimit",
        ),
    ] {
        let out = host
            .run(&[with(pod("p", &[tool("a", &["true"])]), "spec", fields)])?
            .exits(64)?;
        ensure!(out.stderr.contains(path), "no {path} in {out}");
    }
    let absent = host.rkube(["run", "-f", "/no/such/file.yaml"])?.output()?;
    ensure!(
        !absent.status.success() && absent.stderr.contains("/no/such/file.yaml"),
        "{absent}"
    );
    let broken = host
        .rkube(["run", "-f", "-"])?
        .stdin("a: [1\nb: }")
        .exits(64)?;
    ensure!(broken.stderr.contains("line "), "{broken}");
    let made: Vec<_> = std::fs::read_dir(host.root())?.collect();
    ensure!(made.is_empty(), "{made:?}");
    Ok(())
}

fn other_kinds_name_the_server(host: &TestHost) -> anyhow::Result<()> {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": TOOLBOX}]}}}});
    let out = host
        .run(&[pod("p", &[tool("a", &["true"])]), deployment])?
        .exits(64)?;
    ensure!(
        out.stderr.contains("Deployment") && out.stderr.contains("rkube server"),
        "{out}"
    );
    ensure!(!host.root().join("run/rkube").exists());
    Ok(())
}

fn unsupported_fields_are_warned_about(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[tool("a", &["true"])]),
        "spec",
        json!({"nodeSelector": {"disk": "ssd"}}),
    );
    let out = host.ran(&[made])?;
    ensure!(
        out.stderr.contains("warning") && out.stderr.contains("spec.nodeSelector"),
        "{out}"
    );
    Ok(())
}

fn ctrl_c_ends_gracefully(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[tool("a", &["trap", "--code", "0"])]),
        "spec",
        json!({"terminationGracePeriodSeconds": 60}),
    );
    let limit = Duration::from_secs(WAIT_SECS);
    let mut run = host.run(&[made])?.spawn()?;
    run.line("readiness", limit, |l| l == "a | ready")?;
    run.signal(rustix::process::Signal::INT)?;
    let (status, lines) = run.end(limit)?;
    ensure!(
        lines.iter().any(|l| l.contains("caught SIGTERM")),
        "{lines:?}"
    );
    ensure!(status.code() == Some(130), "{status} {lines:?}");
    ensure!(
        host.rkube(["ps", "-a", "-o", "name"])?
            .ok()?
            .stdout
            .is_empty()
    );
    Ok(())
}

fn same_name_attaches_or_conflicts(host: &TestHost) -> anyhow::Result<()> {
    let sleeper = |seconds: &str| pod("p", &[tool("a", &["sleep", seconds])]);
    host.up(&[sleeper("inf")])?;
    let first = host.life("p", "a")?;
    host.up(&[sleeper("inf")])?;
    ensure!(
        host.life("p", "a")? == first,
        "attaching made another container"
    );
    let other = host.manifest(&[sleeper("1000")])?;
    let detach = ["run", "--detach", "-f"].map(Path::new);
    let refused = host
        .rkube(detach.into_iter().chain([other.as_path()]))?
        .exits(1)?;
    ensure!(refused.stderr.contains("--replace"), "{refused}");
    ensure!(first.runs());
    let replace = ["run", "--detach", "--replace", "-f"].map(Path::new);
    host.rkube(replace.into_iter().chain([other.as_path()]))?
        .ok()?;
    ensure!(!first.runs() && host.life("p", "a")?.runs());
    host.rm(&["p"])?;
    Ok(())
}

fn lists_in_every_format(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let list =
        |args: &[&str]| -> anyhow::Result<Output> { host.rkube(["ps"].iter().chain(args))?.ok() };
    ensure!(list(&["-o", "name"])?.stdout == "default/p\n");
    let json = list(&["-o", "json"])?.json()?;
    ensure!(
        json["kind"] == "List" && json["items"][0]["metadata"]["name"] == "p",
        "{json:#}"
    );
    let yaml = list(&["-o", "yaml"])?.stdout;
    ensure!(yaml.contains("phase: Running"), "{yaml}");
    let ip = json["items"][0]["status"]["podIP"]
        .as_str()
        .context("no podIP")?
        .to_owned();
    let wide = list(&["-o", "wide"])?.stdout;
    ensure!(wide.contains(&ip) && wide.contains(TOOLBOX), "{wide}");
    let plain = list(&[])?.stdout;
    ensure!(
        plain
            .lines()
            .nth(1)
            .is_some_and(|l| l.contains("1/1") && l.contains("Running")),
        "{plain}"
    );
    let stats = host
        .rkube(["stats", "--no-stream", "-o", "json"])?
        .ok()?
        .stdout;
    ensure!(
        stats.contains("memory") && stats.contains("\"p\""),
        "{stats}"
    );
    host.rm(&["p"])?;
    Ok(())
}
