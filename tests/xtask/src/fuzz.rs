//! `fuzz`: every target of `fuzz/` for a while, with libFuzzer and stable Rust.
//!
//! cargo-fuzz is not needed: what it passes to the compiler is here. The
//! corpus that a run finds stays in `target/fuzz/corpus`; what is worth
//! keeping is copied to `fuzz/corpus` by hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use rkube_tests::repo;
use rkube_tests::report::Summary;
use rkube_tests::unit::{Outcome, TestResult};

use crate::builds::{self, TARGET, cargo};

/// Seconds for each target where nothing is said.
const SECONDS: u64 = 60;
/// A target that holds more has a bound that does not hold.
const MEMORY_LIMIT_MB: u64 = 1024;
/// An input that takes longer is a failure.
const INPUT_LIMIT_SECONDS: u64 = 20;
/// Coverage for libFuzzer (clang's SanitizerCoverage.html): counters, a table
/// of them, and compared values. One unit, so that the table is whole.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1 --cfg fuzzing";

/// Names of the targets: the files of `fuzz/fuzz_targets`.
fn targets() -> anyhow::Result<Vec<String>> {
    let dir: PathBuf = repo::source_root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|s| s.to_str());
        names.extend(
            stem.filter(|_| path.extension().is_some_and(|e| e == "rs"))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; where they are.
fn build() -> anyhow::Result<PathBuf> {
    let dir = repo::target_dir().join("fuzz");
    let mut command = cargo(&["build", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target named, the flags do not reach build scripts.
    command.args(["--target", TARGET, "--target-dir"]).arg(&dir);
    command.env("RUSTFLAGS", FLAGS);
    builds::run(
        command,
        "cargo build of the fuzz targets (it needs a C++ compiler)",
    )?;
    Ok(dir.join(TARGET).join("release"))
}

/// Runs one target: the committed corpus first, then what coverage leads to.
fn run(programs: &Path, name: &str, seconds: u64) -> anyhow::Result<TestResult> {
    let dir = repo::target_dir().join("fuzz");
    let (found, artifacts) = (
        dir.join("corpus").join(name),
        dir.join("artifacts").join(name),
    );
    for dir in [&found, &artifacts] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut command = Command::new(programs.join(name));
    command.arg(&found);
    command.arg(repo::source_root().join("fuzz/corpus").join(name));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MB}"));
    command.arg(format!("-timeout={INPUT_LIMIT_SECONDS}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-print_final_stats=1", "-use_value_profile=1", "-reload=0"]);
    let start = Instant::now();
    let out = command
        .output()
        .with_context(|| format!("start the target {name}"))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    println!("{name}: {}", told(&said));
    let passed = out.status.success();
    Ok(TestResult {
        name: name.to_owned(),
        outcome: if passed {
            Outcome::Passed
        } else {
            Outcome::Failed
        },
        ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        reason: if passed {
            String::new()
        } else {
            format!("{}; its input is in {}", out.status, artifacts.display())
        },
        output: said,
    })
}

/// Executions and coverage, from what libFuzzer says.
fn told(said: &str) -> String {
    let number = |line: &str| {
        let value = said.lines().rev().find_map(|l| l.strip_prefix(line));
        value.map_or("?", str::trim).to_owned()
    };
    let covered = said.lines().rev().find_map(|l| {
        let mut words = l.split_whitespace().skip_while(|w| *w != "cov:");
        words.nth(1).map(str::to_owned)
    });
    format!(
        "{} executions, {} edges, {} new inputs",
        number("stat::number_of_executed_units:"),
        covered.unwrap_or_else(|| "?".to_owned()),
        number("stat::new_units_added:"),
    )
}

/// `fuzz [SECONDS] [TARGET...]`.
pub(crate) fn fuzz(args: &[String]) -> anyhow::Result<bool> {
    let (seconds, wanted) = match args.split_first() {
        Some((first, rest)) => match first.parse() {
            Ok(seconds) => (seconds, rest),
            Err(_) => (SECONDS, args),
        },
        None => (SECONDS, args),
    };
    let all = targets()?;
    for name in wanted {
        ensure!(
            all.contains(name),
            "no target {name}: there are {}",
            all.join(", ")
        );
    }
    let programs = build()?;
    let mut results = Vec::new();
    for name in all
        .iter()
        .filter(|n| wanted.is_empty() || wanted.contains(n))
    {
        results.push(run(&programs, name, seconds)?);
    }
    let mut summary = Summary::default();
    summary.add("fuzz", results);
    summary.print();
    Ok(summary.count(Outcome::Failed) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says() {
        let said = "#2\tINITED cov: 10 ft: 11 corp: 1/1b\n#9\tDONE   cov: 42 ft: 50 corp: 3/9b\n\
            stat::number_of_executed_units: 900\nstat::new_units_added:          7\n";
        assert_eq!(told(said), "900 executions, 42 edges, 7 new inputs");
        assert_eq!(told(""), "? executions, ? edges, ? new inputs");
    }
}
