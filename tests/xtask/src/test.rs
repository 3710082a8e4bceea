//! `check` and `test`: phases, their times, and the sum of all results.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rkube_tests::command::{Cmd, Next};
use rkube_tests::leaks::Snapshot;
use rkube_tests::report::{Event, Lines, Skips, Summary, line_of};
use rkube_tests::unit::{self, Outcome, TestResult, Unit};
use rkube_tests::{debian, images, repo, runner};

use crate::builds::{self, Built, TEST_PROFILE, TestProgram, cargo};
use crate::vm;

/// The suite on the host is given up after so long without a word.
const SUITE_SILENCE_SECS: u64 = 600;

/// Runs parts of the work, and tells the time that each took.
pub(crate) struct Phases {
    times: Vec<(String, Duration)>,
    begun: Instant,
}

impl Phases {
    pub(crate) fn new() -> Phases {
        Phases {
            times: Vec::new(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        println!("== {name}");
        let done = work().with_context(|| format!("phase {name}"));
        self.times.push((name.to_owned(), start.elapsed()));
        done
    }

    fn print(&self) {
        println!("\nphases:");
        for (name, took) in &self.times {
            println!("  {:>8.1} s  {name}", took.as_secs_f64());
        }
        println!("  {:>8.1} s  all", self.begun.elapsed().as_secs_f64());
    }
}

fn known_skips() -> anyhow::Result<Skips> {
    let path = repo::source_root().join("tests/SKIPS");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Skips::parse(&text).with_context(|| format!("parse {}", path.display()))
}

/// Prints the end of a run, whether or not every phase could be done.
pub(crate) fn conclude(
    mut summary: Summary,
    phases: &Phases,
    broken: anyhow::Result<()>,
) -> anyhow::Result<bool> {
    if let Err(e) = broken {
        summary.add_check("run", "every phase is done", Some(format!("{e:#}")));
    }
    summary.judge_skips(&known_skips()?);
    phases.print();
    summary.print();
    Ok(summary.count(Outcome::Failed) == 0)
}

/// Format, lints, unit and property tests, layering: for every change.
pub(crate) fn check() -> anyhow::Result<bool> {
    let (mut phases, mut summary) = (Phases::new(), Summary::default());
    let broken = check_phases(&mut phases, &mut summary);
    conclude(summary, &phases, broken)
}

fn check_phases(phases: &mut Phases, summary: &mut Summary) -> anyhow::Result<()> {
    phases.run("format", || {
        builds::run(cargo(&["fmt", "--all", "--check"]), "cargo fmt --check")
    })?;
    phases.run("lints", || {
        let args = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        builds::run(cargo(&args), "cargo clippy")
    })?;
    // As `test` builds them: one set of packages for both.
    let programs = phases.run("build tests", || builds::test_programs(TEST_PROFILE, &[]))?;
    phases.run("unit tests", || {
        summary.add("unit", run_units(&programs.tests)?);
        Ok(())
    })
}

/// All of it; what CI runs.
pub(crate) fn test() -> anyhow::Result<bool> {
    let (mut phases, mut summary) = (Phases::new(), Summary::default());
    let before = Snapshot::take();
    let broken = test_phases(&mut phases, &mut summary);
    let left = Snapshot::take().since(&before);
    let problem = (!left.is_empty()).then(|| format!("left behind:\n  {}", left.join("\n  ")));
    summary.add_check("leaks", "nothing is left on the host", problem);
    conclude(summary, &phases, broken)
}

fn test_phases(phases: &mut Phases, summary: &mut Summary) -> anyhow::Result<()> {
    let programs = phases.run("build", || {
        builds::programs(TEST_PROFILE, vm::PROGRAMS)?;
        builds::test_programs(TEST_PROFILE, &[])
    })?;
    phases.run("test images", || {
        images::busybox().and_then(|_| images::minbase())?;
        // Without it one walk is skipped.
        if let Err(error) = debian::unpacked("kubernetes-client") {
            println!("no kubectl 1.20: {error:#}");
        }
        Ok(())
    })?;
    phases.run("unit tests", || {
        summary.add("unit", run_units(&programs.tests)?);
        Ok(())
    })?;
    phases.run("black-box tests on the host", || {
        summary.add("host", run_suite()?);
        Ok(())
    })?;
    let plan = vm::plan(&Built::default())?;
    vm::run(&plan, &vm::Options::all(), phases, summary)
}

fn run_units(programs: &[TestProgram]) -> anyhow::Result<Vec<TestResult>> {
    let mut units: Vec<Unit> = Vec::new();
    for p in programs {
        units.extend(unit::of_libtest(&p.name, &p.path, Some(&p.dir))?);
    }
    unit::ensure_unique(&units)?;
    let lines = Lines {
        prefix: "unit ".to_owned(),
        quiet: true,
    };
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    let results = runner::run(units, jobs, &lines);
    println!("{} tests", results.len());
    Ok(results)
}

/// Runs the suite's program on this host, as the VMs do.
pub(crate) fn run_suite() -> anyhow::Result<Vec<TestResult>> {
    let program = repo::target_dir()
        .join(repo::TEST_OPT_DIR)
        .join("rkube-suite");
    suite(&program, &[], &[])
}

/// Runs the cases that fit, with these variables in their environment.
pub(crate) fn suite(
    program: &Path,
    filters: &[String],
    variables: &[(&str, &str)],
) -> anyhow::Result<Vec<TestResult>> {
    suite_with(program, filters, variables, SUITE_SILENCE_SECS)
}

/// The same; it is given up after so many seconds without a word.
pub(crate) fn suite_with(
    program: &Path,
    filters: &[String],
    variables: &[(&str, &str)],
    silence_secs: u64,
) -> anyhow::Result<Vec<TestResult>> {
    let args = ["run", "--json"].map(str::to_owned);
    let mut run = Cmd::new(program, args.iter().chain(filters));
    for (name, value) in variables {
        run = run.env(name, value);
    }
    let mut run = run.spawn()?;
    let (mut results, mut planned, mut done) = (Vec::new(), 0, false);
    loop {
        match run.next_line(Duration::from_secs(silence_secs)) {
            Next::Line(line) => match serde_json::from_str(&line) {
                Ok(Event::Plan { total }) => planned += total,
                Ok(Event::Start { .. }) => {}
                Ok(Event::End(result)) => {
                    if result.outcome == Outcome::Failed {
                        print!("{}", line_of("host ", &result));
                    }
                    results.push(result);
                }
                Ok(Event::Done) => done = true,
                Err(_) => println!("{line}"),
            },
            Next::Silence => anyhow::bail!("the suite was silent for {silence_secs} s"),
            Next::End => break,
        }
    }
    anyhow::ensure!(
        done && planned == results.len(),
        "the suite broke off after {} of {planned}",
        results.len()
    );
    println!("{} tests", results.len());
    Ok(results)
}
