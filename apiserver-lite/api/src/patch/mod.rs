//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and
//! Kubernetes' strategic merge patch.
//!
//! Each takes the current object by value and gives the patched one, or an
//! error and nothing. What fits the type, what is immutable and what to do
//! about conflicts is for the caller.

mod strategic;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub use strategic::strategic;

/// Most operations of one JSON patch, as upstream.
pub const MAX_JSON_PATCH_OPERATIONS_COUNT: usize = 10_000;
/// Most copies by JSON patch operations, in bytes of JSON text, so that a few
/// `copy` operations cannot double an object forever (upstream: 3 MiB).
pub const MAX_JSON_PATCH_COPIED_BYTES: usize = 3 << 20;

/// Why a patch does not apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch has not the shape of its kind.
    #[error("{reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// More operations, or more copying, than a patch may do.
    #[error("the patch does more than {limit} {what}")]
    TooMuch {
        /// The limit.
        limit: usize,
        /// What it counts.
        what: &'static str,
    },
    /// A `test` operation found another value.
    #[error("testing path {path} failed")]
    TestFailed {
        /// The JSON pointer.
        path: String,
    },
    /// An operation's path is not there.
    #[error("{op} operation does not apply: doc is missing path: {path}")]
    Missing {
        /// The operation.
        op: &'static str,
        /// The JSON pointer.
        path: String,
    },
    /// There is no such operation.
    #[error("Unexpected kind: {op}")]
    Operation {
        /// The word for it.
        op: String,
    },
    /// An element of a merged list lacks the field that identifies it.
    #[error("map: {element} does not contain declared merge key: {key}")]
    NoMergeKey {
        /// The element as Go prints it.
        element: String,
        /// The name of the field.
        key: &'static str,
    },
    /// `$patch` with a value that has no meaning here.
    #[error("unknown patch type: {directive} in map: {holder}")]
    BadDirective {
        /// The directive as Go prints it.
        directive: String,
        /// The map that has it, printed likewise.
        holder: String,
    },
    /// `$setElementOrder` does not list the patch's elements in their order.
    #[error("the order in the patch list does not match $setElementOrder/{field}")]
    OrderMismatch {
        /// The list's field.
        field: String,
    },
    /// `$retainKeys` does not name a field that the patch sets.
    #[error("$retainKeys does not contain {field}, which the patch sets")]
    NotRetained {
        /// The field.
        field: String,
    },
}

impl PatchError {
    /// Whether the patch is read and does not apply: a 422, where the others are a 400.
    #[must_use]
    pub const fn is_unprocessable(&self) -> bool {
        matches!(
            self,
            Self::TestFailed { .. } | Self::Missing { .. } | Self::Operation { .. }
        )
    }

    /// Whether upstream takes it for a failure of its own: a 500.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::NoMergeKey { .. } | Self::BadDirective { .. })
    }
}

fn malformed(reason: impl Into<String>) -> PatchError {
    PatchError::Malformed {
        reason: reason.into(),
    }
}

/// Applies a JSON merge patch (RFC 7386): `null` removes, maps merge, all
/// else replaces.
///
/// # Errors
/// Where the patch is no map.
pub fn merge(mut object: Value, patch: Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(malformed("a merge patch must be a map"));
    }
    merge_value(&mut object, patch);
    Ok(object)
}

