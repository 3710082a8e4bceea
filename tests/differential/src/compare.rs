//! Two answers to one request, field by field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::drive::Recorded;

/// One place where two answers are not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The kind of the object; for an error the kind or resource that it is about.
    pub kind: String,
    /// The field, without indexes; for an error's cause the field that it is about, behind
    /// `cause `; for other parts of an answer `code`, `type`, `warning`, `retry-after`.
    pub field: String,
    /// What the recorded server says there, `null` for nothing.
    pub recorded: Value,
    /// What rkube says there.
    pub found: Value,
}

/// All differences between a recorded answer and one that was found.
#[must_use]
pub fn compare(recorded: &Recorded, found: &Recorded) -> Vec<Difference> {
    let [recorded, found] = [recorded, found].map(without_chance);
    let (recorded, found) = (&recorded, &found);
    let kind = kind_of(&recorded.body);
    let mut out = Vec::new();
    let mut add = |field: &str, a: Value, b: Value| {
        if a != b {
            out.push(Difference {
                kind: kind.clone(),
                field: field.to_owned(),
                recorded: a,
                found: b,
            });
        }
    };
    add("code", recorded.code.into(), found.code.into());
    if recorded.code != found.code {
        return out;
    }
    add(
        "type",
        recorded.media.clone().into(),
        found.media.clone().into(),
    );
    add(
        "retry-after",
        recorded.retry_after.clone().into(),
        found.retry_after.clone().into(),
    );
    for (a, b) in pair(&recorded.warnings, &found.warnings) {
        add("warning", text(a), text(b));
    }
    let kinds = [&recorded.body, &found.body].map(|b| b["kind"].clone());
    if kinds[0] != kinds[1] {
        let [recorded, found] = kinds;
        out.push(Difference {
            kind,
            field: "kind".to_owned(),
            recorded,
            found,
        });
        return out;
    }
    let errors = [&recorded.body, &found.body].map(is_invalid);
    if errors == [true, true] {
        causes(&kind, &recorded.body, &found.body, &mut out);
    } else {
        let [a, b] = [&recorded.body, &found.body].map(by_column);
        let mut walk = Walk { out: &mut out };
        walk.columns(&kind, &recorded.body, &found.body);
        walk.values(&kind, "", &a, &b);
    }
    out
}

/// An answer without what chance gave and no later answer tells: the number of a node port in a
/// text, a uid or a generated name that is in a refusal only.
fn without_chance(answer: &Recorded) -> Recorded {
    let mut answer = answer.clone();
    let body = &mut answer.body;
    if body["kind"] == "Table" {
        each_text(body, &|text| {
            replace_shaped(text, ":30000/", &|sample, c| match sample {
                '0' => c.is_ascii_digit(),
                other => c == other,
            })
            .unwrap_or_else(|| text.to_owned())
        });
    }
    if body["kind"] == "Status" {
        let name = body["details"]["name"].as_str().unwrap_or("").to_owned();
        let generated = body["details"]["causes"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["field"] == "metadata.generateName"));
        each_text(body, &|text| {
            let hex = "00000000-0000-0000-0000-000000000000";
            let text = replace_shaped(text, hex, &|sample, c| match sample {
                '0' => c.is_ascii_hexdigit(),
                other => c == other,
            })
            .unwrap_or_else(|| text.to_owned());
            if generated && !name.is_empty() {
                text.replace(&name, "<generated>")
            } else {
                text
            }
        });
    }
    answer
}

fn each_text(value: &mut Value, change: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(items) => items.iter_mut().for_each(|v| each_text(v, change)),
        Value::Object(map) => map.iter_mut().for_each(|(_, v)| each_text(v, change)),
        _ => {}
    }
}

