//! Differences on purpose: rules that changed between the recorded release and the one that rkube
//! serves.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::compare::Difference;

/// Most entries: more would hide what should be mended.
pub const ENTRIES_MAX: usize = 40;

/// One rule that changed. An answer's difference is explained if its kind and field are named and
/// the change is the rule's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What changed, in words.
    pub rule: String,
    /// The kinds, each by name.
    pub kinds: Vec<String>,
    /// The fields, each by its whole path.
    pub fields: Vec<String>,
    /// The scenarios that it shows in, each by its whole name, where the kind and the field say too
    /// little about what it is; all of them without.
    #[serde(default)]
    pub scenarios: Vec<String>,
    /// The change; a list where the rule shows in several ways, each of which some answer must show.
    pub change: Changes,
    /// The document of the newest release that says so.
    pub document: String,
}

/// The ways in which one rule shows.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Changes {
    /// One.
    One(Change),
    /// Several.
    Several(Vec<Change>),
}

impl Changes {
    fn list(&self) -> &[Change] {
        match self {
            Self::One(change) => std::slice::from_ref(change),
            Self::Several(changes) => changes,
        }
    }
}

/// How the newer release's answer comes from the recorded one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// There is a value where there was none.
    Added(Value),
    /// There is no value where there was this one.
    Removed(Value),
    /// There is another value.
    Replaced {
        /// The recorded one.
        from: Value,
        /// The newer one.
        to: Value,
    },
    /// A part of a text is another.
    Reworded {
        /// The recorded words.
        from: String,
        /// The newer words.
        to: String,
    },
    /// There is a number, which counts something, where nothing was counted: there was none, or the
    /// client's own stood there.
    Counted,
    /// There is something where there was nothing; the field's name says what.
    New,
    /// There is nothing where there was something; the field's name says what.
    Gone,
    /// There is this value, whatever there was.
    Now(Value),
    /// An error lists the same supported values in alphabetical order.
    Sorted,
    /// An error shows the offending value in another notation, and says the same about it.
    ShownOtherwise,
    /// A change that only these requests show, each by its whole id: another code says that
    /// anything may be wrong.
    Only {
        /// The requests.
        requests: Vec<String>,
        /// The change.
        change: Box<Change>,
    },
    /// A text of a library that is worded otherwise behind these words.
    EndsOtherwise {
        /// The words that both begin with.
        after: String,
    },
}

impl Change {
    /// Whether it may stand for another code.
    fn is_of_few(&self) -> bool {
        matches!(self, Self::Only { .. })
    }

    fn explains(&self, id: &str, difference: &Difference) -> bool {
        let (recorded, found) = (&difference.recorded, &difference.found);
        match self {
            Self::Added(value) => recorded.is_null() && found == value,
            Self::Removed(value) => found.is_null() && recorded == value,
            Self::Replaced { from, to } => recorded == from && found == to,
            Self::Reworded { from, to } => match (recorded.as_str(), found.as_str()) {
                (Some(recorded), Some(found)) => {
                    recorded.contains(from.as_str()) && recorded.replace(from, to) == found
                }
                _ => false,
            },
            Self::Counted => !recorded.is_string() && found.is_u64(),
            Self::New => {
                let nothing = recorded.is_null() || recorded == "";
                nothing && recorded != found && !found.is_null()
            }
            Self::Gone => found.is_null() && !recorded.is_null(),
            Self::Now(value) => found == value,
            Self::Only { requests, change } => {
                requests.iter().any(|r| r == id) && change.explains(id, difference)
            }
            Self::Sorted => match (recorded.as_str(), found.as_str()) {
                (Some(recorded), Some(found)) => sorted(recorded).is_some_and(|s| s == found),
                _ => false,
            },
            Self::ShownOtherwise => match (recorded.as_str(), found.as_str()) {
                (Some(recorded), Some(found)) => shown_otherwise(recorded, found),
                _ => false,
            },
            Self::EndsOtherwise { after } => {
                let start = |v: &Value| {
                    let text = v.as_str()?;
                    let end = text.find(after.as_str())? + after.len();
                    (end < text.len()).then(|| text[..end].to_owned())
                };
                start(recorded).is_some_and(|s| Some(s) == start(found))
            }
        }
    }
}

