//! The type tables: every type of the Kubernetes API, its fields and their
//! list, map and patch rules, as data.
//!
//! The text of `data/types.txt` is embedded and borrowed. The first use scans
//! its 3,900 lines for type names only; a type's fields are parsed on first
//! use of that type. Grammar, one type or field a line:
//!
//! ```text
//! TYPE [gvk=GROUP/VERSION/KIND] [map=atomic]
//!  FIELD SHAPE [!] [list=atomic|set|map:KEY,..] [map=atomic] [merge[=KEY]|replace] [retain] [enum=A|B]
//! ```
//! `!` is required. A SHAPE is a scalar (`string bool int32 int64 double bytes
//! quantity intstr time microtime any`), `[]SHAPE`, `{}SHAPE`, a union of the
//! schema type, a TYPE, or `.TYPE` in the package of the enclosing type.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::encoding::{self, Encoding};

/// A struct type of the API.
#[derive(Debug)]
pub struct Type {
    /// The name in the OpenAPI description without the leading `io.k8s.`,
    /// such as `api.core.v1.Pod`.
    pub name: &'static str,
    /// Group, version and kind, for types that are objects of their own.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Values are replaced whole by server-side apply.
    pub atomic: bool,
    body: &'static str,
    fields: OnceLock<Box<[Field]>>,
    encodings: OnceLock<Box<[Option<&'static Encoding>]>>,
}

/// A field of a [`Type`].
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: &'static str,
    /// What values look like.
    pub shape: Shape,
    /// Listed as required in the API description.
    pub required: bool,
    /// How server-side apply merges a list.
    pub list: ListKind,
    /// Server-side apply replaces the map or struct whole.
    pub atomic_map: bool,
    /// How a strategic merge patch merges: absent means replace.
    pub merge: Option<Merge>,
    /// A strategic merge patch drops the siblings that `$retainKeys` omits.
    pub retain_keys: bool,
    /// The closed set of string values, where there is one.
    pub values: Option<&'static str>,
}

impl Field {
    /// The closed set of values, if the field has one.
    #[must_use]
    pub fn allowed(&self) -> Option<Vec<&'static str>> {
        self.values.map(|v| v.split('|').collect())
    }

    /// Whether a value is in the closed set, if the field has one.
    #[must_use]
    pub fn allows(&self, value: &str) -> bool {
        self.values.is_none_or(|v| v.split('|').any(|v| v == value))
    }
}

/// `x-kubernetes-patch-strategy: merge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Objects matched by the value of this field.
    ByKey(&'static str),
    /// A set of scalars, or a map.
    Plain,
    /// A struct that is replaced whole.
    Replace,
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// Not given, which means atomic.
    Unset,
    /// Replaced whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Objects identified by the values of these fields.
    Map(Vec<&'static str>),
}

/// What values of a field look like.
#[derive(Debug, Clone)]
pub enum Shape {
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A number.
    Double,
    /// Bytes in base64.
    Bytes,
    /// A quantity: a string or a number.
    Quantity,
    /// An integer of 32 bits or a string.
    IntOrString,
    /// RFC 3339, seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Anything.
    Any,
    /// One of several shapes; only JSON schemas have such fields.
    OneOf(Vec<Shape>),
    /// A struct.
    Struct(&'static Type),
    /// A list.
    List(Box<Shape>),
    /// A map with string keys.
    Map(Box<Shape>),
}

const TEXT: &str = include_str!("../data/types.txt");

struct Index {
    by_name: HashMap<&'static str, &'static Type>,
    by_gvk: HashMap<(&'static str, &'static str, &'static str), &'static Type>,
}

fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut types = Vec::with_capacity(800);
        let mut rest = TEXT;
        while let Some((line, tail)) = rest.split_once('\n') {
            if line.starts_with('#') {
                rest = tail;
                continue;
            }
            // The body runs to the next line that does not start with a space.
            let mut end = 0;
            while tail[end..].starts_with(' ') {
                end += tail[end..].find('\n').map_or(tail.len() - end, |n| n + 1);
            }
            types.push(parse_type(line, &tail[..end]));
            rest = &tail[end..];
        }
        let types: &'static [Type] = Vec::leak(types);
        Index {
            by_name: types.iter().map(|t| (t.name, t)).collect(),
            by_gvk: types.iter().filter_map(|t| Some((t.gvk?, t))).collect(),
        }
    })
}

