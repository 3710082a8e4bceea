//! What dies, and what must not notice: keepers, supervisor, commands; many
//! commands at once; two roots; what a reset leaves.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::cgroups;
use crate::command::{Cmd, Next};
use crate::host::TestHost;
use crate::pods::{Life, pod, script, status, tool, with};
use crate::wait::{WAIT_SECS, until};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "chaos::supervisor_killed_and_nothing_restarts",
            supervisor_killed_and_nothing_restarts,
        ),
        Case::new(
            "chaos::keeper_killed_and_nothing_restarts",
            keeper_killed_and_nothing_restarts,
        ),
        Case::new(
            "chaos::ends_while_nobody_watches_are_known",
            ends_while_nobody_watches_are_known,
        ),
        Case::new(
            "chaos::backoff_goes_on_without_a_command",
            backoff_goes_on_without_a_command,
        ),
        Case::new("chaos::killed_at_any_moment", killed_at_any_moment).within_secs(240),
        Case::new(
            "chaos::pause_killed_and_the_sandbox_is_new",
            pause_killed_and_the_sandbox_is_new,
        ),
        Case::new(
            "chaos::everything_killed_and_cleaned",
            everything_killed_and_cleaned,
        ),
        Case::new("chaos::logs_lose_no_line", logs_lose_no_line),
        Case::new("chaos::commands_at_once", commands_at_once),
        Case::new("chaos::two_roots_do_not_meet", two_roots_do_not_meet),
        Case::new("chaos::reset_refuses_and_clears", reset_refuses_and_clears),
        Case::new(
            "chaos::late_calls_after_a_reset_make_nothing",
            late_calls_after_a_reset_make_nothing,
        ),
        Case::new(
            "chaos::nothing_leaks_under_shared_propagation",
            nothing_leaks_under_shared_propagation,
        ),
        Case::new(
            "chaos::keepers_are_outside_the_pods_limits",
            keepers_are_outside_the_pods_limits,
        ),
    ]
}

/// Two containers that stay, and one that has ended with code 5.
fn trio(name: &str) -> Value {
    let made = pod(
        name,
        &[
            tool("a", &["sleep", "inf"]),
            tool("b", &["sleep", "inf"]),
            script("c", "exit 5"),
        ],
    );
    with(made, "spec", json!({"terminationGracePeriodSeconds": 1}))
}

fn lives(host: &TestHost, name: &str) -> anyhow::Result<[Life; 3]> {
    Ok([
        host.life(name, "pause")?,
        host.life(name, "a")?,
        host.life(name, "b")?,
    ])
}

/// The pod's truth as a command sees it now.
fn truth_holds(host: &TestHost, name: &str, before: &[Life; 3]) -> anyhow::Result<()> {
    let now = lives(host, name)?;
    ensure!(
        now == *before && now.iter().all(Life::runs),
        "{before:?} became {now:?}"
    );
    let seen = host.inspect(name)?;
    for container in ["a", "b"] {
        let one = status(&seen, container);
        ensure!(
            one["restartCount"] == 0 && one["state"]["running"].is_object(),
            "{one:#}"
        );
    }
    let ended = status(&seen, "c");
    ensure!(
        ended["state"]["terminated"]["exitCode"] == 5 && ended["restartCount"] == 0,
        "{ended:#}"
    );
    ensure!(seen["status"]["phase"] == "Running", "{seen:#}");
    Ok(())
}

fn supervisor_killed_and_nothing_restarts(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[trio("p")])?;
    host.wait_pod("p", "the end of c", |p| {
        status(p, "c")["state"]["terminated"].is_object()
    })?;
    let before = lives(host, "p")?;
    for _ in 0..3 {
        host.supervisor()?.context("no supervisor runs")?.kill()?;
        truth_holds(host, "p", &before)?;
        ensure!(host.tell("p", &["echo", "alive"])? == "alive\n");
    }
    host.rm(&["p"])?;
    Ok(())
}