/// `...supported values: "b", "a"` with the values in order; `None` without them.
fn sorted(text: &str) -> Option<String> {
    const BEFORE: &str = "supported values: ";
    let start = text.find(BEFORE)? + BEFORE.len();
    let mut values: Vec<&str> = text[start..].split(", ").collect();
    values.sort_unstable();
    Some(format!("{}{}", &text[..start], values.join(", ")))
}

/// `FieldValueInvalid: Invalid value: VALUE: rule`, with another VALUE.
fn shown_otherwise(recorded: &str, found: &str) -> bool {
    const BEFORE: &str = " value: ";
    let head = |text: &str| {
        let end = text.find(BEFORE)? + BEFORE.len();
        Some((text[..end].to_owned(), text[end..].to_owned()))
    };
    let (Some((head_a, a)), Some((head_b, b))) = (head(recorded), head(found)) else {
        return false;
    };
    // A value may have a colon, so the rules are what both end with.
    let same = a
        .bytes()
        .rev()
        .zip(b.bytes().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let rule = a.get(a.len() - same..).unwrap_or("");
    head_a == head_b && (rule.contains(": ") || rule == a || !a.contains(": ") && !b.contains(": "))
}

/// Reads the list.
///
/// # Errors
/// It cannot be read, is too long, or an entry lacks a part or has a wildcard.
pub fn load(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let entries: Vec<Entry> =
        crate::corpus::yaml(&text).with_context(|| format!("parse {}", path.display()))?;
    ensure!(
        entries.len() <= ENTRIES_MAX,
        "more than {ENTRIES_MAX} entries"
    );
    for entry in &entries {
        let rule = &entry.rule;
        ensure!(
            !entry.kinds.is_empty() && !entry.fields.is_empty(),
            "{rule}: names nothing"
        );
        let named = entry.kinds.iter().chain(&entry.fields);
        ensure!(
            named.clone().all(|n| !n.contains('*')),
            "{rule}: a wildcard"
        );
        ensure!(
            entry.document.starts_with("https://"),
            "{rule}: no document"
        );
    }
    Ok(entries)
}

/// Entries, and which of their parts explained something.
#[derive(Debug)]
pub struct Explained<'a> {
    entries: &'a [Entry],
    used: Vec<Used>,
}

/// What of an entry explained something: each kind, field, scenario and change.
#[derive(Debug, Default)]
struct Used {
    kinds: BTreeSet<String>,
    fields: BTreeSet<String>,
    scenarios: BTreeSet<String>,
    changes: BTreeSet<usize>,
}

impl<'a> Explained<'a> {
    /// Nothing is explained yet.
    #[must_use]
    pub fn new(entries: &'a [Entry]) -> Self {
        Self {
            entries,
            used: entries.iter().map(|_| Used::default()).collect(),
        }
    }

    /// Whether an entry explains a difference between the answers to a request.
    pub fn explains(&mut self, id: &str, difference: &Difference) -> bool {
        let scenario = id.split(" > ").next().unwrap_or_default();
        for (entry, used) in self.entries.iter().zip(&mut self.used) {
            if !entry.scenarios.is_empty() && !entry.scenarios.iter().any(|s| s == scenario) {
                continue;
            }
            if !entry.kinds.contains(&difference.kind) || !entry.fields.contains(&difference.field)
            {
                continue;
            }
            let mut changes = entry.change.list().iter();
            let is_code = difference.field == "code";
            let fits = |c: &Change| (!is_code || c.is_of_few()) && c.explains(id, difference);
            if let Some(at) = changes.position(fits) {
                used.changes.insert(at);
                used.kinds.insert(difference.kind.clone());
                used.fields.insert(difference.field.clone());
                used.scenarios.insert(scenario.to_owned());
                return true;
            }
        }
        false
    }

