//! Objects to answers: spliced bytes where possible, else a Table, metadata alone, or YAML.

use bytes::Bytes;
use rkube_api::resources::Resource;
use rkube_api::status::Status;
use rkube_api::table::{self, Include};
use rkube_store::{Record, Revision};
use serde_json::{Value, json};

use super::meta::now;
use super::{Answer, AnswerBody};
use crate::codec;
use crate::convert::is_same_form;
use crate::negotiate::{Encoding, Format, MetaVersion, Shape};
use crate::objects::{decode_bytes, stored_as};
use crate::request::Request;

/// Bytes of a list that are encoded at a time.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// Whether stored bytes can be answered without parsing them.
fn is_spliced(request: &Request) -> bool {
    request.format == Format::JSON
        && !request.options.pretty
        && is_same_form(stored_as(request.resource), request.resource)
}

/// 406 where an answer can only be the object itself.
pub(crate) fn plain_only(request: &Request) -> Result<(), Status> {
    if request.format.shape == Shape::Object {
        return Ok(());
    }
    Err(Status::not_acceptable(&crate::negotiate::MEDIA_TYPES))
}

/// Text of a value as the format asks.
pub(crate) fn encode(value: &Value, format: Format, pretty: bool) -> Result<Bytes, Status> {
    let failed = |e: &dyn std::fmt::Display| Status::internal(&format!("encode an answer: {e}"));
    match format.encoding {
        Encoding::Json if pretty => serde_json::to_vec_pretty(value)
            .map(Bytes::from)
            .map_err(|e| failed(&e)),
        Encoding::Json => serde_json::to_vec(value)
            .map(Bytes::from)
            .map_err(|e| failed(&e)),
        Encoding::Yaml => serde_saphyr::to_string(value)
            .map(Bytes::from)
            .map_err(|e| failed(&e)),
    }
}

fn whole(request: &Request, code: u16, body: Bytes) -> Answer {
    Answer {
        code,
        content_type: request.format.content_type(),
        body: AnswerBody::Whole(body),
    }
}

/// A value that is no stored object, such as a `Status` or a `Scale`.
pub(crate) fn value(request: &Request, code: u16, value: &Value) -> Result<Answer, Status> {
    let body = encode(value, request.format, request.options.pretty)?;
    Ok(whole(request, code, body))
}

/// One stored object.
pub(crate) fn one(
    request: &Request,
    code: u16,
    stored: &[u8],
    revision: Revision,
) -> Result<Answer, Status> {
    if let Shape::PartialList(_) = request.format.shape {
        return Err(other_form(request, "PartialObjectMetadataList", false));
    }
    if is_spliced(request) {
        let mut out = Vec::with_capacity(stored.len() + 64);
        codec::write_object(&mut out, stored, revision, &request.resource.gvk);
        return Ok(whole(request, code, out.into()));
    }
    let object = decode_bytes(request.resource, stored, revision)?;
    value(request, code, &shaped(request, object))
}

/// 406 for the form of a list where there is none, and the other way round.
fn other_form(request: &Request, form: &str, list: bool) -> Status {
    let gvk = &request.resource.gvk;
    let package = match gvk.group.split('.').next() {
        None | Some("" | "events") => "core",
        Some(package) => package,
    };
    let (is, end) = if list { ("is", "List") } else { ("is not", "") };
    Status::not_that_form(format!(
        "you requested {form}, but the requested object {is} a list (*{package}.{}{end})",
        gvk.kind
    ))
}

fn include(request: &Request) -> Include {
    request.options.include.unwrap_or(Include::Metadata)
}

/// A Table says its own version.
fn versioned(mut table: Value, version: MetaVersion) -> Value {
    table["apiVersion"] = version.api_version().into();
    let rows = table.get_mut("rows").and_then(Value::as_array_mut);
    for object in rows
        .into_iter()
        .flatten()
        .filter_map(|row| row.get_mut("object"))
    {
        if object["kind"] == "PartialObjectMetadata" {
            object["apiVersion"] = version.api_version().into();
        }
    }
    table
}

fn partial(object: &Value, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": version.api_version(),
        "metadata": object["metadata"],
    })
}

