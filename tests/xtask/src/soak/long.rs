//! The long forms: every kill point and fault, and races by the thousand.
//!
//! They are cut into parts, and the parts that passed are kept with the commit
//! that they passed on: a broken-off run goes on where it was, and one of
//! another commit begins anew. When all have passed, a line with commit and
//! date goes into `tests/SOAK.md`, to be committed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use rkube_tests::command::Cmd;
use rkube_tests::repo;
use rkube_tests::unit::Outcome;

use crate::builds::{self, TEST_PROFILE, cargo};
use crate::{test, vm};

/// Containers that are made while an attacker swaps names, in all.
const RACES: u32 = 10_000;
/// Of those in one part.
const RACES_OF_A_PART: u32 = 500;
/// Parts that the points of one case are cut into.
const CASE_PARTS: u32 = 20;
/// How long a part of a case may go without a word.
const PART_SECS: u64 = 3600;
/// Cases that take every point with `RKUBE_EVERY_CALL`.
const EVERY_CALL: [&str; 4] = [
    "oci::a_kill_at_any_call",
    "oci::a_kill_at_any_call_on_cgroup2",
    "oci::a_refused_call_is_told",
    "oci::a_refused_call_is_told_on_cgroup2",
];

const HEADING: &str = "\
# Long runs

`cargo xtask soak long`: every kill point, every refused system call, and 10,000 races, each line when all
of them passed.

| date | commit | parts | minutes of the last go |
|---|---|---|---|
";

/// What can pass or fail by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// A case with one part of all points.
    Case(&'static str, u32),
    /// A slice of the races.
    Races(u32),
}

impl Part {
    fn name(&self) -> String {
        match self {
            Self::Case(name, number) => format!("{name} {number}"),
            Self::Races(number) => format!("races {number}"),
        }
    }
}

fn parts() -> Vec<Part> {
    let cases = EVERY_CALL
        .into_iter()
        .flat_map(|name| (1..=CASE_PARTS).map(move |number| Part::Case(name, number)));
    cases
        .chain((1..=RACES / RACES_OF_A_PART).map(Part::Races))
        .collect()
}

/// The parts that are done, of a state file of this commit.
fn done(text: &str, commit: &str) -> Vec<String> {
    let mut lines = text.lines();
    if lines.next() != Some(commit) {
        return Vec::new();
    }
    lines.map(str::to_owned).collect()
}

pub(super) fn run(dir: &Path) -> anyhow::Result<bool> {
    let commit = commit()?;
    let state = dir.join("long");
    let before = std::fs::read_to_string(&state).unwrap_or_default();
    let mut passed = done(&before, &commit);
    std::fs::write(&state, lines(&commit, &passed)).context("keep what is done")?;
    let (all, start) = (parts(), Instant::now());
    let mut suite = None;
    let mut failed = 0;
    for (number, part) in all.iter().enumerate() {
        let name = part.name();
        if passed.contains(&name) {
            continue;
        }
        println!("{} of {}: {name}", number + 1, all.len());
        let good = match part {
            Part::Case(case, number) => every_call(&mut suite, case, *number)?,
            Part::Races(_) => races()?,
        };
        if good {
            passed.push(name);
            std::fs::write(&state, lines(&commit, &passed)).context("keep what is done")?;
        } else {
            println!("{name}: failed");
            failed += 1;
        }
    }
    if failed > 0 {
        println!(
            "{failed} of {} parts failed; what passed is kept",
            all.len()
        );
        return Ok(false);
    }
    record(&commit, all.len(), start.elapsed().as_secs() / 60)?;
    std::fs::remove_file(&state).context("forget what is done")?;
    Ok(true)
}

fn lines(commit: &str, passed: &[String]) -> String {
    let mut text = format!("{commit}\n");
    for name in passed {
        text.push_str(name);
        text.push('\n');
    }
    text
}

/// The suite's program is built for the first case that needs it.
fn every_call(suite: &mut Option<PathBuf>, case: &str, number: u32) -> anyhow::Result<bool> {
    let program = match suite {
        Some(program) => program,
        None => suite.insert(builds::programs(TEST_PROFILE, vm::PROGRAMS)?.remove(1)),
    };
    let filters = [case.to_owned()];
    let part = format!("{number}/{CASE_PARTS}");
    let variables = [("RKUBE_EVERY_CALL", part.as_str())];
    let results = test::suite_with(program, &filters, &variables, PART_SECS)?;
    Ok(!results.is_empty() && results.iter().all(|r| r.outcome != Outcome::Failed))
}

fn races() -> anyhow::Result<bool> {
    let test = ["test", "-p", "rkube-runtime", "--test", "races"];
    let status = cargo(&test)
        .env("RKUBE_RACES", RACES_OF_A_PART.to_string())
        .status()
        .context("start cargo test")?;
    Ok(status.success())
}

/// The commit that is checked out; changes on top of it are told.
fn commit() -> anyhow::Result<String> {
    let root = repo::source_root();
    let git = |args: &[&str]| -> anyhow::Result<String> {
        let out = Cmd::new("git", args).dir(&root).ok()?;
        Ok(out.stdout.trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if changed { head + "+changes" } else { head })
}

fn record(commit: &str, parts: usize, minutes: u64) -> anyhow::Result<()> {
    let path = repo::source_root().join("tests/SOAK.md");
    let date = Cmd::new("date", ["-u", "+%Y-%m-%d"]).ok()?.stdout;
    let is_new = !path.exists();
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let heading = if is_new { HEADING } else { "" };
    let line = format!("| {} | {commit} | {parts} | {minutes} |\n", date.trim());
    file.write_all((heading.to_owned() + &line).as_bytes())
        .with_context(|| format!("write {}", path.display()))?;
    println!("{parts} parts passed; commit {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_is_of_one_commit() {
        let text = lines("abc", &["races 1".to_owned()]);
        assert_eq!(done(&text, "abc"), ["races 1"]);
        assert!(done(&text, "abd").is_empty() && done("", "abc").is_empty());
        let all = parts();
        let races = all.iter().filter(|p| matches!(p, Part::Races(_))).count();
        assert_eq!(races * 500, 10_000);
        let mut names: Vec<String> = all.iter().map(Part::name).collect();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