/// A text with everything of a sample's shape replaced by the sample; `None` where there is none.
fn replace_shaped(text: &str, sample: &str, fits: &dyn Fn(char, char) -> bool) -> Option<String> {
    let mut rest: Vec<char> = text.chars().collect();
    let shape: Vec<char> = sample.chars().collect();
    let mut found = false;
    for at in 0..(rest.len() + 1).saturating_sub(shape.len()) {
        let end = at + shape.len();
        if rest[at..end].iter().zip(&shape).all(|(c, s)| fits(*s, *c)) {
            rest[at..end].copy_from_slice(&shape);
            found = true;
        }
    }
    found.then(|| rest.into_iter().collect())
}

fn text(value: Option<&String>) -> Value {
    value.map_or(Value::Null, |t| t.clone().into())
}

fn kind_of(body: &Value) -> String {
    let object = match body {
        Value::Array(frames) => {
            return frames
                .first()
                .map_or_else(String::new, |f| kind_of(&f["object"]));
        }
        other => other,
    };
    let kind = object["kind"].as_str().unwrap_or("");
    if kind == "Status"
        && let Some(about) = object["details"]["kind"].as_str()
    {
        return about.to_owned();
    }
    kind.to_owned()
}

fn is_invalid(body: &Value) -> bool {
    body["reason"] == "Invalid" && body["details"]["causes"].is_array()
}

/// Elements of one list that the other lacks, side by side.
fn pair<'a, T: PartialEq>(a: &'a [T], b: &'a [T]) -> Vec<(Option<&'a T>, Option<&'a T>)> {
    let mut rest: Vec<&T> = b.iter().collect();
    let mut only_a = Vec::new();
    for item in a {
        match rest.iter().position(|other| *other == item) {
            Some(at) => {
                rest.remove(at);
            }
            None => only_a.push(item),
        }
    }
    let len = only_a.len().max(rest.len());
    (0..len)
        .map(|i| (only_a.get(i).copied(), rest.get(i).copied()))
        .collect()
}

/// The causes of two refusals, in any order; the sentence that joins them is checked against them.
fn causes(kind: &str, recorded: &Value, found: &Value, out: &mut Vec<Difference>) {
    let mut by_field: BTreeMap<String, [Vec<String>; 2]> = BTreeMap::new();
    for (side, body) in [recorded, found].into_iter().enumerate() {
        for cause in body["details"]["causes"].as_array().into_iter().flatten() {
            let part = |name: &str| cause[name].as_str().unwrap_or("").to_owned();
            let field = part("field");
            let said = format!("{}: {}", part("reason"), part("message"));
            // What two rules find is one finding.
            let told = &mut by_field.entry(field).or_default()[side];
            if !told.contains(&said) {
                told.push(said);
            }
        }
    }
    for (field, [a, b]) in &by_field {
        for (recorded, found) in pair(a, b) {
            out.push(Difference {
                kind: kind.to_owned(),
                field: format!("cause {}", without_indexes(field)),
                recorded: text(recorded),
                found: text(found),
            });
        }
    }
    let rest = [recorded, found].map(|body| {
        let mut body = body.clone();
        if let Some(details) = body["details"].as_object_mut() {
            details.remove("causes");
        }
        body["message"] = sentence(&body["message"]);
        body
    });
    Walk { out }.values(kind, "", &rest[0], &rest[1]);
    // The sentence says each cause once.
    let said = found["message"].as_str().unwrap_or("");
    for cause in found["details"]["causes"].as_array().into_iter().flatten() {
        let message = cause["message"].as_str().unwrap_or("");
        if !said.contains(message) {
            out.push(Difference {
                kind: kind.to_owned(),
                field: "message".to_owned(),
                recorded: message.into(),
                found: said.into(),
            });
        }
    }
}

/// A sentence up to the list of causes.
fn sentence(message: &Value) -> Value {
    const BEFORE: &str = " is invalid: ";
    let text = message.as_str().unwrap_or("");
    match text.find(BEFORE) {
        Some(at) => text[..at + BEFORE.len()].into(),
        None => message.clone(),
    }
}

