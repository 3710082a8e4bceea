//! Tables, JSON and YAML on standard output.

use std::io::Write;
use std::time::SystemTime;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::cli::{Document, Format};

/// Spaces between columns.
const GAP: usize = 3;

/// A table under its headings.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    /// Adds a row. Control characters of foreign text are shown, not obeyed.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.iter().map(|cell| harmless(cell)).collect());
    }

    /// The text, each column as wide as its widest cell.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let pad = width + GAP - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', pad));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text from elsewhere without what a terminal would obey.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

/// A value as a document.
pub(crate) fn document(value: &impl Serialize, format: Document) -> anyhow::Result<String> {
    match format {
        Document::Json => Ok(serde_json::to_string_pretty(value).context("encode JSON")? + "\n"),
        Document::Yaml => {
            let text = serde_saphyr::to_string(value).context("encode YAML")?;
            Ok(if text.ends_with('\n') {
                text
            } else {
                text + "\n"
            })
        }
    }
}

/// How a list is to be printed, apart from the table.
pub(crate) enum Shape {
    Table { wide: bool },
    Document(Document),
    Names,
}

/// The shape that `-o` asks for.
pub(crate) fn shape(format: Option<Format>) -> Shape {
    match format {
        None => Shape::Table { wide: false },
        Some(Format::Wide) => Shape::Table { wide: true },
        Some(Format::Json) => Shape::Document(Document::Json),
        Some(Format::Yaml) => Shape::Document(Document::Yaml),
        Some(Format::Name) => Shape::Names,
    }
}

/// A v1 `List` of API objects.
pub(crate) fn list(items: Vec<Value>) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// An object of the API with its kind.
pub(crate) fn object(kind: &str, value: &impl Serialize) -> anyhow::Result<Value> {
    let mut value = rkube_api::value_of(value).context("encode JSON")?;
    value["apiVersion"] = "v1".into();
    value["kind"] = kind.into();
    Ok(value)
}

/// How long ago, in two units at most: `5s`, `3m12s`, `2h5m`, `4d3h`.
pub(crate) fn age(since: SystemTime, now: SystemTime) -> String {
    let s = now.duration_since(since).unwrap_or_default().as_secs();
    let two = |a: u64, x: &str, b: u64, y: &str| {
        if b == 0 {
            format!("{a}{x}")
        } else {
            format!("{a}{x}{b}{y}")
        }
    };
    match s {
        0..120 => format!("{s}s"),
        120..7200 => two(s / 60, "m", s % 60, "s"),
        7200..172_800 => two(s / 3600, "h", s % 3600 / 60, "m"),
        _ => two(s / 86400, "d", s % 86400 / 3600, "h"),
    }
}

/// Bytes with a binary unit: `512B`, `1.5Ki`, `64Mi`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["Ki", "Mi", "Gi", "Ti", "Pi"];
    if n < 1024 {
        return format!("{n}B");
    }
    let mut unit = 0;
    // Tenths, rounded half up.
    let mut tenths = (u128::from(n) * 10 + 512) / 1024;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths % 10 == 0 {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn columns_are_aligned_and_foreign_text_is_harmless() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(["größer".into(), "\u{1b}[31mred".into()]);
        table.row(["b".into(), String::new()]);
        assert_eq!(
            table.text(),
            "NAME     STATUS\ngrößer   \u{fffd}[31mred\nb\n"
        );
    }

    #[test]
    fn ages_and_bytes_are_short() {
        let age = |s| age(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(
            [
                age(0),
                age(119),
                age(120),
                age(192),
                age(7500),
                age(273_600)
            ],
            ["0s", "119s", "2m", "3m12s", "2h5m", "3d4h"]
        );
        let list = [0, 1023, 1024, 1536, 64 << 20, 10 << 30, 1_048_575];
        assert_eq!(
            list.map(bytes),
            ["0B", "1023B", "1Ki", "1.5Ki", "64Mi", "10Gi", "1Mi"].map(str::to_owned)
        );
    }

    #[test]
    fn documents_of_both_formats_read_back_the_same() {
        let value =
            serde_json::json!({"a": ["x: y", "yes", "1", null, 2], "b": {"c": "multi\nline"}});
        let json: Value = serde_json::from_str(&document(&value, Document::Json).unwrap()).unwrap();
        let yaml: Value =
            serde_saphyr::from_str(&document(&value, Document::Yaml).unwrap()).unwrap();
        assert_eq!((&json, &yaml), (&value, &value));
    }
}
