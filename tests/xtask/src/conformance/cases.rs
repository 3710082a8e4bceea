//! Names and results of the suite's cases.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rkube_tests::command::Cmd;
use serde_json::{Value, json};

/// How long listing the cases may take.
const DRY_RUN: Duration = Duration::from_secs(120);

/// Parts of names, and the capability that such a case is about: one that
/// rkube does not have yet.
const LATER: &[(&str, &str)] = &[
    ("AdmissionWebhook", "admission webhooks"),
    ("CustomResource", "CustomResourceDefinitions"),
    ("Aggregator", "aggregation of API servers"),
    ("StatefulSet", "StatefulSet"),
    ("Daemon set", "DaemonSet"),
    ("ResourceQuota", "ResourceQuota"),
    ("exceeded quota", "ResourceQuota"),
    ("LimitRange", "LimitRanger"),
    ("PreemptionExecutionPath", "preemption"),
    ("preemption works", "preemption"),
    ("preemption by critical pod", "preemption"),
];

/// The capability that a case waits for.
pub(super) fn later(name: &str) -> Option<&'static str> {
    LATER
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, capability)| *capability)
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// By the case itself: the cluster is not one that it is for.
    Skipped,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 3] = [
        (Outcome::Passed, "passed"),
        (Outcome::Failed, "FAILED"),
        (Outcome::Skipped, "skipped"),
    ];

    pub(super) fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(o, _)| *o == self)
            .map_or("", |(_, name)| name)
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Result {
    pub(super) outcome: Outcome,
    pub(super) seconds: f64,
    pub(super) message: String,
}

/// The names of all conformance cases.
pub(super) fn dry_run(e2e: &Path, dir: &Path) -> anyhow::Result<Vec<String>> {
    let report = tempfile::tempdir_in(dir)?;
    let report_dir = format!("--report-dir={}", report.path().display());
    let args = [
        "--ginkgo.dryRun",
        "--ginkgo.focus=\\[Conformance\\]",
        "--provider=local",
        "--kubeconfig=/dev/null",
        &report_dir,
    ];
    let output = Cmd::new(e2e, args).dir(dir).within(DRY_RUN).ok()?;
    let found = reported(report.path()).into_iter();
    let focused: Vec<String> = found
        .filter(|(_, r)| r.outcome == Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    ensure!(!focused.is_empty(), "no case was listed:\n{output}");
    Ok(focused)
}

/// The results in the JUnit files of a directory. What was not in focus is there
/// too, as skipped.
pub(super) fn reported(dir: &Path) -> BTreeMap<String, Result> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .filter(|f| f.file_name().to_string_lossy().starts_with("junit"))
        .filter_map(|f| std::fs::read_to_string(f.path()).ok())
        .flat_map(|text| of_junit(&text))
        .collect()
}

fn of_junit(text: &str) -> Vec<(String, Result)> {
    let mut found = Vec::new();
    for case in text.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (Some(name), Some(seconds)) = (attribute(case, "name"), attribute(case, "time")) else {
            continue;
        };
        let message = between(case, "<failure", "</failure>");
        let skipped = between(case, "<skipped", "</skipped>");
        let outcome = match (&message, &skipped) {
            (Some(_), _) => Outcome::Failed,
            (None, Some(_)) => Outcome::Skipped,
            (None, None) => Outcome::Passed,
        };
        let message = message.or(skipped).unwrap_or_default();
        let message = message.split_once('>').map_or("", |(_, m)| m);
        found.push((
            name,
            Result {
                outcome,
                seconds: seconds.parse().unwrap_or_default(),
                message: message.to_owned(),
            },
        ));
    }
    found
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    between(tag, &format!("{name}=\""), "\"")
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    let (inner, _) = rest.split_once(end)?;
    Some(unescape(inner))
}

/// Entities as Go's encoding/xml writes them.
const ENTITIES: [(&str, &str); 8] = [
    ("&#34;", "\""),
    ("&#39;", "'"),
    ("&#xA;", "\n"),
    ("&#x9;", "\t"),
    ("&#xD;", "\r"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&amp;", "&"),
];

fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (entity, character) in ENTITIES {
        text = text.replace(entity, character);
    }
    text
}

fn escape_xml(text: &str) -> String {
    let mut text = text.to_owned();
    for (entity, character) in ENTITIES.iter().rev() {
        if *character != "\n" {
            text = text.replace(character, entity);
        }
    }
    // XML has no form for other control characters.
    text.retain(|c| !c.is_control() || c == '\n');
    text
}

/// A regular expression (RE2) that matches the name.
pub(super) fn escape(name: &str) -> String {
    let mut expression = String::new();
    for c in name.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            expression.push('\\');
        }
        expression.push(c);
    }
    expression
}

/// A name for a file about the case.
pub(super) fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().map(plain).take(180).collect::<String>() + ".log"
}

/// The results that were kept.
pub(super) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Result>> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(BTreeMap::new());
    };
    let kept: BTreeMap<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let result = |v: &Value| {
        let word = v["outcome"].as_str()?;
        let (outcome, _) = Outcome::ALL.iter().find(|(_, name)| *name == word)?;
        Some(Result {
            outcome: *outcome,
            seconds: v["seconds"].as_f64()?,
            message: v["message"].as_str()?.to_owned(),
        })
    };
    Ok(kept
        .iter()
        .filter_map(|(name, v)| Some((name.clone(), result(v)?)))
        .collect())
}