fn keeper_killed_and_nothing_restarts(host: &TestHost) -> anyhow::Result<()> {
    let talker = tool("talk", &["say", "--lines", "inf", "--interval", "20"]);
    let mut made = trio("p");
    made["spec"]["containers"]
        .as_array_mut()
        .context("a list")?
        .push(talker);
    host.up(&[made])?;
    host.wait_pod("p", "the end of c", |p| {
        status(p, "c")["state"]["terminated"].is_object()
    })?;
    let before = lives(host, "p")?;
    let keeper = host.keeper("p")?;
    keeper.kill()?;
    truth_holds(host, "p", &before)?;
    ensure!(host.tell("p", &["echo", "alive"])? == "alive\n");
    // The new keeper takes the output up again.
    let count = || -> anyhow::Result<usize> {
        Ok(host
            .rkube(["logs", "p", "-c", "talk"])?
            .ok()?
            .stdout
            .lines()
            .count())
    };
    let seen = count()?;
    until("more lines", Duration::from_secs(WAIT_SECS), || {
        Ok((count()? > seen + 10).then_some(()))
    })?;
    let lines = host.rkube(["logs", "p", "-c", "talk"])?.ok()?.stdout;
    contiguous(lines.lines())?;
    // Both at once, the writer first.
    host.supervisor()?.context("no supervisor runs")?.kill()?;
    truth_holds(host, "p", &before)?;
    host.rkube(["stop", "p"])?.ok()?;
    let ended = host.inspect("p")?;
    ensure!(ended["status"]["phase"] == "Failed", "{ended:#}");
    Ok(())
}

/// Lines `line N`: none is missing; a dead keeper may have repeated some.
fn contiguous<'a>(lines: impl Iterator<Item = &'a str>) -> anyhow::Result<u64> {
    let mut last = 0;
    for line in lines {
        let number: u64 = line
            .trim_end_matches('.')
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .parse()
            .with_context(|| line.to_owned())?;
        ensure!(number <= last + 1, "line {number} after line {last}");
        last = last.max(number);
    }
    Ok(last)
}

fn ends_while_nobody_watches_are_known(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod(
        "p",
        &[
            script("a", "wait-file /go; exit 7"),
            tool("b", &["sleep", "inf"]),
        ],
    )])?;
    let container = host.life("p", "a")?;
    let supervisor = host.supervisor()?.context("no supervisor runs")?;
    // Stopped, it cannot see the end; killed, it cannot tell of it.
    let pid = rustix::process::Pid::from_raw(i32::try_from(supervisor.pid)?).context("pid 0")?;
    let root = format!("/proc/{}/root/go", container.pid);
    supervisor.kill()?;
    std::fs::write(&root, "").with_context(|| format!("write {root}"))?;
    until("the end of a", Duration::from_secs(WAIT_SECS), || {
        Ok((!container.runs()).then_some(()))
    })?;
    ensure!(rustix::process::test_kill_process(pid).is_err() || !supervisor.runs());
    let seen = host.wait_pod("p", "the exit code", |p| {
        status(p, "a")["state"]["terminated"].is_object()
    })?;
    ensure!(
        status(&seen, "a")["state"]["terminated"]["exitCode"] == 7,
        "{seen:#}"
    );
    ensure!(status(&seen, "b")["restartCount"] == 0, "{seen:#}");
    host.rm(&["p"])?;
    Ok(())
}

fn backoff_goes_on_without_a_command(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[script("a", "echo run; sleep 1; exit 1")]),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[made])?;
    host.wait_pod("p", "back-off", |p| {
        status(p, "a")["restartCount"] == 1 && status(p, "a")["state"]["waiting"].is_object()
    })?;
    let uid = host.inspect("p")?["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    // Within the back-off nothing ends, so only a timer can go on with it.
    host.supervisor()?.context("no supervisor runs")?.kill()?;
    host.inspect("p")?;
    let dir = host.root().join(format!("var/log/pods/default_p_{uid}/a"));
    // No command is given: the files alone tell.
    until("the third run", Duration::from_secs(WAIT_SECS), || {
        Ok(dir.join("2.log").exists().then_some(()))
    })?;
    host.wait_pod("p", "the count", |p| status(p, "a")["restartCount"] == 2)?;
    host.rm(&["p"])?;
    Ok(())
}

