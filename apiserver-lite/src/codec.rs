//! How objects lie in the store: JSON in one order, the revision left out.
//!
//! `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"annotations":...},"spec":...}`
//!
//! Type first, then metadata: what follows `"metadata":{` (the *tail*) is the same in every
//! answer, list and watch frame, so reads put a new head with the revision before the stored
//! bytes and parse nothing.

use rkube_api::resources::Gvk;
use rkube_store::Revision;
use serde_json::{Map, Value};

const METADATA: &[u8] = b"\"metadata\":{";

/// Bytes in which the head must end; the longest group, version and kind fit.
const HEAD_BYTES_MAX: usize = 512;

fn push_json(out: &mut Vec<u8>, value: &Value) {
    // Writing a value to memory cannot fail: keys are strings.
    let _ = serde_json::to_writer(out, value);
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(out, text);
}

/// The stored form of an object. `apiVersion`, `kind` and `metadata.resourceVersion` of the
/// value do not matter.
#[must_use]
pub fn encode(object: &Map<String, Value>, gvk: &Gvk) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"apiVersion\":");
    push_string(&mut out, &gvk.api_version());
    out.extend_from_slice(b",\"kind\":");
    push_string(&mut out, gvk.kind);
    out.push(b',');
    out.extend_from_slice(METADATA);
    let mut first = true;
    let metadata = object.get("metadata").and_then(Value::as_object);
    for (key, value) in metadata.into_iter().flatten() {
        if key == "resourceVersion" || key == "selfLink" {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        push_string(&mut out, key);
        out.push(b':');
        push_json(&mut out, value);
    }
    out.push(b'}');
    for (key, value) in object {
        if matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        out.push(b',');
        push_string(&mut out, key);
        out.push(b':');
        push_json(&mut out, value);
    }
    out.push(b'}');
    out
}

/// What follows `"metadata":{` in a stored value; empty where the value is none of ours.
#[must_use]
pub fn tail_start(stored: &[u8]) -> usize {
    let head = stored
        .get(..HEAD_BYTES_MAX.min(stored.len()))
        .unwrap_or(&[]);
    head.windows(METADATA.len())
        .position(|window| window == METADATA)
        .map_or(stored.len(), |at| at + METADATA.len())
}

/// Writes a stored value as an object of a type at a revision (0: none yet, as a dry run has):
/// `{"kind":...}`.
pub fn write_object(out: &mut Vec<u8>, stored: &[u8], revision: Revision, gvk: &Gvk) {
    out.extend_from_slice(b"{\"kind\":");
    push_string(out, gvk.kind);
    out.extend_from_slice(b",\"apiVersion\":");
    push_string(out, &gvk.api_version());
    out.push(b',');
    write_bare(out, stored, revision);
}

/// Writes a stored value as an item of a list, which carries no type: `{"metadata":...}`.
pub fn write_item(out: &mut Vec<u8>, stored: &[u8], revision: Revision) {
    out.push(b'{');
    write_bare(out, stored, revision);
}

fn write_bare(out: &mut Vec<u8>, stored: &[u8], revision: Revision) {
    let tail = match &stored[tail_start(stored)..] {
        // Bytes that are none of ours: an object without a name.
        [] => b"}}",
        tail => tail,
    };
    out.extend_from_slice(METADATA);
    if revision > 0 {
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(revision.to_string().as_bytes());
        out.push(b'"');
        if tail.first() != Some(&b'}') {
            out.push(b',');
        }
    }
    out.extend_from_slice(tail);
}

/// Reads a stored value as an object of a type at a revision.
///
/// # Errors
/// Where the bytes are no JSON, which only a damaged store has.
pub fn decode(stored: &[u8], revision: Revision, gvk: &Gvk) -> Result<Value, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_slice(stored)?;
    object.insert("apiVersion".into(), gvk.api_version().into());
    object.insert("kind".into(), gvk.kind.into());
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    if let (Some(metadata), true) = (metadata, revision > 0) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const GVK: Gvk = Gvk {
        group: "apps",
        version: "v1",
        kind: "Deployment",
    };

    fn written(object: &Value) -> Value {
        let stored = encode(object.as_object().unwrap(), &GVK);
        let mut out = Vec::new();
        write_object(&mut out, &stored, 42, &GVK);
        let spliced: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(spliced, decode(&stored, 42, &GVK).unwrap());
        let mut item = Vec::new();
        write_item(&mut item, &stored, 42);
        let mut item: Value = serde_json::from_slice(&item).unwrap();
        item["kind"] = "Deployment".into();
        item["apiVersion"] = "apps/v1".into();
        assert_eq!(item, spliced);
        spliced
    }

    #[test]
    fn a_revision_is_spliced_in() {
        let object = json!({"kind": "Other", "metadata": {"name": "x", "resourceVersion": "7", "selfLink": "/"}, "spec": {"metadata": {"a": 1}}});
        assert_eq!(
            written(&object),
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "x", "resourceVersion": "42"}, "spec": {"metadata": {"a": 1}}})
        );
        assert_eq!(
            written(&json!({}))["metadata"],
            json!({"resourceVersion": "42"})
        );
    }

    proptest! {
        #[test]
        fn any_text_survives(name in ".{1,20}", key in ".{0,10}", value in ".{0,10}") {
            let object = json!({"metadata": {"name": name, "labels": {key.clone(): value.clone()}}, "data": {key: value}});
            let mut expected = object.clone();
            expected["kind"] = "Deployment".into();
            expected["apiVersion"] = "apps/v1".into();
            expected["metadata"]["resourceVersion"] = "42".into();
            prop_assert_eq!(written(&object), expected);
        }
    }
}
