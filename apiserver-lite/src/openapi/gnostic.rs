//! The document of version 2 as the protobuf that kubectl up to 1.27 reads: `openapi.v2.Document`
//! of gnostic (`openapiv2/OpenAPIv2.proto`), as far as the document has such fields.

use rkube_api::proto::Writer;
use serde_json::{Map, Value};

/// The media type of answers; `@` is no letter of media types, so the one that clients ask for
/// cannot be answered with.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The media type that clients ask for.
pub const MEDIA_TYPE_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Encodes a document of version 2.
#[must_use]
pub(crate) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, document, "swagger");
    out.message(2, |info| {
        text(info, 1, &document["info"], "title");
        text(info, 2, &document["info"], "version");
    });
    out.message(8, |paths| {
        for (name, item) in entries(&document["paths"]) {
            paths.message(2, |named| {
                named.text(1, name);
                named.message(2, |out| path_item(out, item));
            });
        }
    });
    out.message(9, |all| named_schemas(all, &document["definitions"]));
    out.into_bytes()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(out: &mut Writer, number: u32, value: &Value, field: &str) {
    if let Some(text) = value[field].as_str() {
        out.text(number, text);
    }
}

fn texts(out: &mut Writer, number: u32, value: &Value) {
    for text in items(value).filter_map(Value::as_str) {
        out.text(number, text);
    }
}

fn flag(out: &mut Writer, number: u32, value: &Value, field: &str) {
    if value[field] == true {
        out.int(number, 1);
    }
}

/// Extensions are JSON, which is YAML too.
fn extensions(out: &mut Writer, number: u32, map: Option<&Map<String, Value>>) {
    for (name, value) in map.into_iter().flatten() {
        if name.starts_with("x-") {
            out.message(number, |named| {
                named.text(1, name);
                named.message(2, |any| any.text(2, &value.to_string()));
            });
        }
    }
}

fn path_item(out: &mut Writer, item: &Value) {
    const METHODS: [(&str, u32); 5] = [
        ("get", 2),
        ("put", 3),
        ("post", 4),
        ("delete", 5),
        ("patch", 8),
    ];
    for (method, number) in METHODS {
        if item[method].is_object() {
            out.message(number, |out| operation(out, &item[method]));
        }
    }
    for one in items(&item["parameters"]) {
        out.message(9, |out| parameter(out, one));
    }
}

fn operation(out: &mut Writer, value: &Value) {
    texts(out, 1, &value["tags"]);
    text(out, 5, value, "operationId");
    texts(out, 7, &value["consumes"]);
    for one in items(&value["parameters"]) {
        out.message(8, |out| parameter(out, one));
    }
    out.message(9, |responses| {
        for (code, response) in entries(&value["responses"]) {
            responses.message(1, |named| {
                named.text(1, code);
                named.message(2, |value| {
                    value.message(1, |out| {
                        text(out, 1, response, "description");
                        if response["schema"].is_object() {
                            out.message(2, |item| {
                                item.message(1, |s| schema(s, &response["schema"]))
                            });
                        }
                    });
                });
            });
        }
    });
    extensions(out, 13, value.as_object());
}

/// A `ParametersItem` with a `Parameter`.
fn parameter(out: &mut Writer, value: &Value) {
    out.message(1, |parameter| match value["in"].as_str() {
        Some("body") => parameter.message(1, |out| {
            text(out, 2, value, "name");
            text(out, 3, value, "in");
            flag(out, 4, value, "required");
            out.message(5, |out| schema(out, &value["schema"]));
        }),
        place => {
            // Query and path parameters differ in the numbers behind `name`.
            let (kind, type_number, unique_number) = match place {
                Some("path") => (4, 5, 19),
                _ => (3, 6, 20),
            };
            parameter.message(2, |other| {
                other.message(kind, |out| {
                    flag(out, 1, value, "required");
                    text(out, 2, value, "in");
                    text(out, 4, value, "name");
                    text(out, type_number, value, "type");
                    flag(out, unique_number, value, "uniqueItems");
                });
            });
        }
    });
}

fn named_schemas(out: &mut Writer, map: &Value) {
    for (name, value) in entries(map) {
        out.message(1, |named| {
            named.text(1, name);
            named.message(2, |out| schema(out, value));
        });
    }
}

fn schema(out: &mut Writer, value: &Value) {
    text(out, 1, value, "$ref");
    text(out, 2, value, "format");
    text(out, 4, value, "description");
    texts(out, 19, &value["required"]);
    if value["additionalProperties"].is_object() {
        out.message(21, |item| {
            item.message(1, |s| schema(s, &value["additionalProperties"]))
        });
    }
    if value["type"].is_string() {
        out.message(22, |item| text(item, 1, value, "type"));
    }
    if value["items"].is_object() {
        out.message(23, |item| item.message(1, |s| schema(s, &value["items"])));
    }
    if value["properties"].is_object() {
        out.message(25, |out| named_schemas(out, &value["properties"]));
    }
    extensions(out, 31, value.as_object());
}
