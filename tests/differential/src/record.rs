//! The recording: answers as files, and the stamp that says whose they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::client::Endpoint;
use crate::corpus::{self, Scenario};
use crate::drive::{self, Dialect, Recorded};
use crate::normal::Names;
use crate::oracle::{DIALECT, Oracle, Programs};

/// Scenarios that are driven at the same time: most of a watch is waiting.
const AT_ONCE: usize = 16;

/// Whose answers they are, and to what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stamp {
    /// `/version` of the server that answered.
    pub version: Value,
    /// SHA-256 of its program.
    pub program_sha256: String,
    /// SHA-256 of the corpus that it answered.
    pub corpus_sha256: String,
    /// How many answers there are.
    pub answers: usize,
}

const STAMP: &str = "STAMP.json";

/// Records the whole corpus in `folder` (with `corpus` and `answers` in it).
///
/// # Errors
/// The corpus cannot be read, the server does not start, or it is rkube.
pub async fn record(folder: &Path, programs: &Programs) -> anyhow::Result<Stamp> {
    let scenarios = corpus::load(&folder.join("corpus"))?;
    let oracle = Oracle::start(programs).await?;
    let answers = drive_all(oracle.endpoint(), &scenarios, DIALECT).await?;
    let stamp = Stamp {
        version: oracle.version.clone(),
        program_sha256: oracle.program_hash.clone(),
        corpus_sha256: corpus::fingerprint(&scenarios),
        answers: answers.values().map(Vec::len).sum(),
    };
    drop(oracle);
    write(&folder.join("answers"), &answers, &stamp)?;
    Ok(stamp)
}

/// Drives all scenarios; answers by file, in the order of the corpus.
///
/// # Errors
/// As [`drive::run`].
pub async fn drive_all(
    endpoint: &Endpoint,
    scenarios: &[Scenario],
    dialect: Dialect,
) -> anyhow::Result<BTreeMap<String, Vec<Recorded>>> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = Vec::new();
    for scenario in scenarios {
        let (endpoint, scenario) = (endpoint.clone(), scenario.clone());
        let permits = Arc::clone(&permits);
        tasks.push(tokio::spawn(async move {
            let _permit = permits.acquire_owned().await?;
            let answers = drive::run(&endpoint, &scenario, dialect).await;
            answers.with_context(|| scenario.id.clone())
        }));
    }
    let mut all: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
    for (scenario, task) in scenarios.iter().zip(tasks) {
        let answers = task.await.context("a scenario's task")??;
        all.entry(scenario.file.clone())
            .or_default()
            .extend(answers);
    }
    Ok(all)
}

fn write(
    folder: &Path,
    answers: &BTreeMap<String, Vec<Recorded>>,
    stamp: &Stamp,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for (file, answers) in answers {
        let mut text = String::new();
        for answer in answers {
            writeln!(text, "{}", serde_json::to_string(answer)?)?;
        }
        let path = folder.join(format!("{file}.jsonl"));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let text = format!("{}\n", serde_json::to_string_pretty(stamp)?);
    std::fs::write(folder.join(STAMP), text).context("write the stamp")
}

/// Reads what was recorded.
///
/// # Errors
/// A file is missing or cannot be read, or the answers are another server's or another corpus'.
pub fn read(
    folder: &Path,
    scenarios: &[Scenario],
) -> anyhow::Result<(Stamp, BTreeMap<String, Recorded>)> {
    let path = folder.join(STAMP);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let stamp: Stamp = serde_json::from_str(&text).context("parse the stamp")?;
    let git = stamp.version["gitVersion"].as_str().unwrap_or("");
    ensure!(
        !git.is_empty() && !git.contains("rkube"),
        "the answers are {git:?}'s"
    );
    ensure!(
        stamp.corpus_sha256 == corpus::fingerprint(scenarios),
        "the corpus has changed since it was recorded: run `make record`"
    );
    let mut all: BTreeMap<String, Recorded> = BTreeMap::new();
    let files: std::collections::BTreeSet<&String> = scenarios.iter().map(|s| &s.file).collect();
    for file in files {
        let path = folder.join(format!("{file}.jsonl"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for line in text.lines() {
            let answer: Recorded = serde_json::from_str(line).with_context(|| line.to_owned())?;
            all.insert(answer.id.clone(), answer);
        }
    }
    for scenario in scenarios {
        for step in scenario.steps.iter().filter(|s| drive::is_in_any_order(s)) {
            if let Some(answer) = all.get_mut(&format!("{} > {}", scenario.id, step.name)) {
                Names::sort_items(&mut answer.body);
            }
        }
    }
    ensure!(
        all.len() == stamp.answers,
        "{} answers, the stamp says {}",
        all.len(),
        stamp.answers
    );
    Ok((stamp, all))
}
