//! Between typed objects and JSON values, by way of text.
//!
//! `serde_json::to_value` and `from_value` are serializers of their own: each
//! type that goes through them is compiled once more, which for the types of
//! Kubernetes is half a megabyte of program. Text is what the types meet
//! anyway, at the store and at connections.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The JSON of an object.
///
/// # Errors
/// It has none: a map with keys that are no strings, or a failing `Serialize`.
pub fn value_of<T: Serialize + ?Sized>(object: &T) -> serde_json::Result<Value> {
    serde_json::from_slice(&serde_json::to_vec(object)?)
}

/// The object that a JSON value describes.
///
/// # Errors
/// A field has another type, or one that must be there is missing. The place
/// in the error is that in the value's shortest text.
pub fn typed<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    serde_json::from_slice(&serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let object = BTreeMap::from([("a".to_owned(), vec![Some(1.5), None])]);
        let value = value_of(&object).unwrap();
        assert_eq!(value, json!({"a": [1.5, null]}));
        assert_eq!(
            typed::<BTreeMap<String, Vec<Option<f64>>>>(&value).unwrap(),
            object
        );
        assert!(typed::<Vec<u8>>(&value).is_err());
        assert!(value_of(&BTreeMap::from([(vec![1], 2)])).is_err());
    }
}
