//! Containers' order, restarts, hooks, probes and ends.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::host::TestHost;
use crate::pods::{pod, said, script, status, tool, with};
use crate::wait::WAIT_SECS;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "lifecycle::init_containers_in_order",
            init_containers_in_order,
        ),
        Case::new(
            "lifecycle::sidecars_start_first_and_end_last",
            sidecars_start_first_and_end_last,
        ),
        Case::new("lifecycle::restart_policies", restart_policies),
        Case::new("lifecycle::backoff_is_ten_seconds", backoff_is_ten_seconds),
        Case::new("lifecycle::grace_then_kill", grace_then_kill),
        Case::new(
            "lifecycle::hooks_run_around_a_container",
            hooks_run_around_a_container,
        ),
        Case::new(
            "lifecycle::failed_post_start_kills",
            failed_post_start_kills,
        ),
        Case::new("lifecycle::liveness_restarts", liveness_restarts),
        Case::new(
            "lifecycle::readiness_follows_its_probe",
            readiness_follows_its_probe,
        ),
        Case::new("lifecycle::startup_gates_the_next", startup_gates_the_next),
        Case::new("lifecycle::termination_messages", termination_messages),
        Case::new(
            "lifecycle::active_deadline_ends_a_pod",
            active_deadline_ends_a_pod,
        ),
        Case::new("lifecycle::wait_and_exit_codes", wait_and_exit_codes),
    ]
}

/// A pod with init containers.
fn with_inits(made: Value, inits: &[Value]) -> Value {
    with(made, "spec", json!({"initContainers": inits}))
}

