//! Logs: their form on disk, what `rkube logs` selects, rotation.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::Case;
use crate::host::TestHost;
use crate::pods::{pod, script, status, tool, with};
use crate::wait::WAIT_SECS;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("logs::form_on_disk", form_on_disk),
        Case::new("logs::selections", selections),
        Case::new("logs::of_the_run_before", of_the_run_before),
        Case::new(
            "logs::following_ends_with_the_pod",
            following_ends_with_the_pod,
        ),
        Case::new("logs::rotation_loses_no_line", rotation_loses_no_line),
        Case::new("logs::long_and_open_lines", long_and_open_lines),
    ]
}

/// Files of a container's log, the oldest first.
pub(super) fn files(host: &TestHost, name: &str, container: &str) -> anyhow::Result<Vec<PathBuf>> {
    let uid = host.inspect(name)?["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    let dir = host
        .root()
        .join(format!("var/log/pods/default_{name}_{uid}/{container}"));
    let list = std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
    let mut found: Vec<PathBuf> = list.map(|e| Ok(e?.path())).collect::<anyhow::Result<_>>()?;
    // The one that is written to has the shortest name.
    found.sort_by_key(|p| {
        (
            p.file_name().is_some_and(|n| n.len() == "0.log".len()),
            p.clone(),
        )
    });
    Ok(found)
}

fn ended(host: &TestHost, made: serde_json::Value) -> anyhow::Result<()> {
    let file = host.manifest(&[made])?;
    host.rkube(
        ["run", "--detach", "-f"]
            .map(std::path::Path::new)
            .into_iter()
            .chain([file.as_path()]),
    )?
    .output()?;
    host.rkube(["wait", "p"])?.output()?;
    Ok(())
}

fn form_on_disk(host: &TestHost) -> anyhow::Result<()> {
    ended(
        host,
        pod("p", &[script("a", "echo out; cat /absent; echo -n open")]),
    )?;
    let files = files(host, "p", "a")?;
    ensure!(files.len() == 1 && files[0].ends_with("0.log"), "{files:?}");
    let text = std::fs::read_to_string(&files[0])?;
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.splitn(4, ' ').collect()).collect();
    ensure!(rows.len() == 3, "{text}");
    let row = |stream: &str| rows.iter().filter(|r| r[1] == stream).collect::<Vec<_>>();
    let out = row("stdout");
    ensure!(
        out.len() == 2 && out[0][2..] == ["F", "out"] && out[1][3] == "open",
        "{text}"
    );
    ensure!(row("stderr").len() == 1, "{text}");
    for r in &rows {
        // RFC 3339 with nanoseconds.
        ensure!(
            r[0].len() >= 20 && r[0].as_bytes()[10] == b'T' && r[0].contains('.'),
            "{text}"
        );
    }
    Ok(())
}

fn selections(host: &TestHost) -> anyhow::Result<()> {
    ended(
        host,
        pod(
            "p",
            &[
                script("a", "say --lines 3 early; sleep 3; say --lines 2 late"),
                script("b", "echo other"),
            ],
        ),
    )?;
    let logs = |args: &[&str]| -> anyhow::Result<String> {
        Ok(host.rkube(["logs", "p"].iter().chain(args))?.ok()?.stdout)
    };
    ensure!(logs(&["-c", "a", "--tail", "2"])? == "late 1\nlate 2\n");
    ensure!(logs(&["-c", "a", "--tail", "0"])?.is_empty());
    let stamped = logs(&["-c", "a", "--timestamps"])?;
    let lines: Vec<(&str, &str)> = stamped.lines().filter_map(|l| l.split_once(' ')).collect();
    ensure!(lines.len() == 5 && lines[0].1 == "early 1", "{stamped}");
    // Since the first late line's own time.
    ensure!(
        logs(&["-c", "a", "--since", lines[3].0])? == "late 1\nlate 2\n",
        "{stamped}"
    );
    ensure!(logs(&["-c", "a", "--since", "1h"])?.lines().count() == 5);
    let all = logs(&["--all-containers"])?;
    ensure!(all.contains("other") && all.contains("early 1"), "{all}");
    let several = host.rkube(["logs", "p"])?.output()?;
    ensure!(
        !several.status.success() && several.stderr.contains('a') && several.stderr.contains('b'),
        "{several}"
    );
    let absent = host.rkube(["logs", "p", "-c", "zzz"])?.exits(64)?;
    ensure!(absent.stderr.contains("zzz"), "{absent}");
    Ok(())
}

