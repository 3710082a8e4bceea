//! `application/vnd.kubernetes.protobuf`: bodies that typed clients send.
//!
//! The envelope is four bytes `k8s\0` and a `runtime.Unknown` that names the
//! type; the object in it is read by the type table and the field numbers of
//! [`crate::encoding`]. Fields of unknown numbers are skipped, as protobuf has
//! it. Wire format: <https://protobuf.dev/programming-guides/encoding/>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use crate::encoding::{self, Encoding};
use crate::time::Time;
use crate::types::{self, Shape, Type};

/// What every body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// Deepest nesting of messages.
const DEPTH_MAX: usize = 100;
/// Most values in one body.
const NODES_MAX: usize = 1_000_000;

/// Why bytes are no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// Another envelope.
    #[error("the body does not begin with the protobuf prefix of Kubernetes")]
    Magic,
    /// The bytes end in a field, or a field is no field.
    #[error("byte {at}: {what}")]
    Wire {
        /// Where in the message.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A type that has no field numbers here.
    #[error("objects of kind {kind:?} in {api_version:?} cannot be read from protobuf")]
    Type {
        /// The envelope's `apiVersion`.
        api_version: String,
        /// The envelope's `kind`.
        kind: String,
    },
    /// A budget is used up.
    #[error("more than {limit} {what}")]
    Budget {
        /// The budget's size.
        limit: usize,
        /// What it counts.
        what: &'static str,
    },
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The value of a field on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn error<T>(&self, what: &'static str) -> Result<T, ProtoError> {
        Err(ProtoError::Wire { at: self.at, what })
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else {
                return self.error("ends in a number");
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.error("a number of more than 64 bits")
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtoError> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => self.error("ends in a field"),
        }
    }

    /// The next field: number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let Ok(number) = u32::try_from(tag >> 3) else {
            return self.error("a field number that is too large");
        };
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
            }
            2 => {
                let Ok(length) = usize::try_from(self.varint()?) else {
                    return self.error("a length that is too large");
                };
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32(bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
            }
            _ => return self.error("a wire type that is not used"),
        };
        Ok(Some((number, wire)))
    }
}

/// An object with its `apiVersion` and `kind`.
///
/// # Errors
/// Where the bytes are no such object.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtoError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut raw: &[u8] = &[];
    let mut cursor = Cursor::new(unknown);
    while let Some((number, wire)) = cursor.field()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut cursor = Cursor::new(meta);
                while let Some((number, wire)) = cursor.field()? {
                    match (number, wire) {
                        (1, Wire::Bytes(b)) => api_version = text(b)?,
                        (2, Wire::Bytes(b)) => kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    // Options of requests are registered in every group under the version of what they are for.
    let ty = types::by_kind(&api_version, &kind).or_else(|| {
        let everywhere = kind == "DeleteOptions" || api_version.starts_with("meta.k8s.io/");
        everywhere.then(|| types::by_kind("v1", &kind)).flatten()
    });
    let Some(ty) = ty.filter(|ty| encoding::of(ty.name).is_some()) else {
        return Err(ProtoError::Type { api_version, kind });
    };
    let mut map = Map::new();
    let mut reader = Reader { nodes: 0 };
    reader.message(raw, ty, ty.name, &mut map, 0)?;
    map.insert("apiVersion".into(), api_version.into());
    map.insert("kind".into(), kind.into());
    Ok(Value::Object(map))
}

/// Writes messages; the counterpart for documents that clients want in protobuf.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut n: u64) {
        while n > 0x7f {
            self.0.push(n.to_le_bytes()[0] | 0x80);
            n >>= 7;
        }
        self.0.push(n.to_le_bytes()[0]);
    }

    /// A number or boolean.
    pub fn int(&mut self, number: u32, n: u64) {
        self.varint(u64::from(number) << 3);
        self.varint(n);
    }

    /// Bytes.
    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.extend_from_slice(bytes);
    }

    /// A text.
    pub fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    /// A message, written by a function.
    pub fn message(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(number, &inner.0);
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn text(bytes: &[u8]) -> Result<String, ProtoError> {
    let what = "a text that is not UTF-8";
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtoError::Wire { at: 0, what })
}

struct Reader {
    nodes: usize,
}

