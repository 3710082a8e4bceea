//! Paths and their operations, as far as clients read them: which kinds, which parameters,
//! which kinds of patches.

use rkube_api::resources::{Gvk, Resource};
use rkube_api::types;
use serde_json::{Map, Value, json};

use super::schema::{Dialect, full_name};
use super::{Used, document_path};

/// One operation of a path.
struct Operation {
    method: &'static str,
    action: &'static str,
}

const ITEM: [(&str, Operation); 4] = [
    (
        "get",
        Operation {
            method: "get",
            action: "get",
        },
    ),
    (
        "update",
        Operation {
            method: "put",
            action: "put",
        },
    ),
    (
        "patch",
        Operation {
            method: "patch",
            action: "patch",
        },
    ),
    (
        "delete",
        Operation {
            method: "delete",
            action: "delete",
        },
    ),
];

const COLLECTION: [(&str, Operation); 3] = [
    (
        "list",
        Operation {
            method: "get",
            action: "list",
        },
    ),
    (
        "create",
        Operation {
            method: "post",
            action: "post",
        },
    ),
    (
        "deletecollection",
        Operation {
            method: "delete",
            action: "deletecollection",
        },
    ),
];

const PATCH_TYPES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const BODY_TYPES: [&str; 2] = ["application/json", "application/yaml"];