fn of_the_run_before(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[tool("a", &["run", "stamp; sleep 1; exit 1"])]),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[made])?;
    host.wait_pod("p", "the first restart's end", |p| {
        status(p, "a")["restartCount"] == 1
            && status(p, "a")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    let now = host.rkube(["logs", "p"])?.ok()?.stdout;
    let before = host.rkube(["logs", "--previous", "p"])?.ok()?.stdout;
    ensure!(
        now != before && now.starts_with("monotonic") && before.starts_with("monotonic"),
        "{now}{before}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn following_ends_with_the_pod(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod(
        "p",
        &[script("a", "echo first; wait-file /go; echo second")],
    )])?;
    let limit = Duration::from_secs(WAIT_SECS);
    let mut follow = host.rkube(["logs", "-f", "p"])?.spawn()?;
    follow.line("the first line", limit, |l| l == "first")?;
    host.tell("p", &["touch", "/go"])?;
    follow.line("the second line", limit, |l| l == "second")?;
    let (status, lines) = follow.end(limit)?;
    ensure!(status.success(), "{status} {lines:?}");
    Ok(())
}

/// Lines of 1 KiB: 26 MiB of them rotate twice.
const LINES: usize = 26 * 1024;

fn rotation_loses_no_line(host: &TestHost) -> anyhow::Result<()> {
    let lines = LINES.to_string();
    host.up(&[pod(
        "p",
        &[script(
            "a",
            &format!("wait-file /go; say --bytes 1024 --lines {lines}; sleep inf"),
        )],
    )])?;
    let mut follow = host.rkube(["logs", "-f", "p"])?.spawn()?;
    host.tell("p", &["touch", "/go"])?;
    let last = format!("line {LINES}.");
    let number = |l: &str| {
        l.strip_prefix("line ")
            .and_then(|t| t.split('.').next())
            .and_then(|n| n.parse::<usize>().ok())
    };
    for expected in 1..=LINES {
        match follow.next_line(Duration::from_secs(WAIT_SECS)) {
            crate::command::Next::Line(line) => ensure!(
                number(&line) == Some(expected),
                "{line:?} is not line {expected}"
            ),
            other => anyhow::bail!("{other:?} instead of line {expected}"),
        }
    }
    let found = files(host, "p", "a")?;
    ensure!((2..=5).contains(&found.len()), "{found:?}");
    for path in &found {
        let size = std::fs::metadata(path)?.len();
        ensure!(
            size <= (10 << 20) + (64 << 10),
            "{}: {size}",
            path.display()
        );
    }
    let all = host.rkube(["logs", "p"])?.ok()?.stdout;
    ensure!(
        all.lines().count() == LINES && all.lines().last().is_some_and(|l| l.starts_with(&last))
    );
    let tail = host.rkube(["logs", "--tail", "1", "p"])?.ok()?.stdout;
    ensure!(tail.starts_with(&last), "{tail}");
    host.rm(&["p"])?;
    Ok(())
}

fn long_and_open_lines(host: &TestHost) -> anyhow::Result<()> {
    ended(
        host,
        pod("p", &[script("a", "say --bytes 40000; echo -n end")]),
    )?;
    let text = std::fs::read_to_string(&files(host, "p", "a")?[0])?;
    let flags: Vec<&str> = text.lines().filter_map(|l| l.split(' ').nth(2)).collect();
    // 16 KiB pieces: two parts and the rest, then the line without an end.
    ensure!(flags == ["P", "P", "F", "P"], "{flags:?}");
    let shown = host.rkube(["logs", "p"])?.ok()?.stdout;
    let (long, rest) = shown.split_once('\n').context("one line")?;
    ensure!(
        long.len() == 39999 && rest == "end",
        "{} {rest:?}",
        long.len()
    );
    Ok(())
}
