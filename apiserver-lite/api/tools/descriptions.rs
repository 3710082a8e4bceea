//! Makes `data/descriptions.txt`: what the API description says about types
//! and fields, from the documentation comments of the `k8s-openapi` crate.
//!
//! Run once per Kubernetes release; the result is checked in:
//! `cargo run -p rkube-api --example descriptions -- K8S_OPENAPI/src/v1_36 apiserver-lite`
//! The texts are Kubernetes' own (Apache-2.0); `kubectl explain` shows them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use rkube_api::types;

const HEADER: &str = "# Descriptions of the Kubernetes API 1.36 (Apache-2.0, The Kubernetes Authors), made by tools/descriptions.rs. Do not edit.\n";

/// Descriptions of a type ("" is the type's own) by JSON name.
type Texts = BTreeMap<String, String>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, krate] = args.as_slice() else {
        eprintln!("usage: descriptions K8S_OPENAPI_VERSION_DIR CRATE_DIR");
        std::process::exit(64);
    };
    let mut all = BTreeMap::new();
    folder(Path::new(source), &mut all);
    let mut out = HEADER.to_owned();
    for (name, texts) in &all {
        if types::by_name(name).is_none() {
            continue;
        }
        writeln!(out, "{name}").unwrap();
        for (field, text) in texts {
            writeln!(out, " {field} {text}").unwrap();
        }
    }
    std::fs::write(Path::new(krate).join("data/descriptions.txt"), out).unwrap();
}

fn folder(path: &Path, all: &mut BTreeMap<String, Texts>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            folder(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            file(&std::fs::read_to_string(path).unwrap(), all);
        }
    }
}

fn file(source: &str, all: &mut BTreeMap<String, Texts>) {
    const MARK: &str = "// Generated from definition io.k8s.";
    let Some(at) = source.find(MARK) else {
        return;
    };
    let name = source[at + MARK.len()..].lines().next().unwrap().trim();
    let mut texts = Texts::new();
    let mut pending = String::new();
    let mut inside = false;
    for line in source[at..].lines() {
        let trimmed = line.trim();
        if let Some(text) = trimmed.strip_prefix("///") {
            if !pending.is_empty() {
                pending.push_str("\\n");
            }
            pending.push_str(text.trim());
        } else if line.starts_with("pub struct ") {
            if !pending.is_empty() {
                texts.insert(String::new(), std::mem::take(&mut pending));
            }
            inside = line.ends_with('{');
            if !inside {
                break;
            }
        } else if inside && trimmed == "}" {
            break;
        } else if inside && let Some(rest) = trimmed.strip_prefix("pub ") {
            let field = rest.split(':').next().unwrap();
            if !pending.is_empty() {
                texts.insert(json_name(source, field), std::mem::take(&mut pending));
            }
        } else if !trimmed.starts_with("#[") && !inside {
            pending.clear();
        }
    }
    all.insert(name.to_owned(), texts);
}

/// The JSON name of a struct's field: its decoder maps the one to the other.
fn json_name(source: &str, field: &str) -> String {
    let key = format!("=> Field::Key_{},", field.trim_start_matches("r#"));
    for line in source.lines() {
        if line.trim().ends_with(&key)
            && let Some(name) = line.trim().split('"').nth(1)
        {
            return name.to_owned();
        }
    }
    field.trim_start_matches("r#").to_owned()
}