/// Kills at moments spread over the making and the ending of a pod.
fn killed_at_any_moment(host: &TestHost) -> anyhow::Result<()> {
    for round in 0..12u64 {
        let name = format!("p{round}");
        let file = host.manifest(&[pod(
            &name,
            &[tool("a", &["sleep", "inf"]), script("c", "exit 5")],
        )])?;
        let args = ["run", "--detach", "-f"].map(Path::new);
        let run = host
            .rkube(args.into_iter().chain([file.as_path()]))?
            .spawn()?;
        // Another moment each time: that is the test, not a wait.
        std::thread::sleep(Duration::from_millis(round * 17));
        match round % 3 {
            0 => drop(run),
            1 => {
                if let Some(supervisor) = host.supervisor()? {
                    supervisor.kill()?;
                }
                run.end(Duration::from_secs(WAIT_SECS))?;
            }
            _ => {
                if let Ok(keeper) = host.keeper(&name) {
                    keeper.kill()?;
                }
                run.end(Duration::from_secs(WAIT_SECS))?;
            }
        }
        // Given again it is the same pod, made once, whatever was there of it.
        host.rkube(args.into_iter().chain([file.as_path()]))?
            .ok()
            .with_context(|| format!("round {round}"))?;
        let seen = host
            .wait_pod(&name, "its state", |p| {
                status(p, "a")["state"]["running"].is_object()
                    && status(p, "c")["state"]["terminated"].is_object()
            })
            .with_context(|| format!("round {round}"))?;
        let code = &status(&seen, "c")["state"]["terminated"];
        let lost = code["reason"] == "ContainerStatusUnknown" && round % 3 == 2;
        ensure!(code["exitCode"] == 5 || lost, "round {round}: {seen:#}");
        let life = host.life(&name, "a")?;
        let running = processes_in(&life)?;
        ensure!(
            running == 1,
            "round {round}: {running} processes in the container"
        );
        host.rm(&[&name])?;
        ensure!(!life.runs(), "round {round}: {life:?} runs after rm");
    }
    Ok(())
}

fn processes_in(life: &Life) -> anyhow::Result<usize> {
    Ok(cgroups::file(life.pid, "pids", "cgroup.procs")?
        .lines()
        .count())
}

fn pause_killed_and_the_sandbox_is_new(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[tool("a", &["sleep", "inf"])]),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[made])?;
    let (pause, container) = (host.life("p", "pause")?, host.life("p", "a")?);
    pause.kill()?;
    let life = until("another sandbox", Duration::from_secs(WAIT_SECS), || {
        let (Ok(new), Ok(a)) = (host.life("p", "pause"), host.life("p", "a")) else {
            return Ok(None);
        };
        Ok((new != pause && a != container).then_some(a))
    })?;
    ensure!(life.runs() && !container.runs());
    let seen = host.inspect("p")?;
    ensure!(status(&seen, "a")["restartCount"] == 1, "{seen:#}");
    ensure!(host.tell("p", &["echo", "alive"])? == "alive\n");
    host.rm(&["p"])?;
    Ok(())
}

fn everything_killed_and_cleaned(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[trio("p")])?;
    // Its end would start a supervisor in the middle of the killing.
    host.wait_pod("p", "the end of c", |p| {
        status(p, "c")["state"]["terminated"].is_object()
    })?;
    let keeper = host.keeper("p")?;
    let all = lives(host, "p")?;
    host.supervisor()?.context("no supervisor runs")?.kill()?;
    keeper.kill()?;
    for life in all {
        life.kill()?;
    }
    // Nobody saw how they ended: never a guess, never a container that "runs".
    let seen = host.wait_pod("p", "its end", |p| p["status"]["phase"] == "Failed")?;
    for container in ["a", "b"] {
        let end = &status(&seen, container)["state"]["terminated"];
        ensure!(end["exitCode"] == 137, "{seen:#}");
    }
    host.rm(&["p"])?;
    ensure!(crate::net::links()?.is_empty());
    Ok(())
}

fn logs_lose_no_line(host: &TestHost) -> anyhow::Result<()> {
    const LINES: &str = "4000";
    host.up(&[pod(
        "p",
        &[tool(
            "a",
            &["say", "--lines", LINES, "--bytes", "500", "--interval", "1"],
        )],
    )])?;
    let mut follow = host.rkube(["logs", "-f", "p"])?.spawn()?;
    for round in 0..4 {
        // Time for it to write, which is what the kill interrupts.
        std::thread::sleep(Duration::from_millis(250));
        let kill_keeper = round % 2 == 0;
        let victim = if kill_keeper {
            host.keeper("p").ok()
        } else {
            host.supervisor()?
        };
        if let Some(victim) = victim {
            victim.kill()?;
        }
        host.inspect("p")?;
    }
    host.rkube(["wait", "p"])?.output()?;
    let text = host.rkube(["logs", "p"])?.ok()?.stdout;
    let last = contiguous(text.lines())?;
    ensure!(last.to_string() == LINES, "the last line is {last}");
    let mut followed = Vec::new();
    while let Next::Line(line) = follow.next_line(Duration::from_secs(WAIT_SECS)) {
        followed.push(line);
    }
    let last = contiguous(followed.iter().map(String::as_str))?;
    ensure!(last.to_string() == LINES, "followed until line {last}");
    Ok(())
}