fn parse_type(line: &'static str, body: &'static str) -> Type {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let mut gvk = None;
    let mut atomic = false;
    for word in words {
        if let Some(value) = word.strip_prefix("gvk=") {
            let mut parts = value.splitn(3, '/');
            gvk = parts
                .next()
                .zip(parts.next())
                .zip(parts.next())
                .map(|((g, v), k)| (g, v, k));
        } else if word == "map=atomic" {
            atomic = true;
        }
    }
    Type {
        name,
        gvk,
        atomic,
        body,
        fields: OnceLock::new(),
        encodings: OnceLock::new(),
    }
}

/// The type with an OpenAPI name, with or without the leading `io.k8s.`.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Type> {
    index()
        .by_name
        .get(name.strip_prefix("io.k8s.").unwrap_or(name))
        .copied()
}

/// The type of a group ("" is core), version and kind.
#[must_use]
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    index().by_gvk.get(&(group, version, kind)).copied()
}

/// The type of an `apiVersion` and `kind`.
#[must_use]
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = split_api_version(api_version);
    by_gvk(group, version, kind)
}

/// The table's text, for a fingerprint of what is described.
#[must_use]
pub const fn table() -> &'static str {
    TEXT
}

/// All types, in no order.
pub fn all() -> impl Iterator<Item = &'static Type> {
    index().by_name.values().copied()
}

/// `apps/v1` as (`apps`, `v1`); `v1` as ("", `v1`).
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.rsplit_once('/').unwrap_or(("", api_version))
}

impl Type {
    /// The fields in the order of their names.
    #[must_use]
    pub fn fields(&'static self) -> &'static [Field] {
        self.fields.get_or_init(|| {
            let package = self
                .name
                .rsplit_once('.')
                .map_or("", |(package, _)| package);
            self.body
                .lines()
                .map(|line| parse_field(line, package))
                .collect()
        })
    }

    /// The field with a JSON name.
    #[must_use]
    pub fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields().get(self.position(name)?)
    }

    /// Where the field with a JSON name stands in [`Type::fields`].
    #[must_use]
    pub fn position(&'static self, name: &str) -> Option<usize> {
        let fields = self.fields();
        fields.binary_search_by(|f| f.name.cmp(name)).ok()
    }

    /// How upstream's structs write the fields, in the order of
    /// [`Type::fields`]; `None` for fields that its table lacks.
    #[must_use]
    pub fn encodings(&'static self) -> &'static [Option<&'static Encoding>] {
        self.encodings.get_or_init(|| {
            let mut encodings = vec![None; self.fields().len()];
            encoding::each(self.name, &mut |encoding| {
                // A struct's own field comes before one that is embedded.
                let place = self.position(encoding.name);
                if let Some(place) = place.and_then(|at| encodings.get_mut(at)) {
                    place.get_or_insert(encoding);
                }
            });
            encodings.into_boxed_slice()
        })
    }
}

fn parse_field(line: &'static str, package: &str) -> Field {
    let mut words = line.trim_start().split(' ');
    let mut field = Field {
        name: words.next().unwrap_or_default(),
        shape: parse_shape(words.next().unwrap_or("any"), package),
        required: false,
        list: ListKind::Unset,
        atomic_map: false,
        merge: None,
        retain_keys: false,
        values: None,
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("!", _) => field.required = true,
            ("list", "atomic") => field.list = ListKind::Atomic,
            ("list", "set") => field.list = ListKind::Set,
            ("list", keys) => {
                let keys = keys.strip_prefix("map:").unwrap_or(keys);
                field.list = ListKind::Map(keys.split(',').collect());
            }
            ("map", _) => field.atomic_map = true,
            ("merge", "") => field.merge = Some(Merge::Plain),
            ("merge", key) => field.merge = Some(Merge::ByKey(key)),
            ("replace", _) => field.merge = Some(Merge::Replace),
            ("retain", _) => field.retain_keys = true,
            ("enum", values) => field.values = Some(values),
            _ => {}
        }
    }
    field
}

