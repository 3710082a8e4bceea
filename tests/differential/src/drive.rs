//! Sends the requests of a scenario and writes down the answers.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER, WARNING};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TOKEN;
use crate::client::{Answer, Client, Endpoint};
use crate::corpus::{Body, Scenario, Step};
use crate::normal::Names;
use crate::template;

/// An answer without what no two servers have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The scenario's id, ` > ` and the step's name.
    pub id: String,
    /// The HTTP status.
    pub code: u16,
    /// The media type.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub media: String,
    /// The texts of `Warning` headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// `Retry-After`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub retry_after: String,
    /// The body: JSON, a list of a watch's frames, or a text.
    pub body: Value,
}

/// How a server writes what the corpus writes in the words of the newest release.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dialect(pub &'static [Words]);

/// One word in the corpus and in a server.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// The corpus' word.
    pub corpus: &'static str,
    /// The server's.
    pub server: &'static str,
}

impl Dialect {
    fn to_server(self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |t, w| t.replace(w.corpus, w.server))
    }

    fn to_corpus(self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |t, w| t.replace(w.server, w.corpus))
    }
}

/// Whether what a list or a watch begins with may come in any order: from a cache that has none.
#[must_use]
pub fn is_in_any_order(step: &Step) -> bool {
    let path = &step.path;
    let given = path.contains("resourceVersion=");
    if ["watch=1", "watch=true", "/watch/"]
        .iter()
        .any(|word| path.contains(word))
    {
        return !given || path.contains("resourceVersion=0");
    }
    let one_revision = ["limit=", "continue=", "resourceVersionMatch=Exact"];
    let stored = one_revision.iter().any(|part| path.contains(part));
    path.contains("resourceVersion=0") || given && !stored
}

/// Sends all steps of a scenario.
///
/// # Errors
/// A server that does not answer, or an answer that lacks what a later step needs.
pub async fn run(
    endpoint: &Endpoint,
    scenario: &Scenario,
    dialect: Dialect,
) -> anyhow::Result<Vec<Recorded>> {
    let mut client = Client::new(endpoint);
    if scenario.make_namespace {
        prepare(&mut client, &scenario.namespace).await?;
    }
    let mut variables = scenario.variables.clone();
    let mut names = Names::default();
    names.hear(&scenario.namespace);
    let mut all = Vec::new();
    for step in &scenario.steps {
        let id = format!("{} > {}", scenario.id, step.name);
        let request = request(step, &variables, dialect, &mut names)
            .with_context(|| format!("make the request of {id}"))?;
        let answer = client.send(request).await.with_context(|| id.clone())?;
        let mut body = body(&answer, dialect);
        if is_in_any_order(step) {
            Names::sort_items(&mut body);
        }
        for (name, pointer) in &step.take {
            let value = body.pointer(pointer);
            let text = match value {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                // The comparison tells what is wrong with an answer that lacks it.
                None => String::new(),
            };
            variables.insert(name.clone(), text);
        }
        all.push(Recorded {
            id,
            code: answer.code,
            media: header(&answer.headers, CONTENT_TYPE.as_str()),
            warnings: warnings(&answer.headers, dialect, &mut names),
            retry_after: header(&answer.headers, RETRY_AFTER.as_str()),
            body: names.value(body),
        });
    }
    Ok(all)
}

/// Makes a namespace and the service account that pods in it have; no controller does it here.
async fn prepare(client: &mut Client, namespace: &str) -> anyhow::Result<()> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default"}, "automountServiceAccountToken": false});
    let objects = [
        (
            "/api/v1/namespaces".to_owned(),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        ),
        (
            format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
            account,
        ),
    ];
    for (path, object) in objects {
        let request = build("POST", &path, &BTreeMap::new(), object.to_string(), true)?;
        let answer = client.send(request).await?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.code == 201, "POST {path}: {} {text}", answer.code);
    }
    Ok(())
}

fn request(
    step: &Step,
    variables: &template::Variables,
    dialect: Dialect,
    names: &mut Names,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let path = template::fill(&step.path, variables);
    let body = match &step.body {
        Body::Empty => String::new(),
        Body::Json(value) => template::fill_value(value, variables).to_string(),
        Body::Text(text) => template::fill(text, variables),
    };
    // Unfilled: a captured value that a request says again is still the server's.
    names.begin();
    names.hear(&step.path);
    match &step.body {
        Body::Empty => {}
        Body::Json(value) => names.hear(&value.to_string()),
        Body::Text(text) => names.hear(text),
    }
    let headers = step
        .headers
        .iter()
        .map(|(k, v)| (k.clone(), template::fill(v, variables)))
        .collect();
    let has_body = !matches!(step.body, Body::Empty);
    build(
        &step.method,
        &dialect.to_server(&path),
        &headers,
        dialect.to_server(&body),
        has_body,
    )
}

fn build(
    method: &str,
    path: &str,
    headers: &BTreeMap<String, String>,
    body: String,
    has_body: bool,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost");
    let named = |name: &str| headers.keys().any(|k| k.eq_ignore_ascii_case(name));
    if !named("authorization") {
        request = request.header("authorization", format!("Bearer {TOKEN}"));
    }
    if has_body && !named("content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
        request = request.header(name, value);
    }
    Ok(request.body(Full::new(body.into()))?)
}

fn header(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|v| v.to_str().ok());
    value.unwrap_or("").to_owned()
}

/// The texts of `299 - "text"`, but for those about the age of a version that only the server has.
fn warnings(headers: &HeaderMap, dialect: Dialect, names: &mut Names) -> Vec<String> {
    let values = headers.get_all(WARNING).iter();
    let mut texts: Vec<String> = values
        .filter_map(|v| v.to_str().ok())
        .map(|v| v.trim_start_matches("299 - "))
        .map(|v| v.strip_prefix('"').unwrap_or(v))
        .map(|v| v.strip_suffix('"').unwrap_or(v))
        .map(|v| v.replace("\\\"", "\""))
        .collect();
    texts.retain(|t| {
        let aged = t.contains(" is deprecated in v");
        let other = dialect
            .0
            .iter()
            .any(|w| t.starts_with(w.server.trim_matches('"')));
        !(aged && other)
    });
    texts
        .into_iter()
        .map(|text| match names.value(text.into()) {
            Value::String(text) => text,
            other => other.to_string(),
        })
        .collect()
}

/// A body as JSON, as the frames of a watch, or as text.
fn body(answer: &Answer, dialect: Dialect) -> Value {
    let text = dialect.to_corpus(&String::from_utf8_lossy(&answer.body));
    if let Ok(value) = serde_json::from_str(&text) {
        return value;
    }
    let frames: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text)
        .into_iter()
        .collect();
    match frames {
        Ok(frames) if !frames.is_empty() => frames.into(),
        _ => text.into(),
    }
}
