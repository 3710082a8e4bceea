//! The supervisor: when it comes, what it outlives, when it goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::case::Case;
use crate::host::TestHost;
use crate::wait;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Commands that come at the same time.
const CROWD: usize = 8;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("writer::looking_makes_nothing", looking_makes_nothing),
        Case::new(
            "writer::bad_manifests_make_nothing",
            bad_manifests_make_nothing,
        ),
        Case::new("writer::a_crowd_starts_one", a_crowd_starts_one),
        Case::new("writer::ends_with_the_last_pod", ends_with_the_last_pod),
        Case::new("writer::a_run_outlives_it", a_run_outlives_it),
        Case::new("writer::a_keeper_starts_it", a_keeper_starts_it),
        Case::new("writer::sigterm_leaves_the_pods", sigterm_leaves_the_pods),
    ]
}

fn pod(name: &str, policy: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: a, image: rkube.local/toolbox, command: {command}}}
"
    )
}

/// Pids of the supervisors of this root.
fn supervisors(host: &TestHost) -> anyhow::Result<Vec<i32>> {
    let root = host.root().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()?.parse().ok()) else {
            continue;
        };
        // It may end meanwhile.
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        if words.contains(&root.as_bytes()) && words.contains(&b"--serve".as_slice()) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn kill(pid: i32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("a pid")?;
    rustix::process::kill_process(pid, signal).context("send a signal to the supervisor")
}

fn one_supervisor(host: &TestHost) -> anyhow::Result<i32> {
    let found = supervisors(host)?;
    ensure!(found.len() == 1, "supervisors: {found:?}");
    found.first().copied().context("a supervisor")
}

/// The first container's status of a pod.
fn container(host: &TestHost, name: &str) -> anyhow::Result<serde_json::Value> {
    let pod = host.rkube(["inspect", name, "-o", "json"])?.ok()?.json()?;
    Ok(pod["status"]["containerStatuses"][0].clone())
}

fn detach(host: &TestHost, manifest: &Path) -> anyhow::Result<()> {
    let manifest = manifest.to_string_lossy();
    host.rkube(["run", "--detach", "-f", &*manifest])?
        .ok()
        .map(drop)
}

fn looking_makes_nothing(host: &TestHost) -> anyhow::Result<()> {
    for args in [
        ["ps", "-a"],
        ["lsns", "-o=json"],
        ["image", "ls"],
        ["stats", "--no-stream"],
    ] {
        host.rkube(args)?.ok()?;
    }
    host.rkube(["inspect", "none"])?.exits(1)?;
    let made: Vec<PathBuf> = std::fs::read_dir(host.root())?
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    ensure!(made.is_empty(), "made: {made:?}");
    Ok(())
}

fn bad_manifests_make_nothing(host: &TestHost) -> anyhow::Result<()> {
    let good = pod("good", "Never", "[\"true\"]");
    let bad = good.replace("command:", "comand:").replace("good", "bad");
    let file = host.file("pods.yaml", format!("{good}---\n{bad}"))?;
    let out = host
        .rkube(["run", "-f", &*file.to_string_lossy()])?
        .exits(64)?;
    for word in ["document 2", "line 17", "comand", "did you mean command?"] {
        ensure!(out.stderr.contains(word), "no {word:?} in {out}");
    }
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n";
    let out = host
        .rkube(["run", "-f", "-"])?
        .stdin(deployment)
        .exits(64)?;
    ensure!(
        out.stderr.contains("Deployment") && out.stderr.contains("rkube server"),
        "{out}"
    );
    ensure!(
        std::fs::read_dir(host.root())?.next().is_none(),
        "something was made"
    );
    Ok(())
}

