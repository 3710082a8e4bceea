//! Manifests: YAML or JSON bytes to values that remember their positions.
//!
//! YAML is read by Kubernetes' rules (those of YAML 1.1 as its libraries
//! apply them): `yes`, `no`, `on`, `off` are booleans, `0644` is octal,
//! timestamps stay strings, non-string keys become strings, `<<` merges.
//! A key given twice is an error in both formats.
//!
//! Budgets hold for one input as a whole; what an alias repeats counts each
//! time, so that a "billion laughs" input is refused before it is built.

mod json;
mod scalar;
mod yaml;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::field::{FieldError, FieldPath, Segment};

/// Longest input in bytes. API bodies have a lower limit of their own (3 MiB);
/// files hold many documents.
pub const MAX_INPUT_BYTES: usize = 16 << 20;
/// Most values in one input, those repeated by aliases included.
pub const MAX_NODES_COUNT: usize = 1_000_000;
/// Most bytes of text that aliases and merge keys may repeat.
pub const MAX_ALIASED_BYTES: usize = 4 << 20;
/// Most values that aliases and merge keys may repeat.
pub const MAX_ALIASED_NODES_COUNT: usize = 100_000;
/// Deepest nesting of lists and maps. Upstream's JSON stops at 10,000; the
/// deepest built-in type needs fewer than 30, a CRD schema fewer than 100.
pub const MAX_DEPTH_LEVELS: usize = 128;
/// Most documents in one input, the items of lists included.
pub const MAX_DOCUMENTS_COUNT: usize = 10_000;
/// Most problems reported for one input.
pub const MAX_PROBLEMS_COUNT: usize = 100;

/// A place in a source text; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// The places of a value and of all values in it; the same shape as the value.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// The place of the key for a field, else of the value's start.
    pub at: Mark,
    kids: Kids,
}

#[derive(Debug, Clone, Default)]
enum Kids {
    #[default]
    None,
    List(Vec<Marks>),
    /// Sorted by key.
    Map(Vec<(Box<str>, Marks)>),
}

impl Marks {
    fn scalar(at: Mark) -> Self {
        Self {
            at,
            kids: Kids::None,
        }
    }

    fn list(at: Mark, items: Vec<Marks>) -> Self {
        Self {
            at,
            kids: Kids::List(items),
        }
    }

    /// Entries must be unique by key.
    fn map(at: Mark, mut entries: Vec<(Box<str>, Marks)>) -> Self {
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Self {
            at,
            kids: Kids::Map(entries),
        }
    }

    fn child(&self, segment: &Segment) -> Option<&Marks> {
        match (&self.kids, segment) {
            (Kids::List(items), Segment::Index(i)) => items.get(*i),
            (Kids::Map(entries), Segment::Field(key) | Segment::Key(key)) => {
                let i = entries.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
                entries.get(i).map(|(_, marks)| marks)
            }
            _ => None,
        }
    }

    /// The place of a field, or of its nearest ancestor that the source has.
    #[must_use]
    pub fn locate(&self, path: &FieldPath) -> Mark {
        let mut here = self;
        for segment in &path.0 {
            match here.child(segment) {
                Some(next) => here = next,
                None => break,
            }
        }
        here.at
    }

    fn into_items(self) -> Vec<Marks> {
        match self.kids {
            Kids::List(items) => items,
            _ => Vec::new(),
        }
    }

    fn take(&mut self, key: &str) -> Option<Marks> {
        let Kids::Map(entries) = &mut self.kids else {
            return None;
        };
        let i = entries.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        entries.get_mut(i).map(|(_, marks)| std::mem::take(marks))
    }
}

/// One object of a manifest.
#[derive(Debug, Clone)]
pub struct Document {
    /// The name of the source, for messages.
    pub file: Arc<str>,
    /// The number of the document in the source, from 1; the items of one
    /// `List` share their document's number.
    pub number: usize,
    /// The object's `apiVersion`.
    pub api_version: String,
    /// The object's `kind`.
    pub kind: String,
    /// The object.
    pub value: Value,
    /// Where the object's values stand in the source.
    pub marks: Marks,
}

impl Document {
    /// The place of a field, or of its nearest ancestor that the source has.
    #[must_use]
    pub fn locate(&self, path: &FieldPath) -> Mark {
        self.marks.locate(path)
    }

