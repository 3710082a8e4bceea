//! The corpus: requests as data, read from `corpus/*.yaml` and spelt out.
//!
//! A file has `objects` (named bodies) and `scenarios`. A scenario has a `name`, `steps` and,
//! where the same steps are for several things, `each`: variables, one set for each copy. A step is
//! a text `METHOD path`, or a map:
//!
//! | key | meaning |
//! |---|---|
//! | `request` | `METHOD path` |
//! | `object` or `body` or `text` | a named object, an object here, or bytes as they are |
//! | `set` | changes to the object: path → value, `null` removes |
//! | `cases` | one request for each set of changes |
//! | `headers` | as they are; a body is `application/json` without |
//! | `take` | name → JSON pointer into the answer, for `<name>` in later steps |
//! | `as` | the step's name where the request itself is none |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::template::{self, Variables};

/// Longest name of a case made from its changes, in characters.
const CASE_NAME_CHARS_MAX: usize = 90;

/// The requests of one namespace, in order.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// `file/name`, or `file/name/copy`.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Whether the namespace is made before the first step.
    pub make_namespace: bool,
    /// The file, without its ending.
    pub file: String,
    /// Variables from the start.
    pub variables: Variables,
    /// The requests.
    pub steps: Vec<Step>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name in the scenario.
    pub name: String,
    /// The HTTP method.
    pub method: String,
    /// Path and query, with variables.
    pub path: String,
    /// Headers, with variables.
    pub headers: BTreeMap<String, String>,
    /// The body, with variables.
    pub body: Body,
    /// What later steps use: name → JSON pointer.
    pub take: BTreeMap<String, String>,
}

