//! Label and field selectors: parsing, matching, canonical text.
//!
//! Grammar and messages: `k8s.io/apimachinery/pkg/labels` and `pkg/fields`.

mod fields;

use std::fmt;

use serde_json::{Map, Value};

use crate::names;

pub use fields::{FieldSelector, FieldTerm};

/// Longest selector text, in bytes; a URL may not be much longer.
pub const MAX_SELECTOR_BYTES: usize = 64 << 10;
/// Most requirements of one selector.
pub const MAX_REQUIREMENTS_COUNT: usize = 1000;

/// How a label is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// One of these values (`=`, `==`, `in`).
    In(Vec<String>),
    /// Absent, or none of these values (`!=`, `notin`).
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// An integer greater than this.
    GreaterThan(i64),
    /// An integer less than this.
    LessThan(i64),
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
}

/// A label selector; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these must hold.
    pub requirements: Vec<Requirement>,
    /// Matches nothing at all (an absent `metav1.LabelSelector`).
    pub nothing: bool,
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The grammar is broken.
    #[error("{0}")]
    Syntax(String),
    /// A requirement in a text is broken.
    #[error("unable to parse requirement: {0}")]
    Requirement(Box<SelectorError>),
    /// A key or value breaks the rules of labels.
    #[error("{0}")]
    Value(String),
    /// A field that this resource cannot be selected by.
    #[error("field label not supported: {0}")]
    UnknownField(String),
    /// A limit of this module.
    #[error("the selector has more than {0}")]
    TooLong(&'static str),
}