fn commands_at_once(host: &TestHost) -> anyhow::Result<()> {
    let started: Vec<_> = (0..10)
        .map(|n| {
            let file = host.manifest(&[pod(
                &format!("p{n}"),
                &[script("a", &format!("echo {n}; exit {n}"))],
            )])?;
            host.rkube([Path::new("run"), Path::new("-f"), &file])?
                .spawn()
        })
        .collect::<anyhow::Result<_>>()?;
    for (n, run) in started.into_iter().enumerate() {
        let (status, lines) = run.end(Duration::from_secs(WAIT_SECS))?;
        ensure!(
            status.code() == i32::try_from(n).ok(),
            "{n}: {status} {lines:?}"
        );
        ensure!(lines.contains(&format!("a | {n}")), "{n}: {lines:?}");
    }
    ensure!(
        host.rkube(["ps", "-a", "-o", "name"])?
            .ok()?
            .stdout
            .is_empty()
    );
    // The same pod, ten times: one is made.
    let file = host.manifest(&[pod("same", &[tool("a", &["sleep", "inf"])])])?;
    let args = ["run", "--detach", "-f"].map(Path::new);
    let started: Vec<_> = (0..10)
        .map(|_| {
            host.rkube(args.into_iter().chain([file.as_path()]))?
                .spawn()
        })
        .collect::<anyhow::Result<_>>()?;
    for run in started {
        let (status, lines) = run.end(Duration::from_secs(WAIT_SECS))?;
        ensure!(status.success(), "{status} {lines:?}");
    }
    ensure!(host.rkube(["ps", "-o", "name"])?.ok()?.stdout == "default/same\n");
    let started: Vec<_> = (0..4)
        .map(|_| host.rkube(["rm", "--force", "same"])?.spawn())
        .collect::<anyhow::Result<_>>()?;
    for run in started {
        run.end(Duration::from_secs(WAIT_SECS))?;
    }
    ensure!(
        host.rkube(["ps", "-a", "-o", "name"])?
            .ok()?
            .stdout
            .is_empty()
    );
    Ok(())
}

fn two_roots_do_not_meet(host: &TestHost) -> anyhow::Result<()> {
    // Below the case's own directory, so that the harness sees what is left.
    let other = host.files().join("other");
    std::fs::create_dir(&other)?;
    let program = host.program()?.to_path_buf();
    let rkube = |args: &[&str]| {
        let root = other.to_string_lossy().into_owned();
        Cmd::new(&program, ["--root", &root].iter().chain(args))
    };
    let made = pod("p", &[tool("a", &["sleep", "inf"])]);
    host.up(std::slice::from_ref(&made))?;
    let file = host.manifest(&[made])?;
    rkube(&["run", "--detach", "-f", &file.to_string_lossy()]).ok()?;
    let theirs = rkube(&["inspect", "p", "-o", "json"]).ok()?.json()?;
    let ours = host.inspect("p")?;
    ensure!(ours["metadata"]["uid"] != theirs["metadata"]["uid"]);
    ensure!(
        ours["status"]["podIP"] != theirs["status"]["podIP"],
        "{ours:#} {theirs:#}"
    );
    let life = host.life("p", "a")?;
    let tables = Cmd::new("nft", ["list", "tables"]).ok()?.stdout;
    ensure!(
        tables.lines().filter(|l| l.contains("rkube-")).count() == 2,
        "{tables}"
    );
    rkube(&["reset", "--force"]).ok()?;
    ensure!(life.runs() && host.tell("p", &["echo", "alive"])? == "alive\n");
    let tables = Cmd::new("nft", ["list", "tables"]).ok()?.stdout;
    ensure!(
        tables.lines().filter(|l| l.contains("rkube-")).count() == 1,
        "{tables}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn reset_refuses_and_clears(host: &TestHost) -> anyhow::Result<()> {
    let memory = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]});
    let container = with(
        tool("a", &["sleep", "inf"]),
        "",
        json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}]}),
    );
    let container = with(
        container,
        "",
        json!({"ports": [{"containerPort": 80, "hostPort": 8000}]}),
    );
    host.up(&[with(pod("p", &[container]), "spec", memory)])?;
    let life = host.life("p", "a")?;
    let refused = host.rkube(["reset"])?.exits(1)?;
    ensure!(
        refused.stderr.contains("--force") && life.runs(),
        "{refused}"
    );
    host.rkube(["reset", "--force"])?.ok()?;
    ensure!(!life.runs());
    ensure!(crate::net::links()?.is_empty());
    let tables = Cmd::new("nft", ["list", "tables"]).ok()?.stdout;
    ensure!(!tables.contains("rkube"), "{tables}");
    let left: Vec<_> = ["run/rkube", "var/lib/rkube", "var/log/pods"]
        .into_iter()
        .filter(|d| host.root().join(d).exists())
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let root = host.root().to_string_lossy().into_owned();
    ensure!(!mounts.contains(&root), "{mounts}");
    // And again, and on the empty root.
    host.rkube(["reset"])?.ok()?;
    Ok(())
}