fn parse_shape(text: &str, package: &str) -> Shape {
    if let Some(inner) = text.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(inner, package)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(inner, package)));
    }
    if text.contains('|') {
        return Shape::OneOf(text.split('|').map(|t| parse_shape(t, package)).collect());
    }
    match text {
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "quantity" => Shape::Quantity,
        "intstr" => Shape::IntOrString,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "any" => Shape::Any,
        "schema" => named(&format!("{package}.JSONSchemaProps")),
        name => match name.strip_prefix('.') {
            Some(local) => named(&format!("{package}.{local}")),
            None => named(name),
        },
    }
}

/// A name that the table lacks would be a defect of the table; a test walks
/// all of it, so the fallback is never taken.
fn named(name: &str) -> Shape {
    by_name(name).map_or(Shape::Any, Shape::Struct)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struct_of(shape: &Shape) -> Option<&'static Type> {
        match shape {
            Shape::Struct(t) => Some(t),
            Shape::List(inner) | Shape::Map(inner) => struct_of(inner),
            _ => None,
        }
    }

    #[test]
    fn every_reference_of_the_table_resolves() {
        let mut fields = 0;
        for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
            if let Some(rest) = line.strip_prefix(' ') {
                fields += 1;
                let shape = rest.split(' ').nth(1).unwrap();
                let base = shape.trim_start_matches(['[', ']', '{', '}']);
                assert!(
                    !base.contains('.') || base.starts_with('.') || by_name(base).is_some(),
                    "{line}"
                );
            }
        }
        let parsed: usize = all().map(|t| t.fields().len()).sum();
        assert_eq!(fields, parsed);
        assert!(parsed > 3000, "{parsed}");
        for t in all() {
            for field in t.fields() {
                let text = t
                    .body
                    .lines()
                    .find(|l| l[1..].starts_with(&format!("{} ", field.name)));
                let is_ref = text.unwrap().split(' ').nth(2).unwrap().contains('.');
                assert_eq!(
                    is_ref,
                    struct_of(&field.shape).is_some(),
                    "{}.{}",
                    t.name,
                    field.name
                );
                if let Some(Merge::ByKey(key)) = field.merge {
                    assert!(
                        struct_of(&field.shape).unwrap().field(key).is_some(),
                        "{}",
                        t.name
                    );
                }
                if let ListKind::Map(keys) = &field.list {
                    let element = struct_of(&field.shape).unwrap();
                    assert!(
                        keys.iter().all(|k| element.field(k).is_some()),
                        "{}",
                        t.name
                    );
                }
            }
        }
    }

    #[test]
    fn known_rules_of_known_types() {
        let spec = by_name("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.required);
        assert_eq!(containers.merge, Some(Merge::ByKey("name")));
        assert_eq!(containers.list, ListKind::Map(vec!["name"]));
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.retain_keys && volumes.merge == Some(Merge::ByKey("name")));
        let ports = by_name("api.core.v1.Container")
            .unwrap()
            .field("ports")
            .unwrap();
        assert_eq!(ports.list, ListKind::Map(vec!["containerPort", "protocol"]));
        assert_eq!(
            by_kind("apps/v1", "Deployment").unwrap().name,
            "api.apps.v1.Deployment"
        );
        assert!(by_kind("apps/v1", "Pod").is_none());
    }
}
