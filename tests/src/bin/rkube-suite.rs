//! `rkube-suite`: lists and runs the black-box cases, on a host or in a VM.
//!
//! ```text
//! rkube-suite list [FILTER...]
//! rkube-suite run [--json] [--stage S] [--quiet] [--jobs N] [--extra DIR [--programs P,...]]
//!     [FILTER...]
//! rkube-suite case NAME DIR        (one case, in this process)
//! ```
//! `--extra` adds the libtest programs of a directory (of some packages, if
//! named); `--stage` is host, vm,
//! before-cut, after-cut, lacking or pair. Exit status: 0 if all
//! passed or were skipped, 1 if one failed, 2 if the command line is wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rkube_tests::case::{Skip, Stage};
use rkube_tests::host::TestHost;
use rkube_tests::layout::Layout;
use rkube_tests::report::{Event, JsonLines, Lines, Summary};
use rkube_tests::runner::Observer;
use rkube_tests::unit::{Outcome, SKIP_PREFIX, SKIP_STATUS, TestResult, Unit};
use rkube_tests::{cases, runner, unit};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match args.as_slice() {
        ["case", name, dir] => return run_case(name, Path::new(dir)),
        ["list", filters @ ..] => list(filters),
        ["run", rest @ ..] => run(rest),
        _ => {
            eprintln!("usage: rkube-suite list|run|case (see the program's documentation)");
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("rkube-suite: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run_case(name: &str, dir: &Path) -> ExitCode {
    let Some(case) = cases::all().into_iter().find(|c| c.name == name) else {
        eprintln!("rkube-suite: no case is named {name}");
        return ExitCode::from(2);
    };
    match TestHost::open(dir).and_then(|host| (case.run)(&host)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => match e.downcast_ref::<Skip>() {
            Some(skip) => {
                println!("{SKIP_PREFIX}{skip}");
                ExitCode::from(SKIP_STATUS.try_into().unwrap_or(u8::MAX))
            }
            None => {
                eprintln!("{e:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn list(filters: &[&str]) -> anyhow::Result<bool> {
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f));
    for case in cases::all().into_iter().filter(|c| wanted(c.name)) {
        let layouts: Vec<&str> = case.layouts.iter().map(|l| l.as_str()).collect();
        println!("{} ({:?}: {})", case.name, case.place, layouts.join(" "));
    }
    Ok(true)
}

#[derive(Default)]
struct Options {
    json: bool,
    stage: Stage,
    quiet: bool,
    jobs: Option<usize>,
    extra: Option<PathBuf>,
    programs: Vec<String>,
    filters: Vec<String>,
}

fn parse(args: &[&str]) -> anyhow::Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match *arg {
            "--json" => options.json = true,
            "--stage" => options.stage = value()?.parse()?,
            "--quiet" => options.quiet = true,
            "--jobs" => options.jobs = Some(value()?.parse().context("--jobs needs a number")?),
            "--extra" => options.extra = Some(PathBuf::from(value()?)),
            "--programs" => {
                options.programs = value()?.split(',').map(str::to_owned).collect();
            }
            other if other.starts_with('-') => bail!("unknown option {other}"),
            filter => options.filters.push(filter.to_owned()),
        }
    }
    Ok(options)
}

fn run(args: &[&str]) -> anyhow::Result<bool> {
    let options = parse(args)?;
    let layout = Layout::detect()?;
    let jobs = options.jobs.unwrap_or_else(runner::default_jobs);
    // The cases first: it takes a while until each extra program has said what
    // it holds.
    let cases = || unit::of_cases(layout, options.stage);
    let extra = || {
        options.extra.as_deref().map_or(Ok(Vec::new()), |dir| {
            unit::of_directory(dir, &options.programs)
        })
    };
    let sources: [&dyn Fn() -> anyhow::Result<Vec<Unit>>; 2] = [&cases, &extra];
    let all = |observer: &dyn Observer, plan: &dyn Fn(usize)| -> anyhow::Result<Vec<TestResult>> {
        let mut results = Vec::new();
        for source in sources {
            let units = unit::select(source()?, &options.filters);
            unit::ensure_unique(&units)?;
            plan(units.len());
            results.extend(runner::run(units, jobs, observer));
        }
        Ok(results)
    };
    if options.json {
        let lines = JsonLines::new(std::io::stdout());
        let results = all(&lines, &|total| lines.event(&Event::Plan { total }))?;
        lines.event(&Event::Done);
        return Ok(results.iter().all(|r| r.outcome != Outcome::Failed));
    }
    let lines = Lines {
        prefix: String::new(),
        quiet: options.quiet,
    };
    let results = all(&lines, &|_| ())?;
    let mut summary = Summary::default();
    summary.add(layout.as_str(), results);
    summary.print();
    Ok(summary.count(Outcome::Failed) == 0)
}
