//! `soak`: the black-box suite again and again, to catch what is rare.
//!
//! The number of rounds done is kept, so that a broken-off soak goes on where
//! it was; failures are kept with their output. `soak long` is another thing:
//! see [`long`].

mod long;

use std::io::Write;

use anyhow::Context;
use rkube_tests::repo;
use rkube_tests::report::line_of;
use rkube_tests::unit::Outcome;

use crate::builds::{self, TEST_PROFILE};
use crate::{test, vm};

/// Rounds where nothing is said.
const ROUNDS: u64 = 100;
/// What makes cases long that `make test` runs in short.
const LONG_FORMS: &[(&str, &str)] = &[("RKUBE_LAYER_MIB", "4096"), ("RKUBE_EVERY_KUBECTL", "1")];

pub(crate) fn soak(args: &[String]) -> anyhow::Result<bool> {
    let dir = repo::target_dir().join("soak");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    if args.first().is_some_and(|arg| arg == "long") {
        return long::run(&dir);
    }
    let (rounds, filters) = match args.split_first() {
        Some((first, rest)) => match first.parse() {
            Ok(rounds) => (rounds, rest),
            Err(_) => (ROUNDS, args),
        },
        None => (ROUNDS, args),
    };
    let program = builds::programs(TEST_PROFILE, vm::PROGRAMS)?.remove(1);
    println!("`soak long` takes every kill point and fault, and the races by the thousand");
    builds::kube_rs()?;
    let (state, failures) = (dir.join("rounds-done"), dir.join("failures.log"));
    let done: u64 = std::fs::read_to_string(&state)
        .ok()
        .and_then(|s| s.trim().parse().ok())
        .unwrap_or(0);
    let (mut passed, mut failed) = (0, 0);
    for round in done + 1..=rounds {
        let results = test::suite(&program, filters, LONG_FORMS)?;
        let bad: Vec<_> = results
            .iter()
            .filter(|r| r.outcome == Outcome::Failed)
            .collect();
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&failures)?;
        for result in &bad {
            log.write_all(line_of(&format!("round {round} "), result).as_bytes())?;
        }
        passed += results
            .iter()
            .filter(|r| r.outcome == Outcome::Passed)
            .count();
        failed += bad.len();
        println!("round {round} of {rounds}: {} failed", bad.len());
        std::fs::write(&state, format!("{round}\n")).context("keep the number of rounds")?;
    }
    // A finished soak starts anew the next time.
    std::fs::remove_file(&state).context("forget the number of rounds")?;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}
