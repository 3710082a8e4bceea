//! YAML events to values.

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::scalar::{key_of, number, plain};
use super::{
    Kids, MAX_ALIASED_BYTES, MAX_ALIASED_NODES_COUNT, MAX_DEPTH_LEVELS, MAX_NODES_COUNT, Mark,
    Marks, Node, Parsed, Problem, Raw,
};
use crate::field::{FieldPath, Segment};

/// The namespace of `!!str` and its like.
const CORE_TAGS: &str = "tag:yaml.org,2002:";

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    parsed: Parsed,
    document: usize,
    /// Where the value being read stands.
    path: Vec<Segment>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    aliased_nodes: usize,
    aliased_bytes: usize,
}

/// Ends the input: the grammar is broken, or a budget is used up.
struct Fatal(Raw);

type Step<T> = Result<T, Fatal>;

pub(super) fn parse(text: &str) -> Parsed {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH_LEVELS;
    options.block_nesting_limit = MAX_DEPTH_LEVELS;
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        parsed: Parsed::default(),
        document: 0,
        path: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        aliased_nodes: 0,
        aliased_bytes: 0,
    };
    if let Err(Fatal(raw)) = reader.stream() {
        let document = reader.document.max(1);
        reader.parsed.problem(document, raw);
    }
    reader.parsed
}

