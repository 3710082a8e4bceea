//! Makes `data/types.txt` and `data/resources.txt` from the OpenAPI v2
//! description of the Kubernetes API and from `tools/facts.txt`.
//!
//! Run once per Kubernetes release, results are checked in:
//! `cargo run -p rkube-api --example tables -- swagger.json apiserver-lite/api`
//! Only facts are carried over (names, types, keys, required lists), no prose.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

const HEADER: &str = "# Made by tools/tables.rs from the OpenAPI description of Kubernetes 1.36 \
(Apache-2.0, The Kubernetes Authors). Do not edit.\n";

#[derive(Default)]
struct Facts {
    enums: BTreeMap<String, String>,
    short: BTreeMap<String, String>,
    categories: BTreeMap<String, &'static str>,
    optional: BTreeSet<String>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(swagger), Some(krate)) = (args.next(), args.next()) else {
        eprintln!("usage: tables SWAGGER.json CRATE_DIR");
        std::process::exit(64);
    };
    let krate = Path::new(&krate);
    let swagger: Value = serde_json::from_slice(&std::fs::read(swagger).unwrap()).unwrap();
    let facts = facts(&std::fs::read_to_string(krate.join("tools/facts.txt")).unwrap());
    std::fs::write(krate.join("data/types.txt"), types(&swagger, &facts)).unwrap();
    std::fs::write(
        krate.join("data/resources.txt"),
        resources(&swagger, &facts),
    )
    .unwrap();
}

fn facts(text: &str) -> Facts {
    let mut facts = Facts::default();
    for line in text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
    {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["enum", field, values] => drop(facts.enums.insert(field.into(), values.into())),
            ["short", plural, names] => drop(facts.short.insert(plural.into(), names.into())),
            ["all", plural] => drop(facts.categories.insert(plural.into(), "all")),
            ["ext", plural] => drop(facts.categories.insert(plural.into(), "api-extensions")),
            ["opt", field] => drop(facts.optional.insert(field.into())),
            _ => panic!("bad fact: {line}"),
        }
    }
    facts
}

fn short_name(definition: &str) -> &str {
    definition.strip_prefix("io.k8s.").unwrap()
}

/// Definitions without fields that are scalars or unions in the encoding.
fn scalar(definition: &str) -> Option<&'static str> {
    Some(match definition.rsplit('.').next().unwrap() {
        "Quantity" => "quantity",
        "IntOrString" => "intstr",
        "Time" => "time",
        "MicroTime" => "microtime",
        "RawExtension" | "FieldsV1" | "JSON" | "Patch" => "any",
        "JSONSchemaPropsOrArray" => "schema|[]schema",
        "JSONSchemaPropsOrBool" => "schema|bool",
        "JSONSchemaPropsOrStringArray" => "schema|[]string",
        _ => return None,
    })
}

fn shape(schema: &Value, package: &str) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let definition = reference.strip_prefix("#/definitions/").unwrap();
        if let Some(scalar) = scalar(definition) {
            return scalar.into();
        }
        let name = short_name(definition);
        return match name.strip_prefix(package).and_then(|n| n.strip_prefix('.')) {
            Some(local) if !local.contains('.') => format!(".{local}"),
            _ => name.to_owned(),
        };
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("array"), _) => format!("[]{}", shape(&schema["items"], package)),
        (Some("object"), _) if schema["additionalProperties"].is_object() => {
            format!("{{}}{}", shape(&schema["additionalProperties"], package))
        }
        (Some("object"), _) | (None, _) => "any".into(),
        (Some("string"), None) => "string".into(),
        (Some("string"), Some("byte")) => "bytes".into(),
        (Some("boolean"), _) => "bool".into(),
        (Some("integer"), Some("int32")) => "int32".into(),
        (Some("integer"), Some("int64")) => "int64".into(),
        (Some("number"), _) => "double".into(),
        other => panic!("unknown schema {other:?}"),
    }
}

fn types(swagger: &Value, facts: &Facts) -> String {
    let mut out = HEADER.to_owned();
    let mut used = BTreeSet::new();
    for (definition, schema) in swagger["definitions"].as_object().unwrap() {
        if scalar(definition).is_some() {
            continue;
        }
        let name = short_name(definition);
        let package = name.rsplit_once('.').unwrap().0;
        out.push_str(name);
        if let Some([gvk]) = schema["x-kubernetes-group-version-kind"]
            .as_array()
            .map(Vec::as_slice)
        {
            let part = |k: &str| gvk[k].as_str().unwrap();
            write!(
                out,
                " gvk={}/{}/{}",
                part("group"),
                part("version"),
                part("kind")
            )
            .unwrap();
        }
        if schema["x-kubernetes-map-type"] == "atomic" {
            out.push_str(" map=atomic");
        }
        out.push('\n');
        let required: Vec<&str> = schema["required"]
            .as_array()
            .map(|r| r.iter().map(|v| v.as_str().unwrap()).collect())
            .unwrap_or_default();
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            let full = format!("{name}.{field}");
            write!(out, " {field} {}", shape(schema, package)).unwrap();
            if required.contains(&field.as_str()) && !facts.optional.contains(&full) {
                out.push_str(" !");
            }
            attributes(&mut out, schema);
            if let Some(values) = facts.enums.get(&full) {
                write!(out, " enum={values}").unwrap();
                used.insert(full);
            }
            out.push('\n');
        }
    }
    for name in facts.enums.keys() {
        assert!(used.contains(name), "a fact about an unknown field: {name}");
    }
    out
}