/// `spec.containers[0].env[1].name` as `spec.containers.env.name`; map keys stay.
fn without_indexes(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some(start) = rest.find('[') {
        out.push_str(&rest[..start]);
        let end = rest[start..]
            .find(']')
            .map_or(rest.len(), |e| start + e + 1);
        let inner = &rest[start..end];
        if !inner
            .trim_matches(['[', ']'])
            .bytes()
            .all(|b| b.is_ascii_digit())
        {
            out.push_str(inner);
        }
        rest = &rest[end..];
    }
    out + rest
}

/// The names of a Table's columns; none for what is no Table.
fn column_names(body: &Value) -> Vec<&str> {
    let columns = body["columnDefinitions"].as_array();
    let names = columns.into_iter().flatten().map(|c| c["name"].as_str());
    names.map(Option::unwrap_or_default).collect()
}

/// A Table with its columns and cells by the columns' names, so that a new column is one difference.
/// Anything else, and a Table with two columns of one name, stays as it is.
fn by_column(body: &Value) -> Value {
    let names = column_names(body);
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    if names.is_empty() || distinct.len() != names.len() {
        return body.clone();
    }
    let keyed = |values: &Value| -> Value {
        let values = values.as_array().map_or(&[][..], Vec::as_slice);
        let mut map = Map::new();
        for (at, value) in values.iter().enumerate() {
            let name = names
                .get(at)
                .map_or_else(|| format!("column {at}"), |n| (*n).to_owned());
            map.insert(name, value.clone());
        }
        map.into()
    };
    let mut table = body.clone();
    table["columnDefinitions"] = keyed(&body["columnDefinitions"]);
    for row in table["rows"].as_array_mut().into_iter().flatten() {
        row["cells"] = keyed(&row["cells"]);
    }
    table
}

/// Whether what only one side has is told as a whole: an object, or a column of a Table.
fn is_whole(field: &str) -> bool {
    field.is_empty() || field.starts_with("columnDefinitions.")
}

struct Walk<'a> {
    out: &'a mut Vec<Difference>,
}