    /// The rules' kinds, fields, scenarios and changes that nothing showed.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (entry, used) in self.entries.iter().zip(&self.used) {
            let changes = entry.change.list().iter().enumerate();
            for (_, change) in changes.filter(|(at, _)| !used.changes.contains(at)) {
                out.push(format!("{}: {change:?}", entry.rule));
            }
            for (what, named, shown) in [
                ("kind", &entry.kinds, &used.kinds),
                ("field", &entry.fields, &used.fields),
                ("scenario", &entry.scenarios, &used.scenarios),
            ] {
                for name in named.iter().filter(|name| !shown.contains(*name)) {
                    out.push(format!("{}: {what} {name}", entry.rule));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_explain_only_what_they_say() {
        let difference = |recorded: Value, found: Value| Difference {
            kind: "Pod".into(),
            field: "spec.x".into(),
            recorded,
            found,
        };
        let reworded = Change::Reworded {
            from: "characters".into(),
            to: "bytes".into(),
        };
        let ends = Change::EndsOtherwise {
            after: "cannot be read: ".into(),
        };
        for (change, recorded, found, explained) in [
            (&Change::Added(json!(true)), json!(null), json!(true), true),
            (
                &Change::Added(json!(true)),
                json!(false),
                json!(true),
                false,
            ),
            (&Change::Removed(json!("a")), json!("a"), json!(null), true),
            (&Change::New, json!(null), json!({"name": "x"}), true),
            (&Change::New, json!("y"), json!({"name": "x"}), false),
            (&Change::Counted, json!(9), json!(1), true),
            (&Change::Counted, json!("9"), json!(1), false),
            (
                &Change::Sorted,
                json!("x: supported values: \"b\", \"a\""),
                json!("x: supported values: \"a\", \"b\""),
                true,
            ),
            (
                &Change::Sorted,
                json!("x: supported values: \"b\", \"a\""),
                json!("x: supported values: \"a\""),
                false,
            ),
            (&reworded, json!("63 characters"), json!("63 bytes"), true),
            (&reworded, json!("63 characters"), json!("64 bytes"), false),
            (&reworded, json!("64 bytes"), json!("64 bytes!"), false),
            (
                &ends,
                json!("x cannot be read: a"),
                json!("x cannot be read: b"),
                true,
            ),
            (
                &ends,
                json!("x cannot be read: a"),
                json!("y cannot be read: b"),
                false,
            ),
        ] {
            let difference = difference(recorded, found);
            let told = change.explains("a/b > c", &difference);
            assert_eq!(told, explained, "{difference:?}");
        }
    }

    #[test]
    fn entries_that_explain_nothing_are_told() {
        let entries = [Entry {
            rule: "x is new".into(),
            kinds: vec!["Pod".into(), "Node".into()],
            fields: vec!["spec.x".into(), "spec.y".into()],
            scenarios: vec!["a/b".into(), "a/d".into()],
            change: Changes::Several(vec![Change::Added(json!(1)), Change::Added(json!(2))]),
            document: "https://kubernetes.io/".into(),
        }];
        let mut explained = Explained::new(&entries);
        assert_eq!(explained.unused().len(), 8);
        let mut difference = Difference {
            kind: "Job".into(),
            field: "spec.x".into(),
            recorded: Value::Null,
            found: json!(1),
        };
        assert!(!explained.explains("a/b > x", &difference), "another kind");
        difference.kind = "Pod".into();
        let elsewhere = explained.explains("a/c > x", &difference);
        assert!(!elsewhere, "another scenario");
        assert!(explained.explains("a/b > x", &difference));
        assert_eq!(
            explained.unused(),
            [
                "x is new: Added(Number(2))",
                "x is new: kind Node",
                "x is new: field spec.y",
                "x is new: scenario a/d",
            ],
            "the other way, kind, field and place of the same rule"
        );
        difference.found = json!(2);
        difference.kind = "Node".into();
        difference.field = "spec.y".into();
        assert!(explained.explains("a/d > x", &difference));
        assert!(explained.unused().is_empty());
    }

    #[test]
    fn another_code_is_explained_for_the_requests_that_a_rule_names() {
        let entry = |change: Change| Entry {
            rule: "x is allowed".into(),
            kinds: vec!["Pod".into()],
            fields: vec!["code".into()],
            scenarios: Vec::new(),
            change: Changes::One(change),
            document: "https://kubernetes.io/".into(),
        };
        let replaced = Change::Replaced {
            from: json!(422),
            to: json!(200),
        };
        let only = Change::Only {
            requests: vec!["a/b > x".into()],
            change: Box::new(replaced.clone()),
        };
        let difference = Difference {
            kind: "Pod".into(),
            field: "code".into(),
            recorded: json!(422),
            found: json!(200),
        };
        for (change, id, explained) in [
            (&replaced, "a/b > x", false),
            (&only, "a/b > x", true),
            (&only, "a/b > y", false),
        ] {
            let entries = [entry(change.clone())];
            let told = Explained::new(&entries).explains(id, &difference);
            assert_eq!(told, explained, "{id}");
        }
    }
}
