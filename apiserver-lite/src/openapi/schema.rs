//! Types as JSON schemas.

use rkube_api::types::{self, Field, ListKind, Merge, Shape, Type};
use serde_json::{Map, Value, json};

use super::Used;
use super::describe::Descriptions;

/// The two forms of schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";

impl Dialect {
    pub(super) fn reference(self, name: &str) -> Value {
        let place = match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{place}{name}")})
    }

    /// A reference to a type; its full name.
    pub(super) fn of(self, ty: &'static Type) -> Value {
        self.reference(&full_name(ty))
    }
}

/// The name in documents.
pub(super) fn full_name(ty: &'static Type) -> String {
    format!("io.k8s.{}", ty.name)
}

/// The schemas of all types that are used, and of those that they use.
pub(super) fn all(used: Used, dialect: Dialect) -> Value {
    let mut open: Vec<&'static str> = used.0.iter().copied().collect();
    let mut done = used.0;
    let described = Descriptions::unpack();
    let mut schemas = scalars(dialect);
    while let Some(name) = open.pop() {
        let Some(ty) = types::by_name(name) else {
            continue;
        };
        for field in ty.fields() {
            each_struct(&field.shape, &mut |inner| {
                if done.insert(inner.name) {
                    open.push(inner.name);
                }
            });
        }
        schemas.insert(full_name(ty), schema(ty, dialect, &described));
    }
    Value::Object(schemas)
}

fn each_struct(shape: &Shape, found: &mut impl FnMut(&'static Type)) {
    match shape {
        Shape::Struct(ty) => found(ty),
        Shape::List(inner) | Shape::Map(inner) => each_struct(inner, found),
        Shape::OneOf(shapes) => shapes.iter().for_each(|s| each_struct(s, found)),
        _ => {}
    }
}

/// Types that are written as scalars and have names.
fn scalars(dialect: Dialect) -> Map<String, Value> {
    let mut map = Map::new();
    let both = json!([{"type": "integer"}, {"type": "string"}]);
    let (quantity, int_or_string) = match dialect {
        Dialect::V2 => (
            json!({"type": "string"}),
            json!({"type": "string", "format": "int-or-string"}),
        ),
        Dialect::V3 => (
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            json!({"oneOf": both, "format": "int-or-string"}),
        ),
    };
    map.insert(QUANTITY.into(), quantity);
    map.insert(INT_OR_STRING.into(), int_or_string);
    for name in [TIME, MICRO_TIME] {
        map.insert(
            name.into(),
            json!({"type": "string", "format": "date-time"}),
        );
    }
    map
}

fn schema(ty: &'static Type, dialect: Dialect, described: &Descriptions) -> Value {
    let mut map = Map::new();
    if let Some(text) = described.of(ty.name, "") {
        map.insert("description".into(), text.into());
    }
    map.insert("type".into(), "object".into());
    let properties: Map<String, Value> = ty
        .fields()
        .iter()
        .map(|f| {
            let mut value = property(f, dialect);
            if let (Some(map), Some(text)) = (value.as_object_mut(), described.of(ty.name, f.name))
            {
                map.insert("description".into(), text.into());
            }
            (f.name.to_owned(), value)
        })
        .collect();
    if !properties.is_empty() {
        map.insert("properties".into(), properties.into());
    }
    let required: Vec<&str> = ty
        .fields()
        .iter()
        .filter(|f| f.required)
        .map(|f| f.name)
        .collect();
    if !required.is_empty() {
        map.insert("required".into(), required.into());
    }
    if ty.atomic {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Some((group, version, kind)) = ty.gvk {
        let gvk = json!([{"group": group, "version": version, "kind": kind}]);
        map.insert("x-kubernetes-group-version-kind".into(), gvk);
    }
    Value::Object(map)
}

fn property(field: &'static Field, dialect: Dialect) -> Value {
    let mut value = shape(&field.shape, dialect);
    if dialect == Dialect::V3 && value.get("$ref").is_some() {
        // Siblings of a reference do not count in version 3.
        value = json!({"allOf": [value], "default": {}});
    }
    let Some(map) = value.as_object_mut() else {
        return value;
    };
    match &field.list {
        ListKind::Unset => {}
        ListKind::Atomic => drop(map.insert("x-kubernetes-list-type".into(), "atomic".into())),
        ListKind::Set => drop(map.insert("x-kubernetes-list-type".into(), "set".into())),
        ListKind::Map(keys) => {
            map.insert("x-kubernetes-list-type".into(), "map".into());
            map.insert("x-kubernetes-list-map-keys".into(), keys.clone().into());
        }
    }
    if field.atomic_map {
        map.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    let mut strategy = match field.merge {
        Some(Merge::ByKey(key)) => {
            map.insert("x-kubernetes-patch-merge-key".into(), key.into());
            "merge".to_owned()
        }
        Some(Merge::Plain) => "merge".to_owned(),
        Some(Merge::Replace) => "replace".to_owned(),
        None => String::new(),
    };
    if field.retain_keys {
        if !strategy.is_empty() {
            strategy.push(',');
        }
        strategy.push_str("retainKeys");
    }
    if !strategy.is_empty() {
        map.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    }
    if dialect == Dialect::V3
        && let (Some(values), Shape::String) = (field.allowed(), &field.shape)
    {
        let values: Vec<&str> = values.into_iter().filter(|v| !v.is_empty()).collect();
        map.insert("enum".into(), values.into());
    }
    value
}

fn shape(shape: &'static Shape, dialect: Dialect) -> Value {
    match shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Quantity => dialect.reference(QUANTITY),
        Shape::IntOrString => dialect.reference(INT_OR_STRING),
        Shape::Time => dialect.reference(TIME),
        Shape::MicroTime => dialect.reference(MICRO_TIME),
        // Anything: a schema without a type. Unions occur in JSON schemas only.
        Shape::Any | Shape::OneOf(_) => json!({"x-kubernetes-preserve-unknown-fields": true}),
        Shape::Struct(ty) => dialect.of(ty),
        Shape::List(inner) => json!({"type": "array", "items": item(inner, dialect)}),
        Shape::Map(inner) => {
            json!({"type": "object", "additionalProperties": item(inner, dialect)})
        }
    }
}

fn item(inner: &'static Shape, dialect: Dialect) -> Value {
    let value = shape(inner, dialect);
    if dialect == Dialect::V3 && value.get("$ref").is_some() {
        return json!({"allOf": [value], "default": {}});
    }
    value
}