impl Walk<'_> {
    /// The columns that both Tables have must be in one order.
    fn columns(&mut self, kind: &str, a: &Value, b: &Value) {
        let (a, b) = (column_names(a), column_names(b));
        let common = |own: &[&str], other: &[&str]| -> Vec<String> {
            let both = own.iter().filter(|name| other.contains(name));
            both.map(|name| (*name).to_owned()).collect()
        };
        let (recorded, found) = (common(&a, &b), common(&b, &a));
        if recorded != found {
            self.out.push(Difference {
                kind: kind.to_owned(),
                field: "columnDefinitions".to_owned(),
                recorded: recorded.into(),
                found: found.into(),
            });
        }
    }

    fn values(&mut self, kind: &str, field: &str, a: &Value, b: &Value) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => self.objects(kind, field, a, b),
            (Value::Array(a), Value::Array(b)) => self.lists(kind, field, a, b),
            // A map that one side lacks is told entry by entry.
            (Value::Null, Value::Object(b)) if !b.is_empty() && !is_whole(field) => {
                self.objects(kind, field, &Map::new(), b);
            }
            (Value::Object(a), Value::Null) if !a.is_empty() && !is_whole(field) => {
                self.objects(kind, field, a, &Map::new());
            }
            (a, b) if a == b => {}
            (a, b) => self.out.push(Difference {
                kind: kind.to_owned(),
                field: field.to_owned(),
                recorded: a.clone(),
                found: b.clone(),
            }),
        }
    }

    fn objects(&mut self, kind: &str, field: &str, a: &Map<String, Value>, b: &Map<String, Value>) {
        // What lies in a list or a frame of a watch has a kind of its own.
        let own = a.get("kind").and_then(Value::as_str);
        let is_object = own.is_some() && a.contains_key("apiVersion") && a.contains_key("metadata");
        let (kind, field) = match own {
            Some(own) if is_object && own != "Status" => (own, ""),
            _ => (kind, field),
        };
        let kind = if field == "items" {
            kind.trim_end_matches("List")
        } else {
            kind
        };
        let base = if field == "items" { "" } else { field };
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let inner = if base.is_empty() {
                key.clone()
            } else {
                format!("{base}.{key}")
            };
            let null = Value::Null;
            let values = [a, b].map(|m| m.get(key).unwrap_or(&null));
            self.values(kind, &inner, values[0], values[1]);
        }
    }

    fn lists(&mut self, kind: &str, field: &str, a: &[Value], b: &[Value]) {
        // Lists of things with names are told apart by them.
        let name = |v: &Value| v["name"].as_str().map(ToOwned::to_owned);
        let named = |list: &[Value]| list.iter().all(|v| name(v).is_some());
        if field == "resources" && named(a) && named(b) {
            let names: std::collections::BTreeSet<_> = a.iter().chain(b).filter_map(name).collect();
            for wanted in names {
                let find = |list: &[Value]| {
                    let found = list.iter().find(|v| v["name"] == wanted.as_str());
                    found.cloned().unwrap_or_default()
                };
                let inner = format!("{field}[{wanted}]");
                let (a, b) = (find(a), find(b));
                if a.is_null() || b.is_null() {
                    // A new resource is one difference.
                    self.out.push(Difference {
                        kind: kind.to_owned(),
                        field: inner,
                        recorded: a,
                        found: b,
                    });
                } else {
                    self.values(kind, &inner, &a, &b);
                }
            }
            return;
        }
        let null = Value::Null;
        if field.starts_with("resources[") {
            // What a resource can do and is called comes in any order.
            for (a, b) in pair(a, b) {
                let [a, b] = [a, b].map(|v| v.unwrap_or(&null));
                self.values(kind, field, a, b);
            }
            return;
        }
        for i in 0..a.len().max(b.len()) {
            let values = [a, b].map(|l| l.get(i).unwrap_or(&null));
            self.values(kind, field, values[0], values[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(code: u16, body: Value) -> Recorded {
        Recorded {
            id: "x".into(),
            code,
            media: "application/json".into(),
            warnings: Vec::new(),
            retry_after: String::new(),
            body,
        }
    }

    fn told(a: Value, b: Value) -> Vec<(String, String, Value, Value)> {
        let all = compare(&answer(200, a), &answer(200, b));
        let parts = all.into_iter();
        parts
            .map(|d| (d.kind, d.field, d.recorded, d.found))
            .collect()
    }

    #[test]
    fn fields_are_told_with_their_kind_and_path() {
        let list = |image: &str| {
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {},
                "items": [{"metadata": {"name": "p"}, "spec": {"containers": [{"image": image}]}}]})
        };
        assert_eq!(
            told(list("a"), list("b")),
            [(
                "Pod".into(),
                "spec.containers.image".into(),
                json!("a"),
                json!("b")
            )]
        );
        let frames = |x: u8| json!([{"type": "ADDED", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {}, "x": x}}, 1]);
        assert_eq!(
            told(frames(1), frames(2)),
            [("Pod".into(), "x".into(), json!(1), json!(2))]
        );
        assert!(told(list("a"), list("a")).is_empty());
    }

    #[test]
    fn causes_are_compared_in_any_order_and_their_sentence_must_say_them() {
        let refusal = |causes: &[(&str, &str)]| {
            let list: Vec<Value> = causes
                .iter()
                .map(|(field, message)| json!({"reason": "R", "field": field, "message": message}))
                .collect();
            let said: Vec<String> = causes.iter().map(|(f, m)| format!("{f}: {m}")).collect();
            json!({"kind": "Status", "reason": "Invalid", "message": format!("Pod \"p\" is invalid: [{}]", said.join(", ")),
                "details": {"kind": "Pod", "causes": list}})
        };
        let (a, b) = (("a[0].b", "one"), ("c[k]", "two"));
        assert!(told(refusal(&[a, b]), refusal(&[b, a])).is_empty());
        assert_eq!(
            told(refusal(&[a, b]), refusal(&[("a[0].b", "three"), b])),
            [(
                "Pod".into(),
                "cause a.b".into(),
                json!("R: one"),
                json!("R: three")
            )]
        );
        let mut silent = refusal(&[a]);
        silent["message"] = json!("Pod \"p\" is invalid: b");
        assert_eq!(told(refusal(&[a]), silent).len(), 1);
    }

    #[test]
    fn a_new_column_is_told_once_and_an_order_too() {
        let table = |columns: &[&str], cells: &[&str]| {
            let columns: Vec<Value> = columns.iter().map(|n| json!({"name": n})).collect();
            json!({"kind": "Table", "apiVersion": "v1", "metadata": {},
                "columnDefinitions": columns, "rows": [{"cells": cells}]})
        };
        let fields = |a, b| -> Vec<String> { told(a, b).into_iter().map(|d| d.1).collect() };
        assert_eq!(
            fields(
                table(&["Name", "Age"], &["a", "1"]),
                table(&["Name", "Status", "Age"], &["a", "on", "2"])
            ),
            [
                "columnDefinitions.Status",
                "rows.cells.Age",
                "rows.cells.Status"
            ]
        );
        assert_eq!(
            fields(
                table(&["Name", "Age"], &["a", "1"]),
                table(&["Age", "Name"], &["1", "a"])
            ),
            ["columnDefinitions"]
        );
    }

    #[test]
    fn what_chance_gave_is_alike() {
        let table = |ports: &str| json!({"kind": "Table", "rows": [{"cells": [ports]}]});
        assert!(told(table("80:31001/TCP"), table("80:32767/TCP")).is_empty());
        assert_eq!(told(table("80:31001/TCP"), table("80:32767/UDP")).len(), 1);
        let refusal = |name: &str, uid: &str| {
            json!({"kind": "Status", "reason": "Invalid", "message": format!("Pod {name:?} is invalid: m: {uid}"),
                "details": {"kind": "Pod", "name": name,
                    "causes": [{"reason": "R", "field": "metadata.generateName", "message": format!("m: {uid}")}]}})
        };
        let uids = [
            "ec23db22-3fcc-4555-8e9b-baae5cec121e",
            "2a400986-d77e-4555-8e9b-baae5cec121e",
        ];
        assert!(told(refusal("A_1", uids[0]), refusal("A_2", uids[1])).is_empty());
        assert!(!told(refusal("A_1", uids[0]), refusal("A_1", "other")).is_empty());
    }

    #[test]
    fn a_new_resource_is_told_once_and_its_verbs_have_no_order() {
        let list = |resources: Value| json!({"kind": "APIResourceList", "resources": resources});
        let one = json!({"name": "a", "verbs": ["get", "list"]});
        let other = json!({"name": "a", "verbs": ["list", "delete", "get"]});
        let new = json!({"name": "b", "verbs": ["get"], "kind": "B"});
        let fields: Vec<_> = told(list(json!([one])), list(json!([other, new])))
            .into_iter()
            .map(|d| (d.1, d.3))
            .collect();
        assert_eq!(
            fields,
            [
                ("resources[a].verbs".to_owned(), json!("delete")),
                ("resources[b]".to_owned(), new)
            ]
        );
    }

    #[test]
    fn other_codes_are_all_that_is_told() {
        let error = json!({"kind": "Status", "message": "no", "details": {"kind": "pods"}});
        let all = compare(&answer(404, error), &answer(200, json!({"kind": "Pod"})));
        assert_eq!(all.len(), 1);
        assert_eq!(
            (all[0].kind.as_str(), all[0].field.as_str()),
            ("pods", "code")
        );
    }
}
