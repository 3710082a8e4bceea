//! Strict field checks: unknown fields, wrong types, values out of range.
//!
//! Driven by the type tables alone. What upstream's decoder rejects is
//! rejected by [`check`]; [`check_required`] adds the fields that the API
//! description lists as required, for kinds without a validation of their own.
//! `null` stands for an absent value, as in upstream.

use serde_json::Value;

use crate::field::{ErrorKind, Errors, FieldError};
use crate::quantity::Quantity;
use crate::time::{has_microseconds, is_rfc3339};
use crate::types::{Field, Shape, Type};
use crate::view::{At, supported_values};

/// Every field of `value` that `ty` does not have, or whose value does not fit.
#[must_use]
pub fn check(value: &Value, ty: &'static Type) -> Vec<FieldError> {
    let mut checker = Checker {
        errors: Errors::default(),
        owners: Vec::new(),
        required: false,
    };
    checker.object(&At::root(value), ty);
    checker.errors.into_vec()
}

/// As [`check`], and every missing field that the API description lists as
/// required, the status left out (who writes manifests does not write it).
#[must_use]
pub fn check_required(value: &Value, ty: &'static Type) -> Vec<FieldError> {
    let mut checker = Checker {
        errors: Errors::default(),
        owners: Vec::new(),
        required: true,
    };
    checker.object(&At::root(value), ty);
    checker.errors.into_vec()
}

/// Removes every field of a struct that is `null`, as upstream's decoder does.
/// Values without a type (`any`) keep theirs.
pub fn drop_nulls(value: &mut Value, ty: &'static Type) {
    let Some(map) = value.as_object_mut() else {
        return;
    };
    map.retain(|name, value| !(value.is_null() && ty.field(name).is_some()));
    for (name, value) in map.iter_mut() {
        if let Some(field) = ty.field(name) {
            drop_nulls_in(value, &field.shape);
        }
    }
}

fn drop_nulls_in(value: &mut Value, shape: &'static Shape) {
    match (shape, value) {
        (Shape::Struct(ty), value) => drop_nulls(value, ty),
        (Shape::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| drop_nulls_in(item, inner));
        }
        (Shape::Map(inner), Value::Object(map)) => {
            map.iter_mut()
                .for_each(|(_, entry)| drop_nulls_in(entry, inner));
        }
        _ => {}
    }
}

struct Checker {
    errors: Errors,
    /// The types from the root to here with the depths of their values, for
    /// "misplaced" hints.
    owners: Vec<(&'static Type, usize)>,
    required: bool,
}

impl Checker {
    fn object(&mut self, at: &At<'_, '_>, ty: &'static Type) {
        if !at.value().is_object() {
            self.wrong_type(at, "an object");
            return;
        }
        self.owners.push((ty, at.depth()));
        for (name, child) in at.fields() {
            match ty.field(name) {
                Some(field) if child.is_some() => self.field(&child, field),
                Some(_) => {}
                None => {
                    // Hints are dear, and a hostile object has many unknown fields.
                    if self.errors.is_full() {
                        break;
                    }
                    let hint = self.hint(&child, name, ty);
                    child.error(&mut self.errors, ErrorKind::Unknown, hint);
                }
            }
        }
        if self.required {
            for field in ty.fields().iter().filter(|f| f.required) {
                let child = at.get(field.name);
                if child.is_none() {
                    child.required(&mut self.errors, "");
                }
            }
        }
        self.owners.pop();
    }

    fn field(&mut self, at: &At<'_, '_>, field: &'static Field) {
        let required = self.required;
        if field.name == "status" && self.owners.len() == 1 {
            self.required = false;
        }
        let before = self.errors.len();
        self.value(at, &field.shape);
        self.required = required;
        if self.errors.len() == before && field.values.is_some() {
            let one = |at: &At<'_, '_>, errors: &mut Errors| {
                if !field.allows(at.str()) {
                    let allowed = field.allowed().unwrap_or_default();
                    let named: Vec<&str> = allowed
                        .iter()
                        .copied()
                        .filter(|value| !value.is_empty())
                        .collect();
                    at.error(errors, ErrorKind::NotSupported, supported_values(&named));
                }
            };
            if at.value().is_array() {
                at.items().for_each(|item| one(&item, &mut self.errors));
            } else {
                one(at, &mut self.errors);
            }
        }
    }

