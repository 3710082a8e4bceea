//! Why a value does not fit its field, in the words of upstream's decoder
//! (`sigs.k8s.io/json`, and the readers of times, quantities and bytes).

use rkube_api::field::{ErrorKind, FieldError, Segment};
use rkube_api::strict;
use rkube_api::syntax;
use rkube_api::types::{Shape, Type};
use serde_json::Value;

/// The sentence for an error of the type check; that of the check itself where upstream has none.
pub(super) fn why(object: &Value, ty: &'static Type, error: &FieldError) -> String {
    let place = Place::find(object, ty, error);
    place
        .and_then(|place| place.why())
        .unwrap_or_else(|| error.to_string())
}

/// What upstream says of a patched object that does not fit its type: it makes the object of the
/// patched map itself (`runtime.DefaultUnstructuredConverter`), in words of its own. `None` if it fits.
pub(super) fn converted(object: &Value, ty: &'static Type) -> Option<String> {
    let errors = strict::check(object, ty);
    let error = errors
        .iter()
        .find(|e| matches!(e.kind, ErrorKind::TypeInvalid | ErrorKind::Invalid))?;
    let place = Place::find(object, ty, error)?;
    let given = match place.value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    Some(match place.shape {
        Shape::List(_) => format!("cannot restore slice from {given}"),
        Shape::Map(_) => format!("cannot restore map from {given}"),
        Shape::Struct(_) => format!("cannot restore struct from: {given}"),
        Shape::String | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double => {
            format!("unrecognized type: {}", go_type(place.shape))
        }
        _ => place.why()?,
    })
}

/// Where a value stands.
struct Place<'a> {
    value: &'a Value,
    shape: &'static Shape,
    /// The struct whose field it is in.
    owner: &'static Type,
    /// The names of all fields from the root.
    names: Vec<&'static str>,
}

impl<'a> Place<'a> {
    fn find(object: &'a Value, ty: &'static Type, error: &FieldError) -> Option<Self> {
        let mut value = object;
        let mut owner = ty;
        let mut names = Vec::new();
        let mut shape: Option<&'static Shape> = None;
        for segment in &error.path.0 {
            (value, shape) = match (segment, shape) {
                (Segment::Field(name), None | Some(Shape::Struct(_))) => {
                    if let Some(Shape::Struct(inner)) = shape {
                        owner = inner;
                    }
                    let field = owner.field(name)?;
                    names.push(field.name);
                    (value.get(&**name)?, Some(&field.shape))
                }
                (Segment::Index(at), Some(Shape::List(inner))) => (value.get(at)?, Some(&**inner)),
                (Segment::Key(key), Some(Shape::Map(inner))) => {
                    (value.get(&**key)?, Some(&**inner))
                }
                _ => return None,
            };
        }
        Some(Self {
            value,
            shape: shape?,
            owner,
            names,
        })
    }

    fn why(&self) -> Option<String> {
        match (self.shape, self.value) {
            (Shape::Bytes, Value::String(text)) => {
                let at = syntax::base64_fault(text)?;
                Some(format!("illegal base64 data at input byte {at}"))
            }
            (Shape::Time, Value::String(text)) => time_fault(text, false),
            (Shape::MicroTime, Value::String(text)) => time_fault(text, true),
            (Shape::Quantity, Value::String(_)) => Some(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                    .to_owned(),
            ),
            (Shape::Time | Shape::MicroTime, value) => Some(format!(
                "json: cannot unmarshal {} into Go value of type string",
                said(value, false)?
            )),
            (Shape::Quantity | Shape::IntOrString | Shape::Any | Shape::OneOf(_), _) => None,
            (shape, value) => {
                let number = matches!(shape, Shape::Int32 | Shape::Int64);
                Some(format!(
                    "json: cannot unmarshal {} into Go struct field {}.{} of type {}",
                    said(value, number)?,
                    short(self.owner),
                    self.names.join("."),
                    go_type(shape)
                ))
            }
        }
    }
}

/// What stands there: the kind of the value, and the number itself where it is only too large.
fn said(value: &Value, whole: bool) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if whole => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    })
}

fn short(ty: &Type) -> &'static str {
    ty.name.rsplit('.').next().unwrap_or(ty.name)
}

/// The type as Go writes it: `[]v1.Container`.
fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::Time => "v1.Time".to_owned(),
        Shape::MicroTime => "v1.MicroTime".to_owned(),
        Shape::Any | Shape::OneOf(_) => "interface {}".to_owned(),
        Shape::String => "string".to_owned(),
        Shape::Struct(ty) => {
            let mut parts = ty.name.rsplit('.');
            let (name, package) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            format!("{package}.{name}")
        }
        Shape::List(inner) => format!("[]{}", go_type(inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(inner)),
    }
}

