//! What no two servers have in common, replaced by names: uids, revisions, times, generated names
//! and numbers. What relates such values to each other stays: equal ones get equal names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::{Map, Value};

use crate::SERVICE_RANGE;

/// Letters behind a generated name's prefix.
const RANDOM_LETTERS: usize = 5;
/// Names of what is random in itself, with the length of the random end.
const RANDOM_NAMES: [&str; 1] = ["kube-api-access-"];

/// Names for the values of one scenario.
#[derive(Debug, Default)]
pub struct Names {
    /// Text → name. Longer texts first where they are replaced within others.
    known: BTreeMap<String, String>,
    /// How many uids or revisions an object's name has had.
    counts: BTreeMap<String, usize>,
    /// All that requests said: what stands there is no server's choice.
    said: String,
    /// What the last request said.
    asked: String,
    /// The uid of the object that is looked at.
    owner: String,
    /// Node ports that a request gave an object, by its uid: by chance a server gives another one
    /// the same.
    ports: BTreeSet<(String, i64)>,
}

impl Names {
    /// A request begins.
    pub fn begin(&mut self) {
        self.asked.clear();
    }

    /// Takes note of a request, so that its own values stay as they are.
    pub fn hear(&mut self, text: &str) {
        for heard in [&mut self.said, &mut self.asked] {
            heard.push_str(text);
            heard.push('\n');
        }
    }

    /// The items of a list in the order of their names: a server that answers from a cache that
    /// has no order gives any.
    pub fn sort_items(value: &mut Value) {
        if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
            items.sort_by_key(|item| item["metadata"]["name"].to_string());
        }
        if let Some(frames) = value.as_array_mut() {
            frames.sort_by_key(|frame| frame["object"]["metadata"]["name"].to_string());
        }
    }

    /// A value as all servers would say it.
    pub fn value(&mut self, mut value: Value) -> Value {
        self.learn(&value);
        self.rename(&mut value, "");
        value
    }

    fn name(&mut self, text: &str, kind: &str, of: &str) {
        if text.is_empty() || self.known.contains_key(text) || self.said_outside(text) {
            return;
        }
        self.known.insert(text.to_owned(), format!("<{kind}:{of}>"));
    }

    /// Whether a request said a text before any answer did.
    fn said_outside(&self, text: &str) -> bool {
        self.said.contains(text)
    }

    /// Finds uids, revisions and generated names of all objects in a value.
    fn learn(&mut self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|v| self.learn(v)),
            Value::Object(map) => {
                if let Some(metadata) = map.get("metadata").and_then(Value::as_object) {
                    self.learn_metadata(metadata);
                }
                map.values().for_each(|v| self.learn(v));
            }
            _ => {}
        }
    }

    fn learn_metadata(&mut self, metadata: &Map<String, Value>) {
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or("");
        let (name, prefix) = (text("name"), text("generateName"));
        let mut shown = name.to_owned();
        if !prefix.is_empty()
            && name
                .strip_prefix(prefix)
                .is_some_and(|r| r.len() == RANDOM_LETTERS)
            && !self.said_outside(name)
        {
            shown = format!("{prefix}*");
            if !self.known.contains_key(name) {
                let count = self.counts.entry(shown.clone()).or_default();
                *count += 1;
                let known = format!("{prefix}<random#{count}>");
                self.known.insert(name.to_owned(), known);
            }
            shown.clone_from(&self.known[name]);
        }
        if !name.is_empty() {
            self.name(text("uid"), "uid", &shown);
        }
    }

    /// Whether a node port is a request's choice.
    fn is_asked(&mut self, port: i64) -> bool {
        let key = (self.owner.clone(), port);
        if self.asked.contains(&port.to_string()) {
            self.ports.insert(key);
            return true;
        }
        self.ports.contains(&key)
    }

    fn rename(&mut self, value: &mut Value, field: &str) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|v| self.rename(v, field)),
            Value::Object(map) => {
                let name = map
                    .get("name")
                    .and_then(Value::as_str)
                    .map(ToOwned::to_owned);
                if field == "columnDefinitions" {
                    // Prose of the API's documentation, which every release words anew.
                    map.remove("description");
                }
                if field == "metadata" {
                    map.remove("managedFields");
                    if let Some(Value::String(revision)) = map.get_mut("resourceVersion") {
                        *revision = self.revision(revision, name.as_deref());
                    }
                    if let Some(token @ Value::String(_)) = map.get_mut("continue")
                        && token != ""
                    {
                        *token = "<continue>".into();
                    }
                }
                let uid = map.get("metadata").and_then(|m| m.get("uid")?.as_str());
                let before = uid.map(|uid| std::mem::replace(&mut self.owner, uid.to_owned()));
                let keys: Vec<String> = map.keys().cloned().collect();
                for key in keys {
                    let mut inner = map.remove(&key).unwrap_or_default();
                    if field != "metadata" || key != "resourceVersion" {
                        self.rename(&mut inner, &key);
                    }
                    if matches!(key.as_str(), "nodePort" | "healthCheckNodePort")
                        && inner
                            .as_i64()
                            .is_some_and(|port| port != 0 && !self.is_asked(port))
                    {
                        inner = "<node port>".into();
                    }
                    map.insert(self.text(&key, ""), inner);
                }
                if let Some(before) = before {
                    self.owner = before;
                }
            }
            Value::String(text) => *text = self.text(text, field),
            _ => {}
        }
    }

    /// An object's revision, by how many it has had; a list's is any.
    fn revision(&mut self, text: &str, name: Option<&str>) -> String {
        match name {
            Some(name) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                let key = format!("{text} of {name}");
                if !self.known.contains_key(&key) {
                    let shown = self.text(name, "name");
                    let count = self.counts.entry(format!("revision:{shown}")).or_default();
                    *count += 1;
                    let revision = format!("<revision:{shown}#{count}>");
                    self.known.insert(key.clone(), revision);
                }
                self.known[&key].clone()
            }
            _ => "<revision>".to_owned(),
        }
    }

    fn text(&self, text: &str, field: &str) -> String {
        if field == "token" && text.len() > 100 {
            return "<token>".to_owned();
        }
        if is_time(text) && !self.said_outside(text) {
            return "<time>".to_owned();
        }
        if is_age(text) && field == "cells" {
            return "<age>".to_owned();
        }
        if text.parse().is_ok_and(is_service_address) && !self.said_outside(text) {
            return "<service address>".to_owned();
        }
        let mut out = text.to_owned();
        for (known, name) in self.known.iter().rev() {
            if out.contains(known.as_str()) {
                out = out.replace(known.as_str(), name);
            }
        }
        for prefix in RANDOM_NAMES {
            if let Some(at) = out.find(prefix) {
                let end = at + prefix.len();
                if out.len() >= end + RANDOM_LETTERS && out.is_char_boundary(end + RANDOM_LETTERS) {
                    out.replace_range(end..end + RANDOM_LETTERS, "<random>");
                }
            }
        }
        revisions_in_sentences(&out)
    }
}