    fn value(&mut self, at: &At<'_, '_>, shape: &'static Shape) {
        match shape {
            Shape::Any => {}
            Shape::String => self.expect(at, Value::is_string, "a string"),
            Shape::Bool => self.expect(at, Value::is_boolean, "a boolean"),
            Shape::Double => self.expect(at, Value::is_number, "a number"),
            Shape::Int32 => self.integer(at, i32::MIN.into(), i32::MAX.into()),
            Shape::Int64 => self.integer(at, i64::MIN, i64::MAX),
            Shape::IntOrString if at.value().is_string() => {}
            Shape::IntOrString if at.value().is_number() => {
                self.integer(at, i32::MIN.into(), i32::MAX.into());
            }
            Shape::IntOrString => self.wrong_type(at, "an integer or a string"),
            Shape::Bytes => self.text(at, |text| base64(text).is_some(), "bytes in base64"),
            Shape::MicroTime => self.text(
                at,
                |text| is_rfc3339(text) && has_microseconds(text),
                "a time in RFC 3339 form with microseconds, such as 2006-01-02T15:04:05.000000Z",
            ),
            Shape::Time => {
                self.text(
                    at,
                    is_rfc3339,
                    "a time in RFC 3339 form, such as 2006-01-02T15:04:05Z",
                );
            }
            Shape::Quantity => {
                if !at.value().is_string() && !at.value().is_number() {
                    self.wrong_type(at, "a quantity, such as \"100m\" or 2");
                } else if let Err(error) = Quantity::from_json(at.value()) {
                    at.error(&mut self.errors, ErrorKind::Invalid, error.to_string());
                }
            }
            Shape::Struct(ty) => self.object(at, ty),
            Shape::List(inner) => {
                if !at.value().is_array() {
                    self.wrong_type(at, "a list");
                }
                for item in at.items() {
                    self.element(&item, inner);
                }
            }
            Shape::Map(inner) => {
                if !at.value().is_object() {
                    self.wrong_type(at, "a map");
                }
                for (_, entry) in at.entries() {
                    self.element(&entry, inner);
                }
            }
            Shape::OneOf(shapes) => {
                let fits = shapes.iter().find(|s| match s {
                    Shape::Struct(_) => at.value().is_object(),
                    Shape::List(_) => at.value().is_array(),
                    _ => at.value().is_boolean(),
                });
                match fits {
                    Some(shape) => self.value(at, shape),
                    None => self.wrong_type(at, "a schema, a boolean or a list"),
                }
            }
        }
    }

    /// An element of a list or map, where `null` is no value. Upstream reads
    /// it as the type's zero value, which is never what was meant.
    fn element(&mut self, at: &At<'_, '_>, shape: &'static Shape) {
        if at.is_none() && !matches!(shape, Shape::Any) {
            self.wrong_type(at, "a value");
        } else {
            self.value(at, shape);
        }
    }

    fn expect(&mut self, at: &At<'_, '_>, fits: fn(&Value) -> bool, what: &str) {
        if !fits(at.value()) {
            self.wrong_type(at, what);
        }
    }

    fn text(&mut self, at: &At<'_, '_>, fits: fn(&str) -> bool, what: &str) {
        match at.value().as_str() {
            Some(text) if fits(text) => {}
            Some(_) => at.error(
                &mut self.errors,
                ErrorKind::Invalid,
                format!("must be {what}"),
            ),
            None => self.wrong_type(at, what),
        }
    }

    fn integer(&mut self, at: &At<'_, '_>, low: i64, high: i64) {
        match at.value().as_i64() {
            Some(number) if (low..=high).contains(&number) => {}
            Some(_) => {
                at.error(
                    &mut self.errors,
                    ErrorKind::Invalid,
                    crate::names::range(low, high),
                );
            }
            None if at.value().is_u64() => {
                at.error(
                    &mut self.errors,
                    ErrorKind::Invalid,
                    crate::names::range(low, high),
                );
            }
            None => self.wrong_type(at, "an integer"),
        }
    }

    fn wrong_type(&mut self, at: &At<'_, '_>, want: &str) {
        let got = match at.value() {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(n) if n.is_f64() => "a fraction",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        // `value: yes` and `value: 8080` are the classic of YAML.
        let quote = want == "a string" && matches!(at.value(), Value::Bool(_) | Value::Number(_));
        let hint = if quote { "; put it in quotes" } else { "" };
        at.error(
            &mut self.errors,
            ErrorKind::TypeInvalid,
            format!("must be {want}, not {got}{hint}"),
        );
    }

    /// What may have been meant by an unknown field: a similar name here, or
    /// the same name in a type further up or one level down.
    fn hint(&self, at: &At<'_, '_>, name: &str, ty: &'static Type) -> String {
        if let Some(near) = nearest(name, ty.fields().iter().map(|f| f.name)) {
            return format!("did you mean {near}?");
        }
        let above = self
            .owners
            .iter()
            .rev()
            .skip(1)
            .find(|(t, _)| t.field(name).is_some());
        if let Some((_, depth)) = above {
            let mut path = at.path();
            path.0.truncate(*depth);
            return format!("did you mean {}?", path.field(name));
        }
        let below = ty.fields().iter().find(|f| match &f.shape {
            Shape::Struct(inner) => inner.field(name).is_some(),
            Shape::List(list) => {
                matches!(&**list, Shape::Struct(inner) if inner.field(name).is_some())
            }
            _ => false,
        });
        match below {
            Some(field) if matches!(field.shape, Shape::List(_)) => {
                format!("did you mean {}[].{name}?", field.name)
            }
            Some(field) => format!("did you mean {}.{name}?", field.name),
            None => String::new(),
        }
    }
}

/// The name of fewest edits from `name`, if it is near enough to be meant.
fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    /// Names of fields are shorter; longer input is no misspelling.
    const MAX_NAME_BYTES: usize = 64;
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let budget = name.len() / 3;
    names
        .map(|candidate| (distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(edits, _)| *edits <= budget.min(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Bytes from standard base64 with padding; line breaks are ignored, as in Go.
#[must_use]
pub fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    if text.contains(['\r', '\n']) {
        return engine.decode(text.replace(['\r', '\n'], "")).ok();
    }
    engine.decode(text).ok()
}

#[cfg(test)]
mod tests;
