//! Field selectors: `metadata.name=x,status.phase!=Running`.

use std::fmt;

use super::{MAX_REQUIREMENTS_COUNT, MAX_SELECTOR_BYTES, SelectorError};

/// One term of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field's path, such as `status.phase`.
    pub field: String,
    /// The value to compare with.
    pub value: String,
    /// Whether the field must be equal, or must not.
    pub equal: bool,
}

/// A field selector: `a.b=c,d!=e`; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldTerm>);

impl FieldSelector {
    /// Reads a selector; `\` escapes `\`, `,` and `=` in values.
    ///
    /// # Errors
    /// Where a term has no operator or an escape is broken.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong("64 KiB"));
        }
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let invalid = || {
                let reason = format!("invalid selector: '{text}'; can't understand '{term}'");
                SelectorError::Value(reason)
            };
            let (at, width, equal) = operator_of(term).ok_or_else(invalid)?;
            terms.push(FieldTerm {
                field: term[..at].to_owned(),
                value: unescape(&term[at + width..])?,
                equal,
            });
        }
        if terms.len() > MAX_REQUIREMENTS_COUNT {
            return Err(SelectorError::TooLong("1000 requirements"));
        }
        Ok(Self(terms))
    }

    /// Whether an object fulfils every term; `field` gives a field's text, ""
    /// where it is absent, or `None` for a field that cannot be selected by.
    ///
    /// # Errors
    /// For such a field.
    pub fn matches<'a>(
        &self,
        field: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<bool, SelectorError> {
        let mut all = true;
        for term in &self.0 {
            let Some(value) = field(&term.field) else {
                return Err(SelectorError::UnknownField(term.field.clone()));
            };
            all &= (value == term.value) == term.equal;
        }
        Ok(all)
    }

    /// The value that a field must have, where a term says so: an index can
    /// serve `metadata.name` and `spec.nodeName`.
    #[must_use]
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            let value: String = term
                .value
                .chars()
                .flat_map(|c| {
                    matches!(c, '\\' | ',' | '=')
                        .then_some('\\')
                        .into_iter()
                        .chain([c])
                })
                .collect();
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Where a term's first operator stands, its length, and whether it is `=`.
fn operator_of(term: &str) -> Option<(usize, usize, bool)> {
    (0..term.len())
        .filter(|i| term.is_char_boundary(*i))
        .find_map(|i| {
            let rest = &term[i..];
            if rest.starts_with("!=") {
                Some((i, 2, false))
            } else if rest.starts_with("==") {
                Some((i, 2, true))
            } else if rest.starts_with('=') {
                Some((i, 1, true))
            } else {
                None
            }
        })
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    let reason = format!("invalid field selector: invalid escape sequence: \\{c}");
                    return Err(SelectorError::Value(reason));
                }
                None => {
                    let reason = "invalid field selector: invalid escape sequence: \\";
                    return Err(SelectorError::Value(reason.to_owned()));
                }
            },
            ',' | '=' => {
                let reason = format!("invalid field selector: unescaped character in value: {c}");
                return Err(SelectorError::Value(reason));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_selectors() {
        let parse = |t: &str| FieldSelector::parse(t);
        let selector = parse("status.phase!=Running,spec.nodeName==n,x=a\\,b\\=c\\\\").unwrap();
        assert_eq!(
            selector.to_string(),
            "status.phase!=Running,spec.nodeName=n,x=a\\,b\\=c\\\\"
        );
        assert_eq!(selector.required_value("x"), Some("a,b=c\\"));
        assert_eq!(selector.required_value("status.phase"), None);
        let object = |name: &str| match name {
            "status.phase" => Some("Pending"),
            "spec.nodeName" => Some("n"),
            "x" => Some("a,b=c\\"),
            _ => None,
        };
        assert_eq!(selector.matches(object), Ok(true));
        assert_eq!(parse("spec.nodeName=m").unwrap().matches(object), Ok(false));
        assert!(parse("what=1").unwrap().matches(object).is_err());
        assert!(parse("").unwrap().0.is_empty());
        for bad in ["a", "a=b=c", "a=\\x", "a=\\"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn field_values_survive(value in "[a-z,=\\\\é]{0,12}") {
            let selector = FieldSelector(vec![FieldTerm { field: "f".into(), value, equal: true }]);
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