impl Reader {
    fn message(
        &mut self,
        bytes: &[u8],
        ty: &'static Type,
        encoded_as: &str,
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtoError> {
        if depth > DEPTH_MAX {
            return Err(ProtoError::Budget {
                limit: DEPTH_MAX,
                what: "levels of nesting",
            });
        }
        let Some(encodings) = encoding::of(encoded_as) else {
            return Ok(());
        };
        let mut cursor = Cursor::new(bytes);
        while let Some((number, wire)) = cursor.field()? {
            self.count()?;
            if let (Some(embedded), Wire::Bytes(inner)) = (encodings.embedded(number), wire) {
                self.message(inner, ty, embedded, map, depth + 1)?;
                continue;
            }
            let Some(encoding) = encodings.by_number(number) else {
                continue;
            };
            if let Some(field) = ty.field(encoding.name) {
                self.field(wire, &field.shape, encoding, map, depth)?;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), ProtoError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(ProtoError::Budget {
                limit: NODES_MAX,
                what: "values",
            });
        }
        Ok(())
    }

    fn field(
        &mut self,
        wire: Wire<'_>,
        shape: &'static Shape,
        encoding: &Encoding,
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtoError> {
        match (shape, wire) {
            (Shape::List(inner), Wire::Bytes(bytes)) if encoding.wrapped => {
                let items = self.wrapped(bytes, inner, depth)?;
                map.insert(encoding.name.into(), items);
            }
            (Shape::List(inner), wire) => {
                let list = map
                    .entry(encoding.name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else {
                    return Ok(());
                };
                match (&**inner, wire) {
                    // Numbers may come packed.
                    (Shape::Int32 | Shape::Int64, Wire::Bytes(bytes)) => {
                        let mut cursor = Cursor::new(bytes);
                        while cursor.at < bytes.len() {
                            self.count()?;
                            list.push(cursor.varint()?.cast_signed().into());
                        }
                    }
                    (inner, wire) => list.push(self.value(wire, inner, depth)?),
                }
            }
            (Shape::Map(inner), Wire::Bytes(bytes)) => {
                let entries = map
                    .entry(encoding.name)
                    .or_insert_with(|| Value::Object(Map::new()));
                let (key, value) = self.entry(bytes, inner, depth)?;
                if let Value::Object(entries) = entries {
                    entries.insert(key, value);
                }
            }
            (shape, wire) => {
                let value = self.value(wire, shape, depth)?;
                if !(is_zero(&value) && !encoding.pointer && encoding.omit_empty) {
                    map.insert(encoding.name.into(), value);
                }
            }
        }
        Ok(())
    }

    /// A message with the items of a list as field 1.
    fn wrapped(
        &mut self,
        bytes: &[u8],
        inner: &'static Shape,
        depth: usize,
    ) -> Result<Value, ProtoError> {
        let mut items = Vec::new();
        let mut cursor = Cursor::new(bytes);
        while let Some((number, wire)) = cursor.field()? {
            self.count()?;
            if number == 1 {
                items.push(self.value(wire, inner, depth + 1)?);
            }
        }
        Ok(items.into())
    }

    /// An entry of a map: a message with key and value.
    fn entry(
        &mut self,
        bytes: &[u8],
        inner: &'static Shape,
        depth: usize,
    ) -> Result<(String, Value), ProtoError> {
        let mut key = String::new();
        let mut value = zero(inner);
        let mut cursor = Cursor::new(bytes);
        while let Some((number, wire)) = cursor.field()? {
            self.count()?;
            match (number, wire, inner) {
                (1, Wire::Bytes(bytes), _) => key = text(bytes)?,
                (2, Wire::Bytes(bytes), Shape::List(items)) => {
                    value = self.wrapped(bytes, items, depth)?;
                }
                (2, wire, inner) => value = self.value(wire, inner, depth)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn value(
        &mut self,
        wire: Wire<'_>,
        shape: &'static Shape,
        depth: usize,
    ) -> Result<Value, ProtoError> {
        Ok(match (shape, wire) {
            (Shape::String, Wire::Bytes(bytes)) => text(bytes)?.into(),
            (Shape::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
            (Shape::Bool, Wire::Varint(n)) => (n != 0).into(),
            (Shape::Int32 | Shape::Int64, Wire::Varint(n)) => n.cast_signed().into(),
            (Shape::Double, Wire::Fixed64(n)) => {
                Number::from_f64(f64::from_bits(n)).map_or(Value::Null, Value::Number)
            }
            (Shape::Double, Wire::Fixed32(n)) => {
                Number::from_f64(f32::from_bits(n).into()).map_or(Value::Null, Value::Number)
            }
            (Shape::Quantity, Wire::Bytes(bytes)) => quantity(bytes)?,
            (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
            (Shape::Time | Shape::MicroTime, Wire::Bytes(bytes)) => {
                time(bytes, matches!(shape, Shape::MicroTime))?
            }
            (Shape::Any, Wire::Bytes(bytes)) => raw(bytes)?,
            (Shape::Struct(ty), Wire::Bytes(bytes)) => {
                let mut map = Map::new();
                self.message(bytes, ty, ty.name, &mut map, depth + 1)?;
                Value::Object(map)
            }
            _ => {
                return Err(ProtoError::Wire {
                    at: 0,
                    what: "a field whose wire type does not fit its type",
                });
            }
        })
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_i64() == Some(0) || n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 => 0.into(),
        _ => Value::Null,
    }
}

fn quantity(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut cursor = Cursor::new(bytes);
    let mut found = "0".to_owned();
    while let Some((number, wire)) = cursor.field()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            found = text(bytes)?;
        }
    }
    Ok(found.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut cursor = Cursor::new(bytes);
    let (mut is_text, mut int, mut string) = (false, 0, String::new());
    while let Some((number, wire)) = cursor.field()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => is_text = n == 1,
            (2, Wire::Varint(n)) => int = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { int.into() })
}

/// Zero seconds are no time, as upstream reads them.
fn time(bytes: &[u8], micro: bool) -> Result<Value, ProtoError> {
    let mut cursor = Cursor::new(bytes);
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((number, wire)) = cursor.field()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => seconds = n.cast_signed(),
            (2, Wire::Varint(n)) => nanos = u32::try_from(n).unwrap_or(0),
            _ => {}
        }
    }
    // Years beyond what RFC 3339 writes are no times.
    const YEAR_10000_S: i64 = 253_402_300_800;
    if (seconds == 0 && nanos == 0) || !(0..YEAR_10000_S).contains(&seconds) {
        return Ok(Value::Null);
    }
    let time = Time { seconds, nanos };
    Ok(if micro {
        time.to_rfc3339_micro().into()
    } else {
        time.to_rfc3339().into()
    })
}

/// `runtime.RawExtension` and its like: JSON bytes as field 1.
fn raw(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut cursor = Cursor::new(bytes);
    while let Some((number, wire)) = cursor.field()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            let what = "embedded JSON that is none";
            return serde_json::from_slice(bytes).map_err(|_| ProtoError::Wire { at: 0, what });
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn bytes(number: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(number, content);
        out.into_bytes()
    }

    fn int(number: u32, n: u64) -> Vec<u8> {
        let mut out = Writer::default();
        out.int(number, n);
        out.into_bytes()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        let body = [bytes(1, &meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat();
        [&MAGIC[..], &body].concat()
    }

    #[test]
    fn a_pod_as_a_typed_client_sends_it() {
        let entry = [bytes(1, b"a"), bytes(2, b"b")].concat();
        let created = [int(1, 1_700_000_000), int(2, 0)].concat();
        let metadata = [
            bytes(1, b"p"),
            bytes(2, b""),
            bytes(8, &created),
            bytes(11, &entry),
        ]
        .concat();
        let cpu = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"100m"))].concat();
        let port = [int(1, 0), int(2, 80), bytes(3, b"")].concat();
        let get = [bytes(1, b"/"), bytes(2, &port)].concat();
        let handler = bytes(2, &get);
        let probe = [bytes(1, &handler), int(2, 0)].concat();
        let container = [
            bytes(1, b"c"),
            bytes(2, b"i"),
            bytes(8, &bytes(1, &cpu)),
            bytes(10, &probe),
            int(16, 0),
        ]
        .concat();
        let volume = [bytes(1, b"v"), bytes(2, &bytes(2, b""))].concat();
        let spec = [bytes(1, &volume), bytes(2, &container), int(4, 0)].concat();
        let pod = [
            bytes(1, &metadata),
            bytes(2, &spec),
            bytes(3, b""),
            bytes(99, b"?"),
        ]
        .concat();
        let decoded = decode(&envelope("v1", "Pod", &pod)).unwrap();
        assert_eq!(
            decoded,
            json!({"apiVersion": "v1", "kind": "Pod", "status": {},
                "metadata": {"name": "p", "creationTimestamp": "2023-11-14T22:13:20Z", "labels": {"a": "b"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": 80}}}]}})
        );
    }

    #[test]
    fn what_is_no_object() {
        assert_eq!(decode(b"{}"), Err(ProtoError::Magic));
        let kind = decode(&envelope("v1", "Nope", b""));
        assert!(matches!(kind, Err(ProtoError::Type { .. })), "{kind:?}");
        for bad in [
            &b"\x0a\xff"[..],
            b"\x0b",
            b"\x0a\x05ab",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            let error = decode(&envelope("v1", "Pod", bad));
            assert!(
                matches!(error, Err(ProtoError::Wire { .. })),
                "{bad:?}: {error:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_badly(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&envelope("v1", "Pod", &raw));
            let _ = decode(&raw);
        }
    }
}
