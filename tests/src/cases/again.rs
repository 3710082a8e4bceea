//! `rkube start`, `rkube restart` and `rkube update`.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::host::TestHost;
use crate::pods::{pod, script, status, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("again::a_stopped_pod_starts", a_stopped_pod_starts),
        Case::new("again::a_restart_is_in_place", a_restart_is_in_place),
        Case::new("again::limits_change_in_place", limits_change_in_place),
        Case::new("again::a_limit_below_use", a_limit_below_use),
    ]
}

fn restarts(pod: &Value, container: &str) -> i64 {
    status(pod, container)["restartCount"]
        .as_i64()
        .unwrap_or(-1)
}

fn a_stopped_pod_starts(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[
        pod("p", &[tool("a", &["run", "stamp; sleep inf"])]),
        pod("q", &[script("a", "wait-file /go; exit 3")]),
    ])?;
    host.tell("q", &["touch", "/go"])?;
    let before = host.life("p", "a")?;
    // One that runs stays as it is.
    host.rkube(["start", "p"])?.ok()?;
    ensure!(host.life("p", "a")? == before);
    host.rkube(["stop", "p"])?.ok()?;
    ensure!(!before.runs());
    host.rkube(["wait", "q"])?.exits(3)?;
    let out = host.rkube(["start", "p", "q"])?.ok()?;
    ensure!(
        out.stdout.contains("default/p") && out.stdout.contains("default/q"),
        "{out}"
    );
    let now = host.inspect("p")?;
    ensure!(
        now["status"]["phase"] == "Running" && restarts(&now, "a") == 1,
        "{now:#}"
    );
    ensure!(now["metadata"]["deletionTimestamp"].is_null());
    ensure!(host.life("p", "a")? != before);
    let (log, previous) = (
        host.rkube(["logs", "p"])?.ok()?.stdout,
        host.rkube(["logs", "--previous", "p"])?.ok()?.stdout,
    );
    ensure!(
        log != previous && previous.starts_with("monotonic"),
        "{log}{previous}"
    );
    // One that had ended by itself runs once more, whatever its policy.
    host.tell("q", &["touch", "/go"])?;
    let q = host.wait_pod("q", "the second run's end", |q| {
        q["status"]["phase"] == "Failed" && restarts(q, "a") == 1
    })?;
    ensure!(
        status(&q, "a")["state"]["terminated"]["exitCode"] == 3,
        "{q:#}"
    );
    // The record holds: another writer does not stop it again.
    host.supervisor()?.context("a supervisor")?.kill()?;
    let now = host.inspect("p")?;
    ensure!(
        now["status"]["phase"] == "Running" && restarts(&now, "a") == 1,
        "{now:#}"
    );
    let none = host.rkube(["start", "absent"])?.exits(1)?;
    ensure!(none.stderr.contains("absent"), "{none}");
    Ok(())
}

fn a_restart_is_in_place(host: &TestHost) -> anyhow::Result<()> {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let made = with(
        pod(
            "p",
            &[
                with(tool("a", &["trap", "--code", "5"]), "", mount.clone()),
                tool("b", &["sleep", "inf"]),
            ],
        ),
        "spec",
        json!({
            "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [with(script("first", "write -a /v/log init"), "", mount)],
        }),
    );
    host.up(&[made])?;
    let (pause, b) = (host.life("p", "pause")?, host.life("p", "b")?);
    let address = host.inspect("p")?["status"]["podIP"].clone();
    host.rkube(["restart", "p", "-c", "a"])?.ok()?;
    let now = host.inspect("p")?;
    ensure!(
        restarts(&now, "a") == 1 && restarts(&now, "b") == 0,
        "{now:#}"
    );
    // It was asked to end, and had the time for it.
    let last = &status(&now, "a")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 5, "{now:#}");
    ensure!(host.life("p", "b")? == b);
    host.rkube(["restart", "p", "--grace", "1"])?.ok()?;
    let now = host.inspect("p")?;
    ensure!(
        restarts(&now, "a") == 2 && restarts(&now, "b") == 1,
        "{now:#}"
    );
    ensure!(restarts(&now, "first") == 1, "{now:#}");
    ensure!(host.life("p", "pause")? == pause && now["status"]["podIP"] == address);
    ensure!(host.tell("p", &["cat", "/v/log"])? == "init\ninit\n");
    ensure!(host.rkube(["ps"])?.ok()?.stdout.contains("Running"));
    for (container, code) in [("first", 1), ("zzz", 64)] {
        let out = host.rkube(["restart", "p", "-c", container])?.exits(code)?;
        ensure!(out.stderr.contains(container), "{out}");
    }
    // One that was stopped is started.
    host.rkube(["stop", "p", "--grace", "1"])?.ok()?;
    host.rkube(["restart", "p"])?.ok()?;
    ensure!(host.inspect("p")?["status"]["phase"] == "Running");
    host.rm(&["p"])?;
    Ok(())
}

