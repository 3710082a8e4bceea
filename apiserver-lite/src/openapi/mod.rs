//! What the API says about its types and paths: OpenAPI 2.0 and 3.0 documents.
//!
//! Pure functions of the tables. Documents are made when they are asked for and kept by nobody:
//! clients cache them by the hash that `/openapi/v3` names.

mod describe;
mod gnostic;
mod paths;
mod schema;

use std::collections::BTreeSet;

use ring::digest;
use rkube_api::resources::Resource;
use rkube_api::types::{self, Type};
use serde_json::{Map, Value, json};

pub use gnostic::{MEDIA_TYPE as V2_PROTOBUF, MEDIA_TYPE_ASKED as V2_PROTOBUF_ASKED};
use schema::Dialect;

/// The paths of all documents of version 3, each with its hash.
#[must_use]
pub fn v3_root(served: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions(served) {
        let path = document_path(group, version);
        let hash = hash(served, group, version);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The document of one group and version.
#[must_use]
pub fn v3(served: &[&'static Resource], group: &str, version: &str) -> Option<Value> {
    let own: Vec<&'static Resource> = served
        .iter()
        .filter(|r| r.gvk.group == group && r.gvk.version == version)
        .copied()
        .collect();
    if own.is_empty() {
        return None;
    }
    let mut used = Used::default();
    let paths = paths::v3(&own, &mut used);
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schema::all(used, Dialect::V3)},
    }))
}

/// The one document of version 2.
#[must_use]
pub fn v2(served: &[&'static Resource]) -> Value {
    let mut used = Used::default();
    let paths = paths::v2(served, &mut used);
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": schema::all(used, Dialect::V2),
    })
}

/// The document of version 2 as protobuf.
#[must_use]
pub fn v2_protobuf(served: &[&'static Resource]) -> Vec<u8> {
    gnostic::encode(&v2(served))
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": concat!("v1.36.0+rkube-", env!("CARGO_PKG_VERSION"))})
}

/// `api/v1` or `apis/GROUP/VERSION`.
#[must_use]
pub fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// Group and version of a document's path.
#[must_use]
pub fn parse_document_path(path: &str) -> Option<(&str, &str)> {
    let mut segments = path.split('/');
    let found = match (segments.next()?, segments.next()?, segments.next()) {
        ("api", version, None) => ("", version),
        ("apis", group, Some(version)) => (group, version),
        _ => return None,
    };
    segments.next().is_none().then_some(found)
}

fn group_versions(served: &[&'static Resource]) -> BTreeSet<(&'static str, &'static str)> {
    served
        .iter()
        .map(|r| (r.gvk.group, r.gvk.version))
        .collect()
}

/// Changes when a document does: a digest of all that it is made from.
#[must_use]
pub fn hash(served: &[&'static Resource], group: &str, version: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA512);
    for part in [env!("CARGO_PKG_VERSION"), types::table(), group, version] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    for resource in served {
        context.update(resource.plural.as_bytes());
        context.update(&[0]);
    }
    let digest = context.finish();
    let mut text = String::new();
    for byte in digest.as_ref() {
        text.push_str(&format!("{byte:02X}"));
    }
    text
}

/// The types that a document refers to.
#[derive(Debug, Default)]
pub(crate) struct Used(BTreeSet<&'static str>);

impl Used {
    fn add(&mut self, ty: &'static Type) {
        self.0.insert(ty.name);
    }

    fn kind(&mut self, group: &str, version: &str, kind: &str) -> Option<&'static Type> {
        let ty = types::by_gvk(group, version, kind)?;
        self.add(ty);
        Some(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::served_by_default;

    /// Every `$ref` of a document, with the place that it names in it.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    found.insert(reference.to_owned());
                }
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    fn all_resolve(document: &Value) -> usize {
        let mut found = BTreeSet::new();
        references(document, &mut found);
        for reference in &found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        found.len()
    }

    #[test]
    fn documents_are_closed() {
        let served = served_by_default();
        let root = v3_root(&served);
        let mut references = 0;
        for path in root["paths"].as_object().unwrap().keys() {
            let (group, version) = parse_document_path(path).unwrap();
            references += all_resolve(&v3(&served, group, version).unwrap());
        }
        assert!(references > 1000, "{references}");
        assert!(all_resolve(&v2(&served)) > 400);
        assert!(v3(&served, "nope", "v1").is_none());
    }

    #[test]
    fn what_kubectl_reads() {
        let served = served_by_default();
        let core = v3(&served, "", "v1").unwrap();
        let pod = &core["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        let spec = &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(
            spec["volumes"]["x-kubernetes-patch-strategy"],
            "merge,retainKeys"
        );
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        let types = patch["requestBody"]["content"].as_object().unwrap();
        assert!(types.contains_key("application/strategic-merge-patch+json"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let named = |name: &str| {
            let list = patch["parameters"].as_array().unwrap();
            list.iter().any(|p| p["name"] == name && p["in"] == "query")
        };
        assert!(named("fieldValidation") && named("dryRun"));
    }
}