    /// An error about this document together with its place.
    #[must_use]
    pub fn place(&self, error: FieldError) -> Located {
        let mark = self.locate(&error.path);
        Located {
            file: self.file.clone(),
            document: self.number,
            mark,
            error,
        }
    }
}

/// A field error with its place: `pod.yaml: document 2, line 14: spec.x: ...`.
#[derive(Debug, Clone)]
pub struct Located {
    /// The name of the source.
    pub file: Arc<str>,
    /// The number of the document, from 1.
    pub document: usize,
    /// The place in the source.
    pub mark: Mark,
    /// The error.
    pub error: FieldError,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            document,
            mark,
            error,
        } = self;
        write!(
            f,
            "{file}: document {document}, line {}: {error}",
            mark.line
        )
    }
}

impl std::error::Error for Located {}

/// What keeps bytes from being manifests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// More than [`MAX_INPUT_BYTES`].
    #[error("{bytes} bytes are more than the {MAX_INPUT_BYTES} that a manifest may have")]
    TooLong {
        /// The input's length.
        bytes: usize,
    },
    /// Not UTF-8.
    #[error("byte {byte} is not UTF-8 text")]
    NotUtf8 {
        /// The first offending byte, from 0.
        byte: usize,
    },
    /// The text breaks the format's grammar.
    #[error("not valid {format}: {reason}")]
    Syntax {
        /// `YAML` or `JSON`.
        format: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A key occurs twice in one map.
    #[error("key {key:?} is given twice, first in line {first}")]
    DuplicateKey {
        /// The key.
        key: String,
        /// The line of the first one.
        first: u32,
    },
    /// A key that JSON has no place for.
    #[error("a key must be a string, a number or a boolean")]
    BadKey,
    /// `<<` with something that is no map.
    #[error("`<<` merges a map or a list of maps only")]
    BadMerge,
    /// A tag with no meaning here.
    #[error("the tag {tag:?} has no meaning in a manifest")]
    UnknownTag {
        /// The tag as written.
        tag: String,
    },
    /// A scalar that its tag forbids, or that JSON cannot hold.
    #[error("{text:?} is not a {what}")]
    BadScalar {
        /// The scalar.
        text: String,
        /// What it should be.
        what: &'static str,
    },
    /// An alias inside the value that it names.
    #[error("an alias refers to a value that contains it")]
    RecursiveAlias,
    /// A budget is used up.
    #[error("more than {limit} {what}")]
    Budget {
        /// The budget's size.
        limit: usize,
        /// What it counts.
        what: &'static str,
    },
    /// The document is no map.
    #[error("an object is expected, with apiVersion and kind")]
    NotAnObject,
    /// `apiVersion` or `kind` is missing or no string.
    #[error("Required value: a non-empty string")]
    NoType,
}

