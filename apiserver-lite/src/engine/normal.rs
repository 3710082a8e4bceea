//! Bringing a decoded body into the form in which upstream's types would write it again.
//!
//! Upstream decodes into structs and encodes from them. What that does to a document is done
//! here by the tables: unknown fields go, `null` goes, empty optional lists and maps and zero
//! values that are left out go, quantities and times take their canonical form ([`object`]).
//! Before an object is stored, what a struct always writes is added ([`finish`]): after
//! defaulting, whose rules may look for what is absent.

use rkube_api::encoding::Encoding;
use rkube_api::quantity::Quantity;
use rkube_api::time::Time;
use rkube_api::types::{Field, Shape, Type};
use serde_json::{Map, Value};

/// Normalises an object of a type.
pub(crate) fn object(value: &mut Value, ty: &'static Type) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    map.retain(|name, value| {
        let Some((field, encoding)) = field(ty, name) else {
            return false;
        };
        let left_out = |e: &Encoding| e.omit_empty && !e.pointer && is_zero(value);
        if value.is_null()
            || (!field.required && is_empty(value, &field.shape))
            || encoding.is_some_and(left_out)
        {
            return false;
        }
        shaped(value, &field.shape);
        true
    });
}

/// A field of a type and how it is written.
fn field(ty: &'static Type, name: &str) -> Option<(&'static Field, Option<&'static Encoding>)> {
    let at = ty.position(name)?;
    Some((ty.fields().get(at)?, *ty.encodings().get(at)?))
}

/// Normalises an object, and adds what its structs write even when it is zero: numbers and
/// booleans without `omitempty`, and structs that are no pointers.
pub(crate) fn finish(value: &mut Value, ty: &'static Type) {
    object(value, ty);
    fill(value, ty, 0);
}

/// Deepest nesting filled; types that contain themselves do it by pointers.
const FILL_DEPTH_MAX: usize = 64;

fn fill(value: &mut Value, ty: &'static Type, depth: usize) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    if depth > FILL_DEPTH_MAX {
        return;
    }
    for (field, encoding) in ty.fields().iter().zip(ty.encodings()) {
        if let Some(zero) = encoding.and_then(|e| written_zero(e, &field.shape))
            && !map.contains_key(field.name)
        {
            map.insert(field.name.into(), zero);
        }
    }
    for (name, value) in map.iter_mut() {
        if let Some(field) = ty.field(name) {
            fill_in(value, &field.shape, depth);
        }
    }
}

fn fill_in(value: &mut Value, shape: &'static Shape, depth: usize) {
    match (shape, &mut *value) {
        (Shape::Struct(ty), _) => fill(value, ty, depth + 1),
        (Shape::List(inner), Value::Array(items)) => {
            items
                .iter_mut()
                .for_each(|item| fill_in(item, inner, depth + 1));
        }
        (Shape::Map(inner), Value::Object(map)) => {
            map.iter_mut()
                .for_each(|(_, entry)| fill_in(entry, inner, depth + 1));
        }
        _ => {}
    }
}

/// What upstream writes for a field that nobody set; `None`: nothing, or `null`.
fn written_zero(encoding: &Encoding, shape: &Shape) -> Option<Value> {
    if encoding.pointer {
        return None;
    }
    match shape {
        // `omitempty` has no effect on structs.
        Shape::Struct(_) if !encoding.omit_zero => Some(Value::Object(Map::new())),
        Shape::Int32 | Shape::Int64 if !encoding.omit_empty => Some(0.into()),
        Shape::Bool if !encoding.omit_empty => Some(false.into()),
        Shape::String if !encoding.omit_empty => Some("".into()),
        _ => None,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_empty(value: &Value, shape: &Shape) -> bool {
    match (shape, value) {
        (Shape::List(_), Value::Array(items)) => items.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

fn shaped(value: &mut Value, shape: &'static Shape) {
    match (shape, &mut *value) {
        (Shape::Struct(ty), _) => object(value, ty),
        (Shape::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| shaped(item, inner));
        }
        (Shape::Map(inner), Value::Object(map)) => {
            map.iter_mut().for_each(|(_, entry)| shaped(entry, inner));
        }
        (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = quantity.to_string().into();
            }
        }
        (Shape::Time, Value::String(text)) => {
            if let Some(time) = Time::parse(text) {
                *value = Time::from_seconds(time.seconds).to_rfc3339().into();
            }
        }
        (Shape::MicroTime, Value::String(text)) => {
            if let Some(time) = Time::parse(text) {
                *value = time.to_rfc3339_micro().into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_api::types::by_kind;
    use serde_json::json;

    #[test]
    fn as_upstream_s_structs_would_write_it() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "extra": 1,
            "metadata": {"name": "x", "labels": {}, "creationTimestamp": null, "deletionTimestamp": "2024-01-01T01:00:00.5+01:00"},
            "spec": {"nodeName": "", "tolerations": [], "containers": [
                {"name": "c", "command": [], "resources": {"limits": {"cpu": "1000m", "memory": 1024}}}],
                "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}});
        object(&mut pod, by_kind("v1", "Pod").unwrap());
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "x", "deletionTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1024"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}})
        );
        finish(&mut pod, by_kind("v1", "Pod").unwrap());
        assert_eq!(pod["status"], json!({}));
        let mut set = json!({"metadata": {"name": "s"}, "spec": {"replicas": 0, "minReadySeconds": 0,
            "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c"}]}}}});
        finish(&mut set, by_kind("apps/v1", "ReplicaSet").unwrap());
        assert_eq!(
            set,
            json!({"metadata": {"name": "s"}, "status": {"replicas": 0}, "spec": {"replicas": 0,
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}}}}),
            "zero of a pointer is a value, zero of a number is none"
        );
    }
}