fn mark_of(span: &Span) -> Mark {
    let at = span.start;
    Mark {
        line: u32::try_from(at.line()).unwrap_or(u32::MAX),
        column: u32::try_from(at.col() + 1).unwrap_or(u32::MAX),
    }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Step<(Event<'a>, Mark)> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, mark_of(&span))),
            Some(Err(error)) => {
                let marker = error.marker();
                let mark = mark_of(&Span::empty(*marker));
                let reason = error.kind().to_string();
                Err(self.fatal(
                    mark,
                    Problem::Syntax {
                        format: "YAML",
                        reason,
                    },
                ))
            }
            None => Ok((Event::StreamEnd, Mark::default())),
        }
    }

    fn here(&self) -> FieldPath {
        FieldPath(self.path.clone())
    }

    fn fatal(&self, mark: Mark, problem: Problem) -> Fatal {
        Fatal((mark, self.here(), problem))
    }

    fn problem(&mut self, mark: Mark, problem: Problem) {
        let raw = (mark, self.here(), problem);
        self.parsed.problem(self.document, raw);
    }

    fn budget<T>(&self, mark: Mark, limit: usize, what: &'static str) -> Step<T> {
        Err(self.fatal(mark, Problem::Budget { limit, what }))
    }

    fn stream(&mut self) -> Step<()> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(..), _) => {
                    self.document += 1;
                    self.anchors.clear();
                    let (event, mark) = self.next()?;
                    if event == Event::DocumentEnd {
                        continue;
                    }
                    let node = self.node(event, mark, 0)?;
                    if !node.value.is_null() {
                        self.parsed.documents.push((self.document, node));
                    }
                }
                _ => {}
            }
        }
    }

    /// The value that begins with `event`.
    fn node(&mut self, event: Event<'a>, mark: Mark, depth: usize) -> Step<Node> {
        if depth > MAX_DEPTH_LEVELS {
            return self.budget(mark, MAX_DEPTH_LEVELS, "levels of nesting");
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES_COUNT {
            return self.budget(mark, MAX_NODES_COUNT, "values");
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), mark);
                let bytes = text.len();
                (
                    Node {
                        value,
                        marks: Marks::scalar(mark),
                        nodes: 1,
                        bytes,
                        depth: 1,
                    },
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", mark);
                (self.sequence(mark, depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", mark);
                (self.mapping(mark, depth)?, anchor)
            }
            Event::Alias(id) => (self.alias(id, mark, depth)?, 0),
            other => {
                let reason = format!("{other:?} where a value is expected");
                return Err(self.fatal(
                    mark,
                    Problem::Syntax {
                        format: "YAML",
                        reason,
                    },
                ));
            }
        };
        if anchor != 0 {
            self.charge(&node, mark)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// Pays for one more copy of a value.
    fn charge(&mut self, node: &Node, mark: Mark) -> Step<()> {
        self.aliased_nodes = self.aliased_nodes.saturating_add(node.nodes);
        self.aliased_bytes = self.aliased_bytes.saturating_add(node.bytes);
        if self.aliased_nodes > MAX_ALIASED_NODES_COUNT {
            return self.budget(mark, MAX_ALIASED_NODES_COUNT, "values repeated by aliases");
        }
        if self.aliased_bytes > MAX_ALIASED_BYTES {
            return self.budget(mark, MAX_ALIASED_BYTES, "bytes repeated by aliases");
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, mark: Mark, depth: usize) -> Step<Node> {
        let Some(node) = self.anchors.remove(&id) else {
            return Err(self.fatal(mark, Problem::RecursiveAlias));
        };
        self.charge(&node, mark)?;
        if depth + node.depth > MAX_DEPTH_LEVELS {
            return self.budget(mark, MAX_DEPTH_LEVELS, "levels of nesting");
        }
        let mut copy = node.clone();
        copy.marks.at = mark;
        self.anchors.insert(id, node);
        Ok(copy)
    }

    fn sequence(&mut self, mark: Mark, depth: usize) -> Step<Node> {
        let (mut items, mut marks) = (Vec::new(), Vec::new());
        let (mut nodes, mut bytes, mut deepest) = (1, 0, 0);
        loop {
            let (event, at) = self.next()?;
            if event == Event::SequenceEnd {
                break;
            }
            self.path.push(Segment::Index(items.len()));
            let item = self.node(event, at, depth + 1)?;
            self.path.pop();
            nodes += item.nodes;
            bytes += item.bytes;
            deepest = deepest.max(item.depth);
            items.push(item.value);
            marks.push(item.marks);
        }
        let marks = Marks::list(mark, marks);
        Ok(Node {
            value: Value::Array(items),
            marks,
            nodes,
            bytes,
            depth: deepest + 1,
        })
    }

    fn mapping(&mut self, mark: Mark, depth: usize) -> Step<Node> {
        let mut map = Map::new();
        let mut marks: HashMap<Box<str>, Marks> = HashMap::new();
        let mut merges = Vec::new();
        let (mut nodes, mut bytes, mut deepest) = (1, 0, 0);
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, tag)
                if text == "<<" && tag.is_none());
            let key_node = self.node(event, at, depth + 1)?;
            let Some(key) = key_of(&key_node.value) else {
                self.problem(at, Problem::BadKey);
                let (event, at) = self.next()?;
                self.node(event, at, depth + 1)?;
                continue;
            };
            self.path.push(Segment::Field(key.as_str().into()));
            let (event, value_at) = self.next()?;
            let mut node = self.node(event, value_at, depth + 1)?;
            if merge {
                merges.push((node, at));
                self.path.pop();
                continue;
            }
            if let Some(first) = marks.get(key.as_str()) {
                let first = first.at.line;
                self.problem(
                    at,
                    Problem::DuplicateKey {
                        key: key.clone(),
                        first,
                    },
                );
            }
            self.path.pop();
            nodes += node.nodes;
            bytes += node.bytes + key.len();
            deepest = deepest.max(node.depth);
            node.marks.at = at;
            marks.insert(key.as_str().into(), node.marks);
            map.insert(key, node.value);
        }
        for (node, at) in merges {
            deepest = deepest.max(node.depth.saturating_sub(1));
            nodes += node.nodes;
            bytes += node.bytes;
            if !merge_into(&mut map, &mut marks, node) {
                self.problem(at, Problem::BadMerge);
            }
        }
        let marks = Marks::map(mark, marks.into_iter().collect());
        Ok(Node {
            value: Value::Object(map),
            marks,
            nodes,
            bytes,
            depth: deepest + 1,
        })
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, want: &str, mark: Mark) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(want)
        {
            self.problem(
                mark,
                Problem::UnknownTag {
                    tag: tag.original(),
                },
            );
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, mark: Mark) -> Value {
        let bad = |what| Problem::BadScalar {
            text: text.to_owned(),
            what,
        };
        let Some(tag) = tag else {
            if style != ScalarStyle::Plain {
                return text.into();
            }
            return plain(text).unwrap_or_else(|| {
                self.problem(mark, bad("number that JSON can hold"));
                Value::Null
            });
        };
        let (value, what) = match tag.suffix_in_namespace(CORE_TAGS).as_deref() {
            Some("str" | "timestamp") => (Some(text.into()), ""),
            Some("null") => (plain(text).filter(Value::is_null), "null"),
            Some("bool") => (plain(text).filter(Value::is_boolean), "boolean"),
            Some("int") => (
                number(text)
                    .filter(|n| n.is_i64() || n.is_u64())
                    .map(Value::Number),
                "integer",
            ),
            Some("float") => (number(text).map(Value::Number), "number"),
            Some("binary") => (
                crate::strict::base64(text)
                    .and_then(|b| String::from_utf8(b).ok())
                    .map(Value::from),
                "text in base64",
            ),
            _ if tag.parts() == ("", "!") || tag.parts() == ("!", "") => (Some(text.into()), ""),
            _ => {
                self.problem(
                    mark,
                    Problem::UnknownTag {
                        tag: tag.original(),
                    },
                );
                return Value::Null;
            }
        };
        value.unwrap_or_else(|| {
            self.problem(mark, bad(what));
            Value::Null
        })
    }
}

/// Adds the entries that `map` lacks; `false` if `node` is nothing to merge.
fn merge_into(
    map: &mut Map<String, Value>,
    marks: &mut HashMap<Box<str>, Marks>,
    node: Node,
) -> bool {
    match (node.value, node.marks.kids) {
        (Value::Object(from), Kids::Map(from_marks)) => {
            for ((key, value), (_, mark)) in sorted(from).into_iter().zip(from_marks) {
                if let serde_json::map::Entry::Vacant(entry) = map.entry(key) {
                    marks.insert(entry.key().as_str().into(), mark);
                    entry.insert(value);
                }
            }
            true
        }
        // The first map of a list wins, so they are added in order.
        (Value::Array(items), Kids::List(item_marks)) => {
            items.into_iter().zip(item_marks).all(|(value, item)| {
                let is_map = value.is_object();
                let node = Node {
                    value,
                    marks: item,
                    nodes: 0,
                    bytes: 0,
                    depth: 0,
                };
                is_map && merge_into(map, marks, node)
            })
        }
        _ => false,
    }
}

/// Entries in the order of their keys, as marks are kept.
fn sorted(map: Map<String, Value>) -> Vec<(String, Value)> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    entries
}
