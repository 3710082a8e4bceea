//! The table, in Markdown for people and in JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::stats::Samples;

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Who did it: rkube or a peer.
    pub who: String,
    /// Unit of the samples.
    pub unit: &'static str,
    /// All samples.
    pub samples: Samples,
    /// The middle sample.
    pub median: Option<f64>,
    /// See [`Samples::p99`].
    pub p99: Option<f64>,
    /// rkube's median over this peer's, in a peer's row.
    pub ratio: Option<f64>,
    /// The promise, in rkube's row.
    pub target: Option<String>,
    /// A remark; the reason where there are no samples.
    pub note: Option<String>,
}

impl Row {
    /// A row of samples.
    pub fn new(what: &str, who: &str, unit: &'static str, samples: Samples) -> Row {
        Row {
            what: what.to_owned(),
            who: who.to_owned(),
            unit,
            median: samples.median(),
            p99: samples.p99(),
            samples,
            ratio: None,
            target: None,
            note: None,
        }
    }

    /// A row of one number.
    pub fn one(what: &str, who: &str, unit: &'static str, value: f64) -> Row {
        Row::new(what, who, unit, [value].into_iter().collect())
    }

    /// A row that says why there is no figure.
    pub fn missing(what: &str, who: &str, why: &str) -> Row {
        // What a program said last is why it ended.
        let line = why.lines().rfind(|l| !l.trim().is_empty()).unwrap_or(why);
        // A bar would end the cell.
        let line = line.trim().replace('|', "/");
        Row::new(what, who, "", Samples::default()).note(line)
    }

    /// With the promise.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>) -> Row {
        self.target = Some(target.into());
        self
    }

    /// With a remark.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = Some(note.into());
        self
    }

    /// Beside rkube's row: with rkube's median over this one's.
    #[must_use]
    pub fn beside(mut self, rkube: &Row) -> Row {
        self.ratio = match (rkube.median, self.median) {
            (Some(ours), Some(theirs)) if theirs > 0.0 => Some(ours / theirs),
            _ => None,
        };
        self
    }
}

/// The machine and the programs that were measured.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// When, as UTC.
    pub date: String,
    /// Processors, memory, kernel, cgroup layout.
    pub machine: String,
    /// Programs with their versions.
    pub programs: Vec<String>,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where and with what.
    pub setting: Setting,
    /// The table.
    pub rows: Vec<Row>,
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 10.0 => format!("{v:.1}"),
        Some(v) => format!("{v:.2}"),
    }
}

impl Report {
    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}; {}\n", self.setting.date, self.setting.machine);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}\n", self.setting.programs.join(", "));
        text.push_str(
            "| what | who | n | median | p99 | unit | rkube : peer | target | remark |\n",
        );
        text.push_str("|---|---|--:|--:|--:|---|--:|---|---|\n");
        let mut last = "";
        for row in &self.rows {
            let what = if row.what == last { "" } else { &row.what };
            last = &row.what;
            let _ = writeln!(
                text,
                "| {what} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.who,
                row.samples.len(),
                number(row.median),
                number(row.p99),
                row.unit,
                row.ratio.map(|r| format!("{r:.3}")).unwrap_or_default(),
                row.target.as_deref().unwrap_or_default(),
                row.note.as_deref().unwrap_or_default(),
            );
        }
        text
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let text = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stands_beside_rkube_and_a_missing_one_is_said() {
        let ours = Row::one("start", "rkube", "ms", 20.0).target("1/8");
        let theirs = Row::one("start", "podman", "ms", 400.0).beside(&ours);
        let absent = Row::missing("start", "crun", "crun: status 1\nno limit\n\n").beside(&ours);
        assert_eq!(theirs.ratio, Some(0.05));
        assert_eq!(absent.ratio, None);
        let report = Report {
            setting: Setting {
                date: "d".into(),
                machine: "m".into(),
                programs: vec!["p 1".into()],
            },
            rows: vec![ours, theirs, absent],
        };
        let text = report.markdown();
        assert!(
            text.contains("| start | rkube | 1 | 20.0 | 20.0 | ms |  | 1/8 |  |"),
            "{text}"
        );
        assert!(
            text.contains("|  | podman | 1 | 400 | 400 | ms | 0.050 |  |  |"),
            "{text}"
        );
        assert!(
            text.contains("|  | crun | 0 | - | - |  |  |  | no limit |"),
            "{text}"
        );
    }
}