/// A [`Problem`] and its place.
#[derive(Debug, Clone)]
pub struct DecodeError {
    /// The name of the source.
    pub file: Arc<str>,
    /// The number of the document, from 1.
    pub document: usize,
    /// The place; line 0 where none is known.
    pub mark: Mark,
    /// The field, where the problem lies in one.
    pub path: FieldPath,
    /// The problem.
    pub problem: Problem,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if self.mark.line > 0 {
            write!(f, "document {}, line {}", self.document, self.mark.line)?;
            if matches!(self.problem, Problem::Syntax { .. }) {
                write!(f, ", column {}", self.mark.column)?;
            }
            f.write_str(": ")?;
        }
        if !self.path.0.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for DecodeError {}

/// All problems of one input.
#[derive(Debug, Clone)]
pub struct DecodeErrors(pub Vec<DecodeError>);

impl fmt::Display for DecodeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for DecodeErrors {}

/// A value with its marks, and what it costs to repeat it.
#[derive(Debug, Clone)]
struct Node {
    value: Value,
    marks: Marks,
    nodes: usize,
    bytes: usize,
    depth: usize,
}

/// A problem of a document before it has a file and number.
type Raw = (Mark, FieldPath, Problem);

/// What a format's parser yields: documents with their problems.
#[derive(Debug, Default)]
struct Parsed {
    documents: Vec<(usize, Node)>,
    problems: Vec<(usize, Raw)>,
}

impl Parsed {
    fn problem(&mut self, document: usize, raw: Raw) {
        if self.problems.len() < MAX_PROBLEMS_COUNT {
            self.problems.push((document, raw));
        }
    }
}

fn parse(text: &str) -> Parsed {
    if text
        .trim_start_matches('\u{feff}')
        .trim_start()
        .starts_with('{')
    {
        json::parse(text)
    } else {
        yaml::parse(text)
    }
}

/// Reads the objects of a manifest: YAML documents or JSON values one after
/// the other (JSON where the first character is `{`). Lists (`kind: List`,
/// `PodList`, ...) are replaced by their items; empty documents are skipped.
///
/// # Errors
/// All problems of the input, with places. Fields are not looked at beyond
/// `apiVersion` and `kind`: see [`crate::strict`].
pub fn documents(bytes: &[u8], filename: &str) -> Result<Vec<Document>, DecodeErrors> {
    let file: Arc<str> = filename.into();
    let fail = |mark, problem| {
        let path = FieldPath::default();
        DecodeErrors(vec![DecodeError {
            file: file.clone(),
            document: 1,
            mark,
            path,
            problem,
        }])
    };
    if bytes.len() > MAX_INPUT_BYTES {
        return Err(fail(
            Mark::default(),
            Problem::TooLong { bytes: bytes.len() },
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let byte = e.valid_up_to();
        let lines = bytes[..byte].iter().filter(|b| **b == b'\n').count();
        let line = u32::try_from(lines + 1).unwrap_or(u32::MAX);
        fail(Mark { line, column: 1 }, Problem::NotUtf8 { byte })
    })?;
    let mut parsed = parse(text);
    let mut found = Vec::new();
    for (number, node) in std::mem::take(&mut parsed.documents) {
        let shape = Shape {
            file: &file,
            number,
            list: None,
        };
        flatten(
            node.value,
            node.marks,
            &shape,
            FieldPath::default(),
            &mut parsed,
            &mut found,
        );
    }
    if parsed.problems.is_empty() {
        return Ok(found);
    }
    let errors = parsed
        .problems
        .into_iter()
        .map(|(document, (mark, path, problem))| DecodeError {
            file: file.clone(),
            document,
            mark,
            path,
            problem,
        });
    Err(DecodeErrors(errors.collect()))
}

/// The surroundings of an object being taken out of a list.
struct Shape<'a> {
    file: &'a Arc<str>,
    number: usize,
    /// `apiVersion` and item kind of a typed list, whose items may omit both.
    list: Option<(&'a str, &'a str)>,
}

fn flatten(
    mut value: Value,
    mut marks: Marks,
    shape: &Shape<'_>,
    path: FieldPath,
    parsed: &mut Parsed,
    found: &mut Vec<Document>,
) {
    let at = marks.at;
    let Value::Object(map) = &mut value else {
        parsed.problem(shape.number, (at, path, Problem::NotAnObject));
        return;
    };
    if let Some((api_version, kind)) = shape.list {
        map.entry("apiVersion")
            .or_insert_with(|| api_version.into());
        map.entry("kind").or_insert_with(|| kind.into());
    }
    let text = |key: &str| {
        map.get(key)
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
    };
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let key = if text("apiVersion").is_none() {
            "apiVersion"
        } else {
            "kind"
        };
        let path = path.field(key);
        let mark = marks
            .child(&Segment::Field(key.into()))
            .map_or(at, |m| m.at);
        parsed.problem(shape.number, (mark, path, Problem::NoType));
        return;
    };
    let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
    let item_kind = kind.strip_suffix("List");
    if let (Some(item_kind), Some(Value::Array(items))) = (item_kind, map.get_mut("items")) {
        // Nesting is bounded by the depth budget of the parser.
        let typed = (!item_kind.is_empty()).then_some((&*api_version, item_kind));
        let inner = Shape {
            list: typed,
            ..*shape
        };
        let item_marks = marks
            .take("items")
            .map(Marks::into_items)
            .unwrap_or_default();
        for (i, (item, marks)) in std::mem::take(items)
            .into_iter()
            .zip(item_marks)
            .enumerate()
        {
            flatten(
                item,
                marks,
                &inner,
                path.clone().field("items").index(i),
                parsed,
                found,
            );
        }
        return;
    }
    if found.len() >= MAX_DOCUMENTS_COUNT {
        let problem = Problem::Budget {
            limit: MAX_DOCUMENTS_COUNT,
            what: "objects",
        };
        if parsed.problems.is_empty() {
            parsed.problem(shape.number, (at, path, problem));
        }
        return;
    }
    found.push(Document {
        file: shape.file.clone(),
        number: shape.number,
        api_version,
        kind,
        value,
        marks,
    });
}

#[cfg(test)]
mod tests;
