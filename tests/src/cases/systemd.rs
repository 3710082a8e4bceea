//! On the commonest host: systemd is PID 1, sessions and units come and go,
//! and pods stay.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::oci::bundle;
use crate::case::{Case, skip};
use crate::cgroups;
use crate::command::{Cmd, Running};
use crate::host::TestHost;
use crate::layout::Layout;
use crate::pods::{Life, pod, tool, with};
use crate::wait::{WAIT_SECS, child_ended, until};

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new(
            "systemd::pods_outlive_the_login_session",
            pods_outlive_the_login_session,
        ),
        Case::new("systemd::pods_outlive_the_unit", pods_outlive_the_unit),
        Case::new(
            "systemd::reload_and_reexec_change_nothing",
            reload_and_reexec_change_nothing,
        ),
        Case::new(
            "systemd::scopes_of_the_oci_command_line",
            scopes_of_the_oci_command_line,
        ),
        Case::new(
            "systemd::pods_live_in_a_delegated_unit",
            pods_live_in_a_delegated_unit,
        )
        .alone(),
        Case::new(
            "systemd::a_whole_users_end_is_no_pods_end",
            a_whole_users_end_is_no_pods_end,
        ),
    ]
    .map(|case| case.on(&[Layout::Systemd]).vm_only().within_secs(240))
    .to_vec()
}

const PATIENCE: Duration = Duration::from_secs(WAIT_SECS);

/// A script that starts a pod and then stays, as a user's shell does.
fn starts_a_pod(host: &TestHost, name: &str) -> anyhow::Result<String> {
    let file = host.manifest(&[pod(name, &[tool("a", &["sleep", "inf"])])])?;
    let text = format!(
        "cat /proc/self/cgroup\n{} --root {} run --detach -f {} && echo up\nexec sleep 1000\n",
        host.program()?.display(),
        host.root().display(),
        file.display(),
    );
    let script = host.file(&format!("{name}.sh"), text)?;
    Ok(script.display().to_string())
}

/// Everything of a pod that must last.
fn lives(host: &TestHost, name: &str) -> anyhow::Result<[Life; 3]> {
    Ok([
        host.life(name, "a")?,
        host.life(name, "pause")?,
        host.keeper(name)?,
    ])
}

fn still_runs(host: &TestHost, name: &str, before: &[Life; 3]) -> anyhow::Result<()> {
    for life in before {
        ensure!(life.runs(), "process {} of {name} has ended", life.pid);
    }
    let now = lives(host, name)?;
    ensure!(now == *before, "{now:?} is not {before:?}");
    let seen = host.inspect(name)?;
    ensure!(
        seen["status"]["containerStatuses"][0]["restartCount"] == 0,
        "{seen:#}"
    );
    host.tell(name, &["echo", "well"]).map(drop)
}

/// A login of root's by PAM, as sshd and login make it, that runs a script;
/// the scope in which logind keeps it.
fn log_in(script: &str) -> anyhow::Result<(Running, String)> {
    let mut login = Cmd::new("su", ["-l", "root", "-c", &format!("sh {script}")]).spawn()?;
    let group = login.line("its cgroup", PATIENCE, |l| l.starts_with("0::"))?;
    let scope = group.rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(
        group.contains("/user.slice/") && scope.starts_with("session-"),
        "no login session: {group}"
    );
    login.line("the pod", PATIENCE, |l| l == "up")?;
    Ok((login, scope))
}

fn ended(what: &str, run: Running) -> anyhow::Result<()> {
    ensure!(child_ended(run.pid(), PATIENCE)?, "{what} does not end");
    run.end(PATIENCE).map(drop)
}

fn systemctl(args: &[&str]) -> anyhow::Result<()> {
    Cmd::new("systemctl", args).ok().map(drop)
}

