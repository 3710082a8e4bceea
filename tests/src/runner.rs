//! Runs units in parallel, each as a process of its own.

use std::collections::VecDeque;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::host::Ground;
use crate::unit::{Outcome, SKIP_PREFIX, SKIP_STATUS, TestResult, Unit};
use crate::wait::child_ended;

/// Output of one test that is kept, in bytes: its end, where the reason is.
pub const OUTPUT_MAX_BYTES: u64 = 64 * 1024;

/// Told of each test as it starts and ends, from several threads.
pub trait Observer: Sync {
    /// A test starts.
    fn started(&self, unit: &Unit);
    /// A test has ended.
    fn ended(&self, result: &TestResult);
}

/// Runs every unit, `jobs` at a time, those that must be alone at the end.
///
/// One that failed beside others has a second try, alone: what shares two
/// processors with three other tests may miss a limit that it keeps by itself.
/// A pass of the second try says so in its reason, and is printed by name.
pub fn run(units: Vec<Unit>, jobs: usize, observer: &dyn Observer) -> Vec<TestResult> {
    let (alone, beside): (Vec<Unit>, Vec<Unit>) = units.into_iter().partition(|u| u.alone);
    let again = Mutex::new(Vec::new());
    let mut results = run_queue(beside, jobs, observer, Some(&again));
    results.extend(run_queue(alone, 1, observer, None));
    for (unit, first) in again.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let mut second = guarded(&unit);
        if second.outcome == Outcome::Passed {
            second.reason = format!("passed alone; beside others: {}", first.reason);
            second.output = first.output;
        }
        observer.ended(&second);
        results.push(second);
    }
    results
}

/// Runs a unit on a thread of its own: its network namespace ends with it.
fn guarded(unit: &Unit) -> TestResult {
    std::thread::scope(|s| s.spawn(|| run_unit(unit)).join())
        .unwrap_or_else(|_| failed(unit, 0, "the harness panicked", String::new()))
}

