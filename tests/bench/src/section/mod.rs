//! The sections of a run, and what they share.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use rkube_tests::layout::Layout;
use rkube_tests::repo;

use crate::peers;
use crate::program;
use crate::report::{Report, Row, Setting};
use crate::rkube::Rkube;

mod crowd;
mod exec;
mod images;
mod memory;
mod oci;
mod parts;
mod quiet;
mod restart;
mod server;
mod start;

/// Environment variable: how often each is run where both take turns.
pub const RUNS: &str = "RKUBE_BENCH_RUNS";
const DEFAULT_RUNS: usize = 30;

/// What the sections work with.
#[derive(Debug)]
pub struct Bench {
    program: PathBuf,
    /// The client under whose load servers are measured.
    load: PathBuf,
    /// The payload, unpacked by the program.
    toolbox: PathBuf,
    runs: usize,
    /// Holds the payload's copy.
    _dir: tempfile::TempDir,
}

type Section = (&'static str, fn(&Bench) -> anyhow::Result<Vec<Row>>);

const SECTIONS: &[Section] = &[
    ("size", |bench| program::rows(&bench.program)),
    ("start", start::rows),
    ("crowd", crowd::rows),
    ("memory", memory::rows),
    ("quiet", quiet::rows),
    ("exec", exec::rows),
    ("oci", oci::rows),
    ("services", parts::services),
    ("dns", parts::dns),
    ("restart", restart::rows),
    ("server", server::rows),
    ("images", images::rows),
];

impl Bench {
    fn prepare(program: &Path, load: &Path) -> anyhow::Result<Bench> {
        let dir = tempfile::Builder::new()
            .prefix("rkube-bench-")
            .tempdir()
            .context("make a directory")?;
        // A first pod unpacks the image, and shows that there is something to
        // measure before the peers are set up.
        let rkube = Rkube::open(program)?;
        let file = rkube.manifest("first", &pod("first", crate::rkube::IMAGE))?;
        rkube.start(&file).context("the first pod")?;
        let toolbox = dir.path().join("toolbox");
        std::fs::copy(rkube.toolbox()?, &toolbox).context("copy the payload")?;
        rkube.remove(&["first"])?;
        rkube.close()?;
        let runs = match std::env::var(RUNS) {
            Ok(text) => text.parse().with_context(|| format!("{RUNS}={text}"))?,
            Err(_) => DEFAULT_RUNS,
        };
        Ok(Bench {
            program: program.to_path_buf(),
            load: load.to_path_buf(),
            toolbox,
            runs,
            _dir: dir,
        })
    }
}

/// A pod that prints the clock as its first act, under limits, and sleeps.
fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata:\n  name: {name}\n\
         spec:\n\
         \x20 restartPolicy: Never\n\
         \x20 terminationGracePeriodSeconds: 0\n\
         \x20 containers:\n\
         \x20   - name: a\n\
         \x20     image: {image}\n\
         \x20     imagePullPolicy: Never\n\
         \x20     command: [/bin/toolbox, run, \"stamp; sleep inf\"]\n\
         \x20     resources:\n\
         \x20       limits:\n\
         \x20         memory: 64Mi\n\
         \x20         cpu: \"1\"\n"
    )
}

/// Names and one manifest of many such pods.
fn pods(count: usize, image: &str) -> (Vec<String>, String) {
    let names: Vec<String> = (0..count).map(|n| format!("bench-{n}")).collect();
    let all: Vec<String> = names.iter().map(|name| pod(name, image)).collect();
    (names, all.join("---\n"))
}

fn borrowed(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Adds a peer's row, or the reason why there is none.
fn peer(rows: &mut Vec<Row>, what: &str, who: &str, result: anyhow::Result<Row>) {
    rows.push(result.unwrap_or_else(|e| Row::missing(what, who, &format!("{e:#}"))));
}

/// Measures, prints the table, and writes it as JSON; some sections or all.
/// `load` is `rkube-load` of this package, built as the program is.
///
/// # Errors
/// The program does not work, or the report cannot be written. A peer that
/// does not work is no error.
pub fn run(program: &Path, load: &Path, wanted: &[String]) -> anyhow::Result<()> {
    if let Some(unknown) = wanted.iter().find(|w| SECTIONS.iter().all(|s| s.0 != *w)) {
        let names: Vec<&str> = SECTIONS.iter().map(|s| s.0).collect();
        bail!("no section {unknown}: there are {}", names.join(", "));
    }
    peers::install();
    let bench = Bench::prepare(program, load)?;
    let mut rows = Vec::new();
    for (name, section) in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        println!("== {name}");
        match section(&bench) {
            Ok(more) => rows.extend(more),
            Err(e) => {
                println!("{e:#}");
                rows.push(Row::missing(name, "rkube", &format!("{e:#}")));
            }
        }
    }
    let report = Report {
        setting: setting()?,
        rows,
    };
    println!("\n{}", report.markdown());
    let path = repo::target_dir().join("bench/results.json");
    report.write_json(&path)?;
    println!("{}", path.display());
    Ok(())
}

fn setting() -> anyhow::Result<Setting> {
    let date = Command::new("date")
        .args(["-u", "+%F %H:%M UTC"])
        .output()
        .context("run date")?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
    let memory = read("/proc/meminfo")?;
    // Who else was at work, while this ran.
    let load = read("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let total_kib: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .context("meminfo has no MemTotal")?;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let system = read("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or("unknown system");
    Ok(Setting {
        date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
        machine: format!(
            "{cores} processors, {} GiB, Linux {}, {}, {} cgroups, load {load}",
            total_kib >> 20,
            kernel.trim(),
            system.trim_matches('"'),
            Layout::detect()?,
        ),
        programs: [
            "podman", "runc", "crun", "conmon", "skopeo", "umoci", "etcd",
        ]
        .iter()
        .map(|name| peers::version(name))
        .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_documents_of_one_file() {
        let (names, text) = pods(3, "i");
        assert_eq!(names, ["bench-0", "bench-1", "bench-2"]);
        assert_eq!(text.matches("kind: Pod").count(), 3);
        assert_eq!(text.matches("---\n").count(), 2);
        assert!(text.contains("\n      image: i\n"), "{text}");
    }
}
