//! Single fields out of JSON bytes, without building the rest.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The values at dotted paths (`spec.nodeName`) of an object; `null` where there is none.
///
/// # Errors
/// Where the bytes are no JSON object up to the last field.
pub(crate) fn pick(bytes: &[u8], paths: &[String]) -> Result<Vec<Value>, serde_json::Error> {
    let mut found = vec![Value::Null; paths.len()];
    let wanted: Vec<(usize, &str)> = paths.iter().map(String::as_str).enumerate().collect();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Level {
        wanted,
        found: &mut found,
    }
    .deserialize(&mut deserializer)?;
    Ok(found)
}

/// One map on the way down: what is wanted below it.
struct Level<'a, 'p> {
    wanted: Vec<(usize, &'p str)>,
    found: &'a mut Vec<Value>,
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<std::borrow::Cow<'_, str>>()? {
            let mut below = Vec::new();
            let mut here = Vec::new();
            // A key with a dot is no step of a path.
            let steps = if key.contains('.') {
                &[][..]
            } else {
                &self.wanted
            };
            for (index, path) in steps {
                match path.strip_prefix(&*key) {
                    Some("") => here.push(*index),
                    Some(rest) => {
                        if let Some(rest) = rest.strip_prefix('.') {
                            below.push((*index, rest));
                        }
                    }
                    None => {}
                }
            }
            if let Some((first, others)) = here.split_first() {
                let value: Value = entries.next_value()?;
                for index in others {
                    self.found[*index] = value.clone();
                }
                self.found[*first] = value;
            } else if below.is_empty() {
                entries.next_value::<IgnoredAny>()?;
            } else {
                entries.next_value_seed(Level {
                    wanted: below,
                    found: self.found,
                })?;
            }
        }
        Ok(())
    }

    // Anything but a map has nothing below it.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for() {
        let text = br#"{"a":{"b":[1,2],"bc":"x"},"d":null,"e":"t","a.b":7}"#;
        let paths = ["a.bc", "a.b", "d.x", "e", "none", "e.f"].map(str::to_owned);
        let found = pick(text, &paths).unwrap();
        assert_eq!(
            Value::Array(found).to_string(),
            r#"["x",[1,2],null,"t",null,null]"#
        );
        assert!(pick(b"{", &paths).is_err());
    }
}