fn init_containers_in_order(host: &TestHost) -> anyhow::Result<()> {
    let shared = |c: Value| {
        with(
            c,
            "",
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
        )
    };
    let one = shared(script(
        "one",
        "wait-file --timeout 1 /v/none; write /v/one 1",
    ));
    let two = shared(script("two", "stat /v/one; write -a /v/one 2"));
    let made = with_inits(pod("p", &[shared(script("a", "cat /v/one"))]), &[one, two]);
    let made = with(
        made,
        "spec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let out = host.ran(&[made])?;
    ensure!(said(&out, "a") == ["1", "2"], "{out}");
    Ok(())
}

fn sidecars_start_first_and_end_last(host: &TestHost) -> anyhow::Result<()> {
    let sidecar = with(
        tool("side", &["trap"]),
        "",
        json!({"restartPolicy": "Always"}),
    );
    let second = with(
        tool("second", &["trap"]),
        "",
        json!({"restartPolicy": "Always"}),
    );
    let made = with_inits(
        pod("p", &[script("a", "sleep 1; echo main")]),
        &[sidecar, second],
    );
    let made = with(made, "spec", json!({"terminationGracePeriodSeconds": 30}));
    let out = host.ran(&[made])?;
    ensure!(said(&out, "side") == ["ready", "caught SIGTERM"], "{out}");
    ensure!(said(&out, "second") == ["ready", "caught SIGTERM"], "{out}");
    let at = |text: &str| {
        out.stderr
            .find(text)
            .with_context(|| format!("no {text:?} in {out}"))
    };
    let (side, second, main) = (
        at("sidecar side started")?,
        at("sidecar second started")?,
        at("container a started")?,
    );
    ensure!(side < second && second < main, "{out}");
    let (end_main, end_second, end_side) = (
        at("container a ended")?,
        at("sidecar second ended")?,
        at("sidecar side ended")?,
    );
    ensure!(end_main < end_second && end_second < end_side, "{out}");
    Ok(())
}

fn restart_policies(host: &TestHost) -> anyhow::Result<()> {
    let policy = |name: &str, policy: &str, text: &str| {
        with(
            pod(name, &[script("a", text)]),
            "spec",
            json!({"restartPolicy": policy}),
        )
    };
    // The first restart comes at once.
    host.up(&[policy("always", "Always", "exit 0")])?;
    let seen = host.wait_pod("always", "a restart", |p| {
        status(p, "a")["restartCount"].as_u64() >= Some(1)
    })?;
    ensure!(
        status(&seen, "a")["lastState"]["terminated"]["exitCode"] == 0,
        "{seen:#}"
    );
    host.up(&[policy("failing", "OnFailure", "exit 2")])?;
    host.wait_pod("failing", "a restart", |p| {
        status(p, "a")["restartCount"].as_u64() >= Some(1)
    })?;
    let done = policy("done", "OnFailure", "echo once");
    host.ran(&[done])?;
    host.rm(&["always", "failing"])?;
    Ok(())
}

fn backoff_is_ten_seconds(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[script("a", "stamp; exit 1")]),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[made])?;
    let waiting = host.wait_pod("p", "back-off", |p| {
        status(p, "a")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    ensure!(status(&waiting, "a")["restartCount"] == 1, "{waiting:#}");
    let first = clock(&host.rkube(["logs", "p"])?.ok()?.stdout)?;
    host.wait_pod("p", "the second restart", |p| {
        status(p, "a")["restartCount"] == 2
    })?;
    let second = clock(&host.rkube(["logs", "p"])?.ok()?.stdout)?;
    let pause = Duration::from_nanos(second - first);
    ensure!((9.9..14.0).contains(&pause.as_secs_f64()), "{pause:?}");
    host.wait_event("p", "BackOff")?;
    host.rm(&["p"])?;
    Ok(())
}

fn clock(stamp: &str) -> anyhow::Result<u64> {
    let word = stamp.split(['=', ' ']).nth(1);
    word.with_context(|| format!("no stamp: {stamp}"))?
        .parse()
        .context("nanoseconds")
}

fn grace_then_kill(host: &TestHost) -> anyhow::Result<()> {
    let deaf = with(
        pod("deaf", &[tool("a", &["trap", "--ignore"])]),
        "spec",
        json!({"terminationGracePeriodSeconds": 3}),
    );
    let polite = with(
        pod("polite", &[tool("a", &["trap", "--code", "9"])]),
        "spec",
        json!({"terminationGracePeriodSeconds": 50}),
    );
    host.up(&[deaf, polite])?;
    for name in ["deaf", "polite"] {
        crate::wait::until("readiness", Duration::from_secs(WAIT_SECS), || {
            Ok(host
                .rkube(["logs", name])?
                .ok()?
                .stdout
                .contains("ready")
                .then_some(()))
        })?;
    }
    let start = Instant::now();
    host.rkube(["stop", "polite"])?.ok()?;
    ensure!(
        start.elapsed() < Duration::from_secs(25),
        "{:?}",
        start.elapsed()
    );
    let ended = host.inspect("polite")?;
    ensure!(
        status(&ended, "a")["state"]["terminated"]["exitCode"] == 9,
        "{ended:#}"
    );
    let start = Instant::now();
    host.rkube(["stop", "deaf"])?.ok()?;
    let took = start.elapsed();
    ensure!((2.9..20.0).contains(&took.as_secs_f64()), "{took:?}");
    let ended = host.inspect("deaf")?;
    ensure!(
        status(&ended, "a")["state"]["terminated"]["exitCode"] == 137,
        "{ended:#}"
    );
    ensure!(
        host.rkube(["logs", "deaf"])?
            .ok()?
            .stdout
            .contains("caught SIGTERM")
    );
    Ok(())
}

fn hooks_run_around_a_container(host: &TestHost) -> anyhow::Result<()> {
    let hooks = json!({"lifecycle": {
        "postStart": {"exec": {"command": ["write", "/v/post", "started"]}},
        "preStop": {"exec": {"command": ["write", "/v/pre", "stopping"]}},
    }, "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let dir = host.files().join("hooks");
    std::fs::create_dir(&dir)?;
    let made = with(
        pod("p", &[with(tool("a", &["trap"]), "", hooks)]),
        "spec",
        json!({"volumes": [{"name": "v", "hostPath": {"path": dir}}], "terminationGracePeriodSeconds": 30}),
    );
    host.up(&[made])?;
    crate::wait::until("the hook's file", Duration::from_secs(WAIT_SECS), || {
        let text = std::fs::read_to_string(dir.join("post")).unwrap_or_default();
        Ok((text == "started\n").then_some(()))
    })?;
    ensure!(!dir.join("pre").exists());
    host.rkube(["stop", "p"])?.ok()?;
    ensure!(std::fs::read_to_string(dir.join("pre"))? == "stopping\n");
    Ok(())
}

fn failed_post_start_kills(host: &TestHost) -> anyhow::Result<()> {
    let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["false"]}}}});
    let made = pod("p", &[with(tool("a", &["sleep", "inf"]), "", hook)]);
    let file = host.manifest(&[made])?;
    // Whether it was seen running in between is a matter of time.
    host.rkube(
        ["run", "--detach", "-f"]
            .map(std::path::Path::new)
            .into_iter()
            .chain([file.as_path()]),
    )?
    .output()?;
    host.wait_pod("p", "its failure", |p| p["status"]["phase"] == "Failed")?;
    host.wait_event("p", "FailedPostStartHook")?;
    Ok(())
}