/// `Too large resource version: 5, current: 4` and the like, without the server's own number.
fn revisions_in_sentences(text: &str) -> String {
    let mut out = text.to_owned();
    for word in [
        "current: ",
        "ResourceVersion in object meta: ",
        "too old resource version: ",
        "ResourceVersion in record (",
    ] {
        let Some(start) = out.find(word).map(|at| at + word.len()) else {
            continue;
        };
        let digits = out[start..].bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            out.replace_range(start..start + digits, "<revision>");
        }
    }
    out
}

fn is_service_address(ip: Ipv4Addr) -> bool {
    let (base, prefix) = SERVICE_RANGE;
    let bits = 32 - u32::from(prefix);
    ip.to_bits() >> bits == base.to_bits() >> bits
}

/// RFC 3339 in UTC, with or without parts of a second.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    bytes.len() > shape.len()
        && bytes.ends_with(b"Z")
        && shape.iter().zip(bytes).all(|(s, b)| match s {
            b'd' => b.is_ascii_digit(),
            other => other == b,
        })
}

/// `0s`, `3m2s`.
fn is_age(text: &str) -> bool {
    text.ends_with(['s', 'm', 'h', 'd'])
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || "smhd".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, revision: &str) -> Value {
        json!({"metadata": {"name": name, "uid": uid, "resourceVersion": revision,
            "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [1]}})
    }

    #[test]
    fn equal_values_have_equal_names() {
        let mut names = Names::default();
        names.hear(r#"{"metadata": {"name": "p"}}"#);
        let (a, b) = (
            "aaaaaaaa-0000-4000-8000-000000000001",
            "aaaaaaaa-0000-4000-8000-000000000002",
        );
        assert_eq!(
            names.value(pod("p", a, "7")),
            json!({"metadata": {"name": "p", "uid": "<uid:p>", "resourceVersion": "<revision:p#1>",
                "creationTimestamp": "<time>"}})
        );
        let again = names.value(pod("p", a, "9"));
        assert_eq!(again["metadata"]["uid"], "<uid:p>");
        assert_eq!(again["metadata"]["resourceVersion"], "<revision:p#2>");
        assert_eq!(names.value(pod("p", b, "7"))["metadata"]["uid"], "<uid:p>");
        let sentence = format!("UID in object meta: {a}, current: 12");
        assert_eq!(
            names.value(json!(sentence)),
            "UID in object meta: <uid:p>, current: <revision>"
        );
    }

    #[test]
    fn choices_of_a_server_are_named_and_those_of_a_request_stay() {
        let mut names = Names::default();
        names.hear(r#"{"spec": {"nodePort": 30001, "clusterIP": "10.111.0.9"}}"#);
        let answer = json!({
            "metadata": {"generateName": "web-", "name": "web-bcdfg", "resourceVersion": "1"},
            "spec": {"clusterIP": "10.111.3.4", "clusterIPs": ["10.111.0.9"],
                "ports": [{"nodePort": 30001}, {"nodePort": 31234}]},
            "rows": [{"cells": ["web-bcdfg", "3m2s"]}],
        });
        assert_eq!(
            names.value(answer),
            json!({
                "metadata": {"generateName": "web-", "name": "web-<random#1>",
                    "resourceVersion": "<revision:web-<random#1>#1>"},
                "spec": {"clusterIP": "<service address>", "clusterIPs": ["10.111.0.9"],
                    "ports": [{"nodePort": 30001}, {"nodePort": "<node port>"}]},
                "rows": [{"cells": ["web-<random#1>", "<age>"]}],
            })
        );
        // Another object may have by chance what was asked for one.
        let service = |uid: &str| json!({"metadata": {"uid": uid}, "nodePort": 30001});
        assert_eq!(names.value(service("a"))["nodePort"], 30001);
        names.begin();
        assert_eq!(names.value(service("a"))["nodePort"], 30001);
        assert_eq!(names.value(service("b"))["nodePort"], "<node port>");
    }
}