/// An object in the shape asked for.
fn shaped(request: &Request, object: Value) -> Value {
    let gvk = &request.resource.gvk;
    match request.format.shape {
        Shape::Object => object,
        Shape::Partial(version) | Shape::PartialList(version) => partial(&object, version),
        Shape::Table(version) => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let table = table::table(
                gvk.group,
                gvk.kind,
                &[&object],
                metadata,
                include(request),
                now(),
            );
            versioned(table, version)
        }
    }
}

/// The object of a watch event in the shape asked for. Only the first Table of a watch has the
/// definitions of its columns.
pub(crate) fn event_object(
    resource: &'static Resource,
    format: Format,
    include: Include,
    object: Value,
    first: bool,
) -> Value {
    match format.shape {
        Shape::Object => object,
        Shape::Partial(version) | Shape::PartialList(version) => partial(&object, version),
        Shape::Table(version) => {
            let gvk = &resource.gvk;
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let mut table = table::table(gvk.group, gvk.kind, &[&object], metadata, include, now());
            if !first {
                table["columnDefinitions"] = Value::Null;
            }
            versioned(table, version)
        }
    }
}

/// What a list says about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListMeta {
    pub(crate) revision: Revision,
    pub(crate) continue_token: String,
    pub(crate) remaining: Option<u64>,
}

impl ListMeta {
    fn to_value(&self) -> Value {
        let mut value = json!({"resourceVersion": self.revision.to_string()});
        if !self.continue_token.is_empty() {
            value["continue"] = self.continue_token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            value["remainingItemCount"] = remaining.into();
        }
        value
    }
}

/// A list of stored objects.
pub(crate) fn list(
    request: &Request,
    records: Vec<Record>,
    list_meta: &ListMeta,
) -> Result<Answer, Status> {
    let gvk = &request.resource.gvk;
    if is_spliced(request) {
        let head = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            gvk.kind,
            gvk.api_version(),
            list_meta.to_value()
        );
        return Ok(spliced(request, head, records));
    }
    let objects = records
        .iter()
        .map(|r| decode_bytes(request.resource, &r.value, r.revision))
        .collect::<Result<Vec<Value>, Status>>()?;
    let metadata = list_meta.to_value();
    let answer = match request.format.shape {
        Shape::Object => {
            let items: Vec<Value> = objects.into_iter().map(without_type).collect();
            json!({
                "kind": format!("{}List", gvk.kind), "apiVersion": gvk.api_version(),
                "metadata": metadata, "items": items,
            })
        }
        Shape::Partial(_) => return Err(other_form(request, "PartialObjectMetadata", true)),
        Shape::PartialList(version) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(),
            "metadata": metadata,
            "items": objects.iter().map(|o| partial(o, version)).collect::<Vec<_>>(),
        }),
        Shape::Table(version) => {
            let objects: Vec<&Value> = objects.iter().collect();
            let include = include(request);
            let table = table::table(gvk.group, gvk.kind, &objects, metadata, include, now());
            versioned(table, version)
        }
    };
    value(request, 200, &answer)
}

/// Items of a list carry no type of their own.
fn without_type(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

fn spliced(request: &Request, head: String, records: Vec<Record>) -> Answer {
    let mut chunks = ListChunks {
        records: records.into_iter(),
        buffer: head.into_bytes(),
        first: true,
        done: false,
    };
    let first = chunks.next().unwrap_or_default();
    let body = if chunks.done {
        AnswerBody::Whole(first)
    } else {
        AnswerBody::Chunks(Box::new(std::iter::once(first).chain(chunks)))
    };
    Answer {
        code: 200,
        content_type: request.format.content_type(),
        body,
    }
}

/// A list as pieces of about [`CHUNK_BYTES`].
struct ListChunks {
    records: std::vec::IntoIter<Record>,
    buffer: Vec<u8>,
    first: bool,
    done: bool,
}

impl Iterator for ListChunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        while self.buffer.len() < CHUNK_BYTES {
            let Some(record) = self.records.next() else {
                self.buffer.extend_from_slice(b"]}");
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.buffer.push(b',');
            }
            codec::write_item(&mut self.buffer, &record.value, record.revision);
        }
        Some(std::mem::take(&mut self.buffer).into())
    }
}
