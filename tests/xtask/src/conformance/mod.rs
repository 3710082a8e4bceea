//! `conformance`: upstream's suite (`e2e.test`) against `rkube server` in a
//! test host, case by case, each kept with its result.
//!
//! ```text
//! cargo xtask conformance DIR [--jobs N] [--failed] [--list] [FILTER...]
//! ```
//! `DIR` holds `e2e.test`, `agnhost` and, for one case, `nnp` (of test/images),
//! all of one release of Kubernetes. A run goes on where the last one was broken
//! off; `--failed` runs those again that failed, a filter those whose name it is
//! a part of, in any case. A file `stop` in `target/conformance` ends a run after
//! the cases at hand. Results, one JUnit file of all, the suite's own
//! output and the server's log lie in `target/conformance`.

mod cases;
mod images;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rkube_tests::command::Cmd;
use rkube_tests::host::Ground;
use rkube_tests::{debian, repo};

use cases::{Outcome, Result as CaseResult};
use server::Cluster;

use crate::builds::{self, TEST_PROFILE};

/// Cases that one process of the suite runs.
const SHARD_CASES: usize = 6;
/// How long one such process may take.
const SHARD_SECS: u64 = 3000;
/// How many processes run side by side: cases wait more than they work.
const JOBS: usize = 2;

/// The file that ends a run.
const STOP: &str = "stop";

struct Options {
    programs: PathBuf,
    jobs: usize,
    failed: bool,
    list: bool,
    filters: Vec<String>,
}

fn parse(args: &[String]) -> anyhow::Result<Options> {
    let mut args = args.iter();
    let programs = args
        .next()
        .context("usage: cargo xtask conformance DIR [--jobs N] [--failed] [--list] [FILTER...]")?;
    let mut options = Options {
        programs: PathBuf::from(programs),
        jobs: JOBS,
        failed: false,
        list: false,
        filters: Vec::new(),
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--failed" => options.failed = true,
            "--list" => options.list = true,
            "--jobs" => {
                let value = args.next().context("--jobs needs a value")?;
                options.jobs = value.parse().context("--jobs needs a number")?;
            }
            other if other.starts_with('-') => bail!("unknown option {other}"),
            filter => options.filters.push(filter.to_owned()),
        }
    }
    ensure!(options.jobs > 0, "--jobs must be at least 1");
    Ok(options)
}

impl Options {
    /// Whether a case is to run, given its last result.
    fn wants(&self, name: &str, last: Option<&CaseResult>) -> bool {
        if !self.filters.is_empty() {
            return self.filters.iter().any(|f| name.contains(f.as_str()));
        }
        match last.map(|l| l.outcome) {
            None => true,
            Some(Outcome::Failed) => self.failed,
            Some(Outcome::Passed | Outcome::Skipped) => false,
        }
    }
}

/// What all shards share.
struct Run<'a> {
    options: &'a Options,
    cluster: &'a Cluster,
    dir: &'a Path,
    kubectl: PathBuf,
    results: Mutex<BTreeMap<String, CaseResult>>,
}

pub(crate) fn conformance(args: &[String]) -> anyhow::Result<bool> {
    let options = parse(args)?;
    let dir = repo::target_dir().join("conformance");
    std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("make {}", dir.display()))?;
    if dir.join(STOP).exists() {
        std::fs::remove_file(dir.join(STOP)).context("forget the stop of the last run")?;
    }
    let all = cases::dry_run(&options.programs.join("e2e.test"), &dir)?;
    let state = dir.join("results.json");
    let results = cases::read(&state)?;
    let planned: Vec<String> = all
        .iter()
        .filter(|name| cases::later(name).is_none() && options.wants(name, results.get(*name)))
        .cloned()
        .collect();
    if options.list {
        planned.iter().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    println!("{} cases, {} to run", all.len(), planned.len());
    // A namespace belongs to a thread, and ends with it.
    let results = std::thread::scope(|scope| {
        let work = scope.spawn(|| in_test_host(&options, &dir, &planned, results));
        work.join().unwrap_or_else(|_| bail!("the run panicked"))
    })?;
    std::fs::write(dir.join("junit.xml"), cases::junit(&all, &results))
        .context("write the JUnit file")?;
    cases::print(&all, &results);
    Ok(results.values().all(|r| r.outcome != Outcome::Failed))
}