impl SelectorError {
    fn in_requirement(self) -> Self {
        Self::Requirement(Box::new(self))
    }
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1,j<2`.
    ///
    /// # Errors
    /// Where the grammar, a key or a value is broken.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong("64 KiB"));
        }
        let mut tokens = Tokens { rest: text };
        let mut requirements = Vec::new();
        loop {
            match tokens.peek() {
                (Token::End, _) => break,
                (Token::Word | Token::Not, _) => {}
                (_, found) => {
                    return syntax(found, ", expected: !, identifier, or 'end of string'");
                }
            }
            if requirements.len() == MAX_REQUIREMENTS_COUNT {
                return Err(SelectorError::TooLong("1000 requirements"));
            }
            requirements.push(requirement(&mut tokens).map_err(SelectorError::in_requirement)?);
            match tokens.next() {
                (Token::End, _) => break,
                (Token::Comma, _) => match tokens.peek() {
                    (Token::Word | Token::Not, _) => {}
                    (_, found) => return syntax(found, ", expected: identifier after ','"),
                },
                (_, found) => return syntax(found, ", expected: ',' or 'end of string'"),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// The selector of a `metav1.LabelSelector` value: `null` matches nothing,
    /// `{}` everything.
    ///
    /// # Errors
    /// Where an operator, key or value is broken.
    pub fn from_value(value: &Value) -> Result<Self, SelectorError> {
        let Some(map) = value.as_object() else {
            return Ok(Self {
                requirements: Vec::new(),
                nothing: true,
            });
        };
        let mut requirements = Vec::new();
        for (key, value) in map
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(checked(key.clone(), Operator::In(vec![value]))?);
        }
        let expressions = map.get("matchExpressions").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or("");
            let values = expression.get("values").and_then(Value::as_array);
            let values: Vec<String> = values
                .into_iter()
                .flatten()
                .filter_map(|v| Some(v.as_str()?.to_owned()))
                .collect();
            let operator = match text("operator") {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let reason = "values set must be empty for exists and does not exist";
                    return Err(SelectorError::Value(reason.into()));
                }
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let reason = format!("{other:?} is not a valid label selector operator");
                    return Err(SelectorError::Value(reason));
                }
            };
            requirements.push(checked(text("key").to_owned(), operator)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Whether an object's labels fulfil every requirement.
    #[must_use]
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether labels that are kept in another form fulfil every requirement:
    /// `value` answers the value of a key.
    #[must_use]
    pub fn matches_with<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|r| r.operator.holds(value(&r.key)))
    }

    /// Whether this matches everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Self::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// Checks key and values, and brings the values in order.
fn checked(key: String, mut operator: Operator) -> Result<Requirement, SelectorError> {
    if let Some(rule) = names::qualified_name(&key).first() {
        return Err(SelectorError::Value(format!(
            "key: Invalid value: {key:?}: {rule}"
        )));
    }
    if let Operator::In(values) | Operator::NotIn(values) = &mut operator {
        if values.is_empty() {
            let rule =
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty";
            return Err(SelectorError::Value(rule.to_owned()));
        }
        for value in values.iter() {
            if let Some(rule) = names::label_value(value).first() {
                let reason = format!("values[0][{key}]: Invalid value: {value:?}: {rule}");
                return Err(SelectorError::Value(reason));
            }
        }
        values.sort_unstable();
        values.dedup();
    }
    Ok(Requirement { key, operator })
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(bound) => write!(f, "{key}>{bound}")?,
                Operator::LessThan(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Word,
    Equals,
    NotEquals,
    Not,
    Greater,
    Less,
    Open,
    Close,
    Comma,
    End,
}

#[derive(Clone, Copy)]
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> (Token, &'a str) {
        let mut copy = *self;
        copy.next()
    }

    /// The next token and its text.
    fn next(&mut self) -> (Token, &'a str) {
        const SPECIAL: [char; 7] = ['=', '!', '(', ')', ',', '>', '<'];
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        for (text, token) in [
            ("==", Token::Equals),
            ("=", Token::Equals),
            ("!=", Token::NotEquals),
            ("!", Token::Not),
            (">", Token::Greater),
            ("<", Token::Less),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
        ] {
            if self.rest.starts_with(text) {
                let (found, rest) = self.rest.split_at(text.len());
                self.rest = rest;
                return (token, found);
            }
        }
        let end = self
            .rest
            .find(|c: char| SPECIAL.contains(&c) || c.is_ascii_whitespace());
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let token = if word.is_empty() {
            Token::End
        } else {
            Token::Word
        };
        (token, word)
    }
}

/// `found 'x'` and what was expected.
fn syntax<T>(found: &str, expected: &str) -> Result<T, SelectorError> {
    Err(SelectorError::Syntax(format!("found '{found}'{expected}")))
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, SelectorError> {
    let absent = tokens.peek().0 == Token::Not;
    if absent {
        tokens.next();
    }
    let key = match tokens.next() {
        (Token::Word, word) => word.to_owned(),
        (_, found) => return syntax(found, ", expected: identifier"),
    };
    if let Some(rule) = names::qualified_name(&key).first() {
        // Upstream has no path here, and says so.
        let reason = format!("<nil>: Invalid value: {key:?}: {rule}");
        return Err(SelectorError::Value(reason));
    }
    if absent {
        return checked(key, Operator::DoesNotExist);
    }
    if matches!(tokens.peek().0, Token::End | Token::Comma) {
        return checked(key, Operator::Exists);
    }
    let operator = match tokens.next() {
        (Token::Equals, _) => Operator::In(vec![exact(tokens)?]),
        (Token::NotEquals, _) => Operator::NotIn(vec![exact(tokens)?]),
        (Token::Word, "in") => Operator::In(set(tokens)?),
        (Token::Word, "notin") => Operator::NotIn(set(tokens)?),
        (Token::Greater, _) => Operator::GreaterThan(bound(tokens)?),
        (Token::Less, _) => Operator::LessThan(bound(tokens)?),
        (_, found) => return syntax(found, ", expected: in, notin, =, ==, !=, gt, lt"),
    };
    checked(key, operator)
}

/// One value, which may be empty.
fn exact(tokens: &mut Tokens<'_>) -> Result<String, SelectorError> {
    if matches!(tokens.peek().0, Token::End | Token::Comma) {
        return Ok(String::new());
    }
    match tokens.next() {
        (Token::Word, word) => Ok(word.to_owned()),
        (_, found) => syntax(found, ", expected: identifier"),
    }
}

fn bound(tokens: &mut Tokens<'_>) -> Result<i64, SelectorError> {
    let text = exact(tokens)?;
    text.parse().map_err(|_| {
        let rule = "for 'Gt', 'Lt' operators, the value must be an integer";
        SelectorError::Value(format!("values[0]: Invalid value: {text:?}: {rule}"))
    })
}

/// `(a,b)`; an empty element is the empty value, and `()` has one.
fn set(tokens: &mut Tokens<'_>) -> Result<Vec<String>, SelectorError> {
    match tokens.next() {
        (Token::Open, _) => {}
        (_, found) => return syntax(found, " expected: '('"),
    }
    match tokens.peek() {
        (Token::Word | Token::Comma, _) => {}
        (Token::Close, _) => {
            tokens.next();
            return Ok(vec![String::new()]);
        }
        (_, found) => return syntax(found, ", expected: ',', ')' or identifier"),
    }
    let mut values = Vec::new();
    loop {
        match tokens.next() {
            (Token::Word, word) => {
                values.push(word.to_owned());
                match tokens.next() {
                    (Token::Comma, _) if tokens.peek().0 == Token::Word => {}
                    (Token::Comma, _) => values.push(String::new()),
                    (Token::Close, _) => return Ok(values),
                    (_, found) => return syntax(found, ", expected: ',' or ')'"),
                }
                if values.last().is_some_and(String::is_empty) && tokens.peek().0 == Token::Close {
                    tokens.next();
                    return Ok(values);
                }
            }
            (Token::Comma, _) => {
                values.push(String::new());
                if tokens.peek().0 == Token::Close {
                    tokens.next();
                    return Ok(values);
                }
            }
            (_, found) => return syntax(found, ", expected: ',', or identifier"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn label_selectors_read_and_match() {
        let labels = json!({"a": "1", "b": "x", "empty": ""});
        let labels = labels.as_object();
        for (text, canonical, holds) in [
            ("", "", true),
            (" ", "", true),
            ("a=1", "a=1", true),
            ("a==1,b = x", "a=1,b=x", true),
            ("b=x,a=1", "a=1,b=x", true),
            ("a!=1", "a!=1", false),
            ("z!=1", "z!=1", true),
            ("a in (2, 1)", "a in (1,2)", true),
            ("a in (2)", "a=2", false),
            ("z notin (1,2)", "z notin (1,2)", true),
            ("a,!z", "a,!z", true),
            ("!a", "!a", false),
            ("a>0,a<2", "a>0,a<2", true),
            ("b>0", "b>0", false),
            ("empty=", "empty=", true),
            ("empty in (,x)", "empty in (,x)", true),
            ("a in ()", "a=", false),
            ("empty in ()", "empty=", true),
            ("a in (1,,2)", "a in (,1,2)", true),
            ("a in (,)", "a=", false),
            ("a in (3,)", "a in (,3)", false),
            ("in=1", "in=1", false),
            ("in in (in)", "in=in", false),
            ("example.com/a notin (b)", "example.com/a!=b", true),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.to_string(), canonical, "{text}");
            assert_eq!(selector.matches(labels), holds, "{text}");
        }
        for bad in [
            "a=1,",
            ",a",
            "a b",
            "a in 1",
            "a in (",
            "a in (1",
            "=1",
            "a=b c",
            "!a=1",
            "a>x",
            "a=!b",
            "a!",
            "A B",
            "-a",
            "a=-",
            "a in (1 2)",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        for (bad, words) in [
            ("a=1,", "found '', expected: identifier after ','"),
            (
                ",",
                "found ',', expected: !, identifier, or 'end of string'",
            ),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a===b",
                "unable to parse requirement: found '=', expected: identifier",
            ),
            (
                "a in (",
                "unable to parse requirement: found '', expected: ',', ')' or identifier",
            ),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            let error = LabelSelector::parse(bad).unwrap_err();
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn label_selector_values() {
        let of = |v: Value| LabelSelector::from_value(&v);
        assert!(!of(json!(null)).unwrap().matches(None));
        assert!(of(json!({})).unwrap().matches(None));
        let selector = of(json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x", "w"]}]})).unwrap();
        assert_eq!(selector.to_string(), "a notin (w,x),b=1");
        assert!(of(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})).is_err());
        assert!(
            of(json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_the_same(text in "[a-c!=<>(),in ]{0,20}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string()).unwrap();
                prop_assert_eq!(again, selector);
            }
        }
    }
}
