//! One runnable test, whatever it comes from, and its result.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::case::Stage;
use crate::command::Cmd;
use crate::layout::Layout;
use crate::{case, cases, host};

/// Exit status of a case that skips itself.
pub const SKIP_STATUS: i32 = 77;
/// Prefix of the line of output that carries a skip's reason.
pub const SKIP_PREFIX: &str = "skipped: ";
/// How long one libtest test may take.
const LIBTEST_DEADLINE_SECS: u64 = 180;

/// A test to run as a process of its own.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The full name, unique in a run.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The directory it starts in.
    pub dir: Option<PathBuf>,
    /// Runs on a [`crate::host::Ground`], whose directory is appended to `argv`.
    pub on_ground: bool,
    /// Runs beside no other.
    pub alone: bool,
    /// After this long it is killed.
    pub deadline: Duration,
    /// Never run: marked `#[ignore]`.
    pub ignored: bool,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As promised.
    Passed,
    /// Not as promised, or something was left behind.
    Failed,
    /// It did not run; the reason says why.
    Skipped,
}

/// The result of one test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestResult {
    /// The unit's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// Why it failed or was skipped, else empty.
    #[serde(default)]
    pub reason: String,
    /// What it printed, kept for failures only.
    #[serde(default)]
    pub output: String,
}

/// The units of this suite's own cases.
///
/// # Errors
/// The path of this program cannot be told.
pub fn of_cases(layout: Layout, stage: Stage) -> anyhow::Result<Vec<Unit>> {
    let program = std::env::current_exe().context("find this program")?;
    let program = program.to_string_lossy().into_owned();
    // Around a power cut the disk lasts, so there is no throw-away ground.
    let lasting = match stage.around_cut() {
        true => Some(host::lasting_dir()?.to_string_lossy().into_owned()),
        false => None,
    };
    Ok(cases::all()
        .into_iter()
        .filter(|c: &case::Case| c.applies(layout, stage))
        .map(|c| Unit {
            name: c.name.to_owned(),
            argv: [program.clone(), "case".to_owned(), c.name.to_owned()]
                .into_iter()
                .chain(lasting.clone())
                .collect(),
            dir: None,
            on_ground: lasting.is_none(),
            alone: c.alone,
            deadline: c.deadline,
            ignored: false,
        })
        .collect())
}

/// The units of one libtest program (`cargo test --no-run`), named
/// `prefix::test`.
///
/// # Errors
/// The program does not answer `--list`.
pub fn of_libtest(prefix: &str, program: &Path, dir: Option<&Path>) -> anyhow::Result<Vec<Unit>> {
    let list = |extra: &[&str]| -> anyhow::Result<Vec<String>> {
        let args = ["--list", "--format", "terse"].iter().chain(extra);
        let out = Cmd::new(program, args).ok()?;
        Ok(parse_list(&out.stdout))
    };
    let ignored: BTreeSet<String> = list(&["--ignored"])?.into_iter().collect();
    let program = program.to_string_lossy().into_owned();
    Ok(list(&[])?
        .into_iter()
        .map(|test| Unit {
            name: format!("{prefix}::{test}"),
            ignored: ignored.contains(&test),
            argv: vec![
                program.clone(),
                "--exact".into(),
                test,
                "--nocapture".into(),
            ],
            dir: dir.map(Path::to_path_buf),
            on_ground: false,
            alone: false,
            deadline: Duration::from_secs(LIBTEST_DEADLINE_SECS),
        })
        .collect())
}

/// Lines of libtest's terse list: `path::of::test: test`.
fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|l| l.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// The libtest programs in a directory of extra programs, of these packages
/// (of all, if none is named); the file name is the prefix of the tests' names.
///
/// # Errors
/// The directory cannot be read, or a program does not list its tests.
pub fn of_directory(dir: &Path, packages: &[String]) -> anyhow::Result<Vec<Unit>> {
    let mut programs: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .map(|e| Ok(e?.path()))
        .collect::<std::io::Result<_>>()?;
    programs.sort();
    let mut units = Vec::new();
    for program in &programs {
        let name = program
            .file_name()
            .context("no file name")?
            .to_string_lossy()
            .into_owned();
        // `package`, or `package.target`.
        let package = name.split('.').next().unwrap_or(&name);
        if !packages.is_empty() && !packages.iter().any(|p| p == package) {
            continue;
        }
        units.extend(of_libtest(&name, program, None)?);
    }
    Ok(units)
}

/// Keeps the units whose name contains one of the filters (all, if none).
pub fn select(units: Vec<Unit>, filters: &[String]) -> Vec<Unit> {
    let wanted =
        |u: &Unit| filters.is_empty() || filters.iter().any(|f| u.name.contains(f.as_str()));
    units.into_iter().filter(wanted).collect()
}

/// Demands that names are unique, so that a result tells which test it is of.
///
/// # Errors
/// Two units have the same name.
pub fn ensure_unique(units: &[Unit]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for unit in units {
        ensure!(seen.insert(&unit.name), "two tests are named {}", unit.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_lists_are_read() {
        let text = "a::b: test\nc: benchmark\n\nd: test\n2 tests, 1 benchmarks\n";
        assert_eq!(parse_list(text), ["a::b", "d"]);
    }

    #[test]
    fn this_very_program_lists_this_test() {
        let program = std::env::current_exe().unwrap();
        let units = of_libtest("me", &program, None).unwrap();
        assert!(
            units
                .iter()
                .any(|u| u.name.ends_with("this_very_program_lists_this_test"))
        );
        ensure_unique(&units).unwrap();
        assert_eq!(select(units, &["terse_lists".into()]).len(), 1);
    }
}