fn a_crowd_starts_one(host: &TestHost) -> anyhow::Result<()> {
    let mut crowd = Vec::new();
    for i in 0..CROWD {
        let file = host.file(
            &format!("{i}.yaml"),
            pod(&format!("p{i}"), "Never", "[sleep, \"1000\"]"),
        )?;
        crowd.push(
            host.rkube(["run", "--detach", "-f", &*file.to_string_lossy()])?
                .spawn()?,
        );
    }
    for one in crowd {
        let (status, lines) = one.end(PATIENCE)?;
        ensure!(status.success(), "{lines:?}");
    }
    one_supervisor(host)?;
    let list = host.rkube(["ps", "-o", "name"])?.ok()?;
    ensure!(list.stdout.lines().count() == CROWD, "{list}");
    let ips = host.rkube(["ps", "-o", "json"])?.ok()?.json()?;
    let items = ips["items"].as_array().context("items")?;
    let unique: std::collections::BTreeSet<_> = items
        .iter()
        .map(|p| p["status"]["podIP"].to_string())
        .collect();
    ensure!(unique.len() == CROWD, "addresses: {unique:?}");
    Ok(())
}

fn ends_with_the_last_pod(host: &TestHost) -> anyhow::Result<()> {
    let file = host.file("p.yaml", pod("p", "Never", "[sleep, \"1000\"]"))?;
    detach(host, &file)?;
    one_supervisor(host)?;
    host.rkube(["stop", "p"])?.ok()?;
    wait::until("the supervisor ends", PATIENCE, || {
        Ok(supervisors(host)?.is_empty().then_some(()))
    })?;
    // What has ended is still known, and goes when asked.
    let list = host.rkube(["ps", "-a"])?.ok()?;
    ensure!(list.stdout.contains("Error"), "{list}");
    ensure!(container(host, "p")?["state"]["terminated"]["exitCode"] == 143);
    host.rkube(["rm", "p"])?.ok()?;
    host.rkube(["inspect", "p"])?.exits(1)?;
    wait::until("the supervisor ends", PATIENCE, || {
        Ok(supervisors(host)?.is_empty().then_some(()))
    })?;
    Ok(())
}

fn a_run_outlives_it(host: &TestHost) -> anyhow::Result<()> {
    let file = host.file("p.yaml", pod("p", "Never", "[sleep, \"3\"]"))?;
    let mut run = host
        .rkube(["run", "-f", &*file.to_string_lossy()])?
        .spawn()?;
    run.line("start of the container", PATIENCE, |line| {
        line.contains("container a started")
    })?;
    kill(one_supervisor(host)?, rustix::process::Signal::KILL)?;
    let (status, lines) = run.end(PATIENCE)?;
    ensure!(status.success(), "{status}: {lines:?}");
    let starts = lines.iter().filter(|l| l.contains("started")).count();
    ensure!(starts <= 1, "{lines:?}");
    Ok(())
}

fn a_keeper_starts_it(host: &TestHost) -> anyhow::Result<()> {
    let file = host.file("p.yaml", pod("p", "Always", "[sleep, \"2\"]"))?;
    detach(host, &file)?;
    let first = one_supervisor(host)?;
    kill(first, rustix::process::Signal::KILL)?;
    wait::until("a keeper starts a supervisor", PATIENCE, || {
        let found = supervisors(host)?;
        Ok(found.iter().any(|pid| *pid != first).then_some(()))
    })?;
    wait::until("the container is started again", PATIENCE, || {
        let status = container(host, "p")?;
        Ok((status["restartCount"] == 1).then_some(()))
    })?;
    ensure!(container(host, "p")?["lastState"]["terminated"]["exitCode"] == 0);
    Ok(())
}

fn sigterm_leaves_the_pods(host: &TestHost) -> anyhow::Result<()> {
    let file = host.file("p.yaml", pod("p", "Always", "[sleep, \"1000\"]"))?;
    detach(host, &file)?;
    let before = container(host, "p")?;
    kill(one_supervisor(host)?, rustix::process::Signal::TERM)?;
    wait::until("the supervisor ends", PATIENCE, || {
        Ok(supervisors(host)?.is_empty().then_some(()))
    })?;
    ensure!(container(host, "p")? == before);
    Ok(())
}
