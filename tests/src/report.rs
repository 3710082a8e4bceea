//! How results are told: JSON lines for programs, a line each for people, and
//! the summary at the end of a run.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::runner::{Observer, seconds};
use crate::unit::{Outcome, TestResult, Unit};

/// How many of the slowest tests a summary names.
pub const SLOWEST_SHOWN: usize = 20;

/// One line of the protocol between the suite (in a VM) and its runner.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// How many tests will run; a later one adds to it.
    Plan {
        /// The number of tests.
        total: usize,
    },
    /// A test starts.
    Start {
        /// Its name.
        name: String,
    },
    /// A test has ended.
    End(TestResult),
    /// All have: a run whose log lacks this line broke off.
    Done,
}

/// Writes the protocol's lines.
#[derive(Debug)]
pub struct JsonLines<W: Write + Send>(Mutex<W>);

impl<W: Write + Send> JsonLines<W> {
    /// Over a stream.
    pub fn new(stream: W) -> JsonLines<W> {
        JsonLines(Mutex::new(stream))
    }

    /// Writes one line at once. A reader that went away is no concern of the
    /// tests: the exit status tells the outcome too.
    pub fn event(&self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = stream.write_all(&line).and_then(|()| stream.flush());
        }
    }
}

impl<W: Write + Send> Observer for JsonLines<W> {
    fn started(&self, unit: &Unit) {
        self.event(&Event::Start {
            name: unit.name.clone(),
        });
    }

    fn ended(&self, result: &TestResult) {
        self.event(&Event::End(result.clone()));
    }
}

/// Prints a line for each test that has ended, and all of a failure.
#[derive(Debug, Default)]
pub struct Lines {
    /// Put before each name, such as `v2 `.
    pub prefix: String,
    /// Print only what did not pass.
    pub quiet: bool,
}

impl Observer for Lines {
    fn started(&self, _: &Unit) {}

    fn ended(&self, result: &TestResult) {
        if !self.quiet || result.outcome == Outcome::Failed {
            print!("{}", line_of(&self.prefix, result));
        }
    }
}

/// The line (and, of a failure, the output) of one result.
pub fn line_of(prefix: &str, r: &TestResult) -> String {
    let (name, time) = (&r.name, seconds(r.ms));
    match r.outcome {
        Outcome::Passed => format!("ok    {prefix}{name} ({time})\n"),
        Outcome::Skipped => format!("skip  {prefix}{name}: {}\n", r.reason),
        Outcome::Failed => {
            let mut text = format!("FAIL  {prefix}{name} ({time}): {}\n", r.reason);
            for line in r.output.lines() {
                text.push_str("      | ");
                text.push_str(line);
                text.push('\n');
            }
            text
        }
    }
}

/// Sums of several suites.
#[derive(Debug, Default)]
pub struct Summary {
    results: Vec<(String, TestResult)>,
}

impl Summary {
    /// Adds a suite's results, under its name.
    pub fn add(&mut self, suite: &str, results: impl IntoIterator<Item = TestResult>) {
        self.results
            .extend(results.into_iter().map(|r| (suite.to_owned(), r)));
    }