/// What Go's `time.Parse` says of a text that is no time of RFC 3339; `None` if it is one.
fn time_fault(text: &str, micro: bool) -> Option<String> {
    let fraction = if micro { ".000000" } else { "" };
    let layout = format!("2006-01-02T15:04:05{fraction}Z07:00");
    let elements = [
        "2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05", fraction,
    ];
    let fault = |rest: &str, element: &str| {
        Some(format!(
            "parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"
        ))
    };
    let mut rest = text;
    for element in elements {
        let fits = rest.len() >= element.len()
            && rest.is_char_boundary(element.len())
            && rest.bytes().zip(element.bytes()).all(|(r, e)| match e {
                b'0'..=b'9' => r.is_ascii_digit(),
                other => r == other,
            });
        if !fits {
            return fault(rest, element);
        }
        rest = &rest[element.len()..];
    }
    if !micro && let Some(digits) = rest.strip_prefix('.') {
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        if end > 0 {
            rest = &digits[end..];
        }
    }
    let zone = rest == "Z"
        || rest.len() == 6
            && rest.bytes().zip(*b"+00:00").all(|(r, e)| match e {
                b'+' => matches!(r, b'+' | b'-'),
                b'0' => r.is_ascii_digit(),
                other => r == other,
            });
    if !zone {
        return fault(rest, "Z07:00");
    }
    let number = |from: usize, to: usize| text.get(from..to).and_then(|t| t.parse::<u32>().ok());
    let parts = [
        (number(5, 7), 1..=12, "month"),
        (number(11, 13), 0..=23, "hour"),
        (number(14, 16), 0..=59, "minute"),
        (number(17, 19), 0..=59, "second"),
    ];
    let out = |part: &str| Some(format!("parsing time {text:?}: {part} out of range"));
    for (number, range, name) in parts {
        if !number.is_some_and(|n| range.contains(&n)) {
            return out(name);
        }
    }
    match rkube_api::time::is_rfc3339(text) {
        true => None,
        false => out("day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_api::types;
    use serde_json::json;

    fn told(kind: &str, object: Value) -> String {
        let ty = types::by_gvk("", "v1", kind)
            .or_else(|| types::by_gvk("coordination.k8s.io", "v1", kind))
            .unwrap();
        let errors = strict::check(&object, ty);
        why(&object, ty, &errors[0])
    }

    #[test]
    fn what_upstreams_converter_says() {
        let ty = types::by_gvk("apps", "v1", "Deployment").unwrap();
        for (object, words) in [
            (
                json!({"spec": {"replicas": "3"}}),
                "unrecognized type: int32",
            ),
            (json!({"spec": []}), "cannot restore struct from: slice"),
            (
                json!({"metadata": {"finalizers": "x"}}),
                "cannot restore slice from string",
            ),
            (
                json!({"metadata": {"labels": 5}}),
                "cannot restore map from int64",
            ),
        ] {
            assert_eq!(converted(&object, ty).as_deref(), Some(words));
        }
        assert_eq!(converted(&json!({"unknown": 1}), ty), None);
    }

    #[test]
    fn what_upstreams_decoder_says() {
        for (kind, object, words) in [
            (
                "ConfigMap",
                json!({"data": {"k": 1}}),
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "ConfigMap",
                json!({"data": ["a"]}),
                "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
            ),
            (
                "ConfigMap",
                json!({"metadata": "x"}),
                "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta",
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"env": [{"name": true}]}]}}),
                "json: cannot unmarshal bool into Go struct field EnvVar.spec.containers.env.name of type string",
            ),
            (
                "Pod",
                json!({"spec": {"containers": "x"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "Pod",
                json!({"spec": {"priority": 5_000_000_000_i64}}),
                "json: cannot unmarshal number 5000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                "ConfigMap",
                json!({"binaryData": {"b": "no base 64!"}}),
                "illegal base64 data at input byte 2",
            ),
            (
                "Event",
                json!({"firstTimestamp": "x"}),
                "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"",
            ),
            (
                "Event",
                json!({"firstTimestamp": "2026-02-30T00:00:00Z"}),
                "parsing time \"2026-02-30T00:00:00Z\": day out of range",
            ),
            (
                "Lease",
                json!({"spec": {"renewTime": "2026-01-02T03:04:05Z"}}),
                "parsing time \"2026-01-02T03:04:05Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\"",
            ),
            (
                "Pod",
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(told(kind, object), words);
        }
    }
}
