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
        let mut walk = Walk { out: &mut out };
        walk.values(&kind, "", &recorded.body, &found.body);
    }
    out
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

struct Walk<'a> {
    out: &'a mut Vec<Difference>,
}

impl Walk<'_> {
    fn values(&mut self, kind: &str, field: &str, a: &Value, b: &Value) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => self.objects(kind, field, a, b),
            (Value::Array(a), Value::Array(b)) => self.lists(kind, field, a, b),
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
                self.values(kind, &inner, &find(a), &find(b));
            }
            return;
        }
        let null = Value::Null;
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
