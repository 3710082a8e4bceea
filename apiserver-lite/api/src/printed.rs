//! Values as Go prints them (`%v`): upstream shows some patches and elements so in its errors.

use serde_json::Value;

/// `map[a:1 b:[x y]]`.
#[must_use]
pub fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(printed).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            // Go prints the keys of a map in order.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{key}:{}", printed(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_go_prints() {
        let value = json!({"b": [1, true, null], "a": {"x": "y z"}});
        assert_eq!(printed(&value), "map[a:map[x:y z] b:[1 true <nil>]]");
        assert_eq!(printed(&json!({})), "map[]");
    }
}
