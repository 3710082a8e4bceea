//! Makes `data/encoding.txt`: how upstream's Go structs write their fields.
//!
//! Run once per Kubernetes release on checked-out trees of `k8s.io/api` and
//! `k8s.io/apimachinery`; the result is checked in:
//! `cargo run -p rkube-api --example encoding -- API_DIR APIMACHINERY_DIR apiserver-lite/api`
//! Only facts are carried over (names, field numbers, whether a field is a
//! pointer and whether its zero value is written), no prose.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use rkube_api::types::{self, Shape};

const HEADER: &str = "# Made by tools/encoding.rs from the types of Kubernetes (Apache-2.0, The Kubernetes Authors). Do not edit.\n";

struct Field {
    /// JSON name; empty for an embedded struct.
    json: String,
    go_type: String,
    number: u32,
    omit_empty: bool,
    omit_zero: bool,
}

type Structs = BTreeMap<String, Vec<Field>>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [api, machinery, krate] = args.as_slice() else {
        eprintln!("usage: encoding API_DIR APIMACHINERY_DIR CRATE_DIR");
        std::process::exit(64);
    };
    let mut structs = Structs::new();
    for group in std::fs::read_dir(api).unwrap() {
        let group = group.unwrap();
        if !group.file_type().unwrap().is_dir() {
            continue;
        }
        for version in std::fs::read_dir(group.path()).unwrap() {
            let version = version.unwrap();
            let package = format!(
                "api.{}.{}",
                group.file_name().to_string_lossy(),
                version.file_name().to_string_lossy()
            );
            folder(&version.path(), &package, &mut structs);
        }
    }
    let meta = Path::new(machinery).join("pkg/apis/meta/v1");
    folder(&meta, "apimachinery.pkg.apis.meta.v1", &mut structs);
    let text = write(&structs);
    std::fs::write(Path::new(krate).join("data/encoding.txt"), text).unwrap();
}

fn folder(path: &Path, package: &str, structs: &mut Structs) {
    if !path.is_dir() {
        return;
    }
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            let name = p.file_name().unwrap().to_string_lossy();
            name.ends_with("types.go")
        })
        .collect();
    names.sort();
    for name in names {
        parse(&std::fs::read_to_string(name).unwrap(), package, structs);
    }
}

fn parse(source: &str, package: &str, structs: &mut Structs) {
    let mut current: Option<(String, Vec<Field>)> = None;
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("type ")
            && let Some(name) = rest.strip_suffix(" struct {")
        {
            current = Some((format!("{package}.{name}"), Vec::new()));
        } else if line == "}" {
            if let Some((name, fields)) = current.take() {
                structs.insert(name, fields);
            }
        } else if let Some((_, fields)) = &mut current
            && let Some(field) = field(line)
        {
            fields.push(field);
        }
    }
}

fn field(line: &str) -> Option<Field> {
    let line = line.trim();
    if line.starts_with("//") {
        return None;
    }
    let (code, rest) = line.split_once('`')?;
    let (tags, _) = rest.split_once('`')?;
    let tag = |name: &str| {
        let (_, rest) = tags.split_once(&format!("{name}:\""))?;
        rest.split_once('"').map(|(value, _)| value)
    };
    let mut json = tag("json")?.split(',');
    let json_name = json.next()?.to_owned();
    let options: Vec<&str> = json.collect();
    let protobuf: Vec<&str> = tag("protobuf")?.split(',').collect();
    let go_type = code.split_whitespace().last()?.to_owned();
    Some(Field {
        json: json_name,
        go_type,
        number: protobuf.get(1)?.parse().ok()?,
        omit_empty: options.contains(&"omitempty"),
        omit_zero: options.contains(&"omitzero"),
    })
}

/// The full name of a Go type that a struct of a package refers to.
fn resolve(go_type: &str, owner: &str) -> String {
    let bare = go_type.trim_start_matches(['*', '[', ']']);
    let package = owner.rsplit_once('.').unwrap().0;
    match bare.split_once('.') {
        Some(("metav1", name)) => format!("apimachinery.pkg.apis.meta.v1.{name}"),
        Some(("v1" | "corev1", name)) => format!("api.core.v1.{name}"),
        Some((other, name)) => format!("{other}.{name}"),
        None => format!("{package}.{bare}"),
    }
}

fn write(structs: &Structs) -> String {
    let mut out = HEADER.to_owned();
    let mut wanted: Vec<&str> = structs.keys().map(String::as_str).collect();
    wanted.retain(|name| types::by_name(name).is_some());
    let mut inlined: Vec<String> = Vec::new();
    let mut at = 0;
    let mut all: Vec<(String, bool)> = wanted.iter().map(|n| ((*n).to_owned(), false)).collect();
    while at < all.len() {
        let (name, is_inline) = all[at].clone();
        at += 1;
        let Some(fields) = structs.get(&name) else {
            eprintln!("no struct {name}");
            continue;
        };
        writeln!(out, "{name}").unwrap();
        let ty = types::by_name(&name);
        for field in fields {
            if field.json.is_empty() {
                let target = resolve(&field.go_type, &name);
                writeln!(out, " ~{target} {}", field.number).unwrap();
                if !inlined.contains(&target) && types::by_name(&target).is_none() {
                    inlined.push(target.clone());
                    all.push((target, true));
                }
                continue;
            }
            let known = ty.and_then(|t| t.field(&field.json));
            if known.is_none() && !is_inline {
                continue;
            }
            let mut flags = String::new();
            if field.go_type.starts_with('*') {
                flags.push('*');
            }
            if field.omit_empty {
                flags.push('o');
            }
            if field.omit_zero {
                flags.push('z');
            }
            if known.is_some_and(|k| matches!(k.shape, Shape::List(_)))
                && !field.go_type.starts_with("[]")
            {
                flags.push('w');
            }
            writeln!(out, " {} {}{flags}", field.json, field.number).unwrap();
        }
    }
    out
}
