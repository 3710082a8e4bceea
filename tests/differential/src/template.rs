//! Changing values by paths, and putting captured values into texts.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

/// Captured values by name; texts write them as `<name>`.
pub type Variables = BTreeMap<String, String>;

/// A text with its variables replaced; what names none stays.
#[must_use]
pub fn fill(text: &str, variables: &Variables) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let found = from.find('>').and_then(|end| {
            let value = variables.get(&from[1..end])?;
            Some((value, end))
        });
        match found {
            Some((value, end)) => {
                out.push_str(value);
                rest = &from[end + 1..];
            }
            None => {
                out.push('<');
                rest = &from[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// All texts of a value, filled.
#[must_use]
pub fn fill_value(value: &Value, variables: &Variables) -> Value {
    match value {
        Value::String(text) => fill(text, variables).into(),
        Value::Array(items) => items.iter().map(|v| fill_value(v, variables)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (fill(k, variables), fill_value(v, variables)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// Sets what a path leads to, making objects and list elements on the way; `null` removes.
/// A path is a JSON pointer without its first slash (RFC 6901).
///
/// # Errors
/// Where the path goes through something that is no object or list.
pub fn set(value: &mut Value, path: &str, new: &Value) -> anyhow::Result<()> {
    let mut at = value;
    let steps: Vec<String> = path
        .split('/')
        .map(|s| s.replace("~1", "/").replace("~0", "~"))
        .collect();
    for (i, step) in steps.iter().enumerate() {
        let last = i + 1 == steps.len();
        // A number makes a list only where there is one already, or nothing.
        let index: Option<usize> = step.parse().ok();
        if at.is_null() {
            *at = match index {
                Some(_) => Value::Array(Vec::new()),
                None => Value::Object(Map::new()),
            };
        }
        match at {
            Value::Object(map) if last && new.is_null() => {
                map.remove(step);
                return Ok(());
            }
            Value::Object(map) => at = map.entry(step.clone()).or_insert(Value::Null),
            Value::Array(items) => {
                let index = index.with_context(|| format!("{path}: {step} is no index"))?;
                if last && new.is_null() {
                    if index < items.len() {
                        items.remove(index);
                    }
                    return Ok(());
                }
                if index >= items.len() {
                    items.push(Value::Null);
                }
                let index = index.min(items.len() - 1);
                at = &mut items[index];
            }
            other => bail!("{path}: {step} leads into {other}"),
        }
    }
    *at = new.clone();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_filled() {
        let variables = Variables::from([("ns".to_owned(), "a".to_owned())]);
        assert_eq!(fill("/x/<ns>/<y>/<", &variables), "/x/a/<y>/<");
        assert_eq!(
            fill_value(&json!({"<ns>": ["<ns>", 1]}), &variables),
            json!({"a": ["a", 1]})
        );
    }

    #[test]
    fn paths_are_set() {
        let mut value = json!({"a": [{"b": 1}]});
        for (path, new) in [
            ("a/0/b", json!(2)),
            ("a/1", json!({"b": 3})),
            ("c/d/0/e", json!("x")),
            ("c/with~1slash", json!("y")),
            ("a/1/b", Value::Null),
        ] {
            set(&mut value, path, &new).unwrap();
        }
        assert_eq!(
            value,
            json!({"a": [{"b": 2}, {}], "c": {"d": [{"e": "x"}], "with/slash": "y"}})
        );
        assert!(set(&mut value, "a/x", &json!(1)).is_err());
    }
}