fn merge_value(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge_value(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Applies a JSON patch (RFC 6902).
///
/// # Errors
/// Where the patch is no list of operations, a `test` fails, or a path is not
/// there.
pub fn json(mut object: Value, patch: &Value) -> Result<Value, PatchError> {
    let Some(operations) = patch.as_array() else {
        return Err(malformed("a JSON patch must be a list of operations"));
    };
    if operations.len() > MAX_JSON_PATCH_OPERATIONS_COUNT {
        let what = "operations";
        return Err(PatchError::TooMuch {
            limit: MAX_JSON_PATCH_OPERATIONS_COUNT,
            what,
        });
    }
    let mut copied = 0;
    for operation in operations {
        apply(&mut object, operation, &mut copied)?;
    }
    Ok(object)
}

fn apply(object: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), PatchError> {
    let text = |name: &str| {
        let found = operation.get(name).and_then(Value::as_str);
        found.ok_or_else(|| malformed(format!("an operation lacks {name:?}: {operation}")))
    };
    let value = || {
        let found = operation.get("value").cloned();
        found.ok_or_else(|| malformed(format!("an operation lacks \"value\": {operation}")))
    };
    let op = text("op")?;
    let path = Pointer::parse(text("path")?, known(op))?;
    match op {
        "add" => path.add(object, value()?, "add"),
        "remove" => path.remove(object, "remove").map(drop),
        "replace" => path.replace(object, value()?),
        "test" => {
            let value = value()?;
            let found = path.find(object).map_or(&Value::Null, |v| v);
            if equal(found, &value) {
                Ok(())
            } else {
                Err(PatchError::TestFailed { path: path.0 })
            }
        }
        "move" => {
            let from = Pointer::parse(text("from")?, known(op))?;
            if path.0.starts_with(&format!("{}/", from.0)) {
                return Err(malformed("a value cannot be moved into itself"));
            }
            let value = from.remove(object, "move")?;
            path.add(object, value, "move")
        }
        "copy" => {
            let from = Pointer::parse(text("from")?, known(op))?;
            let value = from
                .find(object)
                .ok_or_else(|| from.missing("copy"))?
                .clone();
            *copied += value.to_string().len();
            if *copied > MAX_JSON_PATCH_COPIED_BYTES {
                let limit = MAX_JSON_PATCH_COPIED_BYTES;
                return Err(PatchError::TooMuch {
                    limit,
                    what: "bytes of copies",
                });
            }
            path.add(object, value, "copy")
        }
        op => Err(PatchError::Operation { op: op.to_owned() }),
    }
}

/// The operations that there are.
fn known(op: &str) -> &'static str {
    const OPERATIONS: [&str; 6] = ["add", "remove", "replace", "test", "move", "copy"];
    let found = OPERATIONS.into_iter().find(|o| *o == op);
    found.unwrap_or("patch")
}

/// Equality of RFC 6902, 4.6: numbers by value, so 1 equals 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() != b.is_f64() => {
            a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// A JSON pointer (RFC 6901).
struct Pointer(String);

impl Pointer {
    fn parse(text: &str, op: &'static str) -> Result<Self, PatchError> {
        if !text.is_empty() && !text.starts_with('/') {
            return Err(PatchError::Missing {
                op,
                path: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    fn missing(&self, op: &'static str) -> PatchError {
        PatchError::Missing {
            op,
            path: self.0.clone(),
        }
    }

    fn find<'a>(&self, object: &'a mut Value) -> Option<&'a mut Value> {
        object.pointer_mut(&self.0)
    }

    /// The value that holds this one, and the last token; nothing holds the whole object, which
    /// upstream's library does not replace.
    fn parent<'a>(&self, object: &'a mut Value) -> Option<(&'a mut Value, String)> {
        let (parent, last) = self.0.rsplit_once('/')?;
        let token = last.replace("~1", "/").replace("~0", "~");
        Some((object.pointer_mut(parent)?, token))
    }

    fn add(&self, object: &mut Value, value: Value, op: &'static str) -> Result<(), PatchError> {
        match self.parent(object).ok_or_else(|| self.missing(op))? {
            (Value::Object(map), token) => drop(map.insert(token, value)),
            (Value::Array(items), token) if token == "-" => items.push(value),
            (Value::Array(items), token) => {
                let i = index(&token).filter(|i| *i <= items.len());
                items.insert(i.ok_or_else(|| self.missing(op))?, value);
            }
            _ => return Err(self.missing(op)),
        }
        Ok(())
    }

    /// Sets a field of a map, even where there is none yet, as upstream's library does; an element
    /// of a list must be there.
    fn replace(&self, object: &mut Value, value: Value) -> Result<(), PatchError> {
        match self.parent(object) {
            Some((Value::Object(map), token)) => drop(map.insert(token, value)),
            Some((Value::Array(items), token)) => {
                let found = index(&token).and_then(|i| items.get_mut(i));
                *found.ok_or_else(|| self.missing("replace"))? = value;
            }
            _ => return Err(self.missing("replace")),
        }
        Ok(())
    }

    fn remove(&self, object: &mut Value, op: &'static str) -> Result<Value, PatchError> {
        let removed = match self.parent(object).ok_or_else(|| self.missing(op))? {
            (Value::Object(map), token) => map.remove(&token),
            (Value::Array(items), token) => index(&token)
                .filter(|i| *i < items.len())
                .map(|i| items.remove(i)),
            _ => None,
        };
        removed.ok_or_else(|| self.missing(op))
    }
}

/// An array index: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let fits = token == "0" || !token.starts_with(['0', '+']);
    fits.then(|| token.parse().ok()).flatten()
}