/// The body of a request.
#[derive(Debug, Clone)]
pub enum Body {
    /// None.
    Empty,
    /// JSON.
    Json(Value),
    /// Bytes as they are.
    Text(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    objects: BTreeMap<String, Value>,
    scenarios: Vec<RawScenario>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    name: String,
    #[serde(default)]
    each: Vec<Variables>,
    /// `false` where a scenario makes its namespace itself.
    namespace: Option<bool>,
    steps: Vec<RawStep>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum RawStep {
    Line(String),
    Whole(Box<WholeStep>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeStep {
    request: String,
    #[serde(rename = "as")]
    name: Option<String>,
    object: Option<String>,
    body: Option<Value>,
    text: Option<String>,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    #[serde(default)]
    cases: Vec<BTreeMap<String, Value>>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    take: BTreeMap<String, String>,
}

/// Everything in the folder, in the order of names.
///
/// # Errors
/// A file cannot be read or says something that cannot be spelt out.
pub fn load(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let mut texts = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            texts.insert(name.into_owned(), text);
        }
    }
    let mut files = BTreeMap::new();
    let mut objects = BTreeMap::new();
    for (name, text) in &texts {
        let file: File = yaml(text).with_context(|| format!("parse {name}.yaml"))?;
        for (key, object) in &file.objects {
            let before = objects.insert(key.clone(), object.clone());
            ensure!(before.is_none(), "object {key} is in two files");
        }
        files.insert(name.clone(), file);
    }
    let mut all = Vec::new();
    for (name, file) in &files {
        for raw in &file.scenarios {
            let one = [Variables::new()];
            let each = if raw.each.is_empty() {
                &one[..]
            } else {
                &raw.each[..]
            };
            for variables in each {
                let made = scenario(name, raw, variables, &objects);
                all.push(made.with_context(|| format!("{name}/{}", raw.name))?);
            }
        }
    }
    let mut ids = BTreeSet::new();
    for scenario in &all {
        ensure!(ids.insert(&scenario.id), "two scenarios {}", scenario.id);
    }
    Ok(all)
}

/// YAML of the newest rules, in which `n` and `no` are texts.
///
/// # Errors
/// It cannot be read as the type.
pub(crate) fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    let options = serde_saphyr::options! { strict_booleans: true };
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

/// A hash of all that requests are made of.
///
/// # Errors
/// As [`load`].
pub fn fingerprint(scenarios: &[Scenario]) -> String {
    let text: String = scenarios.iter().map(|s| format!("{s:?}\n")).collect();
    sha256(text.as_bytes())
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn scenario(
    file: &str,
    raw: &RawScenario,
    variables: &Variables,
    objects: &BTreeMap<String, Value>,
) -> anyhow::Result<Scenario> {
    let mut id = format!("{file}/{}", raw.name);
    if let Some(copy) = variables.get("copy").or_else(|| variables.get("object")) {
        id = format!("{id}/{copy}");
    }
    let namespace = format!("d-{}", id.replace(['/', ' ', '_'], "-").to_lowercase());
    ensure!(
        namespace.len() <= 63,
        "{namespace} is too long for a namespace"
    );
    let mut filled = Variables::from([("ns".to_owned(), namespace.clone())]);
    for (name, value) in variables {
        let value = template::fill(value, &filled);
        filled.insert(name.clone(), value);
    }
    let mut steps = Vec::new();
    for step in &raw.steps {
        spell(step, &filled, objects, &mut steps)?;
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for step in &mut steps {
        let count = seen.entry(step.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            step.name = format!("{} #{count}", step.name);
        }
    }
    Ok(Scenario {
        id,
        namespace,
        make_namespace: raw.namespace.unwrap_or(true),
        file: file.to_owned(),
        variables: filled,
        steps,
    })
}

fn spell(
    raw: &RawStep,
    variables: &Variables,
    objects: &BTreeMap<String, Value>,
    steps: &mut Vec<Step>,
) -> anyhow::Result<()> {
    let whole = match raw {
        RawStep::Line(line) => Box::new(WholeStep {
            request: line.clone(),
            name: None,
            object: None,
            body: None,
            text: None,
            set: BTreeMap::new(),
            cases: Vec::new(),
            headers: BTreeMap::new(),
            take: BTreeMap::new(),
        }),
        RawStep::Whole(whole) => whole.clone(),
    };
    let (method, path) = whole
        .request
        .split_once(' ')
        .with_context(|| format!("{:?} is no METHOD path", whole.request))?;
    let base = match (&whole.object, &whole.body, &whole.text) {
        (Some(name), None, None) => {
            let name = template::fill(name, variables);
            let object = objects.get(&name);
            Body::Json(object.with_context(|| format!("no object {name}"))?.clone())
        }
        (None, Some(body), None) => Body::Json(body.clone()),
        (None, None, Some(text)) => Body::Text(text.clone()),
        (None, None, None) => Body::Empty,
        _ => bail!("{}: more than one body", whole.request),
    };
    let name = whole.name.clone().unwrap_or_else(|| {
        let namespace = format!("/namespaces/{}", variables["ns"]);
        template::fill(&whole.request, variables).replace(&namespace, "/namespaces/<ns>")
    });
    let own = [BTreeMap::new()];
    let cases = if whole.cases.is_empty() {
        &own[..]
    } else {
        &whole.cases[..]
    };
    for case in cases {
        let mut body = base.clone();
        for (path, value) in whole.set.iter().chain(case) {
            let Body::Json(object) = &mut body else {
                bail!("{}: changes to what is no object", whole.request);
            };
            template::set(object, path, value)?;
        }
        steps.push(Step {
            name: if case.is_empty() {
                name.clone()
            } else {
                format!("{name}: {}", case_name(case))
            },
            method: method.to_owned(),
            path: path.to_owned(),
            headers: whole.headers.clone(),
            body,
            take: whole.take.clone(),
        });
    }
    Ok(())
}

fn case_name(case: &BTreeMap<String, Value>) -> String {
    let parts: Vec<String> = case.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let name = parts.join(" ");
    name.chars().take(CASE_NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_can_be_spelt_out() {
        let scenarios = load(&crate::folder().join("corpus")).unwrap();
        let requests: usize = scenarios.iter().map(|s| s.steps.len()).sum();
        println!("{} scenarios, {requests} requests", scenarios.len());
        assert!(requests >= 1000);
        // A name that is not filled in would be sent as it stands.
        for scenario in &scenarios {
            let mut known: BTreeSet<&str> = scenario.variables.keys().map(String::as_str).collect();
            for step in &scenario.steps {
                for part in step.path.split('<').skip(1) {
                    let name = part.split('>').next().unwrap_or_default();
                    assert!(
                        known.contains(name),
                        "{} > {}: <{name}>",
                        scenario.id,
                        step.name
                    );
                }
                known.extend(step.take.keys().map(String::as_str));
            }
        }
    }
}