fn pods_outlive_the_login_session(host: &TestHost) -> anyhow::Result<()> {
    let (login, scope) = log_in(&starts_a_pod(host, "p")?)?;
    let before = lives(host, "p")?;
    let supervisor = host.supervisor()?.context("no supervisor")?;
    let id = scope
        .trim_start_matches("session-")
        .trim_end_matches(".scope");
    Cmd::new("loginctl", ["terminate-session", id]).ok()?;
    ended("the session", login)?;
    until("the scope's end", PATIENCE, || {
        let state = Cmd::new("systemctl", ["is-active", &scope]).output()?;
        Ok((!state.status.success()).then_some(()))
    })?;
    still_runs(host, "p", &before)?;
    ensure!(supervisor.runs(), "the supervisor has ended");
    host.rm(&["p"])?;
    Ok(())
}

fn a_whole_users_end_is_no_pods_end(host: &TestHost) -> anyhow::Result<()> {
    let (login, _) = log_in(&starts_a_pod(host, "p")?)?;
    let before = lives(host, "p")?;
    Cmd::new("loginctl", ["terminate-user", "root"]).ok()?;
    ended("the session", login)?;
    still_runs(host, "p", &before)?;
    host.rm(&["p"])?;
    Ok(())
}

fn pods_outlive_the_unit(host: &TestHost) -> anyhow::Result<()> {
    let script = starts_a_pod(host, "p")?;
    // The unit is PID 1's child and would have the machine's network.
    let own = format!("--net=/proc/{}/ns/net", std::process::id());
    let unit = format!("rkube-test-{}", std::process::id());
    let name = format!("--unit={unit}");
    let run = ["--quiet", &name, "nsenter", &own, "sh", &script];
    Cmd::new("systemd-run", run).ok()?;
    until("the pod", PATIENCE, || {
        let there = host
            .inspect("p")
            .is_ok_and(|p| p["status"]["phase"] == "Running");
        Ok(there.then_some(()))
    })?;
    let before = lives(host, "p")?;
    systemctl(&["stop", &unit])?;
    still_runs(host, "p", &before)?;
    host.rm(&["p"])?;
    Ok(())
}

/// Limits that PID 1 could take away when it looks at its units anew.
fn limits(pid: u32) -> anyhow::Result<Vec<(&'static str, String)>> {
    [
        "memory.max",
        "memory.oom.group",
        "cpu.max",
        "cpu.weight",
        "pids.max",
    ]
    .into_iter()
    .map(|file| Ok((file, cgroups::file(pid, "memory", file)?)))
    .collect()
}

fn reload_and_reexec_change_nothing(host: &TestHost) -> anyhow::Result<()> {
    let limited = |name: &str| {
        let resources = json!({"resources": {"limits": {"memory": "64Mi", "cpu": "200m"}}});
        pod(name, &[with(tool("a", &["sleep", "inf"]), "", resources)])
    };
    host.up(&[limited("p")])?;
    let before = lives(host, "p")?;
    let had = limits(before[0].pid)?;
    let group = cgroups::of(before[0].pid, "memory")?;
    for (round, command) in ["daemon-reload", "daemon-reexec", "daemon-reload"]
        .into_iter()
        .enumerate()
    {
        systemctl(&[command])?;
        until("systemd to answer again", PATIENCE, || {
            let state = Cmd::new("systemctl", ["is-system-running"]).output()?;
            let word = state.stdout.trim().to_owned();
            Ok(["running", "degraded", "starting"]
                .contains(&word.as_str())
                .then_some(()))
        })?;
        still_runs(host, "p", &before).with_context(|| format!("after {command}"))?;
        let has = limits(before[0].pid)?;
        ensure!(has == had, "after {command}: {has:?}, before {had:?}");
        ensure!(cgroups::of(before[0].pid, "memory")? == group);
        // What is started afterwards has its limits as well.
        let next = format!("next-{round}");
        host.up(&[limited(&next)])?;
        let has = limits(host.life(&next, "a")?.pid)?;
        ensure!(has == had, "{next} after {command}: {has:?}");
        host.rm(&[&next])?;
    }
    host.rm(&["p"])?;
    Ok(())
}