    /// Adds a check that is no test program, such as the leak check.
    pub fn add_check(&mut self, suite: &str, name: &str, problem: Option<String>) {
        let outcome = if problem.is_none() {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        let reason = problem.unwrap_or_default();
        let result = TestResult {
            name: name.to_owned(),
            outcome,
            ms: 0,
            reason,
            output: String::new(),
        };
        if outcome == Outcome::Failed {
            print!("{}", line_of(&format!("{suite} "), &result));
        }
        self.add(suite, [result]);
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.results
            .iter()
            .filter(|(_, r)| r.outcome == outcome)
            .count()
    }

    /// A skip that the list does not allow becomes a failure.
    pub fn judge_skips(&mut self, skips: &Skips) {
        for (suite, r) in &mut self.results {
            if r.outcome == Outcome::Skipped && !skips.allows(suite, &r.name, &r.reason) {
                r.outcome = Outcome::Failed;
                r.reason = format!("skipped, and not listed in tests/SKIPS: {}", r.reason);
            }
        }
    }

    /// The slowest tests, the skips, the failures, and the line that sums up.
    pub fn print(&self) {
        let mut by_time: Vec<_> = self.results.iter().filter(|(_, r)| r.ms > 0).collect();
        by_time.sort_by_key(|(_, r)| std::cmp::Reverse(r.ms));
        if !by_time.is_empty() {
            println!("\nslowest tests:");
        }
        for (suite, r) in by_time.iter().take(SLOWEST_SHOWN) {
            println!("  {:>8}  {suite} {}", seconds(r.ms), r.name);
        }
        self.print_all("skipped tests:", Outcome::Skipped);
        self.print_all("passed alone only:", Outcome::Passed);
        self.print_all("failed tests:", Outcome::Failed);
        println!();
        println!(
            "{} passed, {} failed",
            self.count(Outcome::Passed),
            self.count(Outcome::Failed)
        );
    }

    fn print_all(&self, title: &str, outcome: Outcome) {
        let mut title = Some(title);
        let told = |r: &TestResult| {
            r.outcome == outcome && (outcome != Outcome::Passed || !r.reason.is_empty())
        };
        for (suite, r) in self.results.iter().filter(|(_, r)| told(r)) {
            if let Some(title) = title.take() {
                println!("\n{title}");
            }
            println!("  {suite} {}: {}", r.name, r.reason);
        }
    }
}

/// A table of suites (columns) by tests (rows).
pub fn table(columns: &[(String, Vec<TestResult>)]) -> String {
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (at, (_, results)) in columns.iter().enumerate() {
        for r in results {
            let row = rows
                .entry(&r.name)
                .or_insert_with(|| vec![""; columns.len()]);
            row[at] = match r.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAIL",
                Outcome::Skipped => "skip",
            };
        }
    }
    let name_width = rows.keys().map(|n| n.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:name_width$}", "test");
    for (name, _) in columns {
        text.push_str(&format!("  {name:>7}"));
    }
    text.push('\n');
    for (name, cells) in rows {
        text.push_str(&format!("{name:name_width$}"));
        for cell in cells {
            text.push_str(&format!(
                "  {:>7}",
                if cell.is_empty() { "-" } else { cell }
            ));
        }
        text.push('\n');
    }
    text
}

/// The same in short: topics (what stands before the first `::`) by suites,
/// with how many tests passed, and of how many where some did not.
pub fn short_table(columns: &[(String, Vec<TestResult>)]) -> String {
    let mut topics: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (at, (_, results)) in columns.iter().enumerate() {
        for r in results {
            let topic = r.name.split("::").next().unwrap_or(&r.name);
            let topic = topic.split('.').next().unwrap_or(topic);
            let row = topics
                .entry(topic)
                .or_insert_with(|| vec![(0, 0); columns.len()]);
            row[at].1 += 1;
            row[at].0 += usize::from(r.outcome == Outcome::Passed);
        }
    }
    let mut text = String::from("| tests passed |");
    let names = columns.iter().map(|(name, _)| format!(" {name} |"));
    text.extend(names);
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(columns.len()));
    for (topic, cells) in topics {
        text.push_str(&format!("\n| {topic} |"));
        text.extend(cells.into_iter().map(|cell| match cell {
            (_, 0) => " |".to_owned(),
            (passed, all) if passed == all => format!(" {all} |"),
            (passed, all) => format!(" {passed} of {all} |"),
        }));
    }
    text.push('\n');
    text
}

/// The skips that are known and why: lines `suite test: reason`, where `*`
/// stands for every suite, or ends a name as a prefix. `suite test if words:
/// reason` is for skips that give these words as their own reason.
#[derive(Debug, Default)]
pub struct Skips(Vec<Skip>);

#[derive(Debug)]
struct Skip {
    suite: String,
    test: String,
    /// What the test says when it skips itself; anything where it is empty.
    words: String,
}