/// Keeps the results.
pub(super) fn write(path: &Path, results: &BTreeMap<String, Result>) -> anyhow::Result<()> {
    let kept: BTreeMap<&String, Value> = results
        .iter()
        .map(|(name, r)| {
            let value = json!({"outcome": r.outcome.as_str(), "seconds": r.seconds,
                "message": r.message});
            (name, value)
        })
        .collect();
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec_pretty(&kept)?)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("write {}", path.display()))
}

/// One JUnit file of all.
pub(super) fn junit(all: &[String], results: &BTreeMap<String, Result>) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let failed = results.values().filter(|r| r.outcome == Outcome::Failed);
    let (tests, failures) = (all.len(), failed.count());
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<testsuite name=\"conformance\" tests=\"{tests}\" failures=\"{failures}\">"
    );
    for name in all {
        let escaped = escape_xml(name);
        let (seconds, inner) = match (results.get(name), later(name)) {
            (Some(r), _) if r.outcome == Outcome::Passed => (r.seconds, String::new()),
            (Some(r), _) => {
                let tag = match r.outcome {
                    Outcome::Skipped => "skipped",
                    _ => "failure",
                };
                let text = escape_xml(&r.message);
                (r.seconds, format!("<{tag}>{text}</{tag}>"))
            }
            (None, Some(capability)) => (0.0, format!("<skipped>later: {capability}</skipped>")),
            (None, None) => (0.0, "<skipped>not run</skipped>".to_owned()),
        };
        let _ = writeln!(
            out,
            "<testcase name=\"{escaped}\" time=\"{seconds}\">{inner}</testcase>"
        );
    }
    out.push_str("</testsuite>\n");
    out
}

/// Counts by area, and every case that did not pass.
pub(super) fn print(all: &[String], results: &BTreeMap<String, Result>) {
    let mut areas: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for name in all {
        let area = name.split(['[', ']']).nth(1).unwrap_or("other");
        let column = match (results.get(name).map(|r| r.outcome), later(name)) {
            (Some(Outcome::Passed), _) => 0,
            (Some(Outcome::Failed), _) => 1,
            (None, Some(_)) => 3,
            (Some(Outcome::Skipped), _) | (None, None) => 2,
        };
        for key in [area, "all"] {
            if let Some(count) = areas.entry(key).or_default().get_mut(column) {
                *count += 1;
            }
        }
    }
    println!("| area | passed | failed | not run | later |\n|---|---|---|---|---|");
    for (area, [passed, failed, rest, later]) in &areas {
        println!("| {area} | {passed} | {failed} | {rest} | {later} |");
    }
    for name in all {
        match (results.get(name), later(name)) {
            (Some(r), _) if r.outcome != Outcome::Passed => {
                // The places in the suite's sources say nothing.
                let mut lines = r.message.lines().map(str::trim);
                let first = lines.find(|l| !l.is_empty() && !l.starts_with('/'));
                println!("{} {name}: {}", r.outcome.as_str(), first.unwrap_or(""));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNIT: &str = "<?xml?>\n<testsuite name=\"Kubernetes e2e suite\" tests=\"2\">\n\
        <testcase name=\"[a] says &#34;x&#34; [Conformance]\" classname=\"s\" time=\"1.5\"></testcase>\n\
        <testcase name=\"[b] fails\" classname=\"s\" time=\"2\">\n\
        <failure type=\"Failure\">f.go:1&#xA;no &lt;pod&gt;</failure><system-out>x</system-out></testcase>\n\
        <testcase name=\"[c] other\" classname=\"s\" time=\"0\"><skipped></skipped></testcase>\n\
        </testsuite>";

    #[test]
    fn results_are_read_and_written() {
        let found: BTreeMap<_, _> = of_junit(JUNIT).into_iter().collect();
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["[a] says \"x\" [Conformance]", "[b] fails", "[c] other"]
        );
        assert_eq!(
            found["[a] says \"x\" [Conformance]"].outcome,
            Outcome::Passed
        );
        let failed = &found["[b] fails"];
        assert_eq!((failed.outcome, failed.seconds), (Outcome::Failed, 2.0));
        assert_eq!(failed.message, "f.go:1\nno <pod>");
        assert_eq!(found["[c] other"].outcome, Outcome::Skipped);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        write(&path, &found).unwrap();
        assert_eq!(read(&path).unwrap(), found);
        let all: Vec<String> = found.keys().cloned().collect();
        let again: BTreeMap<_, _> = of_junit(&junit(&all, &found)).into_iter().collect();
        assert_eq!(again.len(), 3);
        assert_eq!(again["[b] fails"].message, failed.message);
    }

    #[test]
    fn names_become_expressions() {
        assert_eq!(escape("[a] (x).*"), "\\[a\\] \\(x\\)\\.\\*");
        assert_eq!(later("[sig-apps] StatefulSet x"), Some("StatefulSet"));
        assert_eq!(later("[sig-apps] Deployment x"), None);
    }
}
