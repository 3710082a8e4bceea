//! JSON bodies to values, with the keys that are given twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most values in one body: a bound on memory, at most some 100 MB.
const NODES_MAX: usize = 1_000_000;
/// Most doubled keys reported.
const DUPLICATES_MAX: usize = 100;

struct Reader {
    nodes: usize,
    path: Vec<Step>,
    duplicates: Vec<String>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Reader {
    fn path(&self, last: &str) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) if text.is_empty() => text.push_str(key),
                Step::Key(key) => {
                    text.push('.');
                    text.push_str(key);
                }
                Step::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        if !text.is_empty() {
            text.push('.');
        }
        text + last
    }
}

/// Reads one JSON value; the second part lists doubled keys by path (the last one counts).
///
/// # Errors
/// Where the bytes are no JSON, or more than the budget allows.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut reader = Reader {
        nodes: 0,
        path: Vec::new(),
        duplicates: Vec::new(),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&mut reader).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, reader.duplicates))
}

struct Seed<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.nodes += 1;
        if self.0.nodes > NODES_MAX {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.0.path.push(Step::Index(list.len()));
            let item = items.next_element_seed(Seed(self.0));
            self.0.path.pop();
            match item? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.0.path.push(Step::Key(key));
            let value = entries.next_value_seed(Seed(self.0));
            let Some(Step::Key(key)) = self.0.path.pop() else {
                return Err(A::Error::custom("the path of a key was lost"));
            };
            let value = value?;
            if map.contains_key(&key) && self.0.duplicates.len() < DUPLICATES_MAX {
                let path = self.0.path(&key);
                self.0.duplicates.push(path);
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubled_keys_have_paths() {
        let text = br#"{"a": {"b": 1, "b": 2}, "c": [{"d": 1, "d": 1}], "a": 3}"#;
        let (value, doubled) = parse(text).unwrap();
        assert_eq!(value["a"], 3);
        assert_eq!(doubled, ["a.b", "c[0].d", "a"]);
        for bad in ["", "{", "{} x", "nul", &"[".repeat(200)] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let many = format!("[{}0]", "0,".repeat(NODES_MAX));
        assert!(parse(many.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn reads_what_serde_reads(text in "[\\[\\]{}:,\"a-c0-9.e+-]{0,30}") {
            let theirs: Result<Value, _> = serde_json::from_str(&text);
            let ours = parse(text.as_bytes());
            prop_assert_eq!(theirs.is_ok(), ours.is_ok());
            if let (Ok(a), Ok((b, _))) = (theirs, ours) {
                prop_assert_eq!(a, b);
            }
        }
    }
}
