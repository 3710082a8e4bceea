//! JSON text to values; RFC 8259, with a stream of values allowed.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use super::{MAX_DEPTH_LEVELS, MAX_NODES_COUNT, Mark, Marks, Node, Parsed, Problem, Raw};
use crate::field::{FieldPath, Segment};

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Line of `at`, from 1, and the byte where it starts.
    line: u32,
    line_start: usize,
    parsed: Parsed,
    document: usize,
    path: Vec<Segment>,
    nodes: usize,
}

struct Fatal(Raw);

type Step<T> = Result<T, Fatal>;

pub(super) fn parse(text: &str) -> Parsed {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = Reader {
        text,
        at: 0,
        line: 1,
        line_start: 0,
        parsed: Parsed::default(),
        document: 0,
        path: Vec::new(),
        nodes: 0,
    };
    loop {
        reader.space();
        if reader.at == text.len() {
            break;
        }
        reader.document += 1;
        match reader.value(0) {
            Ok((value, marks)) => {
                let node = Node {
                    value,
                    marks,
                    nodes: 0,
                    bytes: 0,
                    depth: 0,
                };
                reader.parsed.documents.push((reader.document, node));
            }
            Err(Fatal(raw)) => {
                reader.parsed.problem(reader.document, raw);
                break;
            }
        }
    }
    reader.parsed
}

impl Reader<'_> {
    fn mark(&self) -> Mark {
        let chars = self.text[self.line_start..self.at].chars().count();
        Mark {
            line: self.line,
            column: u32::try_from(chars + 1).unwrap_or(u32::MAX),
        }
    }

    fn fatal<T>(&self, reason: impl Into<String>) -> Step<T> {
        let problem = Problem::Syntax {
            format: "JSON",
            reason: reason.into(),
        };
        Err(Fatal((self.mark(), FieldPath(self.path.clone()), problem)))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            if byte == b'\n' {
                self.line = self.line.saturating_add(1);
                self.line_start = self.at;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Step<(Value, Marks)> {
        self.nodes += 1;
        let budget = if depth > MAX_DEPTH_LEVELS {
            Some((MAX_DEPTH_LEVELS, "levels of nesting"))
        } else if self.nodes > MAX_NODES_COUNT {
            Some((MAX_NODES_COUNT, "values"))
        } else {
            None
        };
        let mark = self.mark_cheap();
        if let Some((limit, what)) = budget {
            let problem = Problem::Budget { limit, what };
            return Err(Fatal((mark, FieldPath(self.path.clone()), problem)));
        }
        let value = match self.peek() {
            Some(b'{') => return self.object(mark, depth),
            Some(b'[') => return self.array(mark, depth),
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            _ => self.word()?,
        };
        Ok((value, Marks::scalar(mark)))
    }

    /// The mark of a value; columns count characters only on short lines, so
    /// that one long line does not cost its square.
    fn mark_cheap(&self) -> Mark {
        const COUNTED_LINE_BYTES: usize = 4096;
        if self.at - self.line_start <= COUNTED_LINE_BYTES {
            return self.mark();
        }
        let column = u32::try_from(self.at - self.line_start + 1).unwrap_or(u32::MAX);
        Mark {
            line: self.line,
            column,
        }
    }

    fn word(&mut self) -> Step<Value> {
        let rest = &self.text[self.at..];
        for (word, value) in [
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("null", Value::Null),
        ] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        match rest.chars().next() {
            Some(c) => self.fatal(format!("unexpected {c:?} where a value is expected")),
            None => self.fatal("the text ends where a value is expected"),
        }
    }

    fn array(&mut self, mark: Mark, depth: usize) -> Step<(Value, Marks)> {
        self.at += 1;
        let (mut items, mut marks) = (Vec::new(), Vec::new());
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok((Value::Array(items), Marks::list(mark, marks)));
        }
        loop {
            self.space();
            self.path.push(Segment::Index(items.len()));
            let (value, at) = self.value(depth + 1)?;
            self.path.pop();
            items.push(value);
            marks.push(at);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok((Value::Array(items), Marks::list(mark, marks)));
                }
                _ => return self.fatal("expected `,` or `]`"),
            }
        }
    }

    fn object(&mut self, mark: Mark, depth: usize) -> Step<(Value, Marks)> {
        self.at += 1;
        let mut map = Map::new();
        let mut marks: HashMap<Box<str>, Marks> = HashMap::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok((Value::Object(map), Marks::map(mark, Vec::new())));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return self.fatal("expected a key in double quotes");
            }
            let at = self.mark_cheap();
            let key = self.string()?;
            self.path.push(Segment::Field(key.as_str().into()));
            if let Some(first) = marks.get(key.as_str()) {
                let problem = Problem::DuplicateKey {
                    key: key.clone(),
                    first: first.at.line,
                };
                let raw = (at, FieldPath(self.path.clone()), problem);
                self.parsed.problem(self.document, raw);
            }
            self.space();
            if self.peek() != Some(b':') {
                return self.fatal("expected `:` after a key");
            }
            self.at += 1;
            self.space();
            let (value, mut value_marks) = self.value(depth + 1)?;
            self.path.pop();
            value_marks.at = at;
            marks.insert(key.as_str().into(), value_marks);
            map.insert(key, value);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    let marks = Marks::map(mark, marks.into_iter().collect());
                    return Ok((Value::Object(map), marks));
                }
                _ => return self.fatal("expected `,` or `}`"),
            }
        }
    }

    fn number(&mut self) -> Step<Number> {
        let bytes = &self.text.as_bytes()[self.at..];
        let end = bytes
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
            .unwrap_or(bytes.len());
        let text = &self.text[self.at..self.at + end];
        // serde_json's grammar of numbers is exact; ours only finds the end.
        match serde_json::from_str::<Number>(text) {
            Ok(number) => {
                self.at += end;
                Ok(number)
            }
            Err(_) => self.fatal(format!("{text:?} is not a number")),
        }
    }

    fn string(&mut self) -> Step<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let run = rest
                .iter()
                .position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            let Some(run) = run else {
                return self.fatal("a string is not closed");
            };
            out.push_str(&self.text[self.at..self.at + run]);
            self.at += run;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.push(c);
                }
                _ => return self.fatal("a control character in a string"),
            }
        }
    }

    fn escape(&mut self) -> Step<char> {
        let Some(byte) = self.peek() else {
            return self.fatal("a string is not closed");
        };
        let c = match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return self.fatal("an unknown escape in a string"),
        };
        self.at += 1;
        Ok(c)
    }

    /// `uXXXX`, or a surrogate pair; a lone surrogate is U+FFFD as in Go.
    fn unicode(&mut self) -> Step<char> {
        let high = self.hex4()?;
        if !(0xd800..0xdc00).contains(&high) {
            return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let mark = self.at;
        if self.text[self.at..].starts_with("\\u") {
            self.at += 1;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        self.at = mark;
        Ok(char::REPLACEMENT_CHARACTER)
    }

    /// Reads `uXXXX`, the cursor on the `u`.
    fn hex4(&mut self) -> Step<u32> {
        let digits = self.text.get(self.at + 1..self.at + 5);
        let hex = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|d| u32::from_str_radix(d, 16).ok()) {
            Some(code) => {
                self.at += 5;
                Ok(code)
            }
            None => self.fatal("`\\u` needs four hexadecimal digits"),
        }
    }
}