/// Use and limits of a pod's only container.
fn stats(host: &TestHost) -> anyhow::Result<Value> {
    let rows = host
        .rkube(["stats", "--no-stream", "-o", "json"])?
        .ok()?
        .json()?;
    Ok(rows[0]["stats"].clone())
}

fn limits_change_in_place(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["burn-cpu", "--threads", "1"])])])?;
    let life = host.life("p", "a")?;
    let update = |args: &[&str]| host.rkube(["update", "p"].iter().chain(args));
    update(&[
        "--memory-limit",
        "64Mi",
        "--cpu-limit",
        "100m",
        "--pids",
        "40",
    ])?
    .ok()?;
    let now = stats(host)?;
    ensure!(now["memory"]["limit_bytes"] == 64 << 20, "{now:#}");
    ensure!(now["pids"]["limit"] == 40, "{now:#}");
    crate::wait::until(
        "a throttled period",
        std::time::Duration::from_secs(crate::wait::WAIT_SECS),
        || {
            Ok(stats(host)?["cpu"]["throttled_periods"]
                .as_u64()
                .filter(|n| *n > 0))
        },
    )?;
    ensure!(host.life("p", "a")? == life, "it was restarted");
    let shown = host.inspect("p")?;
    let limits = &shown["spec"]["containers"][0]["resources"]["limits"];
    ensure!(
        limits["memory"] == "64Mi" && limits["cpu"] == "100m",
        "{shown:#}"
    );
    // They hold in later runs, under later writers too.
    host.supervisor()?.context("a supervisor")?.kill()?;
    host.rkube(["restart", "p", "--grace", "1"])?.ok()?;
    let now = stats(host)?;
    ensure!(
        now["memory"]["limit_bytes"] == 64 << 20 && now["pids"]["limit"] == 40,
        "{now:#}"
    );
    host.rkube(["stop", "p"])?.ok()?;
    host.rkube(["start", "p"])?.ok()?;
    ensure!(stats(host)?["memory"]["limit_bytes"] == 64 << 20);
    // Raised, and taken away.
    update(&["--memory-limit", "128Mi"])?.ok()?;
    ensure!(stats(host)?["memory"]["limit_bytes"] == 128 << 20);
    update(&[
        "--memory-limit",
        "none",
        "--pids",
        "none",
        "--cpu-limit",
        "none",
    ])?
    .ok()?;
    let now = stats(host)?;
    ensure!(
        now["memory"]["limit_bytes"].is_null() && now["pids"]["limit"].is_null(),
        "{now:#}"
    );
    for (args, what) in [(["--memory-limit", "much"], "much"), (["--pids", "0"], "0")] {
        let out = update(&args)?.exits(1)?;
        ensure!(out.stderr.contains(what), "{out}");
    }
    host.rm(&["p"])?;
    Ok(())
}

fn a_limit_below_use(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["hog-memory", "48Mi"])])])?;
    crate::wait::until(
        "the memory to be in use",
        std::time::Duration::from_secs(crate::wait::WAIT_SECS),
        || {
            Ok(stats(host)?["memory"]["working_set_bytes"]
                .as_u64()
                .filter(|n| *n > 40 << 20))
        },
    )?;
    let out = host
        .rkube(["update", "p", "--memory-limit", "16Mi"])?
        .exits(1)?;
    ensure!(out.stderr.contains("below what it uses now"), "{out}");
    let now = host.inspect("p")?;
    ensure!(status(&now, "a")["state"]["running"].is_object(), "{now:#}");
    ensure!(
        now["spec"]["containers"][0]["resources"]["limits"].is_null(),
        "{now:#}"
    );
    ensure!(stats(host)?["memory"]["limit_bytes"].is_null());
    host.rm(&["p"])?;
    Ok(())
}