fn in_test_host(
    options: &Options,
    dir: &Path,
    planned: &[String],
    results: BTreeMap<String, CaseResult>,
) -> anyhow::Result<BTreeMap<String, CaseResult>> {
    if planned.is_empty() {
        return Ok(results);
    }
    if repo::named_program().is_none() {
        builds::programs(TEST_PROFILE, &[("rkube", "rkube")])?;
    }
    let kubectl = debian::unpacked("kubernetes-client")?.join("usr/bin/kubectl");
    let archives = images::make(&options.programs)?;
    let ground = Ground::lay()?;
    let done = (|| {
        let cluster = Cluster::start(ground.dir(), &archives, &dir.join("server.log"))?;
        let run = Run {
            options,
            cluster: &cluster,
            dir,
            kubectl,
            results: Mutex::new(results),
        };
        let (serial, parallel): (Vec<_>, Vec<_>) =
            planned.iter().partition(|n| n.contains("[Serial]"));
        let worked = run
            .shards(&parallel, options.jobs)
            .and_then(|()| run.shards(&serial, 1));
        let results = run.results.into_inner();
        let ended = cluster.end();
        worked.and(ended)?;
        results.map_err(|_| anyhow::anyhow!("a shard panicked"))
    })();
    if let Err(e) = ground.clear() {
        println!("after the run: {e:#}");
    }
    done
}

impl Run<'_> {
    /// Runs these cases, so many shards at a time.
    fn shards(&self, names: &[&String], jobs: usize) -> anyhow::Result<()> {
        let shards: Vec<_> = names.chunks(SHARD_CASES).collect();
        let next = AtomicUsize::new(0);
        let worker = || -> anyhow::Result<()> {
            while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.dir.join(STOP).exists() {
                    break;
                }
                self.shard(shard)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|w| {
                w.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a shard panicked")))
            })
        })
    }

    fn shard(&self, names: &[&String]) -> anyhow::Result<()> {
        let report = tempfile::tempdir_in(self.cluster.files())?;
        let focus: Vec<String> = names.iter().map(|n| cases::escape(n)).collect();
        let e2e = self.options.programs.join("e2e.test");
        let args = [
            "--provider=local".to_owned(),
            // Answers are JSON only.
            "--kube-api-content-type=application/json".to_owned(),
            format!("--kubeconfig={}", self.cluster.kubeconfig().display()),
            format!("--kubectl-path={}", self.kubectl.display()),
            "--minStartupPods=0".to_owned(),
            "--ginkgo.noColor".to_owned(),
            format!("--ginkgo.focus={}", focus.join("|")),
            format!("--report-dir={}", report.path().display()),
        ];
        let output = Cmd::new(&e2e, &args)
            .env("HOME", report.path())
            .dir(report.path())
            .within(Duration::from_secs(SHARD_SECS))
            .output();
        let (said, told) = match output {
            Ok(output) => (format!("{output}"), "the suite's process did not report it"),
            Err(e) => (format!("{e:#}"), "the suite's process did not end"),
        };
        let found = cases::reported(report.path());
        let mut results = self
            .results
            .lock()
            .map_err(|_| anyhow::anyhow!("a shard panicked"))?;
        for name in names {
            let result = found.get(*name).cloned().unwrap_or_else(|| CaseResult {
                outcome: Outcome::Failed,
                seconds: 0.0,
                message: told.to_owned(),
            });
            println!(
                "{:7} {:4.0} s  {name}",
                result.outcome.as_str(),
                result.seconds
            );
            if result.outcome == Outcome::Failed {
                let file = self.dir.join("logs").join(cases::file_name(name));
                std::fs::write(&file, &said)
                    .with_context(|| format!("write {}", file.display()))?;
            }
            results.insert((*name).clone(), result);
        }
        cases::write(&self.dir.join("results.json"), &results)
    }
}
