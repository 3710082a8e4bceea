//! A value together with its path: what defaulting-free readers walk on.
//!
//! An [`At`] is two words and a step on the stack; the path is materialised
//! only when an error is reported. Absent and `null` values read alike, as
//! they do in upstream's typed structs.

use serde_json::{Map, Value};

use crate::field::{ErrorKind, Errors, FieldError, FieldPath, Segment, shown};

static NULL: Value = Value::Null;

#[derive(Debug, Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
    Key(&'p str),
}

/// A value at a path. `'v` is the object's lifetime, `'p` the path's.
#[derive(Debug, Clone, Copy)]
pub struct At<'v, 'p> {
    value: &'v Value,
    parent: Option<&'p At<'v, 'p>>,
    step: Step<'p>,
}

impl<'v, 'p> At<'v, 'p> {
    /// The root of an object.
    #[must_use]
    pub const fn root(value: &'v Value) -> At<'v, 'v> {
        At {
            value,
            parent: None,
            step: Step::Root,
        }
    }

    /// The field `name`; absent unless this is an object that has it.
    #[must_use]
    pub fn get<'b>(&'b self, name: &'b str) -> At<'v, 'b> {
        let value = self.value.get(name).unwrap_or(&NULL);
        At {
            value,
            parent: Some(self),
            step: Step::Field(name),
        }
    }

    /// This value under another field's name.
    #[must_use]
    pub const fn renamed(self, name: &'p str) -> Self {
        At {
            step: Step::Field(name),
            ..self
        }
    }

    /// This place with the value of another one: upstream reports some values where they do not
    /// stand.
    #[must_use]
    pub const fn with_value(self, value: &'v Value) -> Self {
        At { value, ..self }
    }

    /// The entry `key` of a map; absent unless this is a map that has it.
    #[must_use]
    pub fn key<'b>(&'b self, key: &'b str) -> At<'v, 'b> {
        At {
            step: Step::Key(key),
            ..self.get(key)
        }
    }

    /// The elements of a list; none unless this is one.
    pub fn items<'b>(&'b self) -> impl Iterator<Item = At<'v, 'b>> + 'b {
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(i, value)| At {
            value,
            parent: Some(self),
            step: Step::Index(i),
        })
    }

    /// The fields of an object with their names; none unless this is one.
    pub fn fields<'b>(&'b self) -> impl Iterator<Item = (&'v str, At<'v, 'b>)> + 'b
    where
        'v: 'b,
    {
        self.entries().map(|(name, at)| (name, at.renamed(name)))
    }

    /// The entries of a map with their keys; none unless this is one.
    pub fn entries<'b>(&'b self) -> impl Iterator<Item = (&'v str, At<'v, 'b>)> + 'b
    where
        'v: 'b,
    {
        self.value
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(key, value)| {
                (
                    key.as_str(),
                    At {
                        value,
                        parent: Some(self),
                        step: Step::Key(key),
                    },
                )
            })
    }

    /// The value itself.
    #[must_use]
    pub const fn value(&self) -> &'v Value {
        self.value
    }

    /// Whether a value other than `null` is there.
    #[must_use]
    pub fn is_some(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether the value is absent or `null`.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.value.is_null()
    }

    /// The text, or "" where there is none.
    #[must_use]
    pub fn str(&self) -> &'v str {
        self.value.as_str().unwrap_or("")
    }

    /// The integer, if there is one.
    #[must_use]
    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether this is `true`.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    /// Whether this is `false` (and not absent).
    #[must_use]
    pub fn is_false(&self) -> bool {
        self.value.as_bool() == Some(false)
    }

    /// The entries of an object.
    #[must_use]
    pub fn map(&self) -> Option<&'v Map<String, Value>> {
        self.value.as_object()
    }

    /// Elements of a list or entries of a map.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        }
    }

    /// Whether there is no element, entry or value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many steps this is from the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        let mut depth = 0;
        let mut at = self.parent;
        while let Some(here) = at {
            depth += 1;
            at = here.parent;
        }
        depth
    }

    /// The whole path from the root.
    #[must_use]
    pub fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut at = Some(self);
        while let Some(here) = at {
            match here.step {
                Step::Root => {}
                Step::Field(name) => steps.push(Segment::Field(name.into())),
                Step::Index(index) => steps.push(Segment::Index(index)),
                Step::Key(key) => steps.push(Segment::Key(key.into())),
            }
            at = here.parent;
        }
        steps.reverse();
        FieldPath(steps)
    }

    /// Reports an error of `kind` that shows this value.
    pub fn error(&self, errors: &mut Errors, kind: ErrorKind, detail: impl Into<Box<str>>) {
        self.error_value(errors, kind, shown(self.value), detail);
    }

    /// Reports an error that shows another value than the one here.
    pub fn error_value(
        &self,
        errors: &mut Errors,
        kind: ErrorKind,
        value: impl Into<Box<str>>,
        detail: impl Into<Box<str>>,
    ) {
        let value = match kind {
            ErrorKind::Required
            | ErrorKind::Forbidden
            | ErrorKind::Unknown
            | ErrorKind::TooLong => None,
            _ => Some(value.into()),
        };
        errors.push(FieldError {
            path: self.path(),
            kind,
            value,
            detail: detail.into(),
        });
    }

    /// `Invalid value`.
    pub fn invalid(&self, errors: &mut Errors, detail: impl Into<Box<str>>) {
        // Upstream's zero values: an absent string reads as "".
        let value = if self.value.is_null() {
            "\"\"".into()
        } else {
            shown(self.value)
        };
        self.error_value(errors, ErrorKind::Invalid, value, detail);
    }

    /// `Required value`.
    pub fn required(&self, errors: &mut Errors, detail: impl Into<Box<str>>) {
        self.error(errors, ErrorKind::Required, detail);
    }

    /// `Forbidden`.
    pub fn forbidden(&self, errors: &mut Errors, detail: impl Into<Box<str>>) {
        self.error(errors, ErrorKind::Forbidden, detail);
    }

    /// `Duplicate value`.
    pub fn duplicate(&self, errors: &mut Errors) {
        self.error(errors, ErrorKind::Duplicate, "");
    }

    /// `Not found`.
    pub fn not_found(&self, errors: &mut Errors) {
        self.error(errors, ErrorKind::NotFound, "");
    }

    /// `Unsupported value`, naming the supported ones.
    pub fn unsupported(&self, errors: &mut Errors, supported: &[&str]) {
        let value = if self.value.is_null() {
            "\"\"".into()
        } else {
            shown(self.value)
        };
        self.error_value(
            errors,
            ErrorKind::NotSupported,
            value,
            supported_values(supported),
        );
    }
}

/// The phrase that lists a closed set of values, in their order.
#[must_use]
pub fn supported_values(supported: &[&str]) -> String {
    let names: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    format!("supported values: {}", names.join(", "))
}