fn liveness_restarts(host: &TestHost) -> anyhow::Result<()> {
    let probe = json!({"livenessProbe": {"exec": {"command": ["stat", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 2}});
    let container = with(
        script("a", "touch /tmp/alive; sleep 3; rm /tmp/alive; sleep inf"),
        "",
        probe,
    );
    let made = with(
        pod("p", &[container]),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[made])?;
    let first = host.life("p", "a")?;
    host.wait_pod("p", "a restart", |p| {
        status(p, "a")["restartCount"].as_u64() >= Some(1)
    })?;
    ensure!(!first.runs());
    host.wait_event("p", "Unhealthy")?;
    host.wait_event("p", "Killing")?;
    host.rm(&["p"])?;
    Ok(())
}

fn readiness_follows_its_probe(host: &TestHost) -> anyhow::Result<()> {
    let http = json!({"readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}});
    let tcp = json!({"readinessProbe": {"tcpSocket": {"port": 9999}, "periodSeconds": 1}});
    let made = pod(
        "p",
        &[
            with(tool("web", &["httpd", "-p", "8080"]), "", http),
            with(tool("never", &["sleep", "inf"]), "", tcp),
        ],
    );
    host.up(&[made])?;
    let seen = host.wait_pod("p", "readiness", |p| status(p, "web")["ready"] == true)?;
    ensure!(status(&seen, "never")["ready"] == false, "{seen:#}");
    let condition = |p: &Value| {
        let list = p["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.into_iter()
            .find(|c| c["type"] == "Ready")
            .map_or(Value::Null, |c| c["status"].clone())
    };
    ensure!(condition(&seen) == "False", "{seen:#}");
    // It starts to listen: the pod is ready.
    let mut listener = host
        .rkube(["exec", "p", "-c", "never", "--", "tcp", "listen", "9999"])?
        .spawn()?;
    listener.line("its port", Duration::from_secs(WAIT_SECS), |l| {
        l.contains("9999")
    })?;
    host.wait_pod("p", "the pod's readiness", |p| condition(p) == "True")?;
    host.rm(&["p"])?;
    Ok(())
}

fn startup_gates_the_next(host: &TestHost) -> anyhow::Result<()> {
    let volume = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let probe = json!({"restartPolicy": "Always", "startupProbe": {
        "exec": {"command": ["stat", "/v/up"]}, "periodSeconds": 1, "failureThreshold": 30}});
    let side = with(
        with(
            script("side", "sleep 2; touch /v/up; trap"),
            "",
            volume.clone(),
        ),
        "",
        probe,
    );
    let main = with(script("a", "stat /v/up"), "", volume);
    let made = with_inits(pod("p", &[main]), &[side]);
    let made = with(
        made,
        "spec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    // The main container fails unless it came after the file.
    host.ran(&[made])?;
    Ok(())
}

fn termination_messages(host: &TestHost) -> anyhow::Result<()> {
    let file = script("file", "write /dev/termination-log because; exit 1");
    let log = with(
        script("log", "echo last-words; exit 1"),
        "",
        json!({"terminationMessagePolicy": "FallbackToLogsOnError"}),
    );
    let manifest = host.manifest(&[pod("p", &[file, log])])?;
    host.rkube(
        ["run", "--detach", "-f"]
            .map(std::path::Path::new)
            .into_iter()
            .chain([manifest.as_path()]),
    )?
    .output()?;
    let ended = host.wait_pod("p", "its failure", |p| p["status"]["phase"] == "Failed")?;
    let message = |name: &str| {
        status(&ended, name)["state"]["terminated"]["message"]
            .as_str()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    ensure!(
        message("file") == "because" && message("log") == "last-words",
        "{ended:#}"
    );
    Ok(())
}

fn active_deadline_ends_a_pod(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[tool("a", &["sleep", "inf"])]),
        "spec",
        json!({"activeDeadlineSeconds": 2}),
    );
    host.up(&[made])?;
    let ended = host.wait_pod("p", "its failure", |p| p["status"]["phase"] == "Failed")?;
    ensure!(ended["status"]["reason"] == "DeadlineExceeded", "{ended:#}");
    Ok(())
}

fn wait_and_exit_codes(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[
        pod("good", &[tool("a", &["sleep", "2"])]),
        pod("bad", &[script("a", "sleep 2; exit 6")]),
    ])?;
    host.rkube(["wait", "good"])?.ok()?;
    host.rkube(["wait", "good", "bad"])?.exits(6)?;
    host.up(&[pod("long", &[tool("a", &["sleep", "inf"])])])?;
    let late = host.rkube(["wait", "--timeout", "1", "long"])?.exits(1)?;
    ensure!(late.stderr.contains("1 s"), "{late}");
    let all = host.rkube(["ps", "-a", "-o", "name"])?.ok()?.stdout;
    ensure!(all == "default/bad\ndefault/good\ndefault/long\n", "{all}");
    let running = host.rkube(["ps", "-o", "name"])?.ok()?.stdout;
    ensure!(running == "default/long\n", "{running}");
    host.rm(&["good", "bad", "long"])?;
    Ok(())
}