/// What a keeper may still say while its pod is reset.
fn late_calls_after_a_reset_make_nothing(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    host.rkube(["reset", "--force"])?.ok()?;
    host.rkube(["supervisor"])?.ok()?;
    host.rkube(["supervisor", "--serve", "--adopt"])?.ok()?;
    ensure!(host.supervisor()?.is_none(), "a supervisor was started");
    let left: Vec<_> = ["run/rkube", "var/lib/rkube"]
        .into_iter()
        .filter(|d| host.root().join(d).exists())
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Users' hosts have `/` shared: no mount of a container may come back.
fn nothing_leaks_under_shared_propagation(host: &TestHost) -> anyhow::Result<()> {
    let program = host.program()?.to_string_lossy().into_owned();
    let root = host.root().to_string_lossy().into_owned();
    let dir = host.files().join("v");
    std::fs::create_dir(&dir)?;
    let volumes = json!({"volumes": [{"name": "h", "hostPath": {"path": dir}}, {"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "e", "emptyDir": {}}]});
    let mounts = json!({"volumeMounts": [{"name": "h", "mountPath": "/h"}, {"name": "m", "mountPath": "/m"}, {"name": "e", "mountPath": "/e"}]});
    let file = host.manifest(&[with(
        pod("p", &[with(tool("a", &["sleep", "inf"]), "", mounts)]),
        "spec",
        volumes,
    )])?;
    let file = file.to_string_lossy();
    let script = format!(
        "before=$(wc -l < /proc/self/mountinfo); set -e
         {program} --root {root} run --detach -f {file}
         grep -c ' shared:' /proc/self/mountinfo
         {program} --root {root} exec p -- mounts > /dev/null
         during=$(wc -l < /proc/self/mountinfo)
         {program} --root {root} rm --force p
         {program} --root {root} reset --force
         after=$(wc -l < /proc/self/mountinfo)
         echo $before $during $after"
    );
    let out = Cmd::new(
        "unshare",
        ["-m", "--propagation", "shared", "sh", "-c", &script],
    )
    .ok()?;
    let last = out.stdout.lines().last().context("no line")?;
    let counts: Vec<u32> = last.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    // A volume in memory is the one mount that the host sees.
    ensure!(
        counts[0] == counts[2] && counts[1] == counts[0] + 1,
        "{out}"
    );
    Ok(())
}

fn keepers_are_outside_the_pods_limits(host: &TestHost) -> anyhow::Result<()> {
    let limits = json!({"resources": {"limits": {"memory": "32Mi", "cpu": "100m"}}});
    host.up(&[pod("p", &[with(tool("a", &["sleep", "inf"]), "", limits)])])?;
    let keeper = host.keeper("p")?;
    let supervisor = host.supervisor()?.context("no supervisor runs")?;
    // It moves a while after the first pod, which comes first.
    until(
        "the supervisor's move",
        Duration::from_secs(WAIT_SECS),
        || {
            let group = cgroups::of(supervisor.pid, "memory")?;
            Ok(group.to_string_lossy().contains("rkube").then_some(()))
        },
    )?;
    for (name, life) in [("keeper", keeper), ("supervisor", supervisor)] {
        let group = cgroups::of(life.pid, "memory")?
            .to_string_lossy()
            .into_owned();
        ensure!(
            group.contains("rkube") && !group.contains("kubepods"),
            "{name} is in {group}"
        );
        let environment = std::fs::read(format!("/proc/{}/environ", life.pid)).unwrap_or_default();
        ensure!(
            !String::from_utf8_lossy(&environment).contains("HOME="),
            "{name} inherited an environment"
        );
        let session = std::fs::read_to_string(format!("/proc/{}/stat", life.pid))?;
        let fields: Vec<&str> = session
            .rsplit_once(") ")
            .context("stat")?
            .1
            .split(' ')
            .collect();
        ensure!(
            fields[3] == life.pid.to_string(),
            "{name} leads no session of its own"
        );
    }
    host.rm(&["p"])?;
    Ok(())
}