/// The systemd driver: systemd knows the group that rkube manages, and has
/// left it to it.
fn pods_live_in_a_delegated_unit(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let group = cgroups::of(host.life("p", "a")?.pid, "memory")?;
    let mut units = group.iter().filter_map(|c| c.to_str());
    let is_unit = |c: &&str| {
        [".slice", ".scope", ".service"]
            .iter()
            .any(|s| c.ends_with(s))
    };
    let Some(unit) = units.rfind(is_unit) else {
        return Err(skip(format!(
            "the cgroupfs driver made {}",
            group.display()
        )));
    };
    delegated(unit)?;
    host.rm(&["p"])?;
    Ok(())
}

fn delegated(unit: &str) -> anyhow::Result<()> {
    let show = ["show", "--property=Delegate,ActiveState", unit];
    let told = Cmd::new("systemctl", show).ok()?.stdout;
    ensure!(
        told.contains("Delegate=yes") && told.contains("ActiveState=active"),
        "{unit}: {told}"
    );
    Ok(())
}

/// `--systemd-cgroup`: a scope that systemd knows, keeps over a reload, and
/// forgets with the container.
fn scopes_of_the_oci_command_line(host: &TestHost) -> anyhow::Result<()> {
    let id = format!("test-{}", std::process::id());
    let limit = (64 << 20).to_string();
    let bundle = bundle(host, &["/bin/sleep", "1000"], |spec| {
        spec["linux"]["cgroupsPath"] = format!("system.slice:rkube:{id}").into();
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    })?;
    let root = host.root().join("oci").display().to_string();
    let program = host.program()?;
    let oci = |args: &[&str]| {
        let head = ["oci", "--root", &root, "--systemd-cgroup"];
        Cmd::new(program, head.iter().chain(args)).ok()
    };
    let (bundle, file) = (bundle.display().to_string(), host.files().join("pid"));
    let pid_file = file.display().to_string();
    let run = [
        "run",
        "--detach",
        "--bundle",
        &bundle,
        "--pid-file",
        &pid_file,
        &id,
    ];
    oci(&run)?;
    let life = Life::of(std::fs::read_to_string(&file)?.trim().parse()?)?;
    let group = cgroups::of(life.pid, "memory")?;
    let unit = format!("rkube-{id}.scope");
    ensure!(
        group.iter().any(|c| c == unit.as_str()),
        "{}",
        group.display()
    );
    delegated(&unit)?;
    for command in ["daemon-reload", "daemon-reexec"] {
        systemctl(&[command])?;
        let now = cgroups::file(life.pid, "memory", "memory.max")?;
        ensure!(now == limit && life.runs(), "after {command}: {now}");
    }
    // Everything else works in the scope as in any other group.
    let inside = oci(&["exec", &id, "/bin/cat", "/proc/self/cgroup"])?;
    ensure!(inside.stdout.trim() == "0::/", "{inside}");
    oci(&["pause", &id])?;
    ensure!(cgroups::file(life.pid, "memory", "cgroup.freeze")? == "1");
    oci(&["resume", &id])?;
    let more = (96 << 20).to_string();
    oci(&["update", "--memory", &more, "--pids-limit", "77", &id])?;
    // 0 means "not set", for systemd as for the kernel.
    oci(&["update", "--memory", "0", "--cpu-quota", "0", &id])?;
    systemctl(&["daemon-reload"])?;
    for (file, wanted) in [("memory.max", more.as_str()), ("pids.max", "77")] {
        let now = cgroups::file(life.pid, "memory", file)?;
        ensure!(now == wanted, "{file} after an update: {now}");
    }
    oci(&["delete", "--force", &id])?;
    until("the scope to go", PATIENCE, || {
        let active = Cmd::new("systemctl", ["is-active", &unit]).output()?;
        Ok((!active.status.success() && !group.exists()).then_some(()))
    })
}