impl Skips {
    /// Reads the list.
    ///
    /// # Errors
    /// A line is not of the form above, or has no reason.
    pub fn parse(text: &str) -> anyhow::Result<Skips> {
        let mut list = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            let (names, reason) = line
                .split_once(": ")
                .with_context(|| format!("no reason: {line:?}"))?;
            let (suite, test) = names
                .split_once(' ')
                .with_context(|| format!("no suite: {line:?}"))?;
            anyhow::ensure!(!reason.trim().is_empty(), "no reason: {line:?}");
            let (test, words) = test.split_once(" if ").unwrap_or((test, ""));
            list.push(Skip {
                suite: suite.to_owned(),
                test: test.trim().to_owned(),
                words: words.trim().to_owned(),
            });
        }
        Ok(Skips(list))
    }

    fn allows(&self, suite: &str, test: &str, why: &str) -> bool {
        let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        };
        self.0
            .iter()
            .any(|s| matches(&s.suite, suite) && matches(&s.test, test) && why.contains(&s.words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, outcome: Outcome) -> TestResult {
        TestResult {
            name: name.into(),
            outcome,
            ms: 5,
            reason: "r".into(),
            output: String::new(),
        }
    }

    #[test]
    fn events_round_trip() {
        let events = [
            Event::Plan { total: 2 },
            Event::Start { name: "a".into() },
            Event::End(result("a", Outcome::Passed)),
            Event::Done,
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            let back: Event = serde_json::from_str(&line).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), line);
        }
    }

    #[test]
    fn an_unlisted_skip_fails() {
        let skips = Skips::parse("# why\nhost a::*: needs a disk\n* b: old kernel\n").unwrap();
        let mut sum = Summary::default();
        sum.add(
            "host",
            [
                result("a::x", Outcome::Skipped),
                result("c", Outcome::Skipped),
            ],
        );
        sum.add(
            "v1",
            [
                result("b", Outcome::Skipped),
                result("a::x", Outcome::Skipped),
            ],
        );
        sum.judge_skips(&skips);
        assert_eq!(
            (sum.count(Outcome::Skipped), sum.count(Outcome::Failed)),
            (2, 2)
        );
        assert!(Skips::parse("host a\n").is_err());
        let skips = Skips::parse("* s::* if no tool: it is another's\n").unwrap();
        for (why, outcome) in [
            ("no tool is there", Outcome::Skipped),
            ("no disk", Outcome::Failed),
        ] {
            let mut sum = Summary::default();
            let mut skipped = result("s::x", Outcome::Skipped);
            skipped.reason = why.to_owned();
            sum.add("host", [skipped]);
            sum.judge_skips(&skips);
            assert_eq!(sum.count(outcome), 1, "{why}");
        }
    }

    #[test]
    fn a_short_table_counts_topics() {
        let results = |names: &[(&str, Outcome)]| -> Vec<TestResult> {
            names.iter().map(|(n, o)| result(n, *o)).collect()
        };
        let (ok, bad) = (Outcome::Passed, Outcome::Failed);
        let columns = [
            ("v2".to_owned(), results(&[("a::x", ok), ("a::y", bad)])),
            ("v1".to_owned(), results(&[("a::x", ok), ("p.t::z", ok)])),
        ];
        let wanted = "| tests passed | v2 | v1 |\n|---|---|---|\n| a | 1 of 2 | 1 |\n| p | | 1 |\n";
        assert_eq!(short_table(&columns), wanted);
    }

    #[test]
    fn a_table_has_a_cell_for_each_suite() {
        let columns = [
            ("v2".to_owned(), vec![result("a", Outcome::Passed)]),
            (
                "v1".to_owned(),
                vec![result("a", Outcome::Failed), result("b", Outcome::Skipped)],
            ),
        ];
        let text = table(&columns);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                ["test", "v2", "v1"],
                ["a", "ok", "FAIL"],
                ["b", "-", "skip"]
            ]
        );
    }
}