fn attributes(out: &mut String, schema: &Value) {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => {
            let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|k| k.as_str().unwrap())
                .collect();
            write!(out, " list=map:{}", keys.join(",")).unwrap();
        }
        Some(kind) => write!(out, " list={kind}").unwrap(),
        None => {}
    }
    if schema["x-kubernetes-map-type"] == "atomic" {
        out.push_str(" map=atomic");
    }
    for strategy in schema["x-kubernetes-patch-strategy"]
        .as_str()
        .unwrap_or("")
        .split(',')
    {
        match (strategy, schema["x-kubernetes-patch-merge-key"].as_str()) {
            ("", _) => {}
            ("replace", _) => out.push_str(" replace"),
            ("merge", Some(key)) => write!(out, " merge={key}").unwrap(),
            ("merge", None) => out.push_str(" merge"),
            ("retainKeys", _) => out.push_str(" retain"),
            other => panic!("unknown patch strategy {other:?}"),
        }
    }
}

#[derive(Default)]
struct Resource {
    kind: String,
    namespaced: bool,
    verbs: BTreeSet<&'static str>,
    subresources: BTreeMap<String, (String, BTreeSet<&'static str>)>,
}

fn verb(method: &str, action: &str) -> Option<&'static str> {
    Some(match (method, action) {
        (_, "list") => "list",
        (_, "deletecollection") => "deletecollection",
        ("get", _) => "get",
        ("post", _) => "create",
        ("put", _) => "update",
        ("patch", _) => "patch",
        ("delete", _) => "delete",
        _ => return None,
    })
}

fn resources(swagger: &Value, facts: &Facts) -> String {
    let mut table: BTreeMap<(String, String, String), Resource> = BTreeMap::new();
    for (path, item) in swagger["paths"].as_object().unwrap() {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts[..] {
            ["api", version, ref rest @ ..] => ("", version, rest),
            ["apis", group, version, ref rest @ ..] => (group, version, rest),
            _ => continue,
        };
        let (watch, rest) = match rest {
            ["watch", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (namespaced, rest) = match rest {
            ["namespaces", "{namespace}", rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let Some(plural) = rest.first() else { continue };
        let entry = table
            .entry((group.into(), version.into(), (*plural).into()))
            .or_default();
        entry.namespaced |= namespaced;
        if watch {
            entry.verbs.insert("watch");
            continue;
        }
        for (method, operation) in item.as_object().unwrap() {
            let Some(action) = operation["x-kubernetes-action"].as_str() else {
                continue;
            };
            let Some(verb) = verb(method, action) else {
                continue;
            };
            let gvk = &operation["x-kubernetes-group-version-kind"];
            let part = |k: &str| gvk[k].as_str().unwrap();
            match rest {
                [_] | [_, "{name}"] => {
                    entry.kind = part("kind").into();
                    entry.verbs.insert(verb);
                }
                [_, "{name}", sub @ ..] => {
                    let kind = format!("{}/{}/{}", part("group"), part("version"), part("kind"));
                    let sub = entry
                        .subresources
                        .entry(sub.join("/").replace("/{path}", ""))
                        .or_default();
                    sub.0 = kind;
                    sub.1.insert(verb);
                }
                other => panic!("unknown path {other:?}"),
            }
        }
    }
    render(&table, facts)
}

fn render(table: &BTreeMap<(String, String, String), Resource>, facts: &Facts) -> String {
    let join = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(",");
    let mut out = HEADER.to_owned();
    for ((group, version, plural), resource) in table {
        let scope = if resource.namespaced {
            "namespaced"
        } else {
            "cluster"
        };
        let kind = &resource.kind;
        write!(
            out,
            "{group}/{version}/{kind} {plural} {scope} {}",
            join(&resource.verbs)
        )
        .unwrap();
        let full = if group.is_empty() {
            plural.clone()
        } else {
            format!("{plural}.{group}")
        };
        if let Some(short) = facts.short.get(&full) {
            write!(out, " short={short}").unwrap();
        }
        if let Some(category) = facts.categories.get(&full) {
            write!(out, " category={category}").unwrap();
        }
        out.push('\n');
        for (name, (kind, verbs)) in &resource.subresources {
            writeln!(out, " {name} {kind} {}", join(verbs)).unwrap();
        }
    }
    out
}