pub(super) fn v3(own: &[&'static Resource], used: &mut Used) -> Value {
    paths(own, used, Dialect::V3)
}

pub(super) fn v2(own: &[&'static Resource], used: &mut Used) -> Value {
    paths(own, used, Dialect::V2)
}

fn paths(own: &[&'static Resource], used: &mut Used, dialect: Dialect) -> Value {
    for kind in ["DeleteOptions", "Status", "WatchEvent"] {
        used.kind("", "v1", kind);
    }
    let mut paths = Map::new();
    for resource in own {
        let gvk = &resource.gvk;
        let base = format!("/{}", document_path(gvk.group, gvk.version));
        let collection = if resource.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{base}/{}", resource.plural)
        };
        used.kind(gvk.group, gvk.version, gvk.kind);
        let list = format!("{}List", gvk.kind);
        used.kind(gvk.group, gvk.version, &list);
        let operations =
            |table: &'static [(&str, Operation)], verbs: &[&str], body: &Gvk, part: &str| {
                let mut item = Map::new();
                for (verb, operation) in table {
                    if verbs.contains(verb) {
                        let described = describe(resource, part, body, operation, dialect);
                        item.insert(operation.method.to_owned(), described);
                    }
                }
                item
            };
        let everything = operations(&COLLECTION, &resource.verbs, gvk, "");
        insert(
            &mut paths,
            &collection,
            everything,
            (resource.namespaced, false),
            dialect,
        );
        if resource.namespaced && resource.serves("list") {
            let list = operations(&COLLECTION[..1], &resource.verbs, gvk, "");
            insert(
                &mut paths,
                &format!("{base}/{}", resource.plural),
                list,
                (false, false),
                dialect,
            );
        }
        let object = format!("{collection}/{{name}}");
        let one = operations(&ITEM, &resource.verbs, gvk, "");
        insert(
            &mut paths,
            &object,
            one,
            (resource.namespaced, true),
            dialect,
        );
        for part in &resource.subresources {
            used.kind(part.gvk.group, part.gvk.version, part.gvk.kind);
            let mut item = operations(&ITEM, &part.verbs, &part.gvk, part.name);
            item.extend(operations(
                &COLLECTION[1..2],
                &part.verbs,
                &part.gvk,
                part.name,
            ));
            insert(
                &mut paths,
                &format!("{object}/{}", part.name),
                item,
                (resource.namespaced, true),
                dialect,
            );
        }
    }
    Value::Object(paths)
}

fn insert(
    paths: &mut Map<String, Value>,
    path: &str,
    mut item: Map<String, Value>,
    (namespaced, named): (bool, bool),
    dialect: Dialect,
) {
    if item.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    for (name, is) in [("name", named), ("namespace", namespaced)] {
        if is {
            parameters.push(match dialect {
                Dialect::V3 => json!({
                    "name": name, "in": "path", "required": true,
                    "schema": {"type": "string", "uniqueItems": true},
                }),
                Dialect::V2 => json!({
                    "name": name, "in": "path", "required": true,
                    "type": "string", "uniqueItems": true,
                }),
            });
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".into(), parameters.into());
    }
    paths.insert(path.to_owned(), Value::Object(item));
}

fn describe(
    resource: &'static Resource,
    part: &str,
    body: &Gvk,
    operation: &Operation,
    dialect: Dialect,
) -> Value {
    let kind = if part.is_empty() { &resource.gvk } else { body };
    let returned = if operation.action == "list" {
        format!("{}List", body.kind)
    } else {
        body.kind.to_owned()
    };
    let reference = |name: &str| {
        types::by_gvk(body.group, body.version, name).map(|ty| dialect.reference(&full_name(ty)))
    };
    let mut map = Map::new();
    map.insert(
        "operationId".into(),
        operation_id(resource, part, operation).into(),
    );
    map.insert("tags".into(), json!([tag(resource)]));
    let mut parameters: Vec<Value> = query_parameters(operation.action)
        .iter()
        .map(|(name, kind)| match dialect {
            Dialect::V3 => json!({
                "name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true},
            }),
            Dialect::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
        })
        .collect();
    let schema = match operation.action {
        "post" | "put" => reference(body.kind),
        "patch" => types::by_name("apimachinery.pkg.apis.meta.v1.Patch")
            .map(|ty| dialect.of(ty))
            .or(Some(json!({"type": "object"}))),
        _ => None,
    };
    if let Some(schema) = schema {
        let media: &[&str] = if operation.action == "patch" {
            &PATCH_TYPES
        } else {
            &BODY_TYPES
        };
        match dialect {
            Dialect::V3 => {
                let content: Map<String, Value> = media
                    .iter()
                    .map(|m| ((*m).to_owned(), json!({"schema": schema})))
                    .collect();
                map.insert(
                    "requestBody".into(),
                    json!({"required": true, "content": content}),
                );
            }
            Dialect::V2 => {
                map.insert("consumes".into(), media.into());
                parameters.push(
                    json!({"name": "body", "in": "body", "required": true, "schema": schema}),
                );
            }
        }
    }
    map.insert("parameters".into(), parameters.into());
    let answer = match (dialect, reference(&returned)) {
        (Dialect::V3, Some(schema)) => {
            json!({"description": "OK", "content": {"application/json": {"schema": schema}}})
        }
        (Dialect::V2, Some(schema)) => json!({"description": "OK", "schema": schema}),
        (_, None) => json!({"description": "OK"}),
    };
    map.insert("responses".into(), json!({"200": answer}));
    map.insert("x-kubernetes-action".into(), operation.action.into());
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    map.insert("x-kubernetes-group-version-kind".into(), gvk);
    Value::Object(map)
}

fn query_parameters(action: &str) -> &'static [(&'static str, &'static str)] {
    const LIST: &[(&str, &str)] = &[
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("pretty", "string"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    const WRITE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("fieldManager", "string"),
        ("fieldValidation", "string"),
        ("pretty", "string"),
    ];
    const DELETE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("orphanDependents", "boolean"),
        ("pretty", "string"),
        ("propagationPolicy", "string"),
    ];
    match action {
        "list" => LIST,
        "post" | "put" | "patch" => WRITE,
        "delete" | "deletecollection" => DELETE,
        _ => &[("pretty", "string")],
    }
}

/// `apps_v1`.
fn tag(resource: &Resource) -> String {
    let group = match resource.gvk.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("{group}_{}", resource.gvk.version)
}

/// `patchAppsV1NamespacedDeploymentScale`.
fn operation_id(resource: &Resource, part: &str, operation: &Operation) -> String {
    let capital = |text: &str| {
        let mut chars = text.chars();
        chars
            .next()
            .map(|first| first.to_uppercase().chain(chars).collect::<String>())
            .unwrap_or_default()
    };
    let verb = match operation.action {
        "get" => "read",
        "post" => "create",
        "put" => "replace",
        "deletecollection" => "deleteCollection",
        other => other,
    };
    let tag: String = tag(resource).split('_').map(capital).collect();
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        ""
    };
    format!("{verb}{tag}{scope}{}{}", resource.gvk.kind, capital(part))
}