/// Failures go to `again` untold, where there is one.
fn run_queue(
    units: Vec<Unit>,
    jobs: usize,
    observer: &dyn Observer,
    again: Option<&Mutex<Vec<(Unit, TestResult)>>>,
) -> Vec<TestResult> {
    let queue = Mutex::new(VecDeque::from(units));
    let results = Mutex::new(Vec::new());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(unit) = next() {
                    observer.started(&unit);
                    let result = guarded(&unit);
                    if let Some(again) = again.filter(|_| result.outcome == Outcome::Failed) {
                        again
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((unit, result));
                        continue;
                    }
                    observer.ended(&result);
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_unit(unit: &Unit) -> TestResult {
    if unit.ignored {
        return TestResult {
            name: unit.name.clone(),
            outcome: Outcome::Skipped,
            ms: 0,
            reason: "marked ignored".to_owned(),
            output: String::new(),
        };
    }
    let start = Instant::now();
    let ended = try_unit(unit);
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let skipped = |why: &str| TestResult {
        name: unit.name.clone(),
        outcome: Outcome::Skipped,
        ms,
        reason: why.to_owned(),
        output: String::new(),
    };
    // A test of libtest can only return, whatever it found.
    if let Ok(Ended {
        status: Some(0),
        unclean: None,
        output,
    }) = &ended
        && !unit.on_ground
        && let Some(why) = skip_of(output)
    {
        return skipped(why);
    }
    match ended {
        Ok(Ended {
            status: Some(0),
            unclean: None,
            ..
        }) => TestResult {
            name: unit.name.clone(),
            outcome: Outcome::Passed,
            ms,
            reason: String::new(),
            output: String::new(),
        },
        Ok(Ended {
            status: Some(SKIP_STATUS),
            unclean: None,
            output,
        }) if unit.on_ground => skipped(skip_of(&output).unwrap_or("no reason given")),
        Ok(Ended {
            status,
            unclean,
            output,
        }) => {
            let mut reason = match status {
                Some(0) => String::new(),
                Some(code) => format!("exit status {code}"),
                None => "ended by a signal, or at its deadline".to_owned(),
            };
            if let Some(text) = unclean {
                reason.push_str(if reason.is_empty() { "" } else { "; " });
                reason.push_str(&text);
            }
            failed(unit, ms, &reason, output)
        }
        Err(e) => failed(unit, ms, &format!("{e:#}"), String::new()),
    }
}

/// The reason of the last line that tells of a skip.
fn skip_of(output: &str) -> Option<&str> {
    let mut lines = output.lines().rev();
    lines.find_map(|line| line.strip_prefix(SKIP_PREFIX))
}

fn failed(unit: &Unit, ms: u64, reason: &str, output: String) -> TestResult {
    TestResult {
        name: unit.name.clone(),
        outcome: Outcome::Failed,
        ms,
        reason: reason.to_owned(),
        output,
    }
}

struct Ended {
    /// Exit status; none if a signal ended it.
    status: Option<i32>,
    output: String,
    /// What it left behind.
    unclean: Option<String>,
}

fn try_unit(unit: &Unit) -> anyhow::Result<Ended> {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    let ground = if unit.on_ground {
        Some(Ground::lay()?)
    } else {
        None
    };
    let Some((program, args)) = unit.argv.split_first() else {
        bail!("a unit without a program");
    };
    let mut log = tempfile::tempfile().context("make a file for the output")?;
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    // A process group, so that a deadline ends the helpers of the test too.
    command.process_group(0);
    if let Some(ground) = &ground {
        command.arg(ground.dir());
    }
    if let Some(dir) = &unit.dir {
        command.current_dir(dir);
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let in_time = child_ended(child.id(), unit.deadline)?;
    let group = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("pid")?;
    if !in_time {
        kill_process_group(group, Signal::KILL).context("kill a test at its deadline")?;
    }
    let status = child.wait().context("wait for a test")?;
    let unclean = ground
        .and_then(|g| g.clear().err())
        .map(|e| format!("{e:#}"));
    let mut output = tail(&mut log)?;
    if let Some(signal) = status.signal() {
        output.push_str(&match in_time {
            true => format!("\nended by signal {signal}\n"),
            false => format!(
                "\nkilled at its deadline of {} s\n",
                unit.deadline.as_secs()
            ),
        });
    }
    Ok(Ended {
        status: status.code(),
        output,
        unclean,
    })
}

fn tail(log: &mut std::fs::File) -> anyhow::Result<String> {
    let len = log.seek(std::io::SeekFrom::End(0))?;
    log.seek(std::io::SeekFrom::Start(
        len.saturating_sub(OUTPUT_MAX_BYTES),
    ))?;
    let mut bytes = Vec::new();
    log.take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How many tests run at a time where nothing is said: they mostly wait.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get() * 2)
}

/// A duration in seconds with one decimal, for people.
pub fn seconds(ms: u64) -> String {
    format!("{:.1} s", Duration::from_millis(ms).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;
    impl Observer for Silent {
        fn started(&self, _: &Unit) {}
        fn ended(&self, _: &TestResult) {}
    }

    fn shell(name: &str, script: &str, on_ground: bool) -> Unit {
        Unit {
            name: name.to_owned(),
            argv: vec!["sh".into(), "-c".into(), script.into(), "sh".into()],
            dir: None,
            on_ground,
            alone: false,
            deadline: Duration::from_secs(30),
            ignored: false,
        }
    }

    fn run_one(unit: Unit) -> TestResult {
        run(vec![unit], 1, &Silent).remove(0)
    }

    #[test]
    fn statuses_become_outcomes() {
        assert_eq!(run_one(shell("ok", "true", false)).outcome, Outcome::Passed);
        let bad = run_one(shell("bad", "echo why; exit 4", false));
        assert_eq!(
            (bad.outcome, bad.reason.as_str()),
            (Outcome::Failed, "exit status 4")
        );
        assert_eq!(bad.output, "why\n");
        let skip = run_one(shell("skip", "echo 'skipped: no disk'; exit 77", true));
        assert_eq!(
            (skip.outcome, skip.reason.as_str()),
            (Outcome::Skipped, "no disk")
        );
        // So does a test of libtest, which can only return.
        let tells = |script: &str, on_ground| run_one(shell("told", script, on_ground));
        let skip = tells("echo; echo 'skipped: no tool'; echo ok", false);
        assert_eq!(
            (skip.outcome, skip.reason.as_str()),
            (Outcome::Skipped, "no tool")
        );
        let case = tells("echo 'skipped: no tool'", true);
        assert_eq!(case.outcome, Outcome::Passed);
        let bad = tells("echo 'skipped: no tool'; exit 1", false);
        assert_eq!(bad.outcome, Outcome::Failed);
    }

    #[test]
    fn a_failure_beside_others_has_a_second_try_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("test -e {0} || {{ touch {0}; exit 3; }}", mark.display());
        let result = run_one(shell("once", &script, false));
        assert_eq!(result.outcome, Outcome::Passed);
        assert!(result.reason.contains("exit status 3"), "{result:?}");
    }

    #[test]
    fn a_hang_is_killed_with_its_children() {
        let mut unit = shell("hang", "sleep 1001 & wait", true);
        unit.deadline = Duration::from_millis(200);
        let result = run_one(unit);
        assert_eq!(result.outcome, Outcome::Failed);
        assert!(result.output.contains("deadline"), "{result:?}");
    }

    #[test]
    fn a_daemon_left_behind_fails_the_case() {
        let result = run_one(shell(
            "daemon",
            "setsid sleep 1002 >/dev/null 2>&1 & until grep -q 1002 /proc/$!/cmdline; do :; done",
            true,
        ));
        assert_eq!(result.outcome, Outcome::Failed);
        assert!(result.reason.contains("sleep 1002"), "{result:?}");
    }
}
